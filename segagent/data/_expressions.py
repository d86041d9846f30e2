"""Which expressions are made for a scene of HRES-Synth: forms proposed for an object, kept where they denote it alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from segagent.data._english import ORDINALS, say
from segagent.data._meaning import PLACES, RELATIONS, SIDES, Form, denote, has
from segagent.data._paint import COLORS, TEXTURES
from segagent.data._scenes import Scene, SceneObject
from segagent.data._shapes import SHAPES

KINDS = ("attribute", "size", "place", "order", "relation", "absent")
_OPPOSITE = dict(zip(RELATIONS[:6], ("right of", "left of", "below", "above", "in front of", "behind"), strict=True))
_COLORS, _SHAPES = tuple(COLORS), tuple(SHAPES)

Expression = tuple[str, tuple[int, ...], str]  # text, indices of the objects denoted (one, or none), kind


def expressions(scene: Scene, rng: np.random.Generator, per_object: int = 4) -> list[Expression]:
    """Several expressions for each object, then some that denote nothing (no indices, kind "absent").

    `per_object` is the most for one object; one that cannot be told from its neighbours may get none.
    """
    found: dict[str, Expression] = {}
    for index in range(len(scene.objects)):
        kept = 0
        for number in rng.permutation(2 * len(_PROPOSE)).tolist():
            expression = _propose(scene, index, _ORDER[number % len(_PROPOSE)], rng)
            if expression is not None and expression[0] not in found:
                found[expression[0]] = expression
                kept += 1
                if kept == per_object:
                    break
    for _ in range(2 * len(scene.objects)):
        expression = _absent(scene, rng)
        if expression is not None:
            found.setdefault(expression[0], expression)
    return list(found.values())


def one_expression(scene: Scene, rng: np.random.Generator, absent: float = 0.0) -> Expression:
    """A single expression: with probability `absent` one that denotes nothing, else of a random kind for a random object.

    Where no object can be told from the others, it denotes nothing all the same.
    """
    nothing = rng.random() < absent
    for attempt in itertools.count():  # ends: every scene lacks colours and shapes that one can ask for
        if nothing or attempt >= 300:
            expression = _absent(scene, rng)
        else:
            # The kind is drawn again only after some objects were tried, so that rare kinds stay in the mixture.
            if attempt % 8 == 0:
                kind = _ORDER[int(rng.random() * len(_ORDER))]
            expression = _propose(scene, int(rng.random() * len(scene.objects)), kind, rng)
        if expression is not None:
            return expression


def _propose(scene: Scene, index: int, kind: str, rng) -> Expression | None:
    form = _PROPOSE[kind](scene, index, rng)
    if form is None or denote(form, scene) != (frozenset((index,)),) * 2:
        return None
    return say(form, rng, article=rng.random() < 0.8), (index,), kind


def _choose(rng, options):
    return options[int(rng.random() * len(options))]


def _attributes(thing: SceneObject, rng, shape: float = 0.92, color: float = 0.6) -> Form:
    """Some of the object's attributes, each named with its probability; never none."""
    name = None
    if rng.random() < shape:
        name = "letter" if thing.shape.startswith("letter") and rng.random() < 0.2 else thing.shape
    hue = thing.color if rng.random() < color else None
    texture = thing.texture if thing.texture != "plain" and rng.random() < 0.3 else None
    return Form(hue, name if name or hue or texture else thing.shape, texture)


def _propose_attribute(scene: Scene, index: int, rng) -> Form:
    thing = scene.objects[index]
    form = _attributes(thing, rng, shape=0.85, color=0.65)
    if form.texture is None and any(o.texture != thing.texture and has(form, o) for o in scene.objects):
        form = replace(form, texture=thing.texture)  # so "without a pattern" is said only where a rival has one
    return form


def _propose_size(scene: Scene, index: int, rng) -> Form | None:
    thing = scene.objects[index]
    form = _attributes(thing, rng, shape=1, color=0.4)
    rivals = [o.extent for i, o in enumerate(scene.objects) if i != index and has(form, o)]
    if not rivals:
        return None
    return replace(form, size="biggest" if thing.extent > max(rivals) else "smallest")


def _propose_place(scene: Scene, index: int, rng) -> Form | None:
    places = [place for place, truth in zip(PLACES, scene.facts.places, strict=True) if truth[index] > 0]
    return replace(_attributes(scene.objects[index], rng), place=_choose(rng, places)) if places else None


def _propose_order(scene: Scene, index: int, rng) -> Form | None:
    base, side = _attributes(scene.objects[index], rng, color=0.4), int(rng.random() * len(SIDES))
    spots = scene.facts.spots[side]
    rivals = [i for i, o in enumerate(scene.objects) if has(base, o)]
    n = 1 + sum(spots[i] < spots[index] for i in rivals)
    if n > max(ORDINALS) or (n > 1 and len(rivals) < 3):  # of two, people say first or last, not second
        return None
    return replace(base, order=(SIDES[side], n))


def _propose_relation(scene: Scene, index: int, rng) -> Form | None:
    objects, tables = scene.objects, scene.facts.relations
    pairs = [(r, j) for r, table in zip(RELATIONS, tables, strict=False) for j, t in enumerate(table[index]) if t > 0]
    if rng.random() < 0.6:  # depth and containment are rarer than place, and telling
        pairs = [(r, j) for r, j in pairs if r in RELATIONS[4:]] or pairs
    if not pairs or rng.random() < 0.1:
        others = [j for j in range(len(objects)) if j != index]
        pairs = [("closest to", _choose(rng, others))]
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
_ORDER = tuple(_PROPOSE)


def _absent(scene: Scene, rng) -> Expression | None:
    """An object's own description with one thing changed, where nothing in the scene fits it, not even nearly."""
    index = int(rng.random() * len(scene.objects))
    thing = scene.objects[index]
    change = int(rng.random() * 5)
    form = Form(thing.color, thing.shape)
    if change == 0:
        form = replace(form, color=_choose(rng, _COLORS))
    elif change == 1:
        form = replace(form, shape=_choose(rng, _SHAPES))
    elif change == 2:
        form = Form(None, thing.shape, _choose(rng, TEXTURES[1:]))
    elif change == 3:
        form = replace(form, place=_choose(rng, PLACES))
    else:
        form = _propose_relation(scene, index, rng)
        if form.relation not in _OPPOSITE:
            return None
        form = replace(form, relation=_OPPOSITE[form.relation])
    if denote(form, scene, lenient=True)[1]:
        return None
    return say(form, rng, article=rng.random() < 0.8), (), "absent"
