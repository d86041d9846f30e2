"""Metrics of outlines: boundary IoU, and DAVIS' contour accuracy F with its region similarity J."""

from __future__ import annotations

import math
from typing import Any, Self

import cv2
import numpy as np

from segagent.calibration import mean
from segagent.overlap import Mask, as_bool, check_same_size, iou


def boundary_iou(a: Mask, b: Mask, ratio: float = 0.02) -> Any:
    """IoU of the two masks' inner boundaries, `ratio` of the frame's diagonal wide (Cheng et al., CVPR 2021).

    The width is rounded, at least one pixel, and measured in the chessboard distance; the frame's edge bounds a mask too.
    Several masks, (..., H, W) or a list, give an array (...).
    """
    a, b = as_bool(a), as_bool(b)
    check_same_size(a.shape, b.shape)
    if a.ndim > 2:
        return np.array([boundary_iou(x, y, ratio) for x, y in zip(a, b, strict=True)])
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
    a, b = as_bool(a), as_bool(b)
    check_same_size(a.shape, b.shape)
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


class OutlineMetrics:
    """Mean boundary IoU, and DAVIS' J, F and J&F, of many objects; streaming and mergeable.

    An object is a mask, or several, its frames (T, H, W), of which it counts the mean, as in DAVIS.
    """

    def __init__(self) -> None:
        self.scores: list[tuple[float, float, float]] = []

    def update(self, prediction: Mask, target: Mask) -> Self:
        """Counts one object. Raises MaskError where sizes differ."""
        measures = (boundary_iou, region_j, contour_f)
        self.scores.append(tuple(float(np.mean(measure(prediction, target))) for measure in measures))
        return self

    def merge(self, other: OutlineMetrics) -> Self:
        """Adds what another worker counted."""
        self.scores = self.scores + other.scores
        return self

    def compute(self) -> dict[str, float]:
        """`boundary_iou`, `j`, `f`, `j_and_f`, means over the objects in [0, 1] (nan before the first), and their `count`."""
        columns = zip(*self.scores, strict=True) if self.scores else ((), (), ())
        outline, j, f = map(mean, columns)
        return {"boundary_iou": outline, "j": j, "f": f, "j_and_f": (j + f) / 2, "count": len(self.scores)}
