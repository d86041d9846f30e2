"""Metrics of masks, of runs of clicks and of predicted IoUs, each with its convention named.

A mask is a bool array (H, W), a COCO RLE (a dict) or a PackedMask; RLEs and packed masks are compared without decoding. All counts are
exact integers, all results in [0, 1] unless said otherwise. RESMetrics, OutlineMetrics, ClickMetrics and Calibration stream: workers
`update` their own, `merge` them and `compute` what one pass would have given, to the last bit and in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from segagent.boundaries import OutlineMetrics, boundary_iou, contour_f, j_and_f, region_j
from segagent.calibration import Calibration, calibration, mean, ratio
from segagent.errors import MaskError, SegAgentError
from segagent.overlap import Mask, Overlap, PackedMask, iou, overlap, pack, several

__all__ = [
    "Calibration",
    "ClickMetrics",
    "OutlineMetrics",
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
    Where samples without a target were seen, and with "grefcoco" always, `n_acc` is the share of them that were left empty,
    and `t_acc` the share of the others that were not.
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
        """Counts one sample, or each of arrays (N, H, W) or lists of masks. Raises MaskError where sizes differ, counting none."""
        for counts in list(_overlaps(prediction, target, ignore)):
            self._count(counts)
        return self

    def _count(self, counts: Overlap) -> None:
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
            "giou": mean(self.ious),
            **{f"pr{p * 100:.0f}": ratio(sum(s >= p for s in scored), len(scored)) for p in PRECISIONS},
            "count": len(self.ious),
        }
        if self.without_target or self.convention == "grefcoco":
            result["n_acc"] = ratio(self.correctly_empty, self.without_target)
            result["t_acc"] = ratio(self.correctly_filled, self.with_target)
        return result


def _overlaps(prediction: Mask, target: Mask, ignore: Mask | None) -> Iterator[Overlap]:
    """Of each pair of masks. Raises MaskError."""
    if not several(prediction):
        yield overlap(prediction, target, ignore)
        return
    if not several(target) or len(target) != len(prediction) or (ignore is not None and len(ignore) != len(prediction)):
        raise MaskError(f"{len(prediction)} predictions need as many targets, and as many masks to ignore or none.")
    for i, one in enumerate(prediction):
        yield from _overlaps(one, target[i], None if ignore is None else ignore[i])


def noc(ious: Sequence, threshold: float, limit: int = 20) -> Any:
    """Number of clicks until IoU ≥ `threshold`; `limit` where that takes more, or never comes to pass.

    `ious` are one run's IoUs after its 1st, 2nd, … click (an int is returned), or those of several runs (their mean).
    """
    if len(ious) and not np.isscalar(ious[0]):
        return float(np.mean([noc(run, threshold, limit) for run in ious]))
    return next((i + 1 for i, value in enumerate(ious[:limit]) if value >= threshold), limit)


def nof(runs: Sequence, threshold: float, limit: int = 20) -> int:
    """Number of failures: runs that do not reach IoU ≥ `threshold` within `limit` clicks. One run's IoUs count as a run."""
    return sum(not any(value >= threshold for value in run[:limit]) for run in _runs(runs))


def at_limit(runs: Sequence, threshold: float, limit: int = 20) -> int:
    """The field's "≥20@85" column: runs whose NoC is the limit, those that succeed with their very last click included."""
    return sum(noc(run, threshold, limit) == limit for run in _runs(runs))


def iou_after(runs: Sequence, limit: int = 20) -> list[float]:
    """Mean IoU after 1, 2, … `limit` clicks; a run that ended earlier keeps its last IoU (one without a click: 0).

    nan where there are no runs; one run's IoUs give its own curve.
    """
    table = [[*run[:limit], *[run[-1] if len(run) else 0.0] * (limit - len(run))] for run in _runs(runs)]
    return [mean([row[k] for row in table]) for k in range(limit)]


def _runs(runs: Sequence) -> Sequence[Sequence[float]]:
    """Several runs; those of one run, which is a sequence of numbers."""
    return [runs] if len(runs) and np.isscalar(runs[0]) else runs


class ClickMetrics:
    """NoC, failures, the IoU-after-k curve and seconds a click of interactive segmentation, streaming and mergeable."""

    def __init__(self, limit: int = 20, thresholds: Sequence[float] = (0.8, 0.85, 0.9)) -> None:
        self.limit, self.thresholds = limit, tuple(thresholds)
        self.runs: list[tuple[float, ...]] = []
        self.seconds: list[float] = []

    def update(self, ious: Sequence[float], seconds: float = 0.0) -> Self:
        """Counts one run: its IoU after its 1st, 2nd, … click, and how long it took."""
        self.runs.append(tuple(float(value) for value in ious))
        self.seconds.append(float(seconds))
        return self

    def merge(self, other: ClickMetrics) -> Self:
        """Adds what another worker counted. Raises SegAgentError where limit or thresholds differ."""
        if (other.limit, other.thresholds) != (self.limit, self.thresholds):
            raise SegAgentError("Click metrics of different limits or thresholds cannot be merged.")
        self.runs, self.seconds = self.runs + other.runs, self.seconds + other.seconds
        return self

    def compute(self) -> dict[str, Any]:
        """`count`, `noc80` … (mean clicks, misses as the limit), `at_limit80` …, `nof80` …, `curve` (mean IoU after 1, 2, …
        clicks), `spc` (seconds a click; nan before the first)."""
        each = [(f"{t * 100:g}", t) for t in self.thresholds]
        return {
            "count": len(self.runs),
            **{f"noc{name}": mean([noc(run, t, self.limit) for run in self.runs]) for name, t in each},
            **{f"at_limit{name}": at_limit(self.runs, t, self.limit) for name, t in each},
            **{f"nof{name}": nof(self.runs, t, self.limit) for name, t in each},
            "curve": iou_after(self.runs, self.limit),
            "spc": ratio(math.fsum(self.seconds), sum(map(len, self.runs))),
        }
