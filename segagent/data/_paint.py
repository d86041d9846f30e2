"""Colours, textures, light and backgrounds of HRES-Synth."""

from __future__ import annotations

from functools import cache

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
_ANCHORS = {name: np.array(anchors, np.float32) for name, anchors in COLORS.items()}
TEXTURES = ("plain", "striped", "dotted", "checkered")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "grass", "gravel", "brick", "hubble_deep_field", "moon")


def to_lab(rgb) -> np.ndarray:
    """CIE L*a*b* of (..., 3) RGB 0..255."""
    array = np.asarray(rgb, np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(array, cv2.COLOR_RGB2LAB)[0].reshape(np.shape(rgb))


LAB = {name: to_lab(anchors[0]) for name, anchors in COLORS.items()}


def pick_color(rng: np.random.Generator, name: str) -> np.ndarray:
    """(3,) float32 RGB of that name."""
    anchors = _ANCHORS[name]
    weights = rng.random(len(anchors), np.float32)
    rgb = (weights / weights.sum()) @ anchors + rng.uniform(-5, 5, 3).astype(np.float32)
    return np.clip(rgb, 0, 255)


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


def plane(rng, size: tuple[int, int], strength: float) -> np.ndarray:
    """(H, W) float32 light that falls off in a random direction, around 1."""
    angle = rng.uniform(0, 2 * np.pi)
    y = np.linspace(-strength, strength, size[0], dtype=np.float32) * np.float32(np.sin(angle))
    x = np.linspace(-strength, strength, size[1], dtype=np.float32) * np.float32(np.cos(angle))
    return 1 + y[:, None] + x[None]


def _second_color(rng, color: str, rgb: np.ndarray) -> np.ndarray:
    """The colour of the stripes or dots on `rgb`: a darker or lighter shade, or white or black."""
    if color == "white":
        return rgb * 0.62
    if color == "black":
        return rgb + 90
    return (rgb * 0.45, rgb * 0.45 + 140, np.full(3, 245, np.float32))[rng.integers(3)]


def _texture(rng, texture: str, size: tuple[int, int], period: float) -> np.ndarray:
    """(H, W) float32 in 0..1: how much of the second colour; at most about 40 % on average, so that a colour's name holds."""
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    y, x = np.arange(size[0], dtype=np.float32)[:, None], np.arange(size[1], dtype=np.float32)[None]
    u = x * c + y * s
    if texture == "striped":
        wave = np.abs((u + rng.random(dtype=np.float32)) % 1 - 0.5) - 0.31
        return np.clip(wave * period + 0.5, 0, 1)
    u, v = u % 1 - 0.5, (y * c - x * s) % 1 - 0.5
    if texture == "dotted":
        return np.clip((0.28 - np.sqrt(u * u + v * v)) * period + 0.5, 0, 1)
    return np.clip(u * v * 8 * period + 0.5, 0, 1) * 0.85


def surface(rng, color: str, texture: str, size: tuple[int, int], radius: float, shade: float) -> np.ndarray:
    """(h, w, 3) uint8: an object's own colour, texture and light; `radius` (px) sets the texture's scale."""
    rgb = pick_color(rng, color)
    light = plane(rng, size, shade)
    if texture == "plain":
        return cv2.merge([cv2.convertScaleAbs(light, alpha=float(c)) for c in rgb])
    second = _second_color(rng, color, rgb)
    amount = light * _texture(rng, texture, size, max(5.0, radius * rng.uniform(0.22, 0.34)))
    channels = zip(rgb, second - rgb, strict=True)
    return cv2.merge([cv2.addWeighted(light, float(c), amount, float(d), 0, dtype=cv2.CV_8U) for c, d in channels])


@cache
def photograph(name: str) -> np.ndarray:
    """(H, W, 3) uint8: a free photograph that scikit-image ships in its wheel, at most 640 px wide."""
    from skimage import data

    image = getattr(data, name)()
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    scale = 640 / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def _photo(rng, size: tuple[int, int]) -> np.ndarray:
    name = PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]
    image = photograph(name)
    height, width = image.shape[:2]
    zoom = rng.uniform(0.45, 1.0) * min(height / size[0], width / size[1])
    h, w = int(size[0] * zoom), int(size[1] * zoom)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    crop = image[y : y + h, x : x + w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = cv2.resize(crop, size[::-1], interpolation=cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR)
    gain = rng.uniform(0.65, 1.05) * rng.uniform(0.85, 1.15, 3)
    lift = rng.uniform(0, 50) if rng.random() < 0.4 else 0.0
    table = np.clip(np.arange(256)[:, None] * gain + lift, 0, 255).astype(np.uint8)
    return cv2.LUT(crop, table[None])


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
    return np.clip(a + amount[..., None] * (b - a), 0, 255).astype(np.uint8)


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
    """Light over the whole scene, and sensor noise: (H, W, 3) uint8 → the same."""
    size = image.shape[:2]
    strength = rng.uniform(0, 0.08)
    image = darken(image, plane(rng, size, strength) / np.float32(1 + 2 * strength))
    grain = rng.uniform(0, {"easy": 3, "medium": 6, "hard": 9}[level]) / 32
    return cv2.addWeighted(image, 1.0, noise(rng, size), grain, -128 * grain)
