"""Arguments of a training run besides the trainer's: models, data, adapters."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunArguments:
    """
    Models, data and adapters of a run.

    Args:
        model (`str`): Policy: Hub id, local folder or `embedded`.
        reward_model (`list[str]`): Reward models: Hub ids, local folders, `embedded`, or functions `FILE.py:NAME` or
            `MODULE:NAME`, whose code is run; several are averaged.
        solver (`str`): `rl` (TRL's RLOO) or `quantile_regression` (no rollouts, one machine).
        train_file (`str`, *optional*): JSON lines with a `prompt`.
        dataset_name, dataset_config, dataset_train_split, prompt_column (`str`, *optional*): A data set of the Hub.
        plain (`bool`): Continue text prompts as plain text. Without it a text is a user's message if the policy has a
            chat template, as in `hf-itp calibrate` and `hf-itp generate`.
        tools, documents (`str`, *optional*): Files of JSON for the chat template, beside `chat_template_kwargs`; the
            columns `tools`, `documents` and `chat_template_kwargs` of a row go before them.
        calibration (`str`, *optional*): Folder or repository that `hf-itp calibrate` wrote. A regression needs the
            folder, and without data trains on all its prompts.
        lora_r, lora_alpha, lora_target_modules: LoRA adapters; `lora_r=0` trains the whole model.
        dtype (`str`): Data type of the policy.
    """

    model: str = field(default="embedded", metadata={"help": "Policy: Hub id, local folder or 'embedded'."})
    reward_model: list[str] = field(
        default_factory=lambda: ["embedded"],
        metadata={
            "help": "Reward models: Hub ids, local folders, 'embedded', or functions FILE.py:NAME, whose code is "
            "run; several are averaged."
        },
    )
    solver: str = field(default="rl", metadata={"help": "rl (TRL's RLOO) or quantile_regression (no rollouts)."})
    train_file: str | None = field(default=None, metadata={"help": "JSON lines with a `prompt`, text or chat."})
    dataset_name: str | None = field(default=None, metadata={"help": "Data set of the Hub instead."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its split."})
    prompt_column: str = field(default="prompt", metadata={"help": "Its column of prompts."})
    plain: bool = field(
        default=False, metadata={"help": "Continue text prompts as plain text, without the policy's chat template."}
    )
    tools: str | None = field(
        default=None, metadata={"help": "File with a JSON list of what the policy may call, for its chat template."}
    )
    documents: str | None = field(
        default=None, metadata={"help": "File with a JSON list of documents to answer from, likewise."}
    )
    calibration: str | None = field(
        default=None, metadata={"help": "Folder that `hf-itp calibrate` wrote. Default: draw references at the start."}
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains the whole model."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules with adapters. Default: peft's choice."}
    )
    dtype: str = field(default="auto", metadata={"help": "Data type of the policy: auto, float32 or bfloat16."})
