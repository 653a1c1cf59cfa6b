"""
Finite worlds: policies so small that the probability of every response can be written down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tests.tiny import BOS, EOS, tiny_model
from tests.worlds.warpers import Warp

Response = tuple[int, ...]
Law = dict[Response, float]


@torch.no_grad()
def response_law(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    max_new_tokens: int,
    eos_token_id: int | list[int] | None,
    warp: Warp | None = None,
) -> Law:
    """
    Return the probability of every response to one prompt, by walking the whole tree.

    A response holds its end token, or is cut at `max_new_tokens`. Logits are the model's own, without a cache;
    everything after them is float64.

    Args:
        input_ids: One prompt without padding, `(L,)` or `(1, L)`.
        eos_token_id: One id, several, or `None` for responses that only end by length.
        warp: Applied to the logits of every step, see `tests.worlds.warpers`.
    """
    prompt = input_ids.flatten().tolist()
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    law: Law = {}
    alive: Law = {(): 1.0}
    for step in range(max_new_tokens):
        prefixes = list(alive)
        rows = torch.tensor([[*prompt, *prefix] for prefix in prefixes])
        # Without a mask a model would warn of the padding tokens it drew itself.
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[:, -1].double()
        grown: Law = {}
        for prefix, row in zip(prefixes, logits, strict=True):
            probabilities = (row if warp is None else warp(row)).softmax(-1).tolist()
            for token, probability in enumerate(probabilities):
                if probability == 0.0:
                    continue
                finished = token in ends or step + 1 == max_new_tokens
                (law if finished else grown)[(*prefix, token)] = alive[prefix] * probability
        alive = grown
        if not alive:
            break
    return law


@dataclass(frozen=True)
class FiniteWorld:
    """Policy, one prompt for it `(1, L)` and the length at which its responses are cut."""

    model: PreTrainedModel
    input_ids: torch.Tensor
    max_new_tokens: int
    eos_token_id: int = EOS

    def law(self, warp: Warp | None = None) -> Law:
        return response_law(self.model, self.input_ids, self.max_new_tokens, self.eos_token_id, warp)


def finite_world(
    vocabulary: int = 5, max_new_tokens: int = 3, seed: int = 0, architecture: str = "llama", prompt_length: int = 4
) -> FiniteWorld:
    """
    Return a world of `1 + a + ... + a**(T - 2) + a**(T - 1) * V` responses, where `a = V - 1` tokens do not end one.

    That is 85 by default, 21 with `max_new_tokens=2`, and 13 with `vocabulary=4` as well.
    """
    model = tiny_model(architecture, seed=seed, entropy=0.75 * math.log(vocabulary), vocab_size=vocabulary)
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, vocabulary, (1, prompt_length), generator=generator)
    input_ids[0, 0] = BOS
    return FiniteWorld(model, input_ids, max_new_tokens)


def push_forward(
    law: Law,
    strategy_probabilities: Callable[[torch.Tensor], torch.Tensor],
    rewards: Mapping[Response, float],
    num_candidates: int,
) -> Law:
    """
    Return the exact law of a strategy's response when `num_candidates` are drawn independently from `law`.

    Walks all pools as multisets, so `strategy_probabilities` (rewards `(N,)` to probabilities `(N,)`) must treat
    positions alike: reordering the rewards reorders the probabilities. A rule that gives a tie to the first candidate
    does so only where different responses have different rewards.
    """
    responses = [response for response, probability in law.items() if probability > 0]
    returned = dict.fromkeys(responses, 0.0)
    for pool in itertools.combinations_with_replacement(responses, num_candidates):
        orderings = math.factorial(num_candidates)
        for count in (pool.count(response) for response in set(pool)):
            orderings //= math.factorial(count)
        pool_probability = orderings * math.prod(law[response] for response in pool)
        selection = strategy_probabilities(torch.tensor([rewards[response] for response in pool], dtype=torch.float64))
        for response, probability in zip(pool, selection.tolist(), strict=True):
            returned[response] += pool_probability * probability
    return returned
