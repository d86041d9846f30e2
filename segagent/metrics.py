"""Metrics of masks, of runs of clicks and of predicted IoUs, each with its convention named.

A mask is a bool array (H, W), a COCO RLE (a dict) or a PackedMask; RLEs and packed masks are compared without decoding. All counts are
exact integers, all results in [0, 1] unless said otherwise, and no metric depends on the order of its updates and merges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from pycocotools import mask as coco

from segagent import masks
from segagent.calibration import Calibration, calibration, ratio
from segagent.errors import MaskError, SegAgentError
from segagent.types import as_mask

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

_BLOCK = 1 << 17  # bytes; small enough to stay in a core's cache from one look at it to the next


class PackedMask(NamedTuple):
    """A mask of one bit a pixel, an eighth of a bool array; `pack` makes one."""

    size: tuple[int, int]  # (height, width)
    words: np.ndarray  # uint64, row-major bits, zeros at the end


class Overlap(NamedTuple):
    """Pixel counts of two masks."""

    intersection: int
    a: int
    b: int

    @property
    def union(self) -> int:
        return self.a + self.b - self.intersection


Mask = np.ndarray | dict | PackedMask


def pack(mask: np.ndarray) -> PackedMask:
    """One bit a pixel of a bool mask (H, W)."""
    octets = np.packbits(mask)
    return PackedMask(mask.shape, np.pad(octets, (0, -len(octets) % 8)).view(np.uint64))


def overlap(a: Mask, b: Mask, ignore: Mask | None = None) -> Overlap:
    """How many pixels two masks have, and have in common, those of `ignore` left out. Raises MaskError where sizes differ."""
    given = (a, b) if ignore is None else (a, b, ignore)
    for kind, count in ((dict, _overlap_rle), (PackedMask, _overlap_packed)):
        if all(isinstance(mask, kind) for mask in given):
            return count(*given)
    return _overlap_arrays(*(_array(mask) for mask in given))


def _array(mask: Mask) -> np.ndarray:
    if isinstance(mask, dict):
        return masks.from_rle(mask)
    if isinstance(mask, PackedMask):
        return np.unpackbits(mask.words.view(np.uint8), count=math.prod(mask.size)).view(bool).reshape(mask.size)
    mask = np.asarray(mask)
    return mask if mask.dtype == bool else as_mask(mask)


def _same_size(*sizes: tuple[int, ...]) -> None:
    if len(set(sizes)) > 1:
        raise MaskError(f"Masks of different sizes cannot be compared: {', '.join(map(str, sizes))} (height, width).")


def _overlap_arrays(a: np.ndarray, b: np.ndarray, ignore: np.ndarray | None = None) -> Overlap:
    _same_size(a.shape, b.shape, *(() if ignore is None else (ignore.shape,)))
    if ignore is not None:
        a, b = a & ~ignore, b & ~ignore
    flat_a, flat_b = (mask.ravel().view(np.uint8) for mask in (a, b))
    pixels_a = pixels_b = differing = 0
    for start in range(0, flat_a.size, _BLOCK):
        x, y = flat_a[start : start + _BLOCK], flat_b[start : start + _BLOCK]
        # Bytes of 0 and 1, whose sum is the quickest way to count them; both blocks are fetched from memory at once.
        differing += int(cv2.norm(x, y, cv2.NORM_L1))
        pixels_a += int(cv2.norm(x, cv2.NORM_L1))
        pixels_b += int(cv2.norm(y, cv2.NORM_L1))
    return Overlap((pixels_a + pixels_b - differing) // 2, pixels_a, pixels_b)


def _overlap_packed(a: PackedMask, b: PackedMask, ignore: PackedMask | None = None) -> Overlap:
    _same_size(*(tuple(m.size) for m in (a, b, ignore) if m is not None))
    x, y = (m.words if ignore is None else m.words & ~ignore.words for m in (a, b))
    return Overlap(*(int(np.bitwise_count(words).sum(dtype=np.int64)) for words in (x & y, x, y)))


def _overlap_rle(a: dict, b: dict, ignore: dict | None = None) -> Overlap:
    _same_size(*(tuple(m["size"]) for m in (a, b, ignore) if m is not None))
    a, b = _compressed(a), _compressed(b)
    counts = [int(n) for n in coco.area([coco.merge([a, b], intersect=True), a, b])]
    if ignore is not None:
        ignore = _compressed(ignore)
        hidden = [coco.merge([*group, ignore], intersect=True) for group in ((a, b), (a,), (b,))]
        counts = [n - int(m) for n, m in zip(counts, coco.area(hidden), strict=True)]
    return Overlap(*counts)


def _compressed(rle: dict) -> dict:
    return coco.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle


def iou(a: Mask, b: Mask, ignore: Mask | None = None) -> Any:
    """Intersection over union; two empty masks: 1. Arrays (..., H, W) with leading axes give an array (...)."""
    if isinstance(a, np.ndarray) and a.ndim > 2:
        return masks.iou(a, _array(b), ignore)
    counts = overlap(a, b, ignore)
    return counts.intersection / counts.union if counts.union else 1.0


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
            _same_size(prediction.shape, np.shape(target), *(() if ignore is None else (np.shape(ignore),)))
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


def boundary_iou(a: Mask, b: Mask, ratio: float = 0.02) -> float:
    """IoU of the two masks' inner boundaries, `ratio` of the frame's diagonal wide (Cheng et al., CVPR 2021).

    The width is rounded, at least one pixel, and measured in the chessboard distance; the frame's edge bounds a mask too.
    """
    a, b = _array(a), _array(b)
    _same_size(a.shape, b.shape)
    width = max(1, round(ratio * math.hypot(*a.shape)))
    return iou(_inner_boundary(a, width), _inner_boundary(b, width))


def _inner_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    inner, boundary = mask[y : y + h, x : x + w], mask.copy()
    padded = cv2.copyMakeBorder(inner.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    boundary[y : y + h, x : x + w] &= eroded == 0
    return boundary


def region_j(a: Mask, b: Mask, ignore: Mask | None = None) -> Any:
    """DAVIS' region similarity J: IoU, 1 for two empty masks; (T, H, W) gives one value a frame."""
    return iou(a, b, ignore)


