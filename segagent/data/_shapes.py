"""Outlines of HRES-Synth: each shape is a short list of strokes and fills in unit coordinates, rasterised with anti-aliasing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

Op = tuple[
    str, np.ndarray, float
]  # ("fill" | "hole" | "line" | "loop", points (N, 2) within about [-1, 1], stroke width)

_SUPERSAMPLE, _SHIFT = 2, 4


@dataclass(frozen=True)
class Shape:
    draw: Callable[[np.random.Generator, float], list[Op]]  # (rng, stroke width) → ops
    thin: bool = False  # made of strokes of the given width
    turn: float = 180.0  # degrees: drawn rotated by at most this much either way
    size: float = 1.0  # radius, relative to that of other objects


@cache
def _steps(n: int) -> np.ndarray:
    return np.linspace(0, 1, n)


def arc(start: float, end: float, radius: float = 1.0, n: int = 40, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """(n, 2) points of a circular arc; angles in degrees, clockwise from +x."""
    t = _steps(n) * math.radians(end - start) + math.radians(start)
    points = np.empty((n, 2))
    points[:, 0], points[:, 1] = x + radius * np.cos(t), y + radius * np.sin(t)
    return points


@cache
def _unit_circle() -> np.ndarray:
    return arc(0, 352.5, 1.0, 48)


def circle(radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return _unit_circle() * radius + (x, y)


def polygon(n: int, radius: float = 1.0, first: float = -90.0) -> np.ndarray:
    return arc(first, first + 360 - 360 / n, radius, n)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def _fill(points) -> list[Op]:
    return [("fill", np.asarray(points, float), 0.0)]


def _line(points, width: float) -> Op:
    return ("line", np.asarray(points, float), width)


def _star(rng, width):
    points = polygon(10)
    points[1::2] *= rng.uniform(0.4, 0.5)
    return _fill(points)


def _heart(rng, width):
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _fill(np.stack([x / 17, -(y + 2.5) / 17], axis=1))


def _cross(rng, width):
    a = rng.uniform(0.22, 0.34)
    return _fill(
        [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    )


def _arrow(rng, width):
    a, head = rng.uniform(0.09, 0.2), rng.uniform(0.0, 0.3)
    return _fill([(-1, -a), (head, -a), (head, -0.5), (1, 0), (head, 0.5), (head, a), (-1, a)])


def _crescent(rng, width):
    return [*_fill(circle()), ("hole", circle(rng.uniform(0.78, 0.86), rng.uniform(0.4, 0.5)), 0.0)]


def _ring(rng, width):
    return [("loop", circle(1 - width / 2), width)]


def _frame(rng, width):
    a = rng.uniform(0.6, 0.9)
    return [("loop", _rectangle(-0.85, -a, 0.85, a), width)]


def _wheel(rng, width):
    spokes = int(rng.integers(5, 11))
    ends = polygon(spokes, 1 - width / 2)
    hub = circle(rng.uniform(0.12, 0.2))
    return [
        ("loop", circle(1 - width / 2), width),
        *(_line([(0, 0), p], width * 0.7) for p in ends),
        ("fill", hub, 0.0),
    ]


def _gear(rng, width):
    teeth, root = int(rng.integers(8, 13)), rng.uniform(0.74, 0.82)
    t = np.repeat(np.arange(teeth), 4) + np.tile([-0.28, -0.18, 0.18, 0.28], teeth)
    radius = np.tile([root, 1, 1, root], teeth)
    angle = t * 2 * np.pi / teeth
    body = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return [*_fill(body), ("hole", circle(rng.uniform(0.28, 0.5)), 0.0)]


def _net(rng, width):
    columns, rows = int(rng.integers(3, 7)), int(rng.integers(3, 7))
    w = 0.9
    h = float(np.clip(w * rows / columns, 0.6, 0.95))
    xs, ys = np.linspace(-w, w, columns + 1), np.linspace(-h, h, rows + 1)
    return [*(_line([(x, -h), (x, h)], width) for x in xs), *(_line([(-w, y), (w, y)], width) for y in ys)]


def _ladder(rng, width):
    w, rungs = rng.uniform(0.26, 0.4), int(rng.integers(4, 8))
    steps = [_line([(-w, y), (w, y)], width * 0.8) for y in np.linspace(-0.8, 0.8, rungs)]
    return [_line([(-w, -1), (-w, 1)], width), _line([(w, -1), (w, 1)], width), *steps]


def _branch(rng, width):
    bend = rng.uniform(-0.2, 0.2)
    y = np.linspace(1, -1, 9)
    trunk = np.stack([bend * np.cos(y * 2.2), y], axis=1)
    ops = [_line(trunk, width * 1.4)]
    side = 1 if rng.random() < 0.5 else -1
    for k, at in enumerate(np.linspace(0.5, -0.75, int(rng.integers(5, 8)))):
        start = np.array([bend * np.cos(at * 2.2), at])
        length = (0.45 + 0.25 * at) * rng.uniform(0.9, 1.25)
        angle = np.radians(rng.uniform(30, 55))
        reach = np.array([side * (-1) ** k * np.cos(angle), -np.sin(angle)]) * length
        twig = start + reach * 0.55
        fork = twig + np.array([reach[0] * 0.05, -0.45 * length])
        ops += [_line([start, start + reach], width), _line([twig, fork], width * 0.8)]
    return ops


def _zigzag(rng, width):
    n, a = int(rng.integers(5, 9)), rng.uniform(0.2, 0.34)
    x = np.linspace(-1, 1, n)
    return [_line(np.stack([x, np.where(np.arange(n) % 2, a, -a)], axis=1), width)]


def _wave(rng, width):
    x = np.linspace(-1, 1, 60)
    return [_line(np.stack([x, rng.uniform(0.2, 0.32) * np.sin(x * np.pi * rng.integers(2, 4))], axis=1), width)]


def _arc(rng, width):
    half = rng.uniform(70, 110)
    return [_line(arc(-half, half, 0.95) - (0.2, 0), width)]


def _spiral(rng, width):
    turns = rng.uniform(2.2, 3.2)
    t = np.linspace(0.12, 1, 90)
    angle = t * turns * 2 * np.pi
    return [_line(np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1) * 0.97, width)]


def _key(rng, width):
    bow = rng.uniform(0.26, 0.34)
    teeth = [
        _line([(x, 0), (x, rng.uniform(0.22, 0.36))], width) for x in np.linspace(0.95, 0.5, int(rng.integers(2, 4)))
    ]
    return [("loop", circle(bow, -0.68), width), _line([(-0.68 + bow, 0), (1, 0)], width), *teeth]


def _comb(rng, width):
    xs = np.linspace(-0.95, 0.95, int(rng.integers(6, 11)))
    low = rng.uniform(0.4, 0.65)
    return [_line([(-1, -0.45), (1, -0.45)], width * 1.8), *(_line([(x, -0.45), (x, low)], width) for x in xs)]


def _snowflake(rng, width):
    ops, at, twig = [], rng.uniform(0.5, 0.65), rng.uniform(0.28, 0.4)
    for angle in range(0, 360, 60):
        tip = arc(angle, angle, 1.0, 1)[0]
        fork = tip * at
        ops.append(_line([(0, 0), tip], width))
        for turn in (-50, 50):
            ops.append(_line([fork, fork + arc(angle + turn, angle + turn, twig, 1)[0]], width))
    return ops


def _glasses(rng, width):
    r = rng.uniform(0.34, 0.42)
    c = 0.95 - r
    loops = [("loop", circle(r, x, 0.0), width) for x in (-c, c)]
    bridge = _line([(-c + r, -0.05), (0, -0.12), (c - r, -0.05)], width)
    return [*loops, bridge, *(_line([(s * 0.95, -0.1), (s * 1.0, -0.35)], width) for s in (-1, 1))]


_LETTERS = {
    "a": [[(-0.7, 1), (0, -1), (0.7, 1)], [(-0.42, 0.25), (0.42, 0.25)]],
    "b": [[(-0.6, -1), (-0.6, 1)], [(-0.6, -1), *arc(-90, 90, 0.5, 12, 0.05, -0.5), *arc(-90, 90, 0.5, 12, 0.15, 0.5), (-0.6, 1)]],
    "e": [[(0.6, -1), (-0.6, -1), (-0.6, 1), (0.6, 1)], [(-0.6, 0), (0.4, 0)]],
    "f": [[(0.6, -1), (-0.6, -1), (-0.6, 1)], [(-0.6, -0.05), (0.4, -0.05)]],
    "h": [[(-0.65, -1), (-0.65, 1)], [(0.65, -1), (0.65, 1)], [(-0.65, 0), (0.65, 0)]],
    "k": [[(-0.6, -1), (-0.6, 1)], [(0.65, -1), (-0.6, 0.15)], [(-0.2, -0.15), (0.7, 1)]],
    "r": [[(-0.6, -1), (-0.6, 1)], [(-0.6, -1), *arc(-90, 90, 0.5, 12, 0.1, -0.5), (-0.6, 0)], [(0.0, 0), (0.65, 1)]],
    "t": [[(-0.8, -1), (0.8, -1)], [(0, -1), (0, 1)]],
    "y": [[(-0.75, -1), (0, 0)], [(0.75, -1), (-0.05, 0.05), (0, 1)]],
}  # fmt: skip


def _letter(name: str) -> Shape:
    strokes = [np.asarray(s, float) * 0.9 for s in _LETTERS[name]]
    return Shape(lambda rng, width: [_line(s, width * 1.5) for s in strokes], thin=True, turn=15, size=0.85)


SHAPES: dict[str, Shape] = {
    "disc": Shape(lambda rng, width: _fill(circle()), size=0.85),
    "oval": Shape(lambda rng, width: _fill(circle() * (1, rng.uniform(0.5, 0.64)))),
    "square": Shape(lambda rng, width: _fill(_rectangle(-1, -1, 1, 1) * 0.8), turn=15, size=0.95),
    "triangle": Shape(lambda rng, width: _fill(polygon(3))),
    "diamond": Shape(lambda rng, width: _fill(polygon(4) * (rng.uniform(0.55, 0.68), 1)), turn=15),
    "hexagon": Shape(lambda rng, width: _fill(polygon(6)), size=0.9),
    "semicircle": Shape(lambda rng, width: _fill(arc(180, 360, y=0.4))),
    "bar": Shape(lambda rng, width: _fill(_rectangle(-1, -1, 1, 1) * (1, rng.uniform(0.12, 0.2))), size=1.1),
    "star": Shape(_star),
    "heart": Shape(_heart, turn=25),
    "cross": Shape(_cross, turn=15),
    "arrow": Shape(_arrow, size=1.1),
    "crescent": Shape(_crescent),
    "gear": Shape(_gear),
    "ring": Shape(_ring, thin=True),
    "frame": Shape(_frame, thin=True, turn=20),
    "wheel": Shape(_wheel, thin=True),
    "net": Shape(_net, thin=True, turn=35, size=1.1),
    "ladder": Shape(_ladder, thin=True, turn=60, size=1.2),
    "branch": Shape(_branch, thin=True, turn=60, size=1.2),
    "zigzag": Shape(_zigzag, thin=True, size=1.15),
    "wave": Shape(_wave, thin=True, size=1.15),
    "arc": Shape(_arc, thin=True),
    "spiral": Shape(_spiral, thin=True),
    "key": Shape(_key, thin=True, size=1.15),
    "comb": Shape(_comb, thin=True, turn=40, size=1.1),
    "snowflake": Shape(_snowflake, thin=True),
    "glasses": Shape(_glasses, thin=True, turn=40, size=1.15),
    **{f"letter {name}": _letter(name) for name in _LETTERS},
}
SOLID = tuple(name for name, shape in SHAPES.items() if not shape.thin)
THIN = tuple(name for name, shape in SHAPES.items() if shape.thin)

# Groups within which a person may call one shape by another's name: no expression is said to denote nothing because of them.
_ALIKE = (
    ("disc", "oval", "ring", "wheel", "gear", "hexagon", "spiral", "semicircle"),
    ("square", "frame", "diamond", "net", "bar"),
    ("net", "ladder", "comb", "letter h", "letter e", "letter f"),
    ("branch", "snowflake", "star", "cross", "letter t", "letter y", "letter k"),
    ("zigzag", "wave", "spiral", "arc", "crescent", "semicircle"),
    ("ring", "glasses", "key", "arc", "wheel"),
    ("letter a", "triangle", "arrow"),
    ("bar", "arrow"),
    tuple(f"letter {name}" for name in _LETTERS),
)
ALIKE = {a: frozenset(b for group in _ALIKE if a in group for b in group) | {a} for a in SHAPES}
ALIKE["letter"] = frozenset().union(*(ALIKE[f"letter {name}"] for name in _LETTERS))


def coverage(ops: list[Op], radius: float, degrees: float, mirror: bool = False) -> tuple[np.ndarray, tuple[int, int]]:
    """Rasterises ops, scaled to `radius` px and rotated: alpha (h, w) uint8, and the (x, y) in it of the shape's origin."""
    c, s = radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))
    flip = -1 if mirror else 1
    points = np.concatenate([points for _, points, _ in ops]) @ np.array([(c * flip, s * flip), (-s, c)])
    margin = max(width for _, _, width in ops) * radius / 2 + 2
    (x0, y0), (x1, y1) = np.floor(points.min(0) - margin).tolist(), np.ceil(points.max(0) + margin).tolist()
    # Pixel centres are at integers: pixel p of the supersampled canvas covers [p/2, (p + 1)/2) + x0 - 1/2.
    grid = ((points - (x0 - 0.5, y0 - 0.5)) * _SUPERSAMPLE - 0.5) * (1 << _SHIFT)
    grid = np.rint(grid).astype(np.int32)
    width, height = int(x1 - x0), int(y1 - y0)
    canvas = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    start = 0
    for kind, part, stroke in ops:
        path = grid[start : start + len(part)]
        start += len(part)
        if kind in ("fill", "hole"):
            cv2.fillPoly(canvas, [path], 255 if kind == "fill" else 0, cv2.LINE_AA, _SHIFT)
        else:
            thick = max(1, round(stroke * radius * _SUPERSAMPLE))
            cv2.polylines(canvas, [path], kind == "loop", 255, thick, cv2.LINE_AA, _SHIFT)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA), (int(-x0), int(-y0))
