"""The simulated annotator (F_sim, the paper's Algorithm 3): it clicks the centre of the largest error region."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segagent.errors import DataError, MaskError
from segagent.masks import error_regions, iou
from segagent.policy import Observation, Proposal, Reading
from segagent.types import Click, Sample

# OpenCV's 5×5 chamfer distance over the exact one: least towards (2, 1), most at a slope of 0.1969; rounded outwards.
_CHAMFER_LOW, _CHAMFER_HIGH = 0.982, 1.02
_SMALL = 1 << 15  # pixels; up to here two plain transforms are as quick


def next_click(
    mask: np.ndarray,
    target: np.ndarray,
    ignore: np.ndarray | None = None,
    clicked: Iterable[Click | tuple[float, float]] = (),
) -> Click | None:
    """The next corrective click on `mask` (H, W) bool towards `target` (H, W) bool; None where nothing is left to click.

    False negatives and false positives, without the pixels of `ignore` (H, W) bool, are each zero-padded by one pixel and
    distance-transformed (exact L2); pixels of `clicked` (Clicks, or (x, y) in pixels, rounded) are excluded; the click is the
    first maximum, in row-major order, of the larger map: positive for false negatives, negative for false positives and on a tie.
    The result is that of two full-frame transforms, but a quick chamfer transform first tells where the maximum can be.

    Distances are compared as squared integers. OpenCV's floats are those integers' roots, except that in frames under 2^14 px,
    or on one thread, some equal ones differ in their last bit by where they lie in memory; there the released clicker's choice
    between equally far pixels is chance, and here it is the first. Where every wrong pixel has been clicked already the
    released clicker clicks pixel (0, 0); this returns None. Raises MaskError where sizes differ.
    """
    mask, target = np.asarray(mask, bool), np.asarray(target, bool)
    if mask.ndim != 2 or (ignore is not None and np.shape(ignore) != mask.shape):
        raise MaskError("next_click takes masks of one size (height, width), and an `ignore` of the same.")
    regions = error_regions(mask, target, None if ignore is None else np.asarray(ignore, bool))
    pixels = _pixels(clicked, mask.shape)
    if mask.size <= _SMALL:
        return _full_frame_click(regions, pixels)
    maps = [_Map.of(region, pixels) for region in regions]
    highest = max(m.highest for m in maps)
    if highest == 0:
        return None
    (missed, at_missed), (extra, at_extra) = (m.farthest(highest / _CHAMFER_HIGH) for m in maps)
    positive = missed > extra
    y, x = at_missed if positive else at_extra
    return Click(x, y, positive=positive)


def _pixels(clicked: Iterable[Click | tuple[float, float]], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the pixels that hold the clicks; clicks outside the frame hold none."""
    points = [(c.x, c.y) if isinstance(c, Click) else c for c in clicked]
    columns, rows = np.floor(np.array(points, float).reshape(-1, 2) + 0.5).astype(int).T
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    return rows[inside], columns[inside]


