"""The embedded default: a classical interactive segmenter on OpenCV's graph cut. No weights, CPU only.

An action is answered by minimum cuts (Boykov and Jolly, 2001), first of a coarse view of the image, or of the part around
the click where what is wrong is small; then of a finer view of what changed. A pixel's cost adds up
- its colour, under densities of the mask so far and of what lies around the click (after GrabCut, Rother et al., 2004);
- whether it is nearer to the positive or to the negative clicks, by geodesic distance (after Bai and Sapiro, 2007);
- the label it has, the more so the farther it is from the click, so that what was right stays right.
Of a correction only the connected part that holds the click is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import cv2
import numpy as np

from segagent.masks import box_of
from segagent.segmenters.base import EmbeddingCache, Prediction
from segagent.segmenters.classical.evidence import Evidence, begin, correct
from segagent.segmenters.classical.views import AREA, Embedding, View, Window, encode
from segagent.types import Box, Click, State

FINE = 2 * AREA  # px of the finer view
WORTH = 1.15  # the least gain in scale that makes it worth a cut

# (embedding, evidence, mask, actions) → the evidence that is cut by
Adjust = Callable[[Embedding, Evidence, np.ndarray, Sequence[Click | Box]], Evidence]


class GrabCutSegmenter:
    """Pure and deterministic: a mask depends on the image, the mask before it and the actions alone, in any thread."""

    reference = "grabcut"

    def __init__(self) -> None:
        self._cache = EmbeddingCache(encode)

    def encode(self, image: np.ndarray) -> Embedding:
        """image (H, W, 3) uint8 RGB → its colours, superpixels and smaller sizes; cached by content."""
        return self._cache(image)

    def predict(
        self, embedding: Embedding, states: Sequence[State], actions: Sequence[Click | Box]
    ) -> list[Prediction]:
        """One prediction for each (state, action) pair. Each pixel clicked has the label of its last click."""
        masks, histories = [s.mask for s in states], [(*s.actions, a) for s, a in zip(states, actions, strict=True)]
        if len(masks) == 1:
            return [Prediction(predict_one(embedding, masks[0], histories[0], self.adjust))]
        with ThreadPoolExecutor(cpu_count()) as pool:  # OpenCV works outside the GIL
            found = pool.map(lambda m, h: predict_one(embedding, m, h, self.adjust), masks, histories)
            return [Prediction(m) for m in found]

    def adjust(
        self, embedding: Embedding, evidence: Evidence, mask: np.ndarray, actions: Sequence[Click | Box]
    ) -> Evidence:
        """The evidence that is cut by, from what clicks, colours and the mask say; for those who know more."""
        return evidence


def predict_one(embedding: Embedding, mask: np.ndarray, actions: Sequence[Click | Box], adjust: Adjust) -> np.ndarray:
    """The mask (H, W) after the last of `actions`, `mask` being the one before it."""
    action = actions[-1]
    if isinstance(action, Click) and mask.any():
        result = _corrected(embedding, mask, actions, adjust)
    elif isinstance(action, Box) or action.positive:
        result = _begun(embedding, mask, actions, adjust)
    else:
        result = mask.copy()  # nothing is said of the object yet
    for click in actions:
        if isinstance(click, Click):
            result[int(click.y + 0.5), int(click.x + 0.5)] = click.positive
    return result


def answer(
    evidence: Evidence, view: View, mask: np.ndarray, actions: Sequence[Click | Box]
) -> tuple[np.ndarray, np.ndarray]:
    """(changed, after): what the last action changes of `mask` (H, W), of a beginning all of the object, and the mask with
    it; (h, w) bool of `view`."""
    before, after = evidence.cut(view, mask, actions)
    if evidence.keep is not None:
        return _of_click(view, before, after, actions[-1])
    after = _of_clicks(view, after, actions)
    return after, after


def _begun(embedding: Embedding, mask: np.ndarray, actions: Sequence[Click | Box], adjust: Adjust) -> np.ndarray:
    """A new mask (H, W)."""
    evidence = adjust(embedding, begin(embedding, mask, actions), mask, actions)
    view, _, after = _cut(embedding, evidence, mask, actions)
    result = np.zeros_like(mask)
    x0, y0, x1, y1 = view.window
    result[y0:y1, x0:x1] = view.up(after)
    if isinstance(actions[-1], Box) and not result.any():  # nothing in it stands out
        box = actions[-1]
        result[int(box.y0 + 0.5) : int(box.y1 + 0.5) + 1, int(box.x0 + 0.5) : int(box.x1 + 0.5) + 1] = True
    return result


def _corrected(embedding: Embedding, mask: np.ndarray, actions: Sequence[Click | Box], adjust: Adjust) -> np.ndarray:
    """A copy of `mask` (H, W), changed around the click, the last action."""
    evidence = adjust(embedding, correct(embedding, mask, actions), mask, actions)
    view, changed, after = _cut(embedding, evidence, mask, actions)
    changed = view.up(changed)
    if view.scale < 1:  # the boundary in `mask` may lie anywhere in the view's pixels
        side = 2 * int(np.ceil(0.75 / view.scale)) + 1
        changed = cv2.dilate(changed.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    result = mask.copy()
    x0, y0, x1, y1 = view.window
    np.copyto(result[y0:y1, x0:x1], view.up(after), where=changed)
    return result


def _cut(
    embedding: Embedding, evidence: Evidence, mask: np.ndarray, actions: Sequence[Click | Box]
) -> tuple[View, np.ndarray, np.ndarray]:
    """(view, changed, after), cut in the evidence's view and, where it shows notably more, in a finer one of the change."""
    view = evidence.view
    changed, after = answer(evidence, view, mask, actions)
    if changed.any():
        finer = embedding.view(_around(view, changed), FINE)
        if finer.scale > WORTH * view.scale:
            return finer, *answer(evidence, finer, mask, actions)
    return view, changed, after


