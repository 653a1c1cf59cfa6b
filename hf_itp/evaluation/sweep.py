"""
Replay strategies over a pool: what each would return with N candidates, by its exact law.

Nothing is drawn from a policy. For rules of ranks the law on a random subset of the pool is closed; for the others
the exact laws on random subsets are averaged.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from hf_itp.checks import check_count
from hf_itp.errors import ItpError, ItpWarning
from hf_itp.evaluation.tables import Block, RewardTable
from hf_itp.functional import Estimate, effective_sample_size, mean_subsample_law
from hf_itp.functional.subsamples import random_subsets
from hf_itp.strategies import Strategy, get_strategy

COLUMNS = (
    "strategy", "settings", "num_candidates", "replicates", "proxy_mean", "proxy_se", "gold_mean", "gold_se",
    "win_rate", "win_rate_se", "kl_bound", "effective_sample_size", "tokens_mean", "num_prompts",
)  # fmt: skip
"""The columns of `sweep.csv`, in order."""
ORACLE = "oracle"
"""Name of the rows of best-of-n by the gold rewards themselves: pass@n where these are 0 or 1."""


@dataclass(frozen=True)
class Replay:
    r"""
    What a strategy returns with N candidates: one value per prompt, float64 `(P,)`, of those with enough rewards.

    Args:
        strategy ([`Strategy`], *optional*): The strategy; `None` is the oracle, best-of-n by gold.
        num_candidates (`int`): N.
        replicates (`int`): Subsets per prompt; 0 where the law is closed.
        prompts (`torch.LongTensor`): Places of the prompts in the pool.
        proxy (`torch.Tensor`): Mean reward of what is returned, by the rewards that selected it.
        gold (`torch.Tensor`, *optional*): Its mean gold reward.
        win_rate (`torch.Tensor`): Chance to have a higher reward than another response, a tie counting one half.
            Unbiased for rules of ranks: the i-th smallest of M has rank i / (M + 1) on average.
        kl (`torch.Tensor`): \\( \sum_i p_i \log(M p_i) \\) of the mean law on the pool of M, in nats. Its expectation
            is an upper bound of the divergence of what is returned from the policy, whatever the rewards are.
        effective_sample_size (`torch.Tensor`): Of the law on one random subset.
        tokens (`torch.Tensor`, *optional*): Mean tokens that N candidates cost; at most, where drawing may stop.
    """

    strategy: Strategy | None
    num_candidates: int
    replicates: int
    prompts: torch.Tensor
    proxy: torch.Tensor
    gold: torch.Tensor | None
    win_rate: torch.Tensor
    kl: torch.Tensor
    effective_sample_size: torch.Tensor
    tokens: torch.Tensor | None

    @property
    def label(self) -> str:
        """The strategy as the command line writes it: `pessimism:beta=0.1`."""
        return ORACLE if self.strategy is None else label_of(self.strategy)

    def row(self) -> dict[str, Any]:
        """Return the row of `sweep.csv`: means over prompts, with their standard errors over prompts."""
        proxy, wins = Estimate.over_prompts(self.proxy), Estimate.over_prompts(self.win_rate)
        gold = None if self.gold is None else Estimate.over_prompts(self.gold)
        name, settings = (ORACLE, {}) if self.strategy is None else (self.strategy.name, self.strategy.settings())
        values = (
            name, json.dumps(settings, sort_keys=True), self.num_candidates, self.replicates, proxy.mean,
            proxy.standard_error, gold and gold.mean, gold and gold.standard_error, wins.mean, wins.standard_error,
            float(self.kl.mean()), float(self.effective_sample_size.mean()),
            None if self.tokens is None else float(self.tokens.mean()), len(self.prompts),
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


def label_of(strategy: Strategy) -> str:
    """
    Return a strategy's name with the settings that it needs to be made again.

    Examples:

    ```python
    >>> from hf_itp import get_strategy
    >>> label_of(get_strategy("pessimism", beta=0.3)), label_of(get_strategy("best_of_n"))
    ('pessimism:beta=0.3', 'best_of_n')

    ```
    """
    needed = strategy.settings()
    for name in strategy.field_names():
        fewer = {other: value for other, value in needed.items() if other != name}
        try:
            needed = fewer if get_strategy(strategy.name, **fewer) == strategy else needed
        except ItpError:  # the others need it
            continue
    settings = ",".join(f"{name}={value}" for name, value in needed.items())
    return f"{strategy.name}:{settings}" if settings else strategy.name


def sweep(
    table: RewardTable,
    strategies: Sequence[Strategy],
    sizes: Sequence[int],
    *,
    replicates: int = 50,
    seed: int = 0,
    replacement: bool = False,
) -> Iterator[Replay]:
    """
    Replay every strategy with every number of candidates, and best-of-n by gold where there is gold.

    Args:
        table ([`RewardTable`]): The pool.
        strategies (`Sequence[Strategy]`): What to replay.
        sizes (`Sequence[int]`): Numbers of candidates. Prompts with fewer rewards are left out of that size.
        replicates (`int`, *optional*, defaults to 50): At least so many random subsets per prompt, where needed.
        seed (`int`, *optional*, defaults to 0): Of the subsets.
        replacement (`bool`, *optional*, defaults to `False`): Draw the candidates with replacement.

    Yields:
        [`Replay`]: By strategy, then size, each when it is done.

    Raises:
        `ArgumentError`: If a size is larger than every pool.
    """
    sizes = [check_count("n", size, 1, "Pass e.g. 1,2,4,8.", table.largest, "the largest pool") for size in sizes]
    replicates = check_count("replicates", replicates, 1, "Pass e.g. 50.")
    has_gold = table.gold_name is not None
    if max(sizes) > table.smallest:
        warnings.warn(
            f"Some prompts have only {table.smallest} rewards: sizes above that are replayed on the other prompts, as "
            "`num_prompts` says, so their means are not of the same prompts.",
            ItpWarning,
            stacklevel=2,
        )
    for strategy in [*strategies, *([None] if has_gold else [])]:
        for size in sizes:
            drawn = size if strategy is None else size + strategy.num_extra_candidates(size, 1)
            blocks = [block for block in table.blocks if block.rewards.shape[-1] >= drawn]
            if not blocks:
                warnings.warn(
                    f"{strategy and label_of(strategy)} with {size} candidates may draw {drawn}, and the largest pool "
                    f"has {table.largest}, so this size is left out. Replay smaller sizes, or draw a larger pool.",
                    ItpWarning,
                    stacklevel=2,
                )
                continue
            # One generator per replay, so that a row does not depend on what else is swept.
            generator = torch.Generator().manual_seed(seed)
            yield _joined(
                [_of_block(strategy, size, drawn, block, replicates, generator, replacement) for block in blocks]
            )


def quantiles(rewards: torch.Tensor) -> torch.Tensor:
    """
    Return each response's estimated quantile under the policy: its rank from 1 to M, ties sharing theirs, over M + 1.

    Args:
        rewards (`torch.Tensor` of shape `(..., M)`): Finite rewards of a pool.

    Returns:
        `torch.Tensor` of shape `(..., M)`, float64, between 0 and 1.

    Examples:

    ```python
    >>> import torch
    >>> quantiles(torch.tensor([0.1, 0.7, 0.7]))
    tensor([0.2500, 0.6250, 0.6250], dtype=torch.float64)

    ```
    """
    ascending = rewards.sort(dim=-1).values
    below = torch.searchsorted(ascending, rewards.contiguous())
    up_to = torch.searchsorted(ascending, rewards.contiguous(), right=True)
    return (below + up_to + 1).double() / (2 * (rewards.shape[-1] + 1))


def mean_law(
    strategy: Strategy,
    rewards: torch.Tensor,
    num_candidates: int,
    replicates: int = 50,
    generator: torch.Generator | None = None,
    replacement: bool = False,
) -> torch.Tensor:
    """
    Return the mean law of a strategy over random subsets of pools: closed where it is, else over `replicates` of them.

    Args:
        strategy ([`Strategy`]): The strategy.
        rewards (`torch.Tensor` of shape `(P, M)`): Finite rewards, a pool per prompt.
        num_candidates (`int`): Size of the subsets.
        replicates, generator, replacement: As in [`~functional.mean_subsample_law`].

    Returns:
        `torch.Tensor` of shape `(P, M)`, float64: Probabilities that sum to 1.
    """
    law = None if replacement else strategy.subsample_probabilities(rewards, num_candidates)
    if law is not None:
        return law
    drawn = num_candidates + strategy.num_extra_candidates(num_candidates, 1)
    return mean_subsample_law(strategy.probabilities, rewards, drawn, replicates, generator, replacement)


def _of_block(
    strategy: Strategy | None,
    size: int,
    drawn: int,
    block: Block,
    replicates: int,
    generator: torch.Generator,
    replacement: bool,
) -> Replay:
    rewards, gold, tokens = block.rewards, block.gold, block.num_tokens
    if strategy is None:
        assert gold is not None
        rule, seen = get_strategy("best_of_n"), gold
    else:
        rule, seen = strategy, rewards
    closed = not replacement and rule.subsample_probabilities(seen[:1], size) is not None
    law = mean_law(rule, seen, size, replicates, generator, replacement)
    subset = seen.gather(-1, random_subsets(seen, drawn, generator, replacement))
    return Replay(
        strategy,
        size,
        0 if closed else replicates,
        block.prompts,
        proxy=(law * rewards).sum(dim=-1),
        gold=None if gold is None else (law * gold).sum(dim=-1),
        win_rate=(law * quantiles(rewards)).sum(dim=-1),
        kl=torch.special.xlogy(law, law * rewards.shape[-1]).sum(dim=-1),
        effective_sample_size=effective_sample_size(rule.probabilities(subset)),
        tokens=None if tokens is None else drawn * tokens.mean(dim=-1),
    )


def _joined(replays: list[Replay]) -> Replay:
    """Return the replay of all blocks of prompts."""
    joined: dict[str, Any] = {
        part.name: torch.cat([getattr(replay, part.name) for replay in replays])
        for part in fields(Replay)
        if isinstance(getattr(replays[0], part.name), torch.Tensor)
    }
    return replace(replays[0], **joined)
