"""
Give the advice of strategies once per process, from the pools of all calls together.

Evaluation harnesses call `generate` with a few prompts at a time: one call sees too little, and thousands of calls
must not repeat themselves.
"""

from __future__ import annotations

from threading import Lock

import torch

from hf_itp.strategies import Strategy

# With fewer candidates every useful beta is nearly best-of-n on many pools.
_FEWEST_CANDIDATES = 4
_POOLS_NEEDED = 3
_POOLS_LOOKED_AT = 64


class Adviser:
    """
    Collect the pools of each strategy and say once what [`Strategy.advice`] has to say of them.

    The rule: pools count together if strategy, settings, number of candidates and reward model are the same. From 3
    pools on, each further call asks for advice on all of them, up to the first 64. Pools of fewer than 4 candidates
    or of equal rewards say too little and do not count. The first advice is the only one of the process. Safe to use
    from several threads.

    Examples:

    ```python
    >>> import torch
    >>> from hf_itp import get_strategy
    >>> adviser, pools = Adviser(), torch.arange(8.0).expand(2, 8)
    >>> strategy = get_strategy("pessimism", beta=1e-6)
    >>> [adviser.listen(strategy, "reward", pools) is not None for _ in range(4)]  # 2, 4, 6 and 8 pools seen
    [False, True, False, False]

    ```
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._pools: dict[tuple[str, str, int], torch.Tensor] = {}
        self._has_spoken = False

    def listen(self, strategy: Strategy, reward: str, pools: torch.Tensor) -> str | None:
        """
        Add the pools of a call and return the advice if it is time to give it.

        Args:
            strategy ([`Strategy`]): What selects.
            reward (`str`): Name of the reward, whose scale the settings must fit.
            pools (`torch.Tensor` of shape `(B, N)`): Rewards of the call's candidates.
        """
        has_none = type(strategy).advice is Strategy.advice
        if self._has_spoken or has_none or pools.shape[-1] < _FEWEST_CANDIDATES:
            return None
        kind = (repr(strategy), reward, pools.shape[-1])
        with self._lock:
            pools = pools.detach().to("cpu", torch.float64)
            pools = pools[pools.amax(dim=-1) > pools.amin(dim=-1)]
            seen = self._pools.get(kind, pools[:0])
            if self._has_spoken or len(seen) >= _POOLS_LOOKED_AT:
                return None
            seen = self._pools[kind] = torch.cat([seen, pools])[:_POOLS_LOOKED_AT]
            if len(seen) < _POOLS_NEEDED or (advice := strategy.advice(seen)) is None:
                return None
            self._has_spoken = True
            self._pools.clear()
            return advice


ADVISER = Adviser()
"""The one of this process."""
