"""Referring expressions of HRES-Synth: logical forms, what they denote in a scene, and the English that says them.

Denotation is three-valued. `denote` returns the objects that a form fits for certain and those that it fits possibly: "left of"
is certain well to the left, impossible on the other side, and possible in between. An expression is used only where exactly
one object is certain and no other possible, so that none is decided by a pixel, or where nothing is even possible.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from segagent.data._paint import CLOSE, COLORS, TEXTURES
from segagent.data._scenes import Scene, SceneObject
from segagent.data._shapes import ALIKE, SHAPES

Denotation = tuple[frozenset[int], frozenset[int]]  # (certain, possible) indices of objects; certain ⊆ possible
_NOTHING: Denotation = (frozenset(), frozenset())

SIDES = ("left", "right", "top", "bottom")
PLACES = (*SIDES, "middle", "top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "right of", "above", "below", "behind", "in front of", "closest to")
KINDS = ("attribute", "size", "place", "order", "relation", "absent")


@dataclass(frozen=True)
class Form:
    """The meaning of an expression. Attributes, relation and place select; then size or order picks one of those left."""

    color: str | None = None
    shape: str | None = None
    texture: str | None = None
    relation: str | None = None  # one of RELATIONS, to what `landmark` denotes
    landmark: Form | None = None
    place: str | None = None  # one of PLACES: a part of the image
    size: str | None = None  # biggest | smallest
    order: tuple[str, int] | None = None  # (one of SIDES, n): the n-th from that side; 1 is the leftmost, topmost, …


def denote(form: Form, scene: Scene, lenient: bool = False) -> Denotation:
    """What `form` fits in `scene`: (certain, possible). `lenient` counts look-alike colours and shapes as possible."""
    objects = scene.objects
    certain = {i for i, o in enumerate(objects) if _has(form, o)}
    possible = {i for i, o in enumerate(objects) if _has(form, o, lenient=True)} if lenient else certain
    if form.relation is not None:
        found, maybe = denote(form.landmark, scene, lenient)
        if not maybe:
            return _NOTHING
        if len(found) != 1 or found != maybe:
            return frozenset(), frozenset(possible)
        (mark,) = found
        certain, possible = _related(form.relation, certain - {mark}, possible - {mark}, mark, scene)
    if form.place is not None:
        truth = {i: _placed(form.place, objects[i], scene.size) for i in possible}
        certain, possible = {i for i in certain if truth[i] is True}, {i for i in possible if truth[i] is not False}
    if form.size is not None or form.order is not None:
        certain, possible = _pick(form, certain, possible, scene)
    return frozenset(certain), frozenset(possible)


def _has(form: Form, thing: SceneObject, lenient: bool = False) -> bool:
    if lenient:
        color = form.color is None or thing.color in CLOSE[form.color]
        shape = form.shape is None or thing.shape in ALIKE[form.shape]
    else:
        color, shape = form.color in (None, thing.color), form.shape in (None, thing.shape)
    return color and shape and form.texture in (None, thing.texture)


def _unit(scene: Scene) -> float:
    return math.sqrt(scene.size[0] * scene.size[1])


def _related(relation: str, certain: set, possible: set, mark: int, scene: Scene) -> tuple[set, set]:
    if relation == "closest to":
        x, y = scene.objects[mark].center
        gaps = sorted((math.hypot(scene.objects[i].center[0] - x, scene.objects[i].center[1] - y), i) for i in possible)
        if certain != possible or not gaps:
            return set(), possible
        if len(gaps) > 1 and gaps[1][0] >= 1.4 * gaps[0][0]:
            return {gaps[0][1]}, {gaps[0][1]}
        return set(), possible
    truth = {i: _holds(relation, scene.objects, i, mark, _unit(scene)) for i in possible}
    return {i for i in certain if truth[i] is True}, {i for i in possible if truth[i] is not False}


def _holds(relation: str, objects: tuple[SceneObject, ...], i: int, mark: int, unit: float) -> bool | None:
    """Whether object i stands in `relation` to object `mark`; None where people might disagree."""
    if relation in ("behind", "in front of"):
        back, front = (i, mark) if relation == "behind" else (mark, i)
        hidden = objects[back].behind.get(front, 0)
        if hidden >= max(25, 0.002 * unit * unit):
            return True
        return False if hidden == 0 else None
    dx, dy = (a - b for a, b in zip(objects[i].center, objects[mark].center, strict=True))
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    if along >= 0.1 * unit and abs(across) <= 0.9 * along:
        return True
    return False if along <= -0.03 * unit else None


def _placed(place: str, thing: SceneObject, size: tuple[int, int]) -> bool | None:
    """Whether the object is in that part of the image; None near the part's border."""
    x, y = thing.center[0] / size[1], thing.center[1] / size[0]
    if place == "middle":
        off = max(abs(x - 0.5), abs(y - 0.5))
        return True if off <= 0.13 else (False if off >= 0.22 else None)
    shares = [{"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side] for side in place.split()]
    if max(shares) <= 0.38:
        return True
    return False if max(shares) >= 0.5 else None


def _pick(form: Form, certain: set, possible: set, scene: Scene) -> tuple[set, set]:
    """The biggest, the smallest, or the n-th from a side of a set whose members are all certain."""
    if certain != possible:
        return set(), possible
    if form.size is not None:
        if len(certain) < 2:  # "the biggest ring" of one ring is no way to speak of it
            return set(), possible
        ranked = sorted(certain, key=lambda i: scene.objects[i].extent, reverse=form.size == "biggest")
        return ({ranked[0]},) * 2 if _bigger(scene, ranked, form.size == "biggest") else (set(), possible)
    side, n = form.order
    if len(certain) < n:
        return set(), set()
    if len(certain) < 2:
        return set(), possible
    axis, sign = (0 if side in ("left", "right") else 1), (1 if side in ("left", "top") else -1)
    ranked = sorted(certain, key=lambda i: sign * scene.objects[i].center[axis])
    spots = [scene.objects[i].center[axis] for i in ranked]
    gaps = [abs(b - a) for a, b in itertools.pairwise(spots)]
    near = gaps[max(0, n - 2) : n]
    # The ranks before it must be clear too: people count from the side.
    return ({ranked[n - 1]},) * 2 if min(near + gaps[:n]) >= 0.07 * _unit(scene) else (set(), possible)


def _bigger(scene: Scene, ranked: list[int], biggest: bool) -> bool:
    """Whether the first of `ranked` is clearly the biggest (or smallest), both whole and as far as it is seen."""
    first = scene.objects[ranked[0]]
    for other in (scene.objects[i] for i in ranked[1:]):
        large, small = (first, other) if biggest else (other, first)
        if large.extent < 1.35 * small.extent or large.extent * large.visible < 1.15 * small.extent * small.visible:
            return False
    return True


# ---- English ----

_TEXTURE_AFTER = {
    "striped": "with stripes",
    "dotted": "with dots",
    "checkered": "with checks",
    "plain": "without a pattern",
}
_RELATION_TEXT = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "behind": ("behind", "partly behind"),
    "in front of": ("in front of", "on top of"),
    "closest to": ("closest to", "nearest to"),
}
_FIRST_TEXT = {
    "left": ("leftmost", "farthest to the left", "first {} from the left"),
    "right": ("rightmost", "farthest to the right", "first {} from the right"),
    "top": ("topmost", "closest to the top", "highest"),
    "bottom": ("bottommost", "closest to the bottom", "lowest"),
}
_ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}
_SIZE_TEXT = {"biggest": ("biggest", "largest", "big", "large"), "smallest": ("smallest", "small", "little")}
NOUN = "shape"  # what an object is called whose shape is not said


