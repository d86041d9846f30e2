"""How well predicted IoUs agree with true ones (the paper's Table 3): errors, correlations, a reliability diagram's bins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np


def ratio(part: float, whole: float) -> float:
    """part / whole; nan where there is no whole."""
    return part / whole if whole else math.nan


class Calibration:
    """How well predicted IoUs agree with true ones, streaming and mergeable. IoUs in [0, 1], errors in points of 100."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []

    def update(self, predicted: float | Iterable[float], true: float | Iterable[float]) -> Self:
        """Counts one pair, or two sequences of equal length."""
        pairs = np.stack(np.broadcast_arrays(np.atleast_1d(predicted), np.atleast_1d(true)), axis=1)
        self.pairs += [(float(p), float(t)) for p, t in pairs]
        return self

    def merge(self, other: Calibration) -> Self:
        self.pairs += other.pairs
        return self

    def compute(self, bins: int = 10) -> dict[str, Any]:
        """`mae` and `mse` (points of 100, as the paper's Table 3), `pearson`, `spearman`, `ece` (points), `count`, `bins`.

        A bin is {"low", "high", "count", "predicted", "true"}, the last two means (nan where it is empty); `ece` is the mean
        distance of the two, weighted by count. A correlation of fewer than two points, or with a constant, is nan.
        """
        predicted, true = np.array(sorted(self.pairs)).reshape(-1, 2).T
        places = np.clip((predicted * bins).astype(int), 0, bins - 1)
        table = [
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "count": int((places == i).sum()),
                "predicted": _mean(predicted[places == i]),
                "true": _mean(true[places == i]),
            }
            for i in range(bins)
        ]
        gaps = [row["count"] * abs(row["predicted"] - row["true"]) for row in table if row["count"]]
        return {
            "mae": 100 * _mean(abs(predicted - true)),
            "mse": 100**2 * _mean((predicted - true) ** 2),
            "pearson": _pearson(predicted, true),
            "spearman": _pearson(_ranks(predicted), _ranks(true)),
            "ece": 100 * ratio(math.fsum(gaps), len(predicted)),
            "count": len(predicted),
            "bins": table,
        }


def calibration(predicted: Iterable[float], true: Iterable[float], bins: int = 10) -> dict[str, Any]:
    """Calibration of two sequences of IoUs at once."""
    return Calibration().update(predicted, true).compute(bins)


def _mean(values: np.ndarray) -> float:
    return ratio(math.fsum(values), len(values))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equals share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
