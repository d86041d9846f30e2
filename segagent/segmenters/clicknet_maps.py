"""What ClickNet sees of a click: the classical segmenter's evidence and answer, the mask and the clicks, as maps of a view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segagent.segmenters.classical.evidence import (
    KEEP,
    NEARNESS_LIMIT,
    Evidence,
    depth,
    fixed_labels,
    similar,
)
from segagent.segmenters.classical.palette import CONFIDENCE, LIGHTNESS
from segagent.segmenters.classical.views import Embedding
from segagent.segmenters.grabcut import answer
from segagent.types import Box, Click

MAPS = (
    *("lightness", "green-red", "blue-yellow", "colour", "nearness", "keep", "before", "depth", "last", "last wide"),
    *("others", "fixed", "alike", "geodesic", "after", "inside"),
)
LIMITS = {"colour": CONFIDENCE, "nearness": NEARNESS_LIMIT, "keep": KEEP * CONFIDENCE}  # nats that 1 stands for
NARROW = 4.0  # px of the view: standard deviation of a click's map
WIDE = 1.5  # the same of the last click's second map, relative to how far it is from its own label
DEEP = 16.0  # px of the view: no pixel is deeper in the mask, or outside it, than this


def maps_of(embedding: Embedding, evidence: Evidence, mask: np.ndarray, actions: Sequence[Click | Box]) -> np.ndarray:
    """(len(MAPS), h, w) float32 in [-1, 1] of the evidence's view; `mask` (H, W) is the one before the last action, a click."""
    view = evidence.view
    before = view.down(mask)
    fixed = fixed_labels(view, actions, evidence.disc)
    limits = np.array([100 * LIGHTNESS / 2, 100, 100], np.float32)
    lab = (view.lab - np.array([limits[0], 0, 0], np.float32)) / limits
    values = {
        "colour": evidence.table[view.bins] / LIMITS["colour"],
        "nearness": view.crop(evidence.nearness, view) / LIMITS["nearness"],
        "keep": evidence.kept(view, before) / LIMITS["keep"],
        "before": np.where(before, 1, -1),
        "depth": (depth(before) - depth(~before)) / DEEP,
        **_of_clicks(embedding, evidence, actions),
        "fixed": fixed,
        "after": np.where(answer(evidence, view, mask, actions)[1], 1, -1),
        "inside": 1,
    }
    maps = np.empty((len(MAPS), *view.size), np.float32)
    maps[:3] = lab.transpose(2, 0, 1)
    for i, name in enumerate(MAPS[3:], 3):
        maps[i] = values[name]
    return maps.clip(-1, 1, out=maps)


def _of_clicks(embedding: Embedding, evidence: Evidence, actions: Sequence[Click | Box]) -> dict[str, np.ndarray]:
    """Where the clicks lie, signed; and how like the last one each pixel is, by colour and by geodesic distance."""
    view, last = evidence.view, actions[-1]
    others = np.zeros(view.size, np.float32)
    for click in actions[:-1]:
        if isinstance(click, Click) and view.holds(click.x, click.y):
            others += _spot(view, click, NARROW)
    superpixels, whole = embedding.superpixels, embedding.whole
    at = superpixels.labels[whole.point(last.x, last.y)[::-1]]
    far = np.log(superpixels.distance([at]) + 0.5)[superpixels.labels].astype(np.float32)
    return {
        "last": _spot(view, last, NARROW),
        "last wide": _spot(view, last, max(WIDE * evidence.distance, NARROW)),
        "others": others,
        "alike": similar(view, last),
        "geodesic": whole.crop(far, view) / 3 - 1,
    }


def _spot(view, click: Click, reach: float) -> np.ndarray:
    """(h, w) float32: a Gaussian about the click, `reach` (px of the view) its standard deviation, of the click's sign."""
    x, y = view.point(click.x, click.y)
    rows, columns = np.ogrid[: view.size[0], : view.size[1]]
    spot = np.exp(-((columns - x) ** 2) / (2 * reach**2)) * np.exp(-((rows - y) ** 2) / (2 * reach**2))
    return (spot if click.positive else -spot).astype(np.float32)
