"""Compares two variants pair by pair: the median of the ratios, and how sure it is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

_RESAMPLES = 4000


def ratio(pairs: Sequence[tuple[float, float]], seed: int) -> dict[str, float]:
    """Give the median of first ÷ second over the pairs, with a 95 % bootstrap interval of that median."""
    ratios = [first / second for first, second in pairs]
    dice = random.Random(seed)
    medians = sorted(statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return {
        "median": round(statistics.median(ratios), 4),
        "low": round(medians[int(_RESAMPLES * 0.025)], 4),
        "high": round(medians[int(_RESAMPLES * 0.975)], 4),
        "pairs": len(ratios),
    }
