"""
Watch torch's global random numbers, which the package promises not to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def global_rng_watched() -> Iterator[None]:
    """Raise `AssertionError` if torch's global random state is moved or seeded inside; restore the state first."""
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise AssertionError(
            "torch's global random state changed. Draw from a torch.Generator, or mark the test uses_global_rng where "
            "the test itself draws from it."
        )