def say(form: Form, rng: np.random.Generator, article: bool = True) -> str:
    """One of the English phrases for the form, lower case."""
    before, after = [], []
    if form.size is not None:
        before.append(_choose(rng, _SIZE_TEXT[form.size]))
    texture_after = form.texture is not None and (form.texture == "plain" or rng.random() < 0.3)
    if form.texture is not None and not texture_after:
        before.append(form.texture)
    color_after = form.color is not None and not (form.size or form.texture or form.relation) and rng.random() < 0.12
    if form.color is not None and not color_after:
        before.append(form.color)
    if texture_after:
        after.append(_TEXTURE_AFTER[form.texture])
    if color_after:
        after.append(f"that is {form.color}")
    if form.relation is not None:
        after.append(f"{_choose(rng, _RELATION_TEXT[form.relation])} {say(form.landmark, rng)}")
    if form.place is not None:
        after.append(_say_place(form.place, rng))
    text = " ".join([*before, form.shape or NOUN, *after])
    if form.order is not None:
        text = _say_order(text, form.order, rng)
    return f"the {text}" if article else text


def _choose(rng, options):
    return options[rng.integers(len(options))]


def _say_place(place: str, rng) -> str:
    if place == "middle":
        return _choose(rng, ("in the middle", "in the center"))
    if " " in place:
        return f"in the {place} corner" if rng.random() < 0.6 else f"at the {place}"
    if place in ("left", "right"):
        return _choose(rng, (f"on the {place}", f"on the {place} side"))
    return f"at the {place}"


def _say_order(text: str, order: tuple[str, int], rng) -> str:
    side, n = order
    if n > 1:
        return f"{_ORDINALS[n]} {text} from the {side}"
    phrase = _choose(rng, _FIRST_TEXT[side])
    if "{}" in phrase:
        return phrase.format(text)
    return f"{text} {phrase}" if " " in phrase else f"{phrase} {text}"


# ---- Choosing what to say ----


def expressions(scene: Scene, rng: np.random.Generator, per_object: int = 4) -> list[tuple[str, tuple[int, ...], str]]:
    """Several (text, indices of the objects denoted, kind) for each object, then some that denote nothing (no indices).

    Kinds: attribute, size, place, order, relation; and absent, for those that denote nothing.
    """
    found: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for index in range(len(scene.objects)):
        kinds = [kind for kind in _PROPOSE for _ in range(3 if kind in ("attribute", "relation") else 2)]
        kept = 0
        for kind in rng.permutation(kinds):
            form = _PROPOSE[str(kind)](scene, index, rng)
            if form is None or kept == per_object:
                continue
            if denote(form, scene) == (frozenset((index,)),) * 2:
                text = say(form, rng, article=rng.random() < 0.75)
                kept += text not in found
                found[text] = (text, (index,), str(kind))
    for _ in range(3 * len(scene.objects)):
        form = _absent(scene, rng)
        if form is not None and not denote(form, scene, lenient=True)[1]:
            text = say(form, rng, article=rng.random() < 0.75)
            found.setdefault(text, (text, (), "absent"))
    return list(found.values())


