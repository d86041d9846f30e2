"""Scenes of HRES-Synth: a background and 2–8 objects, each with its exact visible mask and the facts that expressions speak of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from segagent.data._meaning import HOLLOW, Facts
from segagent.data._paint import COLORS, LAB, TEXTURES, background, darken, finish, mean_lab, surface
from segagent.data._shapes import SHAPES, SOLID, THIN, coverage
from segagent.errors import DataError


@dataclass(frozen=True)
class Level:
    objects: tuple[int, int]  # fewest and most
    radius: tuple[float, float]  # of an object, relative to the image's shorter side
    thin: float  # share of thin and hollow shapes
    stroke: tuple[float, float]  # width of strokes, relative to the radius
    shapes: int  # distinct shapes, and colours, at most: fewer means more distractors
    colors: int
    textured: float  # share of solid shapes with stripes, dots or checks
    near: float  # how close two objects may come, relative to the sum of their radii
    visible: float  # least visible share of an object
    contrast: float  # least CIE Lab distance to the background below it
    shade: float  # strength of the light over an object


LEVELS: dict[str, Level] = {
    "easy": Level((2, 3), (0.17, 0.27), 0.3, (0.14, 0.24), 3, 3, 0.15, 0.85, 0.7, 28, 0.06),
    "medium": Level((3, 5), (0.13, 0.23), 0.5, (0.09, 0.18), 3, 3, 0.3, 0.6, 0.5, 18, 0.1),
    "hard": Level((4, 8), (0.10, 0.24), 0.75, (0.04, 0.09), 3, 2, 0.4, 0.35, 0.35, 14, 0.14),
}
LEAST_SIDE = 64  # px
_INSIDE = 0.3  # how often the object after a ring or a frame is put inside it
_FEWEST = 40  # visible pixels of an object, at least
_SAME_COLOR = 0.06  # hidden share, at most, where an object of the same colour overlaps another
_THIN_WEIGHTS = np.array([3.0 / 9 if name.startswith("letter") else 1.0 for name in THIN])
_THIN_WEIGHTS /= _THIN_WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class SceneObject:
    mask: np.ndarray  # (H, W) bool, its visible pixels
    color: str
    shape: str
    texture: str  # plain | striped | dotted | checkered
    z: int  # 0 is the farthest
    center: tuple[float, float]  # (x, y) px, mean of the visible pixels
    box: tuple[int, int, int, int]  # (x0, y0, x1, y1) px of the visible pixels, both corners inclusive
    extent: float  # px, longest side of the whole object's box
    visible: float  # visible share of the whole object, what the image's border cuts off included
    behind: dict[int, int] = field(
        default_factory=dict
    )  # index of each nearer object that hides some of it or touches it → pixels hidden


@dataclass(frozen=True, eq=False)
class Scene:
    image: np.ndarray  # (H, W, 3) uint8
    objects: tuple[SceneObject, ...]
    level: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def facts(self) -> Facts:
        """What expressions may say of it."""
        return Facts(self.objects, self.size)


@dataclass
class _Draft:
    """An object being placed: its whole alpha, where it lies on the canvas, and its names."""

    alpha: np.ndarray  # (h, w) uint8, all of it
    corner: tuple[int, int]  # (x, y) of alpha's origin on the canvas; may be negative
    color: str
    shape: str
    texture: str
    center: tuple[float, float]
    radius: float
    area: int  # px, of all of it

    def window(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        return _window(self.alpha.shape, self.corner, size)


def _window(shape, corner, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices (into a canvas of (height, width), into an array laid on it at `corner`) of the part that they share."""
    (x, y), (h, w) = corner, shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, size[1]), min(y + h, size[0])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def make_scene(rng: np.random.Generator, level: str, size: tuple[int, int] = (256, 256)) -> Scene:
    """One scene of (height, width) px. All that is random about it comes from `rng`. Raises DataError."""
    if level not in LEVELS:
        raise DataError(f"Unknown level {level!r}: choose one of {', '.join(LEVELS)}.")
    height, width = size
    if min(size) < LEAST_SIDE:
        raise DataError(f"A scene of {width}×{height} px is too small: each side needs at least {LEAST_SIDE} px.")
    rules = LEVELS[level]
    canvas = background(rng, level, (height, width))
    labels = np.zeros(size, np.uint8)  # 0 the background, i + 1 the visible pixels of draft i
    drafts: list[_Draft] = []
    count = int(rng.integers(rules.objects[0], rules.objects[1] + 1))
    shapes, colors = _pools(rng, rules, canvas)
    for _ in range(12 * count):
        draft = _draft(rng, rules, drafts, canvas, shapes, colors)
        if draft is not None and _fits(draft, drafts, labels, rules):
            _put(rng, draft, canvas, labels, len(drafts) + 1, rules)
            drafts.append(draft)
        if len(drafts) == count:
            break
    if len(drafts) < rules.objects[0]:  # rare: crowded out; the stream goes on, so this stays deterministic
        return make_scene(rng, level, size)
    objects = tuple(_object(i, drafts, labels) for i in range(len(drafts)))
    return Scene(finish(rng, canvas, level), objects, level)


def _pools(rng, rules: Level, canvas: np.ndarray) -> tuple[list[str], list[str]]:
    """The few shapes and colours that this scene draws from, so that objects share some of them."""
    thin = rng.random(rules.shapes) < rules.thin
    shapes = [str(rng.choice(THIN if t else SOLID, p=_THIN_WEIGHTS if t else None)) for t in thin]
    mean = mean_lab(canvas)
    far = [name for name in COLORS if math.dist(LAB[name], mean) >= rules.contrast]
    return shapes, [str(name) for name in rng.choice(far, min(rules.colors, len(far)), replace=False)]


