"""How well predicted IoUs agree with true ones (the paper's Table 3): errors, correlations, a reliability diagram's bins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from segagent.errors import SegAgentError


def ratio(part: float, whole: float) -> float:
    """part / whole; nan where there is no whole."""
    return part / whole if whole else math.nan


class Calibration:
    """How well predicted IoUs agree with true ones, streaming and mergeable. IoUs in [0, 1], errors in points of 100."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []

    def update(self, predicted: float | Iterable[float], true: float | Iterable[float]) -> Self:
        """Counts one pair, or two sequences of equal length. Raises SegAgentError for others, and for what is no finite number."""
        given = [list(values) if isinstance(values, Iterator) else values for values in (predicted, true)]
        predicted, true = (np.atleast_1d(np.asarray(values, dtype=float)) for values in given)
        if predicted.shape != true.shape:
            raise SegAgentError(f"{predicted.size} predicted and {true.size} true IoUs: give as many of each.")
        if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
            raise SegAgentError("Predicted and true IoUs are finite numbers: leave out what was not predicted.")
        self.pairs += zip(predicted.tolist(), true.tolist(), strict=True)
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
                "predicted": mean(predicted[places == i]),
                "true": mean(true[places == i]),
            }
            for i in range(bins)
        ]
        gaps = [row["count"] * abs(row["predicted"] - row["true"]) for row in table if row["count"]]
        return {
            "mae": 100 * mean(abs(predicted - true)),
            "mse": 100**2 * mean((predicted - true) ** 2),
            "pearson": _pearson(predicted, true),
            "spearman": _pearson(_ranks(predicted), _ranks(true)),
            "ece": 100 * ratio(math.fsum(gaps), len(predicted)),
            "count": len(predicted),
            "bins": table,
        }


def calibration(predicted: Iterable[float], true: Iterable[float], bins: int = 10) -> dict[str, Any]:
    """Calibration of two sequences of IoUs at once."""
    return Calibration().update(predicted, true).compute(bins)


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Rounded once, so that no order matters; nan of no values."""
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
