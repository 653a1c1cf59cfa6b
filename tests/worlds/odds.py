"""
Compare draws with an exact law, at stated odds of a false alarm.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from scipy.stats import chi2

Outcome = TypeVar("Outcome", bound=Hashable)

FALSE_ALARM = 1e-6
"""The most a correct program fails one comparison, over seeds."""

# The chi-square law only approximates the statistic's, and its tail is the worst part: with cells of at least 50
# expected draws, a nominal 1e-7 is a real 3e-7 to 8e-7 (exact for Poisson cells, 1 to 20 of them).
_MIN_EXPECTED = 50.0
_SMALLEST_P_VALUE = 1e-7


def chi_square_p_value(counts: Mapping[Outcome, int], law: Mapping[Outcome, float]) -> float:
    """
    Return the probability that draws from `law` look at least as unlike it as `counts` do (Pearson).

    The least probable outcomes are pooled until every cell expects 50 draws. An outcome the law rules out gives 0.
    """
    if any(count and law.get(outcome, 0.0) == 0.0 for outcome, count in counts.items()):
        return 0.0
    draws = sum(counts.values())
    cells: list[tuple[float, int]] = []
    expected, observed = 0.0, 0
    for outcome in sorted(law, key=lambda outcome: law[outcome]):
        expected += draws * law[outcome]
        observed += counts.get(outcome, 0)
        if expected >= _MIN_EXPECTED:
            cells.append((expected, observed))
            expected, observed = 0.0, 0
    if cells and expected > 0:
        # Only reached when the most probable outcome itself expects too few; kept for laws that are almost flat.
        last_expected, last_observed = cells.pop()
        cells.append((last_expected + expected, last_observed + observed))
    if len(cells) < 2:
        raise ValueError(f"{draws} draws leave {len(cells)} cell, so nothing could be told. Draw more.")
    statistic = sum((observed - expected) ** 2 / expected for expected, observed in cells)
    return float(chi2.sf(statistic, len(cells) - 1))


def counted(outcomes: Iterable[Outcome]) -> dict[Outcome, int]:
    counts: dict[Outcome, int] = {}
    for outcome in outcomes:
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def assert_follows(outcomes: Iterable[Outcome], law: Mapping[Outcome, float]) -> None:
    """Fail if independent `outcomes` do not follow `law`; wrongly so with probability at most `FALSE_ALARM`."""
    p_value = chi_square_p_value(counted(outcomes), law)
    assert p_value > _SMALLEST_P_VALUE, (
        f"draws do not follow the law: p-value {p_value:.1e}; a correct program fails with odds below {FALSE_ALARM}"
    )