def _padded(region: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(region.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)


def _squared(distance: np.ndarray) -> np.ndarray:
    return np.rint(distance.astype(float) ** 2).astype(int)


def _full_frame_click(regions: Sequence[np.ndarray], pixels: tuple[np.ndarray, np.ndarray]) -> Click | None:
    """The definition itself: two exact transforms of the whole frame."""
    missed, extra = (_squared(cv2.distanceTransform(_padded(r), cv2.DIST_L2, 0)[1:-1, 1:-1]) for r in regions)
    missed[pixels] = extra[pixels] = 0
    positive = missed.max(initial=0) > extra.max(initial=0)
    distance = missed if positive else extra
    if not distance.any():
        return None
    y, x = np.unravel_index(np.argmax(distance), distance.shape)
    return Click(int(x), int(y), positive=bool(positive))


@dataclass(eq=False)
class _Map:
    """One error region, cropped to its box and padded by one pixel, with its chamfer distances."""

    region: np.ndarray  # (h + 2, w + 2) uint8
    near: np.ndarray  # (h + 2, w + 2) float32, 0 where clicked
    corner: tuple[int, int]  # (row, column) in the frame of the crop's first pixel
    highest: float  # near.max()

    @classmethod
    def of(cls, region: np.ndarray, pixels: tuple[np.ndarray, np.ndarray]) -> _Map:
        x, y, w, h = cv2.boundingRect(region.view(np.uint8))
        crop = _padded(region[y : y + h, x : x + w])
        near = cv2.distanceTransform(crop, cv2.DIST_L2, 5)
        rows, columns = pixels[0] - y + 1, pixels[1] - x + 1
        inside = (rows >= 0) & (rows <= h + 1) & (columns >= 0) & (columns <= w + 1)
        near[rows[inside], columns[inside]] = 0
        return cls(crop, near, (y - 1, x - 1), float(near.max()))

    def farthest(self, least: float) -> tuple[int, tuple[int, int]]:
        """The highest squared distance and the first (row, column) of the frame that has it; (0, (0, 0)) if under `least`."""
        if self.highest == 0 or self.highest / _CHAMFER_LOW < least:
            return 0, (0, 0)
        candidates = np.flatnonzero(self.near >= least * _CHAMFER_LOW)
        lowest = math.ceil((least * _CHAMFER_LOW / _CHAMFER_HIGH) ** 2)
        reach = self.highest / _CHAMFER_LOW  # no distance is above it
        # Nanoseconds, roughly: the probing sees π pixels for each squared distance, the other way transforms whole windows.
        probing = (reach**2 - lowest) * (20 * len(candidates) + 3000)
        quick = probing < 25 * (2 * reach) ** 2 + 100 * len(candidates)  # than to find the windows and transform one
        windows = [] if quick else self._windows(candidates, math.ceil(reach) + 1)
        if quick or probing < 25 * sum(height * width for (_, _, height, width), _ in windows):
            squared, first = self._probe(candidates, lowest, int(reach**2))
        else:
            squared, first = self._transform(windows)
        row, column = divmod(first, self.region.shape[1])
        return squared, (row + self.corner[0], column + self.corner[1])

    def _windows(self, candidates: np.ndarray, margin: int) -> list[tuple[tuple[int, int, int, int], np.ndarray]]:
        """((row, column, height, width), its candidates) for each group of nearby candidates, `margin` pixels around it."""
        rows, columns = np.divmod(candidates, self.region.shape[1])
        cell = max(16, margin // 2)
        grid = np.zeros((self.region.shape[0] // cell + 1, self.region.shape[1] // cell + 1), np.uint8)
        grid[rows // cell, columns // cell] = 1
        labels = cv2.connectedComponents(grid, connectivity=8)[1][rows // cell, columns // cell]
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order], prepend=0))
        top, left = (np.maximum(np.minimum.reduceat(v[order], starts) - margin, 0) for v in (rows, columns))
        bottom, right = (np.maximum.reduceat(v[order], starts) + margin + 1 for v in (rows, columns))
        height = np.minimum(bottom, self.region.shape[0]) - top
        width = np.minimum(right, self.region.shape[1]) - left
        boxes = zip(top, left, height, width, strict=True)
        return list(zip(boxes, np.split(candidates[order], starts[1:]), strict=True))

    def _transform(self, windows: list[tuple[tuple[int, int, int, int], np.ndarray]]) -> tuple[int, int]:
        """By an exact transform of each window: right for its candidates, whose nearest zeros lie inside it."""
        found = []
        for (top, left, height, width), candidates in windows:
            crop = np.ascontiguousarray(self.region[top : top + height, left : left + width])
            distance = cv2.distanceTransform(crop, cv2.DIST_L2, 0)
            rows, columns = np.divmod(candidates, self.region.shape[1])
            found.append(_squared(distance[rows - top, columns - left]))
        squared, candidates = np.concatenate(found), np.concatenate([c for _, c in windows])
        return int(squared.max()), int(candidates[squared == squared.max()].min())

    def _probe(self, candidates: np.ndarray, lowest: int, highest: int) -> tuple[int, int]:
        """By looking for zeros around each candidate, ring after ring: squared distances lie in [lowest, highest]."""
        flat, reach = self.region.ravel(), math.isqrt(highest)
        steps = np.arange(-reach, reach + 1)
        squares = steps[:, None] ** 2 + steps**2
        rows, columns = np.nonzero((squares >= lowest) & (squares <= highest))
        lengths, offsets = squares[rows, columns], (rows - reach) * self.region.shape[1] + columns - reach
        order = np.argsort(lengths, kind="stable")
        values, starts = np.unique(lengths[order], return_index=True)
        for value, ring in zip(values[:-1], np.split(offsets[order], starts[1:]), strict=False):
            # A candidate still here is at least `value` from the crop's border of zeros, so every index is inside.
            clear = candidates[flat[candidates[:, None] + ring].all(axis=1)]
            if not len(clear):
                return int(value), int(candidates[0])
            candidates = clear
        return int(values[-1]), int(candidates[0])


class SimulatedAnnotator:
    """F_sim as a policy: it knows the targets, clicks the largest error, and stops where no pixel is wrong.

    `target` is a mask (H, W), or a mapping from a sample's id to its mask; `ignore` likewise. `stop_iou` (the paper's τ_stop)
    ends a run once the mask's IoU with the target has reached it.
    """

    def __init__(
        self,
        target: np.ndarray | Mapping[str, np.ndarray],
        ignore: np.ndarray | Mapping[str, np.ndarray] | None = None,
        stop_iou: float | None = None,
    ) -> None:
        self.target, self.ignore, self.stop_iou = target, ignore, stop_iou

    @classmethod
    def for_samples(cls, samples: Iterable[Sample], stop_iou: float | None = None) -> SimulatedAnnotator:
        """An annotator for these samples, told apart by their ids. Raises DataError: no target, or two samples of one id."""
        targets: dict[str, np.ndarray] = {}
        ignored: dict[str, np.ndarray] = {}
        for sample in samples:
            if sample.target is None:
                raise DataError(f"Sample {sample.id!r} has no target mask to annotate.")
            if targets.setdefault(sample.id, sample.target) is not sample.target:
                raise DataError(f"Two samples have the id {sample.id!r}: give each its own.")
            if sample.ignore is not None:
                ignored[sample.id] = sample.ignore
        return cls(targets, ignored, stop_iou)

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        return [_SimulatedReading(o, *self._truth(o.id), self.stop_iou) for o in observations]

    def _truth(self, sample_id: str) -> tuple[np.ndarray, np.ndarray | None]:
        target = self.target.get(sample_id) if isinstance(self.target, Mapping) else self.target
        if target is None:
            raise DataError(f"The simulated annotator has no target for sample {sample_id!r}.")
        return target, self.ignore.get(sample_id) if isinstance(self.ignore, Mapping) else self.ignore


@dataclass(frozen=True, eq=False)
class _SimulatedReading:
    observation: Observation
    target: np.ndarray
    ignore: np.ndarray | None
    stop_iou: float | None
    predicted_iou: float | None = None  # an annotator says no number

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        """The one click of F_sim, whatever the arguments."""
        mask = self.observation.mask
        if self.stop_iou is not None and iou(mask, self.target, self.ignore) >= self.stop_iou:
            return [Proposal(None, origin="simulated")]
        click = next_click(mask, self.target, self.ignore, self.observation.state.clicks)
        return [Proposal(click, origin="simulated")]