def _attributes(thing: SceneObject, rng, shape: float = 0.92, color: float = 0.6) -> Form:
    form = Form(
        color=thing.color if rng.random() < color else None,
        shape=thing.shape if rng.random() < shape else None,
        texture=thing.texture if thing.texture != "plain" and rng.random() < 0.3 else None,
    )
    return form if (form.color or form.shape or form.texture) else replace(form, shape=thing.shape)


def _propose_attribute(scene: Scene, index: int, rng) -> Form:
    form = _attributes(scene.objects[index], rng, shape=0.85, color=0.65)
    rivals = [o for o in scene.objects if o.texture != scene.objects[index].texture and _has(form, o)]
    # "Without a pattern" is said only where a rival has one.
    return replace(form, texture=scene.objects[index].texture) if rivals and form.texture is None else form


def _propose_size(scene: Scene, index: int, rng) -> Form:
    thing = scene.objects[index]
    rivals = [o.extent for i, o in enumerate(scene.objects) if i != index and o.shape == thing.shape]
    size = "biggest" if not rivals or thing.extent > np.mean(rivals) else "smallest"
    return replace(_attributes(thing, rng, shape=1, color=0.4), size=size)


def _propose_place(scene: Scene, index: int, rng) -> Form | None:
    thing = scene.objects[index]
    places = [place for place in PLACES if _placed(place, thing, scene.size)]
    return replace(_attributes(thing, rng), place=_choose(rng, places)) if places else None


def _propose_order(scene: Scene, index: int, rng) -> Form | None:
    base, side = _attributes(scene.objects[index], rng, color=0.4), _choose(rng, SIDES)
    axis, sign = (0 if side in ("left", "right") else 1), (1 if side in ("left", "top") else -1)
    rivals = [o for o in scene.objects if _has(base, o)]
    n = 1 + sum(sign * o.center[axis] < sign * scene.objects[index].center[axis] for o in rivals)
    if n > max(_ORDINALS) or (n > 1 and len(rivals) < 3):
        return None
    return replace(base, order=(side, n))


def _propose_relation(scene: Scene, index: int, rng) -> Form | None:
    objects, unit = scene.objects, _unit(scene)
    pairs = [
        (r, j) for j in range(len(objects)) if j != index for r in RELATIONS[:6] if _holds(r, objects, index, j, unit)
    ]
    pairs += [(r, j) for r, j in pairs if r in ("behind", "in front of")] * 3  # rarer than the others, and telling
    others = [j for j in range(len(objects)) if j != index]
    pairs.append(("closest to", _choose(rng, others)))
    relation, mark = _choose(rng, pairs)
    landmark = _attributes(objects[mark], rng)
    if denote(landmark, scene)[0] != {mark}:
        landmark = Form(objects[mark].color, objects[mark].shape)
    return replace(_attributes(objects[index], rng, color=0.4), relation=relation, landmark=landmark)


_PROPOSE: dict[str, Callable[[Scene, int, np.random.Generator], Form | None]] = {
    "attribute": _propose_attribute,
    "size": _propose_size,
    "place": _propose_place,
    "order": _propose_order,
    "relation": _propose_relation,
}


def _absent(scene: Scene, rng) -> Form | None:
    """A form near the scene that may well denote nothing in it: an object's own, with one thing changed."""
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    change = rng.integers(5)
    if change == 0:
        return Form(_choose(rng, tuple(COLORS)), thing.shape)
    if change == 1:
        return Form(thing.color, _choose(rng, tuple(SHAPES)))
    if change == 2:
        return Form(None, thing.shape, _choose(rng, TEXTURES[1:])) if thing.texture == "plain" else None
    if change == 3:
        return replace(Form(thing.color, thing.shape), place=_choose(rng, PLACES))
    form = _propose_relation(scene, index, rng)
    opposite = dict(zip(RELATIONS[:6], ("right of", "left of", "below", "above", "in front of", "behind"), strict=True))
    return replace(form, relation=opposite[form.relation]) if form.relation in opposite else None


def vocabulary() -> tuple[str, ...]:
    """Every word that an expression may hold, sorted."""
    texts = [*COLORS, *SHAPES, *TEXTURES[1:], *_TEXTURE_AFTER.values(), *_ORDINALS.values(), *PLACES, NOUN]
    for options in (*_RELATION_TEXT.values(), *_FIRST_TEXT.values(), *_SIZE_TEXT.values()):
        texts += options
    texts += ["the", "that is", "in at on from", "center middle corner side"]
    return tuple(sorted({word for text in texts for word in text.split()} - {"{}"}))