def _of_clicks(view: View, after: np.ndarray, actions: Sequence[Click | Box]) -> np.ndarray:
    """The parts of `after` that hold a positive click; where none is known, those not far smaller than the largest."""
    count, parts = cv2.connectedComponents(after.astype(np.uint8), connectivity=4)
    keep = np.zeros(count, bool)
    for action in actions:
        if isinstance(action, Click) and action.positive and view.holds(action.x, action.y):
            keep[parts[view.point(action.x, action.y)[::-1]]] = True
    if not keep[1:].any():
        area = np.bincount(parts.ravel(), minlength=count)
        area[0] = 0
        keep = area * 10 >= area.max()
    keep[0] = False
    return keep[parts]


def _of_click(view: View, before: np.ndarray, after: np.ndarray, click: Click) -> tuple[np.ndarray, np.ndarray]:
    """(changed, after): the part of the change that holds the click, and `before` with that part changed."""
    _, parts = cv2.connectedComponents((after != before).astype(np.uint8), connectivity=8)
    part = parts[view.point(click.x, click.y)[::-1]]
    changed = (parts == part) & (part > 0)
    return changed, before ^ changed


def _around(view: View, changed: np.ndarray) -> Window:
    """The window (px of the image) of the true pixels of `changed` (h, w), with a margin, within the view's own."""
    column0, row0, column1, row1 = box_of(changed)
    margin = 4 + (max(column1 - column0, row1 - row0) + 1) / 10
    x0, y0, x1, y1 = view.window
    width, height = (x1 - x0) / view.size[1], (y1 - y0) / view.size[0]  # of a pixel of the view
    return (
        max(x0, x0 + int((column0 - margin) * width)),
        max(y0, y0 + int((row0 - margin) * height)),
        min(x1, x0 + int((column1 + 1 + margin) * width) + 1),
        min(y1, y0 + int((row1 + 1 + margin) * height) + 1),
    )