def contour_f(a: Mask, b: Mask, tolerance: float = 0.008) -> Any:
    """DAVIS' contour accuracy F of prediction `a` and target `b`; (T, H, W) gives one value a frame.

    Precision and recall of boundary pixels that lie within ceil(`tolerance` · diagonal) px of the other boundary, and their
    harmonic mean. Two masks without a boundary: 1; one without: 0.
    """
    a, b = _array(a), _array(b)
    _same_size(a.shape, b.shape)
    if a.ndim > 2:
        return np.array([contour_f(x, y, tolerance) for x, y in zip(a, b, strict=True)])
    edges = _edges(a), _edges(b)
    if not all(edge.any() for edge in edges):
        return float(not any(edge.any() for edge in edges))
    reach = math.ceil(tolerance * math.hypot(*a.shape))
    precision, recall = _share_near(edges[0], edges[1], reach), _share_near(edges[1], edges[0], reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _edges(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from their right, lower or lower right neighbour, as DAVIS marks a boundary."""
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _share_near(edge: np.ndarray, other: np.ndarray, reach: int) -> float:
    """Share of the pixels of `edge` that have a pixel of `other` within `reach` px (Euclidean)."""
    x, y, w, h = cv2.boundingRect((edge | other).view(np.uint8))
    edge, other = edge[y : y + h, x : x + w], other[y : y + h, x : x + w]
    distance = cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, 0)[edge]
    return np.count_nonzero(np.rint(distance**2) <= reach**2) / distance.size


def j_and_f(a: Mask, b: Mask) -> dict[str, float]:
    """{"j", "f", "j_and_f"}: DAVIS' two measures, each the mean over all frames given, and their mean."""
    j, f = float(np.mean(region_j(a, b))), float(np.mean(contour_f(a, b)))
    return {"j": j, "f": f, "j_and_f": (j + f) / 2}
