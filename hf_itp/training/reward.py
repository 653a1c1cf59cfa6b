"""
Give TRL the reward to train on: calibrated, transformed, in nats. Measure its metrics on the way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import torch

from hf_itp.calibration import RewardCalibrator
from hf_itp.errors import ArgumentError
from hf_itp.functional.win_rates import Estimate, prompt_win_rates
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards import RewardFunction
from hf_itp.rewards.base import NO_COLUMNS, Prompt, ResponseIds
from hf_itp.rewards.values import or_none
from hf_itp.rewards.wrapped import WrappedReward
from hf_itp.sampling.thinking import RewardReader, rewards_where_said
from hf_itp.training.objective import CTRLObjective


class TransformedReward:
    """
    Reward function in TRL's signature: `transform(calibrated reward) / beta` of each completion, `None` where the raw
    reward is.

    The raw reward gets everything that TRL passes, except the text of the completions: TRL decodes them without their
    prompts, while the texts of references and candidates are cut from prompt and response decoded together.

    Args:
        reward ([`RewardFunction`]): The raw reward.
        objective ([`CTRLObjective`]): Transform and KL strength.
        calibrator ([`RewardCalibrator`], *optional*): May be set later, before the first call.
        reader (`Callable`, *optional*): Takes a prompt, returns the [`RewardReader`] that reads responses to it as
            references are read. May be set later. Without it completions are used as TRL decodes them.
    """

    __name__ = "ctrl"  # TRL logs rewards under it

    def __init__(
        self,
        reward: RewardFunction,
        objective: CTRLObjective,
        calibrator: RewardCalibrator | None = None,
        reader: Callable[[Prompt], RewardReader] | None = None,
    ):
        self.reward, self.objective, self.calibrator, self.reader = reward, objective, calibrator, reader
        self.mode: Callable[[], str] = lambda: "train"
        self.context_columns: Callable[[Sequence[Prompt]], dict[str, list]] | None = None
        self._measured: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
        self._prompts: dict[str, Prompt] = {}

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if self.calibrator is None:
            raise ArgumentError("`calibrator` must be set before the first call, got None. Call `train()` first.")
        if self.context_columns is not None:
            columns |= self.context_columns(prompts)
        texts: list[str | None] = [""] * len(prompts)
        if completion_ids is not None and self.reader is not None:
            texts, completions = self._as_written(prompts, completions, completion_ids, self.reader)
        if log_metric is not None:
            columns["log_metric"] = log_metric

        def score(said: list[int]) -> torch.Tensor:
            ids = None if completion_ids is None else [completion_ids[place] for place in said]
            rewards = self.reward(
                [prompts[place] for place in said],
                completions=[completions[place] for place in said],
                completion_ids=ids,
                **_columns_at(said, columns, len(prompts)),
            )
            return torch.tensor([math.nan if reward is None else reward for reward in rewards], dtype=torch.float32)

        raw = or_none(rewards_where_said(texts, score))
        # What has no reward has no transformed one: TRL gives it the advantage 0, and leaves it out of the baselines.
        places = [place for place, value in enumerate(raw) if value is not None]
        found: list[float | None] = [None] * len(raw)
        if log_metric is not None:
            log_metric("reward/none", 1 - len(places) / max(1, len(raw)))
        if not places:
            return found
        known = torch.tensor([raw[place] for place in places], dtype=torch.float32)
        own = [prompts[place] for place in places]
        below, equal, total = self.calibrator.counts(own, known)
        transformed = self.objective.rewards(below, equal, total)
        if log_metric is not None:
            log_metric("reward/raw", float(known.mean()))
            log_metric("reward/calibrated", float(((below + equal / 2) / total).mean()))
            log_metric("reward/transformed", float(transformed.mean()) * self.objective.beta)
        for place, prompt, value, reward in zip(places, own, known.tolist(), transformed.tolist(), strict=True):
            fingerprint = prompt_fingerprint(prompt)
            self._prompts[fingerprint] = prompt
            self._measured[self.mode()].append((fingerprint, value))
            found[place] = reward
        return found

    @staticmethod
    def _as_written(
        prompts: Sequence[Prompt],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        reader: Callable[[Prompt], RewardReader],
    ) -> tuple[list[str | None], list[Any]]:
        """Return the texts the reward reads, and the completions with these."""
        readers: dict[str, RewardReader] = {}
        texts: list[str | None] = []
        written: list[Any] = []
        for prompt, completion, ids in zip(prompts, completions, completion_ids, strict=True):
            key = prompt_fingerprint(prompt)
            if key not in readers:
                readers[key] = reader(prompt)
            text = readers[key](ids)
            texts.append(text)
            written.append(text if isinstance(completion, str) else [{**completion[0], "content": text}])
        return texts, written

    def take_measured(self) -> list[tuple[str, float]]:
        """Return prompt fingerprint and raw reward of every completion in this mode since the last call in it."""
        return self._measured.pop(self.mode(), [])

    def win_rates(self, measured: Sequence[tuple[str, float]], n: int, worst: bool = False) -> Estimate | None:
        """
        Return the win rate against the reference policy under best-of-`n` (or worst-of-`n`).

        Only prompts with at least `n` completions among `measured` count; return `None` without one.
        """
        assert self.calibrator is not None
        by_prompt: defaultdict[str, list[float]] = defaultdict(list)
        for fingerprint, value in measured:
            by_prompt[fingerprint].append(value)
        rates = []
        for fingerprint, values in by_prompt.items():
            theirs = self.calibrator.references_of([self._prompts[fingerprint]]).double()
            theirs = theirs[:, ~theirs[0].isnan()]
            if len(values) < n or theirs.shape[1] < n:
                continue
            ours = torch.tensor([values], dtype=torch.float64)
            rates.append(1 - prompt_win_rates(-ours, -theirs, n) if worst else prompt_win_rates(ours, theirs, n))
        return Estimate.over_prompts(torch.cat(rates)) if rates else None


class CalledAsInTraining(WrappedReward):
    """
    Reward that also gets a trainer's state, as TRL's trainers pass it, for calls outside of TRL.

    Args:
        reward ([`RewardFunction`]): The reward.
        state (`TrainerState`): The state to pass with each call.
    """

    def __init__(self, reward: RewardFunction, state: Any):
        super().__init__(reward)
        self._state = state

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], response_ids: ResponseIds = None, /, **columns: Any
    ) -> Sequence[float | None] | Awaitable[Any]:
        return super().score(prompts, responses, response_ids, trainer_state=self._state, **columns)

    def check(self, prompts: Sequence[Prompt], **columns: Any) -> None:
        super().check(prompts, trainer_state=self._state, **columns)


def called_as_in_training(reward: RewardFunction, state: Any) -> RewardFunction:
    """Return the reward, with a trainer's state if it takes one."""
    return CalledAsInTraining(reward, state) if reward.takes("trainer_state") else reward


def _columns_at(places: list[int], columns: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the entries of the columns at some of `count` completions; a logger writes `None` for the others."""
    chosen = {
        name: column if name in NO_COLUMNS else [column[place] for place in places] for name, column in columns.items()
    }
    if (log_extra := columns.get("log_extra")) is not None and len(places) < count:

        def log_some(column: str, values: Sequence[Any]) -> None:
            known = dict(zip(places, values, strict=True))
            log_extra(column, [known.get(place) for place in range(count)])

        chosen["log_extra"] = log_some
    return chosen
