"""Colours, textures, light and backgrounds of HRES-Synth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import cv2
import numpy as np

# A few anchors a name; a colour is a random mixture of them, so that each name keeps to a convex region people agree on.
COLORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((205, 25, 30), (225, 40, 45), (185, 18, 25)),
    "orange": ((248, 130, 20), (240, 115, 10), (250, 148, 35)),
    "yellow": ((252, 222, 40), (238, 208, 20), (255, 235, 85)),
    "green": ((40, 150, 60), (25, 120, 45), (75, 180, 70)),
    "blue": ((35, 80, 205), (28, 60, 165), (55, 120, 235)),
    "purple": ((125, 45, 165), (105, 35, 140), (148, 75, 190)),
    "pink": ((250, 145, 190), (242, 120, 172), (255, 172, 205)),
    "brown": ((118, 70, 34), (98, 58, 28), (138, 86, 46)),
    "black": ((16, 16, 18), (30, 30, 33), (24, 22, 22)),
    "white": ((246, 246, 246), (252, 250, 242), (240, 243, 248)),
    "grey": ((128, 128, 131), (144, 144, 147), (112, 113, 116)),
}
_CLOSE = (
    ("red", "orange"), ("red", "pink"), ("red", "brown"), ("red", "purple"), ("orange", "yellow"), ("orange", "brown"),
    ("pink", "purple"), ("blue", "purple"), ("black", "grey"), ("white", "grey"), ("black", "brown"), ("grey", "brown"),
    ("white", "yellow"),
)  # fmt: skip
CLOSE = {a: frozenset(x for pair in _CLOSE if a in pair for x in pair) | {a} for a in COLORS}
TEXTURES = ("plain", "striped", "dotted", "checkered")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "grass", "gravel", "brick", "hubble_deep_field", "camera")


def to_lab(rgb: Sequence[float]) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of one RGB colour 0..255. In plain Python: it is asked for one colour at a time."""
    r, g, b = ((c / 255 / 12.92) if c <= 10.31 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb[:3])
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


LAB = {name: to_lab(anchors[0]) for name, anchors in COLORS.items()}


def mean_lab(image: np.ndarray) -> tuple[float, float, float]:
    """CIE L*a*b* of the mean colour of an image (h, w, 3) uint8."""
    return to_lab(cv2.mean(image))


def pick_color(rng: np.random.Generator, name: str) -> list[float]:
    """RGB 0..255 of that name."""
    weights = [rng.random() + 1e-3 for _ in COLORS[name]]
    mixed = [sum(w * v for w, v in zip(weights, channel, strict=True)) for channel in zip(*COLORS[name], strict=True)]
    return [min(max(v / sum(weights) + 10 * rng.random() - 5, 0.0), 255.0) for v in mixed]


@cache
def _noise() -> np.ndarray:
    """(1024, 1024, 3) uint8 around 128 with a standard deviation of 32, mostly of luminance; its crops are sensor noise."""
    rng = np.random.default_rng(20)
    field = (
        rng.standard_normal((1024, 1024, 1), np.float32) * 28 + rng.standard_normal((1024, 1024, 3), np.float32) * 15
    )
    return np.clip(field + 128, 0, 255).astype(np.uint8)


