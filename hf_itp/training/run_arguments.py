"""Arguments of a training run besides the trainer's: models, data, adapters."""

from __future__ import annotations

from dataclasses import dataclass, field


def _both(*names: str) -> list[str]:
    """Return options of these names with underscores and with dashes."""
    return [f"--{form}" for name in names for form in (name, name.replace("_", "-"))]


@dataclass
class RunArguments:
    """
    Models, data and adapters of a run.

    Args:
        model (`str`): Policy: Hub id, local folder or `embedded`.
        reward_model (`list[str]`): Reward models: Hub ids, local folders, `embedded`, or functions `FILE.py:NAME` or
            `MODULE:NAME`, whose code is run; several are averaged. `model_name_or_path`, and `reward_funcs` or
            `reward_model_name_or_path`, are TRL's names of these two.
        solver (`str`): `rl` (TRL's RLOO) or `quantile_regression` (no rollouts, one machine).
        train_file (`str`, *optional*): JSON lines with a `prompt`.
        eval_file (`str`, *optional*): The same, to evaluate on during training, at the steps of `eval_strategy`.
        dataset_name (`str`, *optional*): Data set of the Hub, or a folder or file that [`~pools.datasets.load_rows`]
            takes; `dataset_config` is its configuration, `prompt_column` its column of prompts.
        dataset_train_split (`str`): Its split to train on.
        dataset_test_split (`str`): Its split to evaluate on, with an `eval_strategy` and without `eval_file`.
        plain (`bool`): Continue text prompts as plain text. Without it a text is a user's message if the policy has a
            chat template, as in `hf-itp calibrate` and `hf-itp generate`.
        tools, documents (`str`, *optional*): Files of JSON for the chat template, beside `chat_template_kwargs`; the
            columns `tools`, `documents` and `chat_template_kwargs` of a row go before them.
        calibration (`str`, *optional*): Folder or repository that `hf-itp calibrate` wrote. A regression needs the
            folder, and without data trains on all its prompts.
        lora_r, lora_alpha, lora_target_modules: LoRA adapters; `lora_r=0` trains the whole model.
        dtype (`str`): Data type of the policy.
        license (`str`, *optional*): Licence id for the card. Defaults to that of the policy's own card.
    """

    model: str = field(
        default="embedded",
        metadata={"help": "Policy: Hub id, local folder or 'embedded'.", "aliases": _both("model_name_or_path")},
    )
    reward_model: list[str] = field(
        default_factory=lambda: ["embedded"],
        metadata={
            "help": "Reward models: Hub ids, local folders, 'embedded', or functions FILE.py:NAME, whose code is "
            "run; several are averaged.",
            "aliases": _both("reward_funcs", "reward_model_name_or_path"),
        },
    )
    solver: str = field(default="rl", metadata={"help": "rl (TRL's RLOO) or quantile_regression (no rollouts)."})
    train_file: str | None = field(default=None, metadata={"help": "JSON lines with a `prompt`, text or chat."})
    eval_file: str | None = field(
        default=None, metadata={"help": "The same, to evaluate on during training. Needs --eval_strategy."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set instead of a file: Hub id, folder, or file of rows."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Its split to evaluate on during training, with --eval_strategy."}
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of prompts."})
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
    license: str | None = field(
        default=None, metadata={"help": "Licence id for the card, e.g. apache-2.0. Default: the policy's."}
    )