def _draft(rng, rules: Level, drafts: list[_Draft], canvas, shapes, colors) -> _Draft | None:
    """A random object at a random place, or None where others are too near or its colour is too close to the background's."""
    height, width = canvas.shape[:2]
    name, color = shapes[rng.integers(len(shapes))], colors[rng.integers(len(colors))]
    shape = SHAPES[name]
    radius = rng.uniform(*rules.radius) * min(height, width) * shape.size
    inset = radius * rng.uniform(0.7, 1.0)
    x, y = (rng.uniform(min(inset, side / 2), max(side - inset, side / 2)) for side in (width, height))
    host = drafts[-1] if drafts and drafts[-1].shape in HOLLOW and rng.random() < _INSIDE else None
    if host is not None:
        radius, (x, y) = host.radius * rng.uniform(0.4, 0.52), host.center
        if radius < 0.07 * min(height, width):
            return None
    for other in drafts:
        if other is not host and math.hypot(x - other.center[0], y - other.center[1]) < rules.near * (
            radius + other.radius
        ):
            return None
    x0, x1, y0, y1 = (max(0, int(v)) for v in (x - radius, x + radius, y - radius, y + radius))
    if math.dist(LAB[color], mean_lab(canvas[y0:y1, x0:x1])) < rules.contrast:
        return None
    # A stroke of less than 2 px would not be visible as a line.
    ops = shape.draw(rng, max(rng.uniform(*rules.stroke), 2.0 / radius))
    mirror = not name.startswith("letter") and rng.random() < 0.5
    alpha, origin = coverage(ops, radius, rng.uniform(-shape.turn, shape.turn), mirror)
    textured = not shape.thin and rng.random() < rules.textured
    texture = TEXTURES[rng.integers(1, len(TEXTURES))] if textured else "plain"
    corner = (round(x) - origin[0], round(y) - origin[1])
    return _Draft(alpha, corner, color, name, texture, (x, y), radius, int(np.count_nonzero(alpha >= 128)))


def _fits(draft: _Draft, drafts: list[_Draft], labels: np.ndarray, rules: Level) -> bool:
    """Whether the draft is inside enough, hides none of the others too much, and little of those of its own colour."""
    inside, part = draft.window(labels.shape)
    cover = draft.alpha[part] >= 128
    if np.count_nonzero(cover) < max(_FEWEST, (rules.visible + 1) / 2 * draft.area):
        return False
    hidden = np.bincount(labels[inside][cover], minlength=len(drafts) + 1)[1:]
    for index, other in enumerate(drafts):
        if not hidden[index]:
            continue
        left = np.count_nonzero(labels == index + 1) - hidden[index]
        if left < max(_FEWEST, rules.visible * other.area):
            return False
        # Where two of one colour overlap, their outlines get lost; only a little of that can still be seen through.
        if other.color == draft.color and hidden[index] > _SAME_COLOR * min(draft.area, other.area):
            return False
    return True


def _put(rng, draft: _Draft, canvas: np.ndarray, labels: np.ndarray, label: int, rules: Level) -> None:
    """Paints the draft, and perhaps its soft shadow, onto the canvas; marks its pixels in labels."""
    if rng.random() < 0.6:
        _shadow(rng, draft, canvas)
    inside, part = draft.window(labels.shape)
    alpha = draft.alpha[part]
    fill = surface(rng, draft.color, draft.texture, draft.alpha.shape, draft.radius, rng.uniform(0, rules.shade))[part]
    weight = alpha * np.float32(1 / 255)
    canvas[inside] = cv2.blendLinear(fill, canvas[inside], weight, 1 - weight)
    labels[inside][alpha >= 128] = label


def _shadow(rng, draft: _Draft, canvas: np.ndarray) -> None:
    blur = max(3, int(draft.radius * rng.uniform(0.1, 0.25))) | 1
    shift = draft.radius * rng.uniform(0.04, 0.12)
    angle = rng.uniform(0, 2 * np.pi)
    soft = cv2.blur(cv2.copyMakeBorder(draft.alpha, blur, blur, blur, blur, cv2.BORDER_CONSTANT), (blur, blur))
    corner = (
        draft.corner[0] - blur + round(shift * np.cos(angle)),
        draft.corner[1] - blur + round(shift * np.sin(angle)),
    )
    inside, part = _window(soft.shape, corner, canvas.shape[:2])
    canvas[inside] = darken(canvas[inside], 1 - soft[part] * np.float32(rng.uniform(0.2, 0.5) / 255))


def _object(index: int, drafts: list[_Draft], labels: np.ndarray) -> SceneObject:
    draft = drafts[index]
    inside, part = draft.window(labels.shape)
    whole = cv2.compare(draft.alpha, 127, cv2.CMP_GT)
    within = labels[inside]
    mask = np.zeros(labels.shape, bool)
    shown = mask[inside]
    np.equal(within, index + 1, out=shown)
    mask.flags.writeable = False
    over = np.bincount(within[whole[part] > 0], minlength=len(drafts) + 1)[1:].tolist()
    touched = np.unique(within[cv2.dilate(whole, None)[part] > 0]).tolist()
    pixels = shown.view(np.uint8)
    moments = cv2.moments(pixels, binaryImage=True)
    left, top = inside[1].start, inside[0].start
    x, y, w, h = cv2.boundingRect(pixels)
    return SceneObject(
        mask,
        draft.color,
        draft.shape,
        draft.texture,
        z=index,
        center=(left + moments["m10"] / moments["m00"], top + moments["m01"] / moments["m00"]),
        box=(left + x, top + y, left + x + w - 1, top + y + h - 1),
        extent=float(max(cv2.boundingRect(whole)[2:])),
        visible=moments["m00"] / draft.area,
        behind={label - 1: over[label - 1] for label in touched if label > index + 1},
    )
