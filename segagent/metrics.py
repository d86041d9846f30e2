"""Metrics of masks, of runs of clicks and of predicted IoUs, each with its convention named.

A mask is a bool array (H, W), a COCO RLE (a dict) or a PackedMask; RLEs and packed masks are compared without decoding. All counts are
exact integers, all results in [0, 1] unless said otherwise, and no metric depends on the order of its updates and merges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from segagent.boundaries import boundary_iou, contour_f, j_and_f, region_j
from segagent.calibration import Calibration, calibration, ratio
from segagent.errors import SegAgentError
from segagent.overlap import Mask, Overlap, PackedMask, check_same_size, iou, overlap, pack

__all__ = [
    "Calibration",
    "Overlap",
    "PackedMask",
    "RESMetrics",
    "at_limit",
    "boundary_iou",
    "calibration",
    "contour_f",
    "iou",
    "iou_after",
    "j_and_f",
    "noc",
    "nof",
    "overlap",
    "pack",
    "region_j",
]

# What each convention of referring segmentation scores for empty prediction and empty target (None: the sample does not
# count), and what it adds to the unions of gIoU and cIoU.
_CONVENTIONS = {
    "plain": (1.0, 0.0, 0.0),
    "lisa": (1.0, 1e-5, 1e-10),
    "visionreasoner": (0.0, 0.0, 0.0),
    "seg-zero": (None, 0.0, 0.0),
    "grefcoco": (1.0, 0.0, 0.0),
}
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


class RESMetrics:
    """cIoU, gIoU and Pr@0.5–0.9 of referring segmentation, streaming and mergeable.

    cIoU is the sum of intersections over the sum of unions, gIoU the mean IoU, Pr@X the share of IoUs ≥ X. Conventions:
    - "plain": an empty prediction of an empty target scores 1.
    - "lisa": the same, with 1e-5 added to each union and 1e-10 to their sum; pass the pixels labelled 255 as `ignore`.
    - "visionreasoner": an empty prediction of an empty target scores 0.
    - "seg-zero": such a sample does not count.
    - "grefcoco": as "plain", but Pr@X is over the samples that have a target.
    Where samples without a target were seen, `n_acc` is the share of them that were left empty, and `t_acc` the share of the
    others that were not.
    """

    def __init__(self, convention: str = "plain") -> None:
        if convention not in _CONVENTIONS:
            raise SegAgentError(f"There is no convention {convention!r}: use one of {', '.join(_CONVENTIONS)}.")
        self.convention = convention
        self.intersection = self.union = 0
        self.ious: list[float] = []
        self.has_target: list[bool] = []
        self.correctly_empty = self.without_target = self.correctly_filled = self.with_target = 0

    def update(self, prediction: Mask, target: Mask, ignore: Mask | None = None) -> Self:
        """Counts one sample, or each of arrays (N, H, W). Raises MaskError where sizes differ."""
        if isinstance(prediction, np.ndarray) and prediction.ndim > 2:
            check_same_size(prediction.shape, np.shape(target), *(() if ignore is None else (np.shape(ignore),)))
            for one in zip(prediction, target, *(() if ignore is None else (ignore,)), strict=True):
                self.update(*one)
            return self
        counts = overlap(prediction, target, ignore)
        if counts.b:
            self.with_target += 1
            self.correctly_filled += counts.a > 0
        else:
            self.without_target += 1
            self.correctly_empty += counts.a == 0
        empty, epsilon, _ = _CONVENTIONS[self.convention]
        score = counts.intersection / (counts.union + epsilon) if counts.union else empty
        if score is not None:
            self.intersection += counts.intersection
            self.union += counts.union
            self.ious.append(score)
            self.has_target.append(counts.b > 0)
        return self

    def merge(self, other: RESMetrics) -> Self:
        """Adds what another worker counted. Raises SegAgentError where the conventions differ."""
        if other.convention != self.convention:
            raise SegAgentError(f"Metrics of {self.convention!r} and of {other.convention!r} cannot be merged.")
        for name in ("intersection", "union", "ious", "has_target"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("correctly_empty", "without_target", "correctly_filled", "with_target"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self) -> dict[str, float]:
        """`ciou`, `giou`, `pr50` … `pr90` in [0, 1] (nan before the first sample), `count`; `n_acc`, `t_acc` as above."""
        extra = _CONVENTIONS[self.convention][2]
        scored = [s for s, has in zip(self.ious, self.has_target, strict=True) if has or self.convention != "grefcoco"]
        result = {
            "ciou": ratio(self.intersection, self.union + extra),
            "giou": ratio(math.fsum(self.ious), len(self.ious)),
            **{f"pr{p * 100:.0f}": ratio(sum(s >= p for s in scored), len(scored)) for p in PRECISIONS},
            "count": len(self.ious),
        }
        if self.without_target:
            result["n_acc"] = self.correctly_empty / self.without_target
            result["t_acc"] = ratio(self.correctly_filled, self.with_target)
        return result


def noc(ious: Sequence, threshold: float, limit: int = 20) -> Any:
    """Number of clicks until IoU ≥ `threshold`; `limit` where that takes more, or never comes to pass.

    `ious` are one run's IoUs after its 1st, 2nd, … click (an int is returned), or those of several runs (their mean).
    """
    if len(ious) and not np.isscalar(ious[0]):
        return float(np.mean([noc(run, threshold, limit) for run in ious]))
    return next((i + 1 for i, value in enumerate(ious[:limit]) if value >= threshold), limit)


def nof(runs: Sequence[Sequence[float]], threshold: float, limit: int = 20) -> int:
    """Number of failures: runs that do not reach IoU ≥ `threshold` within `limit` clicks."""
    return sum(not any(value >= threshold for value in run[:limit]) for run in runs)


def at_limit(runs: Sequence[Sequence[float]], threshold: float, limit: int = 20) -> int:
    """The field's "≥20@85" column: runs whose NoC is the limit, those that succeed with their very last click included."""
    return sum(noc(run, threshold, limit) == limit for run in runs)


def iou_after(runs: Sequence[Sequence[float]], limit: int = 20) -> list[float]:
    """Mean IoU after 1, 2, … `limit` clicks; a run that ended earlier keeps its last IoU (one without a click: 0)."""
    table = [[*run[:limit], *[run[-1] if len(run) else 0.0] * (limit - len(run))] for run in runs]
    return [math.fsum(column) / len(table) for column in zip(*table, strict=True)]
