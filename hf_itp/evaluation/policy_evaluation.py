"""
Compare a trained policy with its reference policy on prompts: win rates, plain and under a strategy, and the KL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_itp.calibration import RewardCalibrator
from hf_itp.calibration.columns import check_columns, distinct_prompts
from hf_itp.calibration.draw_record import pool_settings, recorded_identities
from hf_itp.calibration.fingerprints import model_identity, policy_identity, reward_identity
from hf_itp.calibration.references import reference_table
from hf_itp.checks import check_count, check_law
from hf_itp.errors import ArgumentError, RewardError
from hf_itp.evaluation.sweep import mean_law
from hf_itp.functional.win_rates import Estimate, law_win_rates
from hf_itp.policies.adapters import reference_of
from hf_itp.policies.checks import policy_tokenizer
from hf_itp.policies.logprobs import response_logprobs
from hf_itp.pools.draw import check_lengths, draw_references
from hf_itp.pools.schema import Row
from hf_itp.prompts import check_prompts
from hf_itp.rewards import as_reward_function
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.resolve import RewardLike
from hf_itp.sampling.description import DrawDescription, with_length
from hf_itp.sampling.streams import derived_seed
from hf_itp.strategies import Strategy, get_strategy

# Settings under which the law that responses are drawn by is the model's own, or its own at a temperature.
_KEEP_THE_LAW = {"eos_token_id", "max_length", "max_new_tokens", "stop_strings", "temperature"}
# Random subsets of a pool whose laws are averaged, for strategies without a closed form.
_SUBSETS = 64


@dataclass(frozen=True)
class PolicyEvaluation:
    """
    Results of [`evaluate_policy`].

    Args:
        per_prompt (`dict[str, list[float]]`): Each quantity for each prompt.
        prompts (`list`): The prompts, each once.
        settings (`dict`): Names of the models, strategy, numbers of responses, seed, settings of the draw.
        notes (`list[str]`): What was not measured, and why.
    """

    per_prompt: dict[str, list[float]]
    prompts: list[Prompt]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The mean of each quantity over prompts, with its standard error and 95 % interval."""
        return {
            name: Estimate.over_prompts(torch.tensor(values, dtype=torch.float64))
            for name, values in self.per_prompt.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; what one prompt cannot tell, such as an interval, is `None`."""
        found = {}
        for name, estimate in self.estimates.items():
            low, high = estimate.interval
            numbers = {"mean": estimate.mean, "low": low, "high": high, "standard_error": estimate.standard_error}
            found[name] = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        rows = [
            {"prompt": prompt, **{name: values[place] for name, values in self.per_prompt.items()}}
            for place, prompt in enumerate(self.prompts)
        ]
        return {
            "results": found,
            "num_prompts": len(self.prompts),
            "settings": self.settings,
            "notes": self.notes,
            "per_prompt": rows,
        }


def evaluate_policy(
    policy: Any,
    reference: Any,
    reward_model: RewardLike,
    prompts: Sequence[Prompt],
    *,
    strategy: str | Strategy = "best_of_n",
    num_candidates: int = 4,
    num_responses: int = 32,
    num_reference: int | None = None,
    calibrator: RewardCalibrator | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    reward_kwargs: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    output_dir: str | Path | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **sampling: Any,
) -> PolicyEvaluation:
    r"""
    Estimate what a policy has gained over its reference policy, and how far it has moved from it.

    From `G` responses of the policy and `K` of the reference policy to each prompt, all unbiased:

    - `win_rate`: the chance that a response of the policy has the higher reward, a tie counting one half;
    - `STRATEGY_win_rate`: the same for what the strategy returns from `N` candidates of each,
      \\( W^T \\) of [InfAlign](https://huggingface.co/papers/2412.19792);
    - `STRATEGY_win_rate_against_plain`: what it returns from the policy, against one response of the reference policy:
      the mean calibrated reward under the strategy;
    - `kl`: \\( KL(\pi \| \pi_{ref}) \\) in nats, the mean of \\( \log \pi(y) - \log \pi_{ref}(y) \\) over the policy's
      responses, both at the temperature they are drawn at;
    - `reward` and `reference_reward`: the mean rewards.

    Responses to one prompt are not independent of each other, so intervals are over prompts.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): The trained policy.
        reference (`PreTrainedModel`, *optional*): The policy it was trained from; `None` is the policy without its
            adapters.
        reward_model: What [`~rewards.as_reward_function`] takes.
        prompts (`list[str]` or `list[list[dict]]`): Prompts that were not trained on. Equal ones count once.
        strategy (`str` or [`Strategy`], *optional*, defaults to `"best_of_n"`): The strategy `T`.
        num_candidates (`int`, *optional*, defaults to 4): Its `N`.
        num_responses (`int`, *optional*, defaults to 32): `G`, at least what the strategy draws.
        num_reference (`int`, *optional*): `K`. Defaults to `G`, or to that of the calibrator.
        calibrator ([`RewardCalibrator`], *optional*): Holds the rewards of the reference policy, which are not drawn
            then. Responses are drawn as its references were, except for `sampling`.
        tokenizer, chat_template_kwargs, reward_kwargs, seed, output_dir, batch_size, progress, sampling:
            As in [`RewardCalibrator.fit`]. An evaluation resumes in its `output_dir`.

    Raises:
        `ArgumentError`: If there are too few responses for the strategy, the calibrator is of other models, prompts or
            another draw, or for the reasons of [`RewardCalibrator.fit`].
        `RewardError`: If a response has no reward, or one that is not finite.

    Examples:

    ```python
    >>> from hf_itp.evaluation import evaluate_policy
    >>> result = evaluate_policy(policy, reference, "org/reward-model", prompts)  # doctest: +SKIP
    >>> result.estimates["best_of_n_win_rate"].mean, result.estimates["kl"].interval  # doctest: +SKIP

    ```
    """
    prompts = check_prompts(prompts)
    columns = check_columns(reward_kwargs, len(prompts))
    seed = check_count("seed", seed, 0, "Pass e.g. seed=0.")
    rule = get_strategy(strategy)
    num_candidates = check_count("num_candidates", num_candidates, 1, "Pass the N of the strategy.")
    num_reference = _num_reference(num_reference, num_responses, calibrator)
    size = num_candidates + rule.num_extra_candidates(num_candidates, 1)
    for name, count in (("num_responses", num_responses), ("num_reference", num_reference)):
        check_count(name, count, size, f"One call of {rule.name} with N = {num_candidates} draws {size}: draw more.")
    reward = as_reward_function(reward_model, device=policy.device if isinstance(reward_model, (str, Path)) else None)
    prompts, columns = distinct_prompts(prompts, columns, reward)
    description = _description(policy, tokenizer, calibrator, sampling, chat_template_kwargs)
    check_lengths(policy, description, prompts)
    reward.check(prompts, **columns)
    if calibrator is not None:
        with reference_of(policy, reference) as ref:
            drawn = description.entries(policy_identity(ref), prompts)
            calibrator.check_belongs(policy=model_identity(ref), reward_model=reward_identity(reward), draw=drawn)
        calibrator.check_prompts(prompts)

    def pool(model: Any, purpose: str, count: int) -> list[Row]:
        # Another seed for each, or a policy that has not moved would draw the reference policy's own responses.
        own = derived_seed(seed, f"evaluation, {purpose}")
        recorded = recorded_identities(
            model, reward, description, prompts, {"do_sample": True, **description.settings}
        )
        return draw_references(
            model, description, reward, prompts, count, seed=own, columns=columns,
            settings=pool_settings(recorded, reward, description, prompts, columns, count, own),
            output_dir=None if output_dir is None else Path(output_dir) / purpose,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip

    rows = pool(policy, "policy", num_responses)
    ours = _whole(reference_table(rows), "policy")
    with reference_of(policy, reference) as ref:
        drawn_from = model_identity(ref)["name"]
        theirs = reference_table(pool(ref, "reference", num_reference)) if calibrator is None else None
    if calibrator is not None:
        theirs = calibrator.references_of(prompts).double()
    assert theirs is not None
    theirs = _whole(theirs, "reference policy")
    found = _win_rates(ours, theirs, rule, num_candidates, seed)
    notes = []
    if unlike := _unlike_the_models(description):
        notes.append(f"The KL was not estimated: responses are drawn with {unlike}, so not by the models' own laws.")
    else:
        found["kl"] = _kl(policy, reference, rows, description)
    found |= {"reward": ours.mean(dim=-1), "reference_reward": theirs.mean(dim=-1)}
    settings = {
        "policy": model_identity(policy)["name"],
        "reference": drawn_from if reference is not None else f"{drawn_from} without adapters",
        "reward_model": reward.name,
        "strategy": {"name": rule.name, **rule.settings()},
        "num_candidates": num_candidates,
        "num_responses": num_responses,
        "num_reference": num_reference,
        "references": "drawn" if calibrator is None else "of the calibration",
        "seed": seed,
        "sampling": description.settings,
    }
    return PolicyEvaluation({name: values.tolist() for name, values in found.items()}, prompts, settings, notes)


def _num_reference(given: int | None, num_responses: int, calibrator: RewardCalibrator | None) -> int:
    if calibrator is None:
        return num_responses if given is None else given
    if given not in (None, calibrator.num_reference):
        raise ArgumentError(
            f"`num_reference` must be left out with a calibrator, got {given}: it holds {calibrator.num_reference} "
            "references per prompt. Leave it out."
        )
    return calibrator.num_reference


def _whole(rewards: Tensor, whose: str) -> Tensor:
    """Return rewards `(P, K)` if every response has one: of the others it is unknown what they would have won."""
    if bool((missing := rewards.isnan()).any()):
        prompt, response = missing.nonzero()[0].tolist()
        raise RewardError(
            f"Every response must have a reward to be evaluated, got none for response {response} of the {whose} to "
            f"prompt {prompt} ({int(missing.sum())} of {missing.numel()} have none). Give each a reward, e.g. 0."
        )
    return rewards


def _unlike_the_models(description: DrawDescription) -> str | None:
    """Return what makes responses be drawn by another law than the model's own at a temperature."""
    changed = sorted(description.settings.keys() - _KEEP_THE_LAW)
    return ", ".join(f"`{name}`" for name in changed) or (
        "logits processors" if description.logits_processor else None
    )


def _description(
    policy: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    calibrator: RewardCalibrator | None,
    sampling: Mapping[str, Any],
    chat_template_kwargs: Mapping[str, Any] | None,
) -> DrawDescription:
    """Return how to draw: as asked, else as the calibrator's references were drawn, else as the policy says."""
    known = calibrator.draw if calibrator is not None else None
    if known is not None:
        sampling = {**known["settings"], **sampling}
        template = (known["chat_template"] or {}).get("arguments", {})
        chat_template_kwargs = {**template, **(chat_template_kwargs or {})}
    return DrawDescription.of(
        policy,
        tokenizer or policy_tokenizer(policy),
        with_length(policy, sampling, 256),
        chat_template_kwargs=chat_template_kwargs,
    )


def _win_rates(ours: Tensor, theirs: Tensor, strategy: Strategy, num_candidates: int, seed: int) -> dict[str, Tensor]:
    """Return the win rates of each prompt `(P,)` from rewards `(P, G)` and reference rewards `(P, K)`."""

    def law_of(rewards: Tensor, purpose: str) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(seed, f"evaluation, {purpose}"))
        return check_law(mean_law(strategy, rewards, num_candidates, _SUBSETS, generator), rewards, strategy.name)

    law, ref_law = law_of(ours, "subsets"), law_of(theirs, "reference")
    plain, ref_plain = (torch.full_like(rewards, 1 / rewards.shape[-1]) for rewards in (ours, theirs))
    return {
        "win_rate": law_win_rates(ours, plain, theirs, ref_plain),
        f"{strategy.name}_win_rate": law_win_rates(ours, law, theirs, ref_law),
        f"{strategy.name}_win_rate_against_plain": law_win_rates(ours, law, theirs, ref_plain),
    }


def _kl(policy: Any, reference: Any, rows: Sequence[Row], description: DrawDescription) -> Tensor:
    """Return the mean log-ratio of each prompt's responses `(P,)`, in nats."""
    temperature = float(description.settings.get("temperature", 1.0))

    def logprobs(model: Any) -> Tensor:
        ids = [(description.prompt_ids(row["prompt"]), row["response_ids"]) for row in rows]
        return torch.stack([response_logprobs(model, prompt, drawn, temperature) for prompt, drawn in ids])

    ours = logprobs(policy)
    with reference_of(policy, reference) as ref:
        return (ours - logprobs(ref)).mean(dim=-1)
