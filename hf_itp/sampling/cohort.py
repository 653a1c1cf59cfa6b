"""
Cohorts: rows of a batch that began together, and so have equally many tokens.

Knows nothing of the model: tokens come in, finished responses go out.
"""

from __future__ import annotations

import torch
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList

from hf_itp.sampling.token_sampler import TokenSampler


class Responses(list[torch.Tensor | None]):
    """
    The tokens of each response, `None` until it has ended.

    Args:
        count (`int`): How many responses there will be.
        finish_reasons (`list[str]`): Why each has ended: `"stop"` by its end token, a stop string or another
            criterion, `"length"` at the length limit where none of these ended it, `"time"`, or `"rejected"`.
    """

    def __init__(self, count: int):
        super().__init__([None] * count)
        self.finish_reasons: list[str | None] = [None] * count

    def put(self, place: int, response: torch.Tensor, reason: str) -> None:
        """Store a response that has ended, and why."""
        self[place], self.finish_reasons[place] = response, reason


class Cohort:
    """
    Rows that began together.

    Args:
        token_sampler ([`TokenSampler`]): Draws the tokens.
        prompts (`torch.LongTensor` of shape `(B, L)`): All prompts.
        prompt_index (`torch.LongTensor` of shape `(R,)`): Which of them each row continues.
        keys (`torch.LongTensor` of shape `(R,)`): Each row's stream of random numbers.
        places (`torch.LongTensor` of shape `(R,)`): Which response each row writes.
        pad_token (`int`, *optional*): Appended to finished rows that stay, as plain `generate` does. By default they
            continue with what is drawn for them.
    """

    def __init__(
        self,
        token_sampler: TokenSampler,
        prompts: torch.Tensor,
        prompt_index: torch.Tensor,
        keys: torch.Tensor,
        places: torch.Tensor,
        pad_token: int | None = None,
    ):
        self._pad_token = pad_token
        self._token_sampler = token_sampler
        self._prompt_length = prompts.shape[1]
        self.input_ids = prompts[prompt_index]
        self.prompt_index, self.keys, self.places = prompt_index, keys, places
        self.unfinished = torch.ones_like(self.places, dtype=torch.bool)
        self._row_sampler = token_sampler.for_rows(prompt_index)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def step(self) -> int:
        """Number of tokens each response has."""
        return self.input_ids.shape[1] - self._prompt_length

    @property
    def written(self) -> torch.Tensor:
        """The responses so far, `(R, step)`."""
        return self.input_ids[:, self._prompt_length :]

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits that the next tokens are drawn from, given the model's own `(R, V)`."""
        return self._row_sampler.process(self.input_ids, logits)

    def append(self, tokens: torch.Tensor, stopping_criteria: StoppingCriteriaList, responses: Responses) -> int:
        """Append one token `(R,)` per row, store finished responses, return how many finished."""
        if self._pad_token is not None:
            tokens = tokens.masked_fill(~self.unfinished, self._pad_token)
        self.input_ids = torch.cat([self.input_ids, tokens[:, None]], dim=-1)
        # What ends at its last token by itself has not been cut off.
        limits = StoppingCriteriaList([one for one in stopping_criteria if type(one) is MaxLengthCriteria])
        others = StoppingCriteriaList([one for one in stopping_criteria if type(one) is not MaxLengthCriteria])
        stopped = self.end(others(self.input_ids, None), responses, "stop")
        return stopped + self.end(limits(self.input_ids, None), responses, "length")

    def end(self, rows: torch.Tensor, responses: Responses, reason: str) -> int:
        """End the unfinished rows of the mask `rows` `(R,)`: store their responses, return how many there are."""
        ended = (self.unfinished & rows).nonzero().squeeze(-1)
        for row in ended.tolist():
            responses.put(int(self.places[row]), self.written[row].cpu(), reason)
        self.unfinished[ended] = False
        return len(ended)

    def leave(self) -> torch.Tensor:
        """Remove the finished rows; return the indices `(R',)` of those that stay."""
        staying = self.unfinished.nonzero().squeeze(-1)
        if len(staying) < len(self):
            self.input_ids, self.places, self.keys, self.prompt_index, self.unfinished = (
                tensor[staying]
                for tensor in (self.input_ids, self.places, self.keys, self.prompt_index, self.unfinished)
            )
            self._row_sampler = self._token_sampler.for_rows(self.prompt_index)
        return staying
