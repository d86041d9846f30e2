"""How many pixels two masks share, whatever they are kept as: exact counts, without decoding what is packed or run-length encoded."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco

from segagent import masks
from segagent.errors import MaskError
from segagent.types import as_mask

# A compressed RLE's characters: from "0" a run's last one, from "P" one that more follow.
_FIRST, _MORE = ord("0"), ord("P")
_CHARACTERS = bytes(range(_FIRST, _FIRST + 64))
_HEAD = re.compile(rb"([P-o]*[0-O])([P-o]*[0-O])([P-o]*[0-O])")
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
    """One bit a pixel of a mask (H, W). Raises MaskError for other shapes and for more than two values."""
    mask = as_bool(mask)
    if mask.ndim != 2:
        raise MaskError(f"One mask (height, width) is packed at a time; this array has shape {mask.shape}.")
    octets = np.packbits(mask)
    return PackedMask(mask.shape, np.pad(octets, (0, -len(octets) % 8)).view(np.uint64))


def overlap(a: Mask, b: Mask, ignore: Mask | None = None) -> Overlap:
    """How many pixels two masks have, and have in common, those of `ignore` left out. Raises MaskError where sizes differ."""
    given = (a, b) if ignore is None else (a, b, ignore)
    for kind, count in ((dict, _overlap_rle), (PackedMask, _overlap_packed)):
        if all(isinstance(mask, kind) for mask in given):
            return count(*given)
    return _overlap_arrays(*(as_bool(mask) for mask in given))


def several(given: Any) -> bool:
    """Whether these are more masks than one: an array (N, …, H, W), or a list of masks of any kind."""
    if isinstance(given, dict | PackedMask):
        return False
    if isinstance(given, list | tuple):
        return bool(given) and (isinstance(given[0], dict | PackedMask) or np.ndim(given[0]) > 1)
    return np.ndim(given) > 2


def as_bool(mask: Any) -> np.ndarray:
    """A bool array (H, W) of any kind of mask, (N, …, H, W) of several. Raises MaskError."""
    if isinstance(mask, dict):
        return masks.from_rle(mask)
    if isinstance(mask, PackedMask):
        return np.unpackbits(mask.words.view(np.uint8), count=math.prod(mask.size)).view(bool).reshape(mask.size)
    if isinstance(mask, list | tuple) and several(mask):
        found = [as_bool(one) for one in mask]
        check_same_size(*(one.shape for one in found))
        return np.stack(found)
    mask = np.asarray(mask)
    return mask if mask.dtype == bool and mask.ndim > 1 else as_mask(mask)


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


def _overlap_rle(*rles: dict) -> Overlap:
    given = [_compressed(rle) for rle in rles]
    check_same_size(*(tuple(rle["size"]) for rle in given))
    others = [{"size": rle["size"], "counts": _complement(rle["counts"])} for rle in given]
    areas = [int(n) for n in coco.area([*given, *others])]
    for rle, ones, zeros in zip(rles, areas, areas[len(rles) :], strict=False):
        if ones + zeros != math.prod(rle["size"]):  # pycocotools would merge it with another without end
            raise MaskError(f"The RLE's counts add up to {ones + zeros}, not to {rle['size'][0]}×{rle['size'][1]}.")
    a, b, *ignore = given
    counts = [int(coco.area(coco.merge([a, b], intersect=True))), *areas[:2]]
    if ignore:
        hidden = [coco.merge([*group, *ignore], intersect=True) for group in ((a, b), (a,), (b,))]
        counts = [n - int(m) for n, m in zip(counts, coco.area(hidden), strict=True)]
    return Overlap(*counts)


def _compressed(rle: dict) -> dict:
    """With counts in bytes that are runs as far as their characters tell. Raises MaskError."""
    counts = rle.get("counts")
    if isinstance(counts, list) and "size" in rle:
        masks.from_rle(rle)  # which checks them
        return coco.frPyObjects(rle, *rle["size"])
    counts = counts.encode() if isinstance(counts, str) else counts
    known = "size" in rle and isinstance(counts, bytes) and bool(counts)
    if not known or counts.translate(None, _CHARACTERS) or counts[-1] >= _MORE:
        masks.from_rle(rle)  # which says what is wrong
    return {"size": rle["size"], "counts": counts}


def _complement(counts: bytes) -> bytes:
    """The counts of all other pixels, of which it begins with none.

    From the fourth run on a run is written as the difference to the run before the last: with one more before it, that of
    the third changes, and those of the others stay.
    """
    head = _HEAD.match(counts)
    if head is None:
        return b"0" + counts
    difference, written, more = _number(head[3]) - _number(head[1]), bytearray(), True
    while more:
        low, difference = difference & 31, difference >> 5
        more = difference != (-1 if low & 16 else 0)
        written.append(low + (_MORE if more else _FIRST))
    return b"0" + head[1] + head[2] + bytes(written) + counts[head.end() :]


def _number(run: bytes) -> int:
    """Of a run's characters: 5 bits each, low ones first, the last one's highest bit its sign."""
    value = sum((character - _FIRST & 31) << 5 * place for place, character in enumerate(run))
    return value - (1 << 5 * len(run)) if run[-1] - _FIRST & 16 else value


def iou(a: Any, b: Any, ignore: Any = None) -> Any:
    """Intersection over union; two empty masks: 1. Several masks, (..., H, W) or a list, give an array (...)."""
    if several(a):
        a, b = as_bool(a), as_bool(b)
        return masks.iou(a, b, None if ignore is None else as_bool(ignore))
    counts = overlap(a, b, ignore)
    return counts.intersection / counts.union if counts.union else 1.0
