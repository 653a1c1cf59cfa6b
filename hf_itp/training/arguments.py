"""Arguments of the trainers: those of transformers or TRL, and those of CTRL's objective."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from accelerate.state import PartialState
from transformers import TrainingArguments
from trl import RLOOConfig

from hf_itp.checks import check_choice
from hf_itp.training.objective import ObjectiveArguments


class TokensStayHere:
    """
    Arguments that are pickled without their tokens: transformers pickles them into every checkpoint, as
    `training_args.bin`, and pushes it. Copies in memory keep the tokens.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


@dataclass
class CTRLArguments(TokensStayHere, ObjectiveArguments, RLOOConfig):  # type: ignore[misc]  # `beta` may be absent
    """
    Configure [`CTRLTrainer`]: arguments of [`~hf_itp.training.objective.ObjectiveArguments`], whose `beta` replaces
    TRL's, and of TRL's `RLOOConfig`. vLLM, DeepSpeed and FSDP settings pass through.

    Args:
        shared_prefix_rollouts (`bool`, *optional*, defaults to `True`):
            Run each prompt once for all its responses, instead of TRL's `generate`.

    Examples:

    ```python
    >>> args = CTRLArguments("outputs/ctrl", strategy="best_of_n", num_candidates=4, target_kl=0.5, report_to="none")

    ```
    """

    _VALID_DICT_FIELDS = [*RLOOConfig._VALID_DICT_FIELDS, "strategy_fields"]  # noqa: RUF012  as in TRL

    shared_prefix_rollouts: bool = field(
        default=True, metadata={"help": "Run each prompt once for all its responses, instead of TRL's generate."}
    )

    def __post_init__(self) -> None:
        _settle_precision(self)
        super().__post_init__()


@dataclass
class QuantileRegressionArguments(TokensStayHere, ObjectiveArguments, TrainingArguments):
    """
    Configure [`QuantileRegressionTrainer`]: arguments of [`~hf_itp.training.objective.ObjectiveArguments`] and of
    `transformers.TrainingArguments`.

    Args:
        partition (`str`, *optional*, defaults to `"exact"`):
            How to compute `log Z`: `exact` is the integral for rewards without ties; `empirical` is the mean over the
            prompt's references, correct with ties too.
        responses_per_prompt (`int`, *optional*):
            Train on the first so many references of a prompt, each calibrated among all of them. Defaults to all.
        max_completion_length (`int`, *optional*, defaults to 256):
            Maximum tokens of a response, if references are drawn.
        generation_kwargs (`dict`, *optional*):
            Further settings of `generate` for drawing references. They override the checkpoint's.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template, e.g. `{"enable_thinking": False}`.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012
        *TrainingArguments._VALID_DICT_FIELDS,
        "strategy_fields",
        "generation_kwargs",
        "chat_template_kwargs",
    ]
    references_are_trained_on: ClassVar[bool] = True

    partition: str = field(default="exact", metadata={"help": "exact, or empirical if rewards tie."})
    responses_per_prompt: int | None = field(
        default=None, metadata={"help": "Train on the first so many references of a prompt. Default: all."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Maximum tokens of a drawn response."})
    generation_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further settings of generate for drawing references."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Arguments of the chat template, e.g. {"enable_thinking": false}.'}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False  # the trainer makes the columns itself
        check_choice("partition", self.partition, ("exact", "empirical"), "Choose empirical if rewards tie.")


def _settle_precision(args: CTRLArguments) -> None:
    # TRL defaults to bfloat16, which transformers refuses without an accelerator.
    if args.bf16 is None and PartialState(cpu=args.use_cpu).device.type == "cpu":
        args.bf16 = False
