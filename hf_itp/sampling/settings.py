"""
Switch off the settings of a draw that neither the caller nor the policy's generation config sets.

transformers would decode greedily, and cut distributions at `top_k=50`. Candidates are drawn from the policy itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessorList, TopKLogitsWarper

from hf_itp.errors import ItpWarning


def sources_of(
    policy: PreTrainedModel, arguments: Mapping[str, Any], config: GenerationConfig | None = None
) -> list[Mapping[str, Any]]:
    """Return where a setting can come from, in order of precedence: keywords, the caller's config, the policy's."""
    return [arguments, {} if config is None else config.to_dict(), policy.generation_config.to_dict()]


def first_set(name: str, sources: Sequence[Mapping[str, Any]]) -> Any:
    """Return the value of a setting in the first source that sets it; `None` if none does."""
    return next((source[name] for source in sources if source.get(name) is not None), None)


def unset_is_off(
    policy: PreTrainedModel, arguments: Mapping[str, Any], config: GenerationConfig | None = None
) -> dict[str, Any]:
    """
    Return the keywords of `generate` to add so that sampling is on, and `top_k` off if nobody set it.

    Args:
        policy (`PreTrainedModel`): The model that draws.
        arguments (`dict`): Keywords the caller passes.
        config (`GenerationConfig`, *optional*): Config the caller passes.
    """
    sources = sources_of(policy, arguments, config)
    do_sample = first_set("do_sample", sources[:2])  # a checkpoint that decodes greedily draws candidates too
    added: dict[str, Any] = {"do_sample": True} if do_sample is None else {}
    if do_sample is not False and first_set("top_k", sources) is None:
        added["top_k"] = 0
    return added


def without_default_top_k(policy: PreTrainedModel, processors: LogitsProcessorList) -> LogitsProcessorList:
    """Remove the `top_k=50` that transformers adds unless the policy sets one; warn if there was one."""
    if "top_k" not in unset_is_off(policy, {}):
        return processors
    kept = [one for one in processors if not (type(one) is TopKLogitsWarper and one.top_k == 50)]
    if len(kept) < len(processors):
        warnings.warn(
            "`top_k` is 50, transformers' value where nobody sets one, so it is switched off: candidates are drawn "
            "from the policy itself. Pass top_k=0 to say so, or keep_top_k_50=True to StrategyDecoding to keep it.",
            ItpWarning,
            stacklevel=2,
        )
    return LogitsProcessorList(kept)
