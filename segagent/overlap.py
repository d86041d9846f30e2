"""How many pixels two masks share, whatever they are kept as: exact counts, without decoding what is packed or run-length encoded."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco

from segagent import masks
from segagent.errors import MaskError
from segagent.types import as_mask

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
    return _overlap_arrays(*(as_bool(mask) for mask in given))


def as_bool(mask: Mask) -> np.ndarray:
    """A bool array of any kind of mask."""
    if isinstance(mask, dict):
        return masks.from_rle(mask)
    if isinstance(mask, PackedMask):
        return np.unpackbits(mask.words.view(np.uint8), count=math.prod(mask.size)).view(bool).reshape(mask.size)
    mask = np.asarray(mask)
    return mask if mask.dtype == bool else as_mask(mask)


def check_same_size(*sizes: tuple[int, ...]) -> None:
    """Raises MaskError."""
    if len(set(sizes)) > 1:
        raise MaskError(f"Masks of different sizes cannot be compared: {', '.join(map(str, sizes))} (height, width).")


def _overlap_arrays(a: np.ndarray, b: np.ndarray, ignore: np.ndarray | None = None) -> Overlap:
    check_same_size(a.shape, b.shape, *(() if ignore is None else (ignore.shape,)))
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
    check_same_size(*(tuple(m.size) for m in (a, b, ignore) if m is not None))
    x, y = (m.words if ignore is None else m.words & ~ignore.words for m in (a, b))
    return Overlap(*(int(np.bitwise_count(words).sum(dtype=np.int64)) for words in (x & y, x, y)))


def _overlap_rle(a: dict, b: dict, ignore: dict | None = None) -> Overlap:
    check_same_size(*(tuple(m["size"]) for m in (a, b, ignore) if m is not None))
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
        return masks.iou(a, as_bool(b), ignore)
    counts = overlap(a, b, ignore)
    return counts.intersection / counts.union if counts.union else 1.0
