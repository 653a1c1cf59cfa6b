"""Switch the adapters of a policy off for a while: what is left is the policy they were trained from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_itp.errors import ArgumentError


@contextmanager
def reference_of(policy: Any, reference: Any) -> Iterator[Any]:
    """
    Yield the reference policy: the one given, else the policy with its adapters switched off within.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): The trained policy.
        reference (`PreTrainedModel`, *optional*): The policy it was trained from.

    Raises:
        `ArgumentError`: If neither is known.
    """
    if reference is not None:
        yield reference
    elif not getattr(policy, "peft_config", None):
        raise ArgumentError(
            f"`reference` must be given for a policy without adapters, got none for a {type(policy).__name__}. Pass "
            "the policy that it was trained from."
        )
    elif hasattr(policy, "disable_adapter"):  # a PeftModel
        with policy.disable_adapter():
            yield policy
    else:
        # transformers' own `disable_adapters` refuses releases of peft that load and run; its layers can do it.
        switched = [module for module in policy.modules() if getattr(module, "disable_adapters", None) is False]
        try:
            for module in switched:
                module.enable_adapters(False)
            yield policy
        finally:
            for module in switched:
                module.enable_adapters(True)
