"""
Pools of candidates that are given up while they are being drawn, judged by what they have written so far.

What is drawn are the responses of the full draw, or their first tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from hf_itp.candidates import CandidatePools
from hf_itp.early_rejection import EarlyRejection
from hf_itp.functional.early_rejection import num_rejected, rejected
from hf_itp.sampling.loop import Review

Pair = tuple[int, int]
"""A prompt (its row) and the index of one of its candidates."""


class RejectingPools(CandidatePools):
    """
    Pools whose candidates may end early.

    Args:
        early_rejection ([`EarlyRejection`]): When and how many.
        keep (`int`): How many candidates of each prompt have to be completed at least.

    and those of [`CandidatePools`].
    """

    def __init__(self, *arguments: Any, early_rejection: EarlyRejection, keep: int):
        super().__init__(*arguments)
        self._settings, self._keep = early_rejection, keep
        self._rewards: dict[Pair, float] = {}
        self._scored_length: dict[Pair, int] = {}
        self._out_of_race: set[Pair] = set()
        self._incomplete: set[Pair] = set()
        self._num_unwritten: dict[Pair, int] = {}
        self._best_in_full: list[float] = []

    def extend(self, rows: Sequence[int], count: int) -> None:
        """Draws `count` candidates for each prompt in `rows`, and scores them while they grow."""
        pairs = [(row, index) for row in rows for index in range(count)]
        started, scoring_before = time.perf_counter(), self.seconds["reward"]
        if self._settings.audit:
            full = self._sampler.draw(pairs)
            drawn = self._replay(pairs, full)
        else:
            drawn = self._sampler.draw(pairs, review=self._review)  # type: ignore[call-arg]
        self._rescore(pairs, drawn, [at for at, pair in enumerate(pairs) if pair not in self._incomplete])
        for position, row in enumerate(rows):
            self.responses[row] = drawn[position * count : (position + 1) * count]
            self.rewards[row] = torch.tensor([self._rewards[row, index] for index in range(count)])
        if self._settings.audit:
            self._compare_with(pairs, full)
        scoring = self.seconds["reward"] - scoring_before
        self.seconds["sampling"] += time.perf_counter() - started - scoring

    def comparable_rewards(self, row: int) -> torch.Tensor:
        # Best-of-n looks at their order alone, so anything below the worst complete response says "not this one".
        rewards, complete = self.rewards[row], ~self._incomplete_mask(row)
        return rewards.where(complete, torch.nextafter(rewards[complete].min(), torch.tensor(-torch.inf)))

    def diagnostics(self, selected: torch.Tensor) -> dict[str, Any]:
        incomplete = torch.stack([self._incomplete_mask(row) for row in range(len(self.responses))])
        lengths = self.num_tokens()
        saved = torch.tensor(
            [[self._unwritten(row, index) for index in range(lengths.shape[1])] for row in range(len(lengths))]
        ).sum(dim=-1)
        found: dict[str, Any] = {
            "rejected": incomplete,
            "tokens_saved": saved,
            "share_saved": saved / (saved + lengths.sum(dim=-1)),
            "savings_are_estimated": not self._settings.audit,
        }
        if self._settings.audit:
            winners = self.reward_table().gather(1, selected[:, :1]).squeeze(1)
            found["reward_lost"] = torch.tensor(self._best_in_full) - winners
            found["winner_changed"] = found["reward_lost"] > 0
        return {"early_rejection": found}

    def _review(self, pairs: list[Pair]) -> Review:
        """What looks at one batch. A batch begun again after it outgrew memory is judged anew."""
        self._out_of_race.difference_update(pairs)
        self._incomplete.difference_update(pairs)
        for pair in pairs:
            self._scored_length.pop(pair, None)
        return Review(self._settings.interval, partial(self._reject, pairs))

    def _reject(self, pairs: list[Pair], responses: list[torch.Tensor], unfinished: list[int]) -> list[int]:
        by_prompt: dict[int, list[int]] = {prompt: [] for prompt in dict.fromkeys(pairs[at][0] for at in unfinished)}
        for at, pair in enumerate(pairs):
            if pair[0] in by_prompt and pair not in self._out_of_race:
                by_prompt[pair[0]].append(at)
        share, keep = self._settings.share, self._keep
        races = [race for race in by_prompt.values() if num_rejected(len(race), share, keep) > 0]
        self._rescore(pairs, responses, [at for race in races for at in race])
        leaving: set[int] = set()
        for race in races:
            mask = rejected(torch.tensor([self._rewards[pairs[at]] for at in race]), share, keep)
            leaving.update(at for at, leaves in zip(race, mask.tolist(), strict=True) if leaves)
        self._out_of_race.update(pairs[at] for at in leaving)
        ending = [at for at in unfinished if at in leaving]
        self._incomplete.update(pairs[at] for at in ending)
        return ending

    def _rescore(self, pairs: list[Pair], responses: list[torch.Tensor], places: list[int]) -> None:
        """Brings the rewards of some responses up to what is written of them."""
        grown = [at for at in places if self._scored_length.get(pairs[at]) != len(responses[at])]
        if not grown:
            return
        started = time.perf_counter()
        rewards = self._score([pairs[at][0] for at in grown], [responses[at] for at in grown])
        for at, reward in zip(grown, rewards.tolist(), strict=True):
            self._rewards[pairs[at]] = reward
            self._scored_length[pairs[at]] = len(responses[at])
        self.seconds["reward"] += time.perf_counter() - started

    def _replay(self, pairs: list[Pair], full: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the draw with reviews would have given."""
        review = self._review(pairs)
        responses = list(full)
        ended: set[int] = set()
        for length in range(review.interval, max(map(len, full)), review.interval):
            unfinished = [at for at, response in enumerate(full) if len(response) > length and at not in ended]
            for at in unfinished:
                responses[at] = full[at][:length]
            ended.update(review.reject(responses, unfinished))
        return [responses[at] if at in ended else full[at] for at in range(len(full))]

    def _compare_with(self, pairs: list[Pair], full: list[torch.Tensor]) -> None:
        """What the full draw has that the one with reviews has not."""
        places = [at for at, pair in enumerate(pairs) if pair in self._incomplete]
        rewards = dict(self._rewards)
        scores = self._score([pairs[at][0] for at in places], [full[at] for at in places])
        for at, reward in zip(places, scores.tolist(), strict=True):
            self._num_unwritten[pairs[at]] = len(full[at]) - self._scored_length[pairs[at]]
            rewards[pairs[at]] = reward
        for row, pool in enumerate(self.rewards):
            self._best_in_full.append(max(rewards[row, index] for index in range(len(pool))))

    def _incomplete_mask(self, row: int) -> torch.Tensor:
        return torch.tensor([(row, index) in self._incomplete for index in range(len(self.responses[row]))])

    def _unwritten(self, row: int, index: int) -> int:
        """Tokens a response was spared: known from an audit, else those of the longer complete ones on average."""
        if (row, index) not in self._incomplete:
            return 0
        if self._settings.audit:
            return self._num_unwritten[row, index]
        length = len(self.responses[row][index])
        further = [
            len(response) - length
            for other, response in enumerate(self.responses[row])
            if (row, other) not in self._incomplete and len(response) > length
        ]
        # It was not complete, so one more token at least.
        return math.ceil(sum(further) / len(further)) if further else 1
