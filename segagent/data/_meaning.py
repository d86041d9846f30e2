"""What a referring expression of HRES-Synth means: logical forms, and the objects of a scene that they denote.

Denotation is three-valued. `denote` returns the objects that a form fits for certain and those that it fits possibly: "left of"
is certain well to the left, impossible on the other side, and possible in between. An expression is used only where exactly
one object is certain and no other possible, so that none is decided by a pixel, or where nothing is even possible.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segagent.data._paint import CLOSE
from segagent.data._shapes import ALIKE

if TYPE_CHECKING:
    from segagent.data._scenes import Scene, SceneObject

SIDES = ("left", "right", "top", "bottom")
PLACES = (*SIDES, "middle", "top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "right of", "above", "below", "behind", "in front of", "inside", "closest to")
HOLLOW = ("ring", "frame")  # shapes that another object may be inside of
Denotation = tuple[frozenset[int], frozenset[int]]  # (certain, possible) indices of objects; certain ⊆ possible
_NOTHING: Denotation = (frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class Form:
    """The meaning of an expression. Attributes, relation and place select; then size or order picks one of those left."""

    color: str | None = None
    shape: str | None = None  # a name of SHAPES, or "letter" for any letter
    texture: str | None = None
    relation: str | None = None  # one of RELATIONS, to what `landmark` denotes
    landmark: Form | None = None
    place: str | None = None  # one of PLACES: a part of the image
    size: str | None = None  # biggest | smallest
    order: tuple[str, int] | None = None  # (one of SIDES, n): the n-th from that side; 1 is the leftmost, topmost, …


class Facts:
    """What holds in a scene: tables of 1 (yes), -1 (no) and 0 (people might disagree), computed once."""

    def __init__(self, objects: Sequence[SceneObject], size: tuple[int, int]) -> None:
        height, width = size
        self.unit = (height * width) ** 0.5
        center = np.array([thing.center for thing in objects])
        self.relations = self._relations(objects, center)  # [relation but the last][object][landmark]
        self.places = _places(center / (width, height))  # [place][object]
        self.distance = np.linalg.norm(center[:, None] - center[None], axis=-1).tolist()
        # Order from a side is by the centre; the side of the box that faces there must agree.
        self.spots = np.stack([center[:, 0], -center[:, 0], center[:, 1], -center[:, 1]]).tolist()
        x0, y0, x1, y1 = np.array([thing.box for thing in objects]).T
        self.edges = np.stack([x0, -x1, y0, -y1]).tolist()

    def _relations(self, objects: Sequence[SceneObject], center: np.ndarray) -> list:
        dx, dy = np.moveaxis(center[:, None] - center[None], -1, 0)
        along = np.stack([-dx, dx, -dy, dy]) / self.unit
        across = np.abs(np.stack([dy, dy, dx, dx])) / self.unit
        beside = np.where((along >= 0.1) & (across <= 0.9 * along), 1, np.where(along <= -0.03, -1, 0))
        hidden = np.full((len(objects),) * 2, -1)  # 0 where they only touch
        for i, thing in enumerate(objects):
            for front, pixels in thing.behind.items():
                hidden[i, front] = pixels
        behind = np.where(hidden >= max(25, 0.002 * self.unit**2), 1, np.where(hidden < 0, -1, 0))
        inside = _inside(objects, center)
        return [*beside.tolist(), behind.tolist(), behind.T.tolist(), inside.tolist()]


def _inside(objects: Sequence[SceneObject], center: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = np.array([thing.box for thing in objects], float).T
    hollow = np.array([thing.shape in HOLLOW for thing in objects])
    extent = np.array([thing.extent for thing in objects])
    middle = np.stack([(x0 + x1) / 2, (y0 + y1) / 2], axis=1)
    off = np.linalg.norm(center[:, None] - middle[None], axis=-1)
    room = np.minimum(x1 - x0, y1 - y0)[None] / 2
    x, y = center[:, 0, None], center[:, 1, None]
    outside = (x < x0) | (x > x1) | (y < y0) | (y > y1)
    return np.where(~hollow[None] | outside, -1, np.where(off + 0.42 * extent[:, None] <= room, 1, 0))


def _places(share: np.ndarray) -> list:
    """share: (n, 2) centres relative to the image's width and height → [place][object]."""
    x, y = share.T
    far = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
    table = []
    for place in PLACES:
        if place == "middle":
            worst, yes, no = np.abs(share - 0.5).max(1), 0.13, 0.22
        else:
            worst, yes, no = np.max([far[side] for side in place.split()], axis=0), 0.38, 0.5
        table.append(np.where(worst <= yes, 1, np.where(worst >= no, -1, 0)).tolist())
    return table


