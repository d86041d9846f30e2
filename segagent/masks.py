"""Mask arithmetic over bool arrays (..., H, W): IoU, error regions, RLE, polygons, overlay."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from segagent.errors import MaskError

OVERLAY_COLORS = {"green": (0, 255, 0), "blue": (0, 0, 255), "red": (255, 0, 0)}


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[-2:] != b.shape[-2:]:
        raise MaskError(
            f"Masks of {a.shape[-1]}×{a.shape[-2]} px and {b.shape[-1]}×{b.shape[-2]} px cannot be compared."
        )


def iou(a: np.ndarray, b: np.ndarray, ignore: np.ndarray | None = None) -> Any:
    """Intersection over union of bool masks (..., H, W) → float, or (...) float64. Two empty masks: 1."""
    _check(a, b)
    union, inter = a | b, a & b
    if ignore is not None:
        union, inter = union & ~ignore, inter & ~ignore
    if union.ndim == 2:
        total = np.count_nonzero(union)
        return float(np.count_nonzero(inter) / total) if total else 1.0
    total = np.count_nonzero(union, axis=(-2, -1))
    return np.where(total > 0, np.count_nonzero(inter, axis=(-2, -1)) / np.maximum(total, 1), 1.0)


def error_regions(
    mask: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(false negatives, false positives), both (..., H, W) bool; pixels of `ignore` are no error."""
    _check(mask, target)
    negatives, positives = target & ~mask, mask & ~target
    if ignore is not None:
        negatives, positives = negatives & ~ignore, positives & ~ignore
    return negatives, positives


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) of the true pixels of a (H, W) mask, both corners inclusive; None where there are none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def to_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO RLE of a (H, W) mask: {"size": [H, W], "counts": str}, ready for JSON."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def from_rle(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) bool from a COCO RLE, compressed (str or bytes counts) or not (a list of ints). Raises MaskError."""
    try:
        height, width = (int(n) for n in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, list):
            total = sum(int(n) for n in counts)
        else:
            counts = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
            total = _total(counts)
        # pycocotools neither checks this nor clears what it decodes into: what short counts do not reach is chance.
        if min(height, width) < 1 or total != height * width:
            raise MaskError(f"The RLE's counts add up to {total}, not to {height}×{width}.")
        if isinstance(counts, list):
            return coco.decode(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)).astype(
                bool
            )
        return coco.decode({"size": [height, width], "counts": counts}).astype(bool)
    except MaskError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskError(f"Not a COCO RLE (a dict with size [height, width] and counts): {error!r}.") from error


def _total(counts: bytes) -> int:
    """How many pixels the runs of a compressed RLE cover. Raises ValueError where they are no such runs.

    A run is written in 5 bit chunks, low ones first, each a character from "0" with bit 5 set where more follow; from the
    fourth run on it is the difference to the run before the last, so it may be negative.
    """
    chunks = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not chunks.size or chunks.min() < 0 or chunks.max() > 63 or chunks[-1] & 32:
        raise ValueError("malformed counts")
    ends = np.flatnonzero(chunks & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends + 1 - starts
    if lengths.max() > 7:
        raise ValueError("malformed counts")
    place = 5 * (np.arange(chunks.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((chunks & 31) << place, starts) - np.where(chunks[ends] & 16, 1 << 5 * lengths, 0)
    runs = np.concatenate([runs[:1], runs[1::2].cumsum(), runs[2::2].cumsum()])
    if runs.min() < 0:
        raise ValueError("malformed counts")
    return int(runs.sum())


def to_polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[list[float]]:
    """COCO polygons [x0, y0, x1, y1, …] of a (H, W) mask's outer contours; holes are not representable.

    As COCO has it, pixel (x, y) covers [x, x + 1) × [y, y + 1): the outline runs along the pixels' edges, and from_polygons
    gives the mask back, its holes filled. `tolerance` (px) simplifies by Douglas–Peucker, but never to under three corners.
    """
    # OpenCV traces pixel centres. With each pixel doubled, the even ones of these are next to an edge at half their
    # coordinate, the odd ones next to the edge after it.
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        outline = _corners((contour[:, 0] + 1) // 2)
        simpler = cv2.approxPolyDP(outline[:, None], tolerance, True)[:, 0] if tolerance > 0 else outline
        polygons.append((simpler if len(simpler) > 2 else outline).ravel().astype(float).tolist())
    return polygons


def _corners(points: np.ndarray) -> np.ndarray:
    """The points (N, 2) of a closed outline at which it turns."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[(np.sign(before) != np.sign(after)).any(axis=1)]


def from_polygons(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the union of COCO polygons (pycocotools' merge); `size` is (height, width)."""
    height, width = size
    try:
        kept = [list(map(float, p)) for p in polygons if len(p) >= 6]
        if not kept:
            return np.zeros(size, bool)
        return coco.decode(coco.merge(coco.frPyObjects(kept, height, width))).astype(bool)
    except (TypeError, ValueError) as error:
        raise MaskError(f"Not COCO polygons (lists of x, y pairs): {error!r}.") from error


def overlay(
    image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] | str = "green", alpha: float = 0.5
) -> np.ndarray:
    """The image (H, W, 3) uint8 with the mask (H, W) blended on: alpha · colour + (1 − alpha) · image, rounded.

    Paper, section 3.2: semi-transparent green, alpha 0.5.
    """
    _check(image[..., 0], mask)
    rgb = OVERLAY_COLORS[color] if isinstance(color, str) else color
    table = np.stack([np.rint(np.arange(256) * (1 - alpha) + channel * alpha) for channel in rgb], axis=-1)
    table = np.clip(table, 0, 255).astype(np.uint8)
    painted = image.copy()
    for channel in range(3):
        np.copyto(painted[..., channel], table[..., channel][image[..., channel]], where=mask)
    return painted
