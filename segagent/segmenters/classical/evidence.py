"""What the clicks, the colours and the mask so far say about each pixel: the unary costs of the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segagent.segmenters.classical.mincut import min_cut
from segagent.segmenters.classical.palette import CONFIDENCE, log_ratio
from segagent.segmenters.classical.views import Embedding, View
from segagent.types import Box, Click

NEARNESS, NEARNESS_LIMIT = 1.0, 2.0  # nats for a factor of e between the geodesic distances, and at most
KEEP = 0.6  # what the label that a pixel has weighs, relative to the most that its colour may say
ROUNDS = 2  # of an object's beginning: densities and cut in turn, before the last cut
DISC = 3.0  # px of the view: radius of what a click fixes, where there is room
ZOOM = 12  # a correction looks this far around it, relative to how far the click is from its own label
REACH = 1.5  # standard deviation of where it may change labels, likewise
SHELL = 0.5  # how freely it may change them elsewhere along the boundary
LIKE = 0.5, 10.0  # standard deviations of the pixels that count as clicked: of place, likewise; of colour, Lab units


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """For the pixels of a view."""

    view: View
    table: np.ndarray  # (BINS³,) nats by which a colour speaks for the foreground
    nearness: np.ndarray  # (h, w) float32 nats, for the foreground where the positive clicks are nearer
    keep: np.ndarray | None  # (h, w) float32 nats for the label that a pixel has
    disc: float  # px of the image: radius of what the new action fixes
    distance: float = 0.0  # px of the view: from a correcting click to the nearest pixel of its label; 0 of a beginning
    learned: np.ndarray | None = None  # (3, h, w) float32: nats, and by how much the colours' and `keep` count for more

    def cut(self, view: View, mask: np.ndarray, actions: Sequence[Click | Box]) -> tuple[np.ndarray, np.ndarray]:
        """(before, after): the mask (H, W) as `view` shows it and as the evidence has it; (h, w) of `view`, which lies
        in the evidence's own view and may be finer."""
        before = view.down(mask)
        colour, keep = self.table[view.bins], self.kept(view, before)
        unary = colour + self.view.crop(self.nearness, view) + keep
        if self.learned is not None:
            nats, of_colour, of_keep = (self.view.crop(values, view) for values in self.learned)
            unary += nats + of_colour * colour + of_keep * keep
        return before, min_cut(unary, view.contrast, fixed_labels(view, actions, self.disc))

    def kept(self, view: View, before: np.ndarray) -> np.ndarray | float:
        """(h, w) nats of `view` for the foreground, by the label that each pixel has in `before` (h, w)."""
        return 0.0 if self.keep is None else self.view.crop(self.keep, view) * np.where(before, 1, -1)


def fixed_labels(view: View, actions: Sequence[Click | Box], disc: float) -> np.ndarray:
    """(h, w) int8: +1 and −1 where the actions settle a pixel's label, the last of them first; 0 elsewhere.

    `disc` (px of the image) is the radius of the last click; the earlier ones keep a pixel of the view around them.
    """
    fixed = np.zeros(view.size, np.int8)
    box = box_in_force(actions)
    if box is not None:
        (x0, y0), (x1, y1) = view.point(box.x0, box.y0), view.point(box.x1, box.y1)
        fixed[:] = -1
        fixed[y0 : y1 + 1, x0 : x1 + 1] = 0
    clicks = [a for a in actions if isinstance(a, Click) and view.holds(a.x, a.y)]
    for click in clicks:
        radius = disc * view.scale
        if click is not actions[-1]:
            radius = min(radius, 1)
        cv2.circle(fixed, view.point(click.x, click.y), int(radius), 1 if click.positive else -1, -1)
    for click in clicks:
        x, y = view.point(click.x, click.y)
        fixed[y, x] = 1 if click.positive else -1
    return fixed


def box_in_force(actions: Sequence[Click | Box]) -> Box | None:
    """The last box, unless a later positive click lies outside it."""
    box = None
    for action in actions:
        if isinstance(action, Box):
            box = action
        elif box is not None and action.positive:
            box = box if box.x0 <= action.x <= box.x1 and box.y0 <= action.y <= box.y1 else None
    return box


