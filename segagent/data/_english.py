"""The English of HRES-Synth: phrases for a logical form, lower case, of a small vocabulary."""

from __future__ import annotations

import numpy as np

from segagent.data._meaning import PLACES, Form
from segagent.data._paint import COLORS, TEXTURES
from segagent.data._shapes import SHAPES

ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}
NOUN = "shape"  # what an object is called whose shape is not said
_TEXTURE_AFTER = {
    "striped": "with stripes",
    "dotted": "with dots",
    "checkered": "with checks",
    "plain": "without a pattern",
}
_RELATION = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
    "behind": ("behind", "partly behind", "partly hidden by"),
    "in front of": ("in front of", "partly hiding"),
    "inside": ("inside", "within", "in"),
    "closest to": ("closest to", "nearest to", "nearest"),
}
_FIRST = {
    "left": ("leftmost {}", "{} farthest to the left", "first {} from the left"),
    "right": ("rightmost {}", "{} farthest to the right", "first {} from the right"),
    "top": ("topmost {}", "highest {}", "first {} from the top"),
    "bottom": ("bottommost {}", "lowest {}", "first {} from the bottom"),
}
_SIZE = {"biggest": ("biggest", "largest", "big", "large"), "smallest": ("smallest", "small", "little")}


def _choose(rng: np.random.Generator, options):
    return options[int(rng.random() * len(options))]


def say(form: Form, rng: np.random.Generator, article: bool = True) -> str:
    """One of the phrases for the form."""
    before, after = [], []
    if form.size is not None:
        before.append(_choose(rng, _SIZE[form.size]))
    bare = form.relation is form.place is form.order is form.size is None
    if form.texture is not None:
        late = form.texture == "plain" or (bare and rng.random() < 0.4)
        (after if late else before).append(_TEXTURE_AFTER[form.texture] if late else form.texture)
    if form.color is not None:
        # Said after the noun only where nothing else is: "the ring that is red at the top" would be unclear.
        late = bare and form.texture is None and rng.random() < 0.2
        (after if late else before).append(f"that is {form.color}" if late else form.color)
    if form.relation is not None:
        after.append(f"{_choose(rng, _RELATION[form.relation])} {_landmark(form.landmark, rng)}")
    if form.place is not None:
        after.append(_place(form.place, rng))
    text = " ".join([*before, form.shape or NOUN, *after])
    if form.order is not None:
        side, n = form.order
        text = _choose(rng, _FIRST[side]).format(text) if n == 1 else f"{ORDINALS[n]} {text} from the {side}"
    return f"the {text}" if article else text


def _landmark(form: Form, rng) -> str:
    words = [form.texture, form.color, form.shape or NOUN]
    return " ".join(["the", *(word for word in words if word is not None)])


def _place(place: str, rng) -> str:
    if place == "middle":
        return _choose(rng, ("in the middle", "in the center"))
    if " " in place:
        return _choose(rng, (f"in the {place} corner", f"at the {place}"))
    if place in ("left", "right"):
        return _choose(rng, (f"on the {place}", f"on the {place} side"))
    return f"at the {place}"


def vocabulary() -> tuple[str, ...]:
    """Every word that an expression may hold, sorted."""
    texts = [*COLORS, *SHAPES, *TEXTURES[1:], *_TEXTURE_AFTER.values(), *ORDINALS.values(), *PLACES, NOUN]
    for options in (*_RELATION.values(), *_FIRST.values(), *_SIZE.values()):
        texts += options
    texts += ["that is", "in at on the center corner side from"]
    return tuple(sorted({word for text in texts for word in text.split()} - {"{}"}))
