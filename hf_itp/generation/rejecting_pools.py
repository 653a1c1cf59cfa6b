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

from hf_itp.distributed.sharding import Pair
from hf_itp.functional.early_rejection import num_rejected, rejected
from hf_itp.generation.candidates import CandidatePools
from hf_itp.generation.early_rejection import EarlyRejection
from hf_itp.sampling.loop import Review


class RejectingPools(CandidatePools):
    """
    Pools whose candidates may end early.

    Args:
        early_rejection ([`EarlyRejection`]): When and how many.
        keep (`int`): How many candidates of each prompt have to be completed at least.
        audited (`list[bool]`): Which prompts are drawn in full, the reviews replayed on what was drawn.

    and those of [`CandidatePools`].
    """

    def __init__(
        self, *arguments: Any, early_rejection: EarlyRejection, keep: int, audited: Sequence[bool], **options: Any
    ):
        super().__init__(*arguments, **options)
        self.responses: list[list[torch.Tensor]] = [[] for _ in audited]
        self._settings, self._keep, self._audited = early_rejection, keep, audited
        self._rewards: dict[Pair, float] = {}
        self._scored_length: dict[Pair, int] = {}
        self._out_of_race: set[Pair] = set()
        self._incomplete: set[Pair] = set()
        self._num_unwritten: dict[Pair, int] = {}
        self._best_in_full = torch.full((len(audited),), torch.nan, dtype=torch.float32)

    def extend(self, rows: Sequence[int], count: int) -> None:
        """Draws `count` candidates for each prompt in `rows`, and scores them while they grow."""
        pairs = [(row, index) for row in rows for index in range(count)]
        started, scoring_before = time.perf_counter(), self.seconds["reward"]
        full = self._sampler.draw(pairs, review=self._review)
        drawn = self._replay(pairs, full)
        self._rescore(pairs, drawn, [at for at, pair in enumerate(pairs) if pair not in self._incomplete])
        for position, row in enumerate(rows):
            self.responses[row] = drawn[position * count : (position + 1) * count]
            self.rewards[row] = torch.tensor(
                [self._rewards[row, index] for index in range(count)], dtype=torch.float32
            )
        self._compare_with(pairs, full)
        scoring = self.seconds["reward"] - scoring_before
        self.seconds["sampling"] += time.perf_counter() - started - scoring

    def winners(self, selected: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[self.responses[row][index] for index in indices] for row, indices in enumerate(selected.tolist())]

    def candidates(self) -> list[list[torch.Tensor]]:
        return self.responses

    def comparable_rewards(self, row: int) -> torch.Tensor:
        # Best-of-n looks at their order alone, so anything below the worst complete response says "not this one".
        rewards, complete = self.rewards[row], ~self._incomplete_mask(row)
        return rewards.where(
            complete, torch.nextafter(rewards[complete].min(), torch.tensor(-torch.inf, dtype=rewards.dtype))
        )

    def diagnostics(self, selected: torch.Tensor) -> dict[str, Any]:
        incomplete = torch.stack([self._incomplete_mask(row) for row in range(len(self.responses))])
        lengths = torch.tensor([[len(response) for response in pool] for pool in self.responses], dtype=torch.long)
        saved = torch.tensor(
            [[self._unwritten(row, index) for index in range(lengths.shape[1])] for row in range(len(lengths))],
            dtype=torch.long,
        ).sum(dim=-1)
        found: dict[str, Any] = {
            "rejected": incomplete,
            "tokens_saved": saved,
            "share_saved": saved.float() / (saved + lengths.sum(dim=-1)),
        }
        if self._settings.audit > 0:
            winners = self.reward_table().gather(1, selected[:, :1]).squeeze(1)
            found["audited"] = torch.tensor(self._audited, dtype=torch.bool)
            found["reward_lost"] = self._best_in_full - winners
            found["winner_changed"] = found["reward_lost"] > 0
        return {"early_rejection": found}

    def _review(self, pairs: list[Pair]) -> Review:
        """What looks at one batch. A batch begun again after it outgrew memory is judged anew."""
        self._out_of_race.difference_update(pairs)
        self._incomplete.difference_update(pairs)
        for pair in pairs:
            self._scored_length.pop(pair, None)
        return Review(self._settings.interval, partial(self._reject, pairs, False))

    def _reject(
        self, pairs: list[Pair], audited: bool, responses: list[torch.Tensor], unfinished: list[int]
    ) -> list[int]:
        unfinished = [at for at in unfinished if self._audited[pairs[at][0]] == audited]
        by_prompt: dict[int, list[int]] = {prompt: [] for prompt in dict.fromkeys(pairs[at][0] for at in unfinished)}
        for at, pair in enumerate(pairs):
            if pair[0] in by_prompt and pair not in self._out_of_race:
                by_prompt[pair[0]].append(at)
        share, keep = self._settings.share, self._keep
        races = [race for race in by_prompt.values() if num_rejected(len(race), share, keep) > 0]
        self._rescore(pairs, responses, [at for race in races for at in race])
        leaving: set[int] = set()
        for race in races:
            mask = rejected(torch.tensor([self._rewards[pairs[at]] for at in race], dtype=torch.float32), share, keep)
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
        rewards = self._score([pairs[at][0] for at in grown], [responses[at] for at in grown])
        for at, reward in zip(grown, rewards.tolist(), strict=True):
            self._rewards[pairs[at]] = reward
            self._scored_length[pairs[at]] = len(responses[at])

    def _score(self, rows: Sequence[int], responses: Sequence[torch.Tensor]) -> torch.Tensor:
        started = time.perf_counter()
        rewards = super()._score(rows, responses)
        self.seconds["reward"] += time.perf_counter() - started
        return rewards

    def _replay(self, pairs: list[Pair], full: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the draw would have given had the audited prompts been reviewed as the others were."""
        responses = list(full)
        growing = [at for at, (prompt, _) in enumerate(pairs) if self._audited[prompt]]
        length = self._settings.interval
        while growing:
            for at in growing:
                responses[at] = full[at][:length]
            growing = [at for at in growing if len(full[at]) > length]
            ended = self._reject(pairs, True, responses, growing)
            growing = [at for at in growing if at not in ended]
            length += self._settings.interval
        return responses

    def _compare_with(self, pairs: list[Pair], full: list[torch.Tensor]) -> None:
        """What the audited prompts have in full that was cut."""
        places = [at for at, pair in enumerate(pairs) if pair in self._incomplete and self._audited[pair[0]]]
        best = {row: self.comparable_rewards(row).max() for row, audited in enumerate(self._audited) if audited}
        if places:
            rewards = self._score([pairs[at][0] for at in places], [full[at] for at in places])
            for at, reward in zip(places, rewards, strict=True):
                row = pairs[at][0]
                self._num_unwritten[pairs[at]] = len(full[at]) - self._scored_length[pairs[at]]
                best[row] = torch.maximum(best[row], reward)
        for row, reward in best.items():
            self._best_in_full[row] = reward

    def _incomplete_mask(self, row: int) -> torch.Tensor:
        return torch.tensor(
            [(row, index) in self._incomplete for index in range(len(self.responses[row]))], dtype=torch.bool
        )

    def _unwritten(self, row: int, index: int) -> int:
        """Tokens a response was spared: known from an audit, else those of the longer complete ones on average."""
        if (row, index) not in self._incomplete:
            return 0
        if self._audited[row]:
            return self._num_unwritten[row, index]
        length = len(self.responses[row][index])
        further = [
            len(response) - length
            for other, response in enumerate(self.responses[row])
            if (row, other) not in self._incomplete and len(response) > length
        ]
        # It was not complete, so one more token at least.
        return math.ceil(sum(further) / len(further)) if further else 1
