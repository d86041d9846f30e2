"""Wrong masks of known targets, made without a segmenter: what mask refinement starts from, and what a PRM must tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from segagent.masks import box_of

KINDS = ("empty", "box", "cut", "grown", "shrunk", "shifted", "spill", "wrong", "exact")


def corrupt(
    target: np.ndarray, rng: np.random.Generator, kind: str | None = None, others: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, str]:
    """A mask (H, W) bool near or far from `target`, and which kind it is; a random kind where none is asked for.

    `others` are the masks of the scene's other objects, for "wrong" (one of them) and "spill" (the target with one of
    them). Without others, or on an empty target, the nearest kind that is possible is made.
    """
    kind = kind or str(rng.choice(KINDS))
    if kind not in KINDS:
        raise ValueError(f"Unknown corruption {kind!r}: use one of {', '.join(KINDS)}.")
    others = [other for other in others if other.any()]
    if kind in ("wrong", "spill") and not others:
        kind = "grown"
    if not target.any() and kind not in ("wrong", "empty"):
        kind = "wrong" if others else "empty"
    if kind == "empty":
        return np.zeros_like(target), kind
    if kind == "wrong":
        return others[rng.integers(len(others))].copy(), kind
    if kind == "exact":
        return target.copy(), kind
    if kind == "spill":
        return target | others[rng.integers(len(others))], kind
    return _shape_change(target, rng, kind), kind


def _shape_change(target: np.ndarray, rng: np.random.Generator, kind: str) -> np.ndarray:
    x0, y0, x1, y1 = box_of(target)
    if kind == "box":
        mask = np.zeros_like(target)
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
        return mask
    if kind == "cut":
        # A half plane through a random point of the object takes away what lies behind it.
        ys, xs = np.nonzero(target)
        pick, angle = rng.integers(len(xs)), rng.uniform(0, 2 * np.pi)
        rows, columns = np.ogrid[: target.shape[0], : target.shape[1]]
        return target & ((columns - xs[pick]) * np.cos(angle) + (rows - ys[pick]) * np.sin(angle) <= 0)
    reach = max(x1 - x0, y1 - y0) + 1
    if kind == "shifted":
        dx, dy = np.rint(rng.uniform(-0.3, 0.3, 2) * reach).astype(int)
        return cv2.warpAffine(
            target.astype(np.uint8), np.float32([[1, 0, dx], [0, 1, dy]]), target.shape[::-1], flags=cv2.INTER_NEAREST
        ).astype(bool)
    radius = max(1, round(reach * rng.uniform(0.02, 0.12)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    change = cv2.dilate if kind == "grown" else cv2.erode
    return change(target.astype(np.uint8), kernel).astype(bool)