def depth(mask: np.ndarray) -> np.ndarray:
    """(h, w) float32: px from each True pixel to the nearest False one; the frame counts as neither."""
    padded = np.pad(mask, 1, constant_values=True).astype(np.uint8)
    if padded.all():
        return np.full(mask.shape, max(mask.shape), np.float32)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]


def begin(embedding: Embedding, mask: np.ndarray, actions: Sequence[Click | Box]) -> Evidence:
    """Evidence of an object of which only clicks or a box are known (of a box, also the part of `mask` inside it).

    Superpixels nearer to the clicks than to the frame make the first colour densities, each cut then the next.
    """
    view, last = embedding.whole, actions[-1]
    disc = DISC / view.scale
    fixed = fixed_labels(view, actions, disc)
    inside = view.down(mask) & (fixed >= 0)
    to_positive, to_negative = _geodesic(embedding, inside, actions)
    nearness = _nearness(embedding, to_positive, to_negative)
    weight = inside.astype(np.float32) if inside.any() else _share(embedding, to_positive, to_negative)
    weight = np.where(fixed == 0, weight, fixed > 0)
    alike = similar(view, last) if isinstance(last, Click) else 1
    for rest in range(ROUNDS, -1, -1):
        table = _colours(embedding, view, weight, weight * alike, True)
        evidence = Evidence(view, table, nearness, None, disc)
        if rest:
            _, after = evidence.cut(view, mask, actions)
            if not after.any():
                break
            weight = after.astype(np.float32)
    return evidence


def correct(embedding: Embedding, mask: np.ndarray, actions: Sequence[Click | Box]) -> Evidence:
    """Evidence around a click, the last action, that corrects `mask` (H, W).

    The click lies about the middle of what is wrong, and nothing wrong is much thicker than that (the clicks go to the
    largest error first): so its distance to its own label says how far it reaches, and how sure all deeper labels are.
    A negative click reaches on to whatever has its colour and is nearer to it than to the positive ones.
    """
    click = actions[-1]
    view, distance = _focus(embedding, mask, click)
    before = view.down(mask)
    distance = max(distance * view.scale, 1.5)
    disc = min(DISC, distance / 4) / view.scale
    fixed = fixed_labels(view, actions, disc)
    to_positive, to_negative = _geodesic(embedding, embedding.whole.down(mask), actions)
    nearness = embedding.whole.crop(_nearness(embedding, to_positive, to_negative), view)
    x, y = view.point(click.x, click.y)
    rows, columns = np.ogrid[: view.size[0], : view.size[1]]
    squared = ((columns - x) ** 2 + (rows - y) ** 2).astype(np.float32)
    reach = np.exp(-squared / (2 * max(distance * REACH, 4.0) ** 2))
    shell = np.exp(-(((depth(before) + depth(~before)) / distance) ** 2) / 2)
    place, alike = np.exp(-squared / (2 * (LIKE[0] * distance) ** 2)), similar(view, click)
    if not click.positive:
        at = embedding.whole.point(click.x, click.y)[::-1]
        to_click = np.maximum(embedding.superpixels.distance([embedding.superpixels.labels[at]]), 0.5)
        claim = embedding.whole.crop(_share(embedding, to_click, to_positive), view)
        reach, place = np.maximum(reach, claim * alike), np.maximum(place, claim * before)
    like = place * alike
    like[fixed != 0] = 0
    like[(fixed == (1 if click.positive else -1)) & (squared <= DISC**2)] = 1
    weight = np.where(fixed == 0, before * (1 - like) + click.positive * like, fixed > 0)
    keep = KEEP * CONFIDENCE * (1 - np.maximum(reach, SHELL * shell))
    return Evidence(view, _colours(embedding, view, weight, like, click.positive), nearness, keep, disc, distance)


def similar(view: View, click: Click) -> np.ndarray:
    """(h, w) in [0, 1]: how like the clicked colour each pixel's is."""
    x, y = view.point(click.x, click.y)
    differs = ((view.lab - cv2.blur(view.lab, (3, 3))[y, x]) ** 2).sum(axis=-1)
    return np.exp(-differs / (2 * LIKE[1] ** 2))


