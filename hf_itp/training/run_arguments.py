"""What a training run reads beside the trainer's own arguments: models, data, adapters."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunArguments:
    """
    Args:
        model (`str`): Policy: Hub id, local folder or `embedded`.
        reward_model (`list[str]`): Hub ids, folders or `embedded`; several are averaged.
        solver (`str`): `rl` (TRL's RLOO) or `quantile_regression` (no rollouts, one machine).
        train_file (`str`, *optional*): JSON lines with a `prompt`.
        dataset_name, dataset_config, dataset_train_split, prompt_column (`str`, *optional*): A data set of the Hub.
        plain (`bool`): Continue text prompts as plain text. Without it a text is a user's message if the policy has a
            chat template, as in `hf-itp calibrate` and `hf-itp generate`.
        calibration (`str`, *optional*): Folder or repository that `hf-itp calibrate` wrote. A regression needs the
            folder, and trains on all prompts of it where no data are given.
        lora_r, lora_alpha, lora_target_modules: Adapters; none where `lora_r` is 0.
        dtype (`str`): The policy's.
    """

    model: str = field(default="embedded", metadata={"help": "Policy: Hub id, local folder or 'embedded'."})
    reward_model: list[str] = field(
        default_factory=lambda: ["embedded"],
        metadata={"help": "Hub ids, folders or 'embedded'; several are averaged."},
    )
    solver: str = field(default="rl", metadata={"help": "rl (TRL's RLOO) or quantile_regression (no rollouts)."})
    train_file: str | None = field(default=None, metadata={"help": "JSON lines with a `prompt`, text or chat."})
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub instead."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its split."})
    prompt_column: str = field(default="prompt", metadata={"help": "Its column of prompts."})
    plain: bool = field(
        default=False, metadata={"help": "Continue text prompts as plain text, without the policy's chat template."}
    )
    calibration: str | None = field(
        default=None, metadata={"help": "What `hf-itp calibrate` wrote; drawn at the start if absent."}
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains the whole model."})
    lora_alpha: int = field(default=32, metadata={"help": "Their scale."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Where they go; peft's choice."})
    dtype: str = field(default="auto", metadata={"help": "The policy's: auto, float32 or bfloat16."})