def noise(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 noise: a random crop of a fixed field, which is much faster than drawing it."""
    field = _noise()
    if max(size) > 960:
        field = np.tile(field, (size[0] // 960 + 2, size[1] // 960 + 2, 1))
    y, x = rng.integers(0, field.shape[0] - size[0]), rng.integers(0, field.shape[1] - size[1])
    return field[y : y + size[0], x : x + size[1]]


def darken(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """image (H, W, 3) uint8 times share (H, W) float32 in 0..1."""
    return cv2.blendLinear(image, np.zeros_like(image), share, 1 - share)


@lru_cache(maxsize=4096)
def _ramp(n: int) -> np.ndarray:
    return np.linspace(-1, 1, n, dtype=np.float32)


def plane(rng, size: tuple[int, int], strength: float) -> np.ndarray:
    """(H, W) float32 light that falls off in a random direction, around 1."""
    angle = rng.uniform(0, 2 * np.pi)
    y = _ramp(size[0]) * np.float32(strength * math.sin(angle))
    x = _ramp(size[1]) * np.float32(strength * math.cos(angle)) + 1
    return np.add.outer(y, x)


def _second_color(rng, color: str, rgb: list[float]) -> list[float]:
    """The colour of the stripes or dots on `rgb`: a darker or lighter shade, or white."""
    if color == "white":
        return [0.62 * v for v in rgb]
    if color == "black":
        return [v + 90 for v in rgb]
    choice = rng.random()
    return (
        [0.45 * v for v in rgb] if choice < 1 / 3 else [0.45 * v + 140 for v in rgb] if choice < 2 / 3 else [245.0] * 3
    )


_FIELD = 1024


@cache
def _field(texture: str, tile: int) -> np.ndarray:
    """(1024, 1024) uint8: the texture with a period of `tile` px. About a third is the second colour: a colour's name holds."""
    y, x = (np.mgrid[:512, :512] + 0.5) / 512 - 0.5
    if texture == "striped":
        on = np.abs(x) < 0.19
    elif texture == "dotted":
        on = np.hypot(x, y) < 0.29
    else:
        on = (x * y > 0) * 0.85
    period = cv2.resize(on.astype(np.float32) * 255, (tile, tile), interpolation=cv2.INTER_AREA)
    return np.tile(period.astype(np.uint8), (_FIELD // tile,) * 2)


def _texture(rng, texture: str, size: tuple[int, int], period: float) -> np.ndarray:
    """(H, W) uint8, how much of the second colour: the texture turned and scaled to `period` px."""
    tile = 16 if period < 24 else 64  # near the scale it is drawn at: neither aliased nor blurred
    angle, scale = rng.uniform(0, np.pi), tile / period
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    # From the middle of the field, so that the window, turned, hardly ever leaves it; where it does, it wraps (slowly).
    x, y = (_FIELD / 2 + rng.uniform(0, tile) - 0.5 * v for v in (c * size[1] - s * size[0], s * size[1] + c * size[0]))
    wrap = scale * math.hypot(*size) > _FIELD - 2 * tile
    return cv2.warpAffine(
        _field(texture, tile),
        np.float64([(c, -s, x), (s, c, y)]),
        size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP if wrap else cv2.BORDER_CONSTANT,
    )


def surface(rng, color: str, texture: str, size: tuple[int, int], radius: float, shade: float) -> np.ndarray:
    """(h, w, 3) uint8: an object's own colour, texture and light; `radius` (px) sets the texture's scale."""
    rgb = pick_color(rng, color)
    light = plane(rng, size, shade)
    if texture == "plain":
        return cv2.merge([cv2.convertScaleAbs(light, alpha=c) for c in rgb])
    amount = _texture(rng, texture, size, max(5.0, radius * rng.uniform(0.22, 0.34)))
    amount = cv2.multiply(light, amount, scale=1 / 255, dtype=cv2.CV_32F)
    channels = zip(rgb, _second_color(rng, color, rgb), strict=True)
    return cv2.merge([cv2.addWeighted(light, c, amount, d - c, 0, dtype=cv2.CV_8U) for c, d in channels])


@cache
def photograph(name: str, side: int) -> np.ndarray:
    """(H, W, 3) uint8: a free photograph that scikit-image ships in its wheel, its longest side at most `side` px."""
    from skimage import data

    image = getattr(data, name)()
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    scale = side / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def _photo(rng, size: tuple[int, int]) -> np.ndarray:
    image = photograph(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))], 448 if max(size) <= 448 else 1024)
    height, width = image.shape[:2]
    zoom = rng.uniform(0.45, 1.0) * min(height / size[0], width / size[1])
    h, w = int(size[0] * zoom), int(size[1] * zoom)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    gain = rng.uniform(0.65, 1.05) * rng.uniform(0.85, 1.15, 3)
    lift = rng.uniform(0, 50) if rng.random() < 0.4 else 0.0
    table = np.clip(np.arange(256)[:, None] * gain + lift, 0, 255).astype(np.uint8)
    crop = cv2.LUT(image[y : y + h, x : x + w], table[None])
    crop = cv2.resize(crop, size[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.flip(crop, 1) if rng.random() < 0.5 else crop


def _any_color(rng) -> np.ndarray:
    """A muted colour for backgrounds."""
    rgb = rng.uniform(20, 240, 3).astype(np.float32)
    return rgb.mean() + (rgb - rgb.mean()) * rng.uniform(0.2, 0.7)


def _gradient(rng, size, smooth: bool = True) -> np.ndarray:
    corners = np.stack([_any_color(rng) for _ in range(4)]).reshape(2, 2, 3)
    if smooth:
        corners = corners.mean((0, 1)) + (corners - corners.mean((0, 1))) * 0.5
    return cv2.resize(np.clip(corners, 0, 255).astype(np.uint8), size[::-1], interpolation=cv2.INTER_LINEAR)


def _clouds(rng, size) -> np.ndarray:
    cells = int(rng.integers(3, 12))
    small = rng.random((cells, cells, 1), np.float32) + 0.25 * rng.random((cells, cells, 3), np.float32)
    spread = rng.uniform(20, 90)
    small = np.clip(_any_color(rng) + (small - 0.6) * spread, 0, 255).astype(np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def _pattern(rng, size) -> np.ndarray:
    """Stripes, dots or checks of two muted colours: texture that is no object."""
    a, b = _any_color(rng), _any_color(rng)
    b = a + (b - a) * rng.uniform(0.15, 0.5)
    amount = _texture(rng, TEXTURES[rng.integers(1, 4)], size, rng.uniform(0.04, 0.12) * max(size))
    return cv2.merge(
        [cv2.convertScaleAbs(amount, alpha=float(q - p) / 255, beta=float(p)) for p, q in zip(a, b, strict=True)]
    )


_BACKGROUNDS = (_gradient, _clouds, _pattern, _photo)
_MIX = {"easy": (0.4, 0.35, 0.0, 0.25), "medium": (0.15, 0.2, 0.2, 0.45), "hard": (0.05, 0.15, 0.2, 0.6)}


def background(rng: np.random.Generator, level: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8."""
    kind = _BACKGROUNDS[rng.choice(4, p=_MIX[level])]
    image = kind(rng, size)
    if level == "easy" and kind is _photo:  # photographs are calmer behind the easy scenes
        image = cv2.addWeighted(cv2.blur(image, (5, 5)), 0.6, np.full_like(image, int(rng.integers(40, 220))), 0.4, 0)
    return image


def finish(rng: np.random.Generator, image: np.ndarray, level: str) -> np.ndarray:
    """Sensor noise over the whole scene: (H, W, 3) uint8 → the same."""
    grain = rng.uniform(0, {"easy": 3, "medium": 6, "hard": 9}[level]) / 32
    return cv2.addWeighted(image, 1.0, noise(rng, image.shape[:2]), grain, -128 * grain)