def _colours(embedding: Embedding, view: View, weight: np.ndarray, like: np.ndarray, positive: bool) -> np.ndarray:
    """(BINS³,) nats, of pixels that are foreground with `weight` (h, w); those that are `like` (h, w) the last click
    count as much as all others of its label, however few they are."""
    foreground, background, clicked = (embedding.palette.density(view.bins, w) for w in (weight, 1 - weight, like))
    if positive:
        return log_ratio((foreground + clicked) / 2, background)
    share = min(1.0, weight.sum() / max((1 - weight).sum(), 1.0))  # of a large background the click tells little
    return log_ratio(foreground, (background + share * clicked) / (1 + share))


def _focus(embedding: Embedding, mask: np.ndarray, click: Click) -> tuple[View, float]:
    """The view that a correction works in, and the click's distance (px of the image) to the nearest pixel of its label."""
    whole = embedding.whole
    width, height = whole.window[2:]
    column, row = int(click.x + 0.5), int(click.y + 0.5)

    def around(half: int) -> tuple[int, int, int, int]:
        return max(0, column - half), max(0, row - half), min(width, column + half + 1), min(height, row + half + 1)

    near = int(4 / whole.scale) + 2
    x0, y0, x1, y1 = around(near)
    wrong = mask[y0:y1, x0:x1] != click.positive
    distance = float(depth(wrong)[row - y0, column - x0])
    if wrong.all() or distance >= near:
        x, y = whole.point(click.x, click.y)
        distance = max(near, float(depth(whole.down(mask) != click.positive)[y, x]) / whole.scale)
    distance = max(distance, 1.0)
    window = around(int(max(ZOOM * distance, 32)))
    if 2 * (window[2] - window[0]) * (window[3] - window[1]) > width * height:
        return whole, distance
    return embedding.view(window), distance


def _geodesic(embedding: Embedding, mask: np.ndarray, actions: Sequence[Click | Box]) -> tuple[np.ndarray, np.ndarray]:
    """Distances (count,) of the superpixels from what is foreground and from what is background: the clicks, and for the
    background also the frame, where the mask (h, w) does not reach it, and what lies outside the box."""
    superpixels, view = embedding.superpixels, embedding.whole
    seeds: dict[bool, list[int]] = {True: [], False: []}
    for action in actions:
        if isinstance(action, Click):
            x, y = view.point(action.x, action.y)
            seeds[action.positive].append(int(superpixels.labels[y, x]))
    outside = superpixels.border & (superpixels.mean(mask) < 0.5)
    box = box_in_force(actions)
    if box is not None:
        outside |= superpixels.mean(fixed_labels(view, (box,), 0) < 0) > 0.5
    to_negative = superpixels.distance([*seeds[False], *np.flatnonzero(outside)])
    if seeds[True]:
        to_positive = superpixels.distance(seeds[True])
    elif mask.any():
        core = superpixels.mean(depth(_without_clicked(view, mask, actions)))
        to_positive = superpixels.distance(np.flatnonzero(core > core.max() / 2))
    else:
        to_positive = to_negative.max() - to_negative
    return np.maximum(to_positive, 0.5), np.maximum(to_negative, 0.5)


def _without_clicked(view: View, mask: np.ndarray, actions: Sequence[Click | Box]) -> np.ndarray:
    """The mask (h, w) without the surroundings of the negative clicks, as wide as each is deep in it."""
    deep, rest = depth(mask), mask.astype(np.uint8)
    for action in actions:
        if isinstance(action, Click) and not action.positive:
            x, y = view.point(action.x, action.y)
            cv2.circle(rest, (x, y), int(1.5 * deep[y, x]) + 1, 0, -1)
    return rest > 0


def _nearness(embedding: Embedding, to_positive: np.ndarray, to_negative: np.ndarray) -> np.ndarray:
    """(h, w) float32 nats, of the whole view."""
    ratio = NEARNESS * np.log(to_negative / to_positive)
    return np.clip(ratio, -NEARNESS_LIMIT, NEARNESS_LIMIT).astype(np.float32)[embedding.superpixels.labels]


def _share(embedding: Embedding, distance: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(h, w) float32 in [0, 1], of the whole view: 1 at no `distance` (count,), a half where both are equal."""
    return (other**2 / (other**2 + distance**2)).astype(np.float32)[embedding.superpixels.labels]
