"""
Judge candidates while they are drawn, by what is written of them so far, and end the worst.

Each response is that of the full draw, or its first tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch

from hf_itp.distributed.sharding import Source
from hf_itp.functional.early_rejection import num_rejected, rejected
from hf_itp.generation.early_rejection import EarlyRejection
from hf_itp.sampling.loop import Review
from hf_itp.sampling.row_calls import Pair


@dataclass
class _Seen:
    """A candidate as it was last scored; for audited prompts also what it is in full."""

    reward: float = math.nan
    length: int = -1
    racing: bool = True
    complete: bool = True
    reward_in_full: float = math.nan
    num_unwritten: int = 0


class Reviewer:
    """
    Decide which candidates of a call end early.

    Args:
        source ([`Source`]): Draws and scores.
        settings ([`EarlyRejection`]): When and how many.
        keep (`int`): Minimum number of candidates of each prompt to complete.
        audited (`list[bool]`): Which prompts are drawn in full, the reviews replayed on what was drawn.
    """

    def __init__(self, source: Source, settings: EarlyRejection, keep: int, audited: Sequence[bool]):
        self._source, self._settings, self._keep, self._audited = source, settings, keep, audited
        self._seen: dict[Pair, _Seen] = {}

    def collect(self, pairs: list[Pair]) -> tuple[dict[Pair, torch.Tensor], torch.Tensor]:
        """Draw candidates under review; return what was drawn of them and its rewards `(len(pairs),)`."""
        full = dict(zip(pairs, self._source.draw(pairs, self._review), strict=True))
        drawn = self._replay(full)
        self._rescore(drawn, [pair for pair in pairs if self._seen[pair].complete])
        self._audit(full)
        return drawn, self._rewards(pairs)

    def comparable(self, row: int, rewards: torch.Tensor) -> torch.Tensor:
        """Return the rewards of a prompt's candidates, incomplete ones below all complete ones."""
        # Best-of-n looks only at their order, so anything below the worst complete response says "not this one".
        complete = torch.tensor([self._seen[row, index].complete for index in range(len(rewards))])
        lowest = rewards[complete].min()
        return rewards.where(complete, torch.nextafter(lowest, torch.full_like(lowest, -torch.inf)))

    def diagnostics(self, pools: list[list[torch.Tensor]], winners: torch.Tensor) -> dict[str, Any]:
        """Return what was cut and saved, given what was drawn and the rewards `(B,)` of the winners."""
        seen = [[self._seen[row, index] for index in range(len(pool))] for row, pool in enumerate(pools)]
        saved = torch.tensor([self._num_saved(row, pool) for row, pool in enumerate(pools)])
        drawn = torch.tensor([sum(map(len, pool)) for pool in pools])
        found = {
            "rejected": torch.tensor([[not one.complete for one in row] for row in seen]),
            "tokens_saved": saved,
            "share_saved": saved.to(torch.float32) / (saved + drawn),
        }
        if self._settings.audit > 0:
            best = torch.tensor([max(one.reward_in_full for one in row) for row in seen], dtype=torch.float32)
            found["audited"] = torch.tensor(self._audited, dtype=torch.bool)
            found["reward_lost"] = best - winners
            found["winner_changed"] = found["reward_lost"] > 0
        return {"early_rejection": found}

    def _review(self, pairs: list[Pair]) -> Review:
        """Return the review of a batch. One that outgrew memory begins again, and is judged again."""
        self._seen.update({pair: _Seen() for pair in pairs})

        def reject(responses: list[torch.Tensor], unfinished: list[int]) -> list[int]:
            growing = {pairs[at] for at in unfinished if not self._audited[pairs[at][0]]}
            ending = self._reject(dict(zip(pairs, responses, strict=True)), growing)
            return [at for at in unfinished if pairs[at] in ending]

        return Review(self._settings.interval, reject)

    def _reject(self, written: dict[Pair, torch.Tensor], growing: set[Pair]) -> set[Pair]:
        """Judge the prompts of growing responses; return which of these end here."""
        share, keep = self._settings.share, self._keep
        prompts, races = {prompt for prompt, _ in growing}, defaultdict(list)
        for pair in written:
            if pair[0] in prompts and self._seen[pair].racing:
                races[pair[0]].append(pair)
        judged = [race for race in races.values() if num_rejected(len(race), share, keep) > 0]
        self._rescore(written, [pair for race in judged for pair in race])
        leaving = {pair for race in judged for pair in compress(race, rejected(self._rewards(race), share, keep))}
        for pair in leaving:
            self._seen[pair].racing, self._seen[pair].complete = False, pair not in growing
        return leaving & growing

    def _rescore(self, written: dict[Pair, torch.Tensor], pairs: list[Pair]) -> None:
        """Score those responses again that have grown since they were last scored."""
        if grown := [pair for pair in pairs if self._seen[pair].length != len(written[pair])]:
            rewards = self._source.score(grown, [written[pair] for pair in grown])
            for pair, reward in zip(grown, rewards.tolist(), strict=True):
                self._seen[pair].reward, self._seen[pair].length = reward, len(written[pair])

    def _rewards(self, pairs: list[Pair]) -> torch.Tensor:
        return torch.tensor([self._seen[pair].reward for pair in pairs], dtype=torch.float32)

    def _replay(self, full: dict[Pair, torch.Tensor]) -> dict[Pair, torch.Tensor]:
        """Return the draw, the audited prompts' responses cut where reviews would have ended them."""
        drawn, length = dict(full), self._settings.interval
        growing = {pair for pair in full if self._audited[pair[0]]}
        while growing:
            drawn |= {pair: full[pair][:length] for pair in growing}
            growing = {pair for pair in growing if len(full[pair]) > length}
            growing -= self._reject(drawn, growing)
            length += self._settings.interval
        return drawn

    def _audit(self, full: dict[Pair, torch.Tensor]) -> None:
        """Score in full what was cut of the audited prompts."""
        audited = {pair: self._seen[pair] for pair in full if self._audited[pair[0]]}
        cut = [pair for pair, seen in audited.items() if not seen.complete]
        rewards = self._source.score(cut, [full[pair] for pair in cut]).tolist() if cut else []
        in_full = dict(zip(cut, rewards, strict=True))
        for pair, seen in audited.items():
            seen.reward_in_full = in_full.get(pair, seen.reward)
            seen.num_unwritten = len(full[pair]) - seen.length

    def _num_saved(self, row: int, pool: list[torch.Tensor]) -> int:
        """Return the tokens saved for a prompt: exact if audited, else estimated from longer complete responses."""
        seen = [self._seen[row, index] for index in range(len(pool))]
        if self._audited[row]:
            return sum(one.num_unwritten for one in seen)
        lengths = [one.length for one in seen if one.complete]
        saved = 0
        for cut in (len(response) for response, one in zip(pool, seen, strict=True) if not one.complete):
            further = [length - cut for length in lengths if length > cut]
            # It was not complete, so at least one more token.
            saved += math.ceil(sum(further) / len(further)) if further else 1
        return saved