def has(form: Form, thing: SceneObject) -> bool:
    """Whether the object has the form's attributes."""
    shape = form.shape in (None, thing.shape) or (form.shape == "letter" and thing.shape.startswith("letter"))
    return shape and form.color in (None, thing.color) and form.texture in (None, thing.texture)


def _looks(form: Form, thing: SceneObject) -> bool:
    """Whether somebody might say that the object has the form's attributes."""
    return (
        (form.color is None or thing.color in CLOSE[form.color])
        and (form.shape is None or thing.shape in ALIKE[form.shape])
        and form.texture in (None, thing.texture)
    )


def denote(form: Form, scene: Scene, lenient: bool = False) -> Denotation:
    """What `form` fits in `scene`: (certain, possible). `lenient` counts look-alike colours and shapes as possible."""
    objects, facts = scene.objects, scene.facts
    certain = {i for i, thing in enumerate(objects) if has(form, thing)}
    possible = {i for i, thing in enumerate(objects) if _looks(form, thing)} if lenient else certain
    if form.relation is not None and possible:
        found, maybe = denote(form.landmark, scene, lenient)
        if not maybe:
            return _NOTHING
        if len(found) != 1 or found != maybe:
            return frozenset(), frozenset(possible)
        (mark,) = found
        certain, possible = _related(form.relation, certain - found, possible - found, mark, facts)
    if form.place is not None:
        truth = facts.places[PLACES.index(form.place)]
        certain, possible = {i for i in certain if truth[i] > 0}, {i for i in possible if truth[i] >= 0}
    if form.size is not None:
        certain, possible = _by_size(form.size, certain, possible, scene)
    if form.order is not None:
        certain, possible = _by_order(form.order, certain, possible, facts)
    return frozenset(certain), frozenset(possible)


def _related(relation: str, certain: set, possible: set, mark: int, facts: Facts) -> tuple[set, set]:
    if relation != "closest to":
        truth = facts.relations[RELATIONS.index(relation)]
        return {i for i in certain if truth[i][mark] > 0}, {i for i in possible if truth[i][mark] >= 0}
    if certain != possible or not possible:
        return set(), possible
    first, *rest = sorted(possible, key=lambda i: facts.distance[i][mark])
    clear = not rest or facts.distance[rest[0]][mark] >= 1.4 * facts.distance[first][mark]
    return ({first},) * 2 if clear else (set(), possible)


def _by_size(size: str, certain: set, possible: set, scene: Scene) -> tuple[set, set]:
    """The biggest or smallest of two or more, clearly so both whole and as far as each is seen."""
    if certain != possible or len(certain) < 2:  # "the biggest ring" of one ring is no way to speak of it
        return set(), possible
    things = scene.objects
    ranked = sorted(certain, key=lambda i: things[i].extent, reverse=size == "biggest")
    for other in ranked[1:]:
        large, small = (ranked[0], other) if size == "biggest" else (other, ranked[0])
        large, small = things[large], things[small]
        if large.extent < 1.35 * small.extent or large.extent * large.visible < 1.15 * small.extent * small.visible:
            return set(), possible
    return ({ranked[0]},) * 2


def _by_order(order: tuple[str, int], certain: set, possible: set, facts: Facts) -> tuple[set, set]:
    """The n-th from a side. The places before it and the one after must be clear too, since people count from the side."""
    side, n = order
    if certain != possible:
        return set(), possible
    if len(certain) < max(n, 2):
        return set(), (possible if len(certain) >= n else set())
    spots, edges = facts.spots[SIDES.index(side)], facts.edges[SIDES.index(side)]
    ranked = sorted(certain, key=lambda i: spots[i])
    for a, b in itertools.pairwise(ranked[: n + 1]):
        if spots[b] - spots[a] < 0.07 * facts.unit or edges[b] - edges[a] < 0.015 * facts.unit:
            return set(), possible
    # Those farther still must not reach out to the side past the n-th.
    if any(edges[i] <= edges[ranked[n - 1]] for i in ranked[n:]):
        return set(), possible
    return ({ranked[n - 1]},) * 2
