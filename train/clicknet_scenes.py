"""Scenes that teach what a boundary is: dead leaves of many textures, whose objects have parts, thin ones and shadows.

A scene is layered from back to front, each layer an object of one or more parts, a part being an outline filled with a texture:
a colour ramp, stripes or dots, clouds, or a crop of one of scikit-image's free photographs. So an object may be of several
looks, its parts may be asked for too, and nothing but its outline tells it from what lies behind. Scenes are made once,
by all cores, and kept in files; `example` cuts a crop of one out and changes its colours, sharpness and noise each time.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from segagent.data import _paint
from segagent.masks import box_of

SIDE = 288  # px of a scene
SHARD = 64  # scenes a file
CHANNELS = 5  # RGB, object, part; 0 is no object
LEAST, LEAST_SHOWN = 40, 12  # px of the scene that can be seen of what is asked for, and of the example
PART = 0.2  # share of examples that ask for a part of an object
WHOLE = 0.3  # share that show the whole scene, as a first click does

Points = np.ndarray  # (N, 2) x, y


def blob(rng: np.random.Generator, roughness: float) -> Points:
    """A closed outline about the unit circle."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    orders = np.arange(2, 9)
    sizes = rng.normal(0, roughness, (2, orders.size)) / orders
    waves = sizes[0] @ np.cos(np.outer(orders, angle)) + sizes[1] @ np.sin(np.outer(orders, angle))
    radius = np.maximum(1 + waves, 0.15)
    return np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None] * (1, rng.uniform(0.35, 1))


def polygon(rng: np.random.Generator) -> Points:
    angle = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
    return np.stack([np.cos(angle), np.sin(angle)], -1) * rng.uniform(0.5, 1, (angle.size, 1))


def rod(rng: np.random.Generator) -> Points:
    """A bent strip: legs, poles, cables."""
    along = np.linspace(-1, 1, 16)
    bend = rng.normal(0, 0.3) * along**2 + rng.normal(0, 0.15) * np.sin(along * rng.uniform(2, 6))
    width = rng.uniform(0.03, 0.22) * (1 - rng.uniform(0, 0.7) * (along + 1) / 2)
    return np.concatenate([np.stack([along, bend + width], -1), np.stack([along, bend - width], -1)[::-1]])


def outline(rng: np.random.Generator) -> Points:
    kind = rng.random()
    if kind < 0.55:
        return blob(rng, rng.uniform(0.1, 0.7))
    return polygon(rng) if kind < 0.75 else rod(rng)


def placed(points: Points, centre: np.ndarray, radius: float, angle: float) -> Points:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) * radius + centre


def coverage(points: Points) -> np.ndarray:
    """(SIDE, SIDE) float32 in [0, 1]: the filled outline, its edge anti-aliased."""
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255


def texture(rng: np.random.Generator, radius: float) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    kind, size = rng.random(), (SIDE, SIDE)
    if kind < 0.45:
        return _paint.background(rng, "hard", size)
    color = str(rng.choice(list(_paint.COLORS)))
    surface = _paint.surface(rng, color, "plain" if kind < 0.7 else str(rng.choice(_paint.TEXTURES)), size, radius, 0.4)
    muted = cv2.addWeighted(surface, rng.uniform(0.4, 1), np.full_like(surface, int(rng.integers(40, 200))), 0.4, 0)
    return muted if rng.random() < 0.6 else surface


def parts_of(rng: np.random.Generator) -> list[Points]:
    """The outlines of an object, px of the scene: a body, and what is fastened to it."""
    radius = SIDE * np.exp(rng.uniform(np.log(0.05), np.log(0.33)))
    centre, turn = rng.uniform(0, SIDE, 2), rng.uniform(0, 2 * np.pi)
    body = placed(outline(rng), centre, radius, turn)
    parts = [body]
    for _ in range(int(rng.choice([0, 1, 2, 4], p=[0.45, 0.2, 0.2, 0.15]))):
        at = body[rng.integers(len(body))] * 0.85 + centre * 0.15
        size, angle = radius * rng.uniform(0.25, 0.8), rng.uniform(0, 2 * np.pi)
        if rng.random() < 0.5:  # fastened by its end
            shape, at = rod(rng), at + size * 0.9 * np.array([np.cos(angle), np.sin(angle)])
        else:
            shape = outline(rng)
        parts.append(placed(shape, at, size, angle))
    return parts


def scene(seed: tuple[int, ...]) -> np.ndarray:
    """(SIDE, SIDE, CHANNELS) uint8."""
    rng = np.random.default_rng(seed)
    image = _paint.background(rng, "hard", (SIDE, SIDE)).copy()
    labels, part_number = np.zeros((SIDE, SIDE, 2), np.uint8), 0
    for number in range(1, int(rng.integers(4, 16)) + 1):
        parts, same = parts_of(rng), texture(rng, SIDE / 8)
        if rng.random() < 0.4:
            _shadow(rng, image, parts)
        one_look = rng.random() < 0.5
        for i, points in enumerate(parts):
            alpha = coverage(points)
            look = same if i == 0 or one_look else texture(rng, SIDE / 12)
            light = 1 + rng.uniform(-0.25, 0.25) * (points.std(0).mean() > 8)
            image = cv2.blendLinear(cv2.convertScaleAbs(look, alpha=light), image, alpha, 1 - alpha)
            part_number += 1
            labels[alpha >= 0.5] = number, part_number
    return np.dstack([image, labels])


def _shadow(rng: np.random.Generator, image: np.ndarray, parts: list[Points]) -> None:
    """Darkens `image` beside an object that will be painted on it."""
    offset = rng.normal(0, SIDE / 25, 2)
    shade = np.max([coverage(points + offset) for points in parts], axis=0)
    shade = cv2.GaussianBlur(shade, (0, 0), rng.uniform(1, 7)) * rng.uniform(0.2, 0.6)
    image[:] = _paint.darken(image, 1 - shade)


@dataclass(frozen=True)
class _Job:
    path: Path
    seed: int
    number: int


def _make(job: _Job) -> None:
    cv2.setNumThreads(1)
    scenes = np.stack([scene((job.seed, job.number, i)) for i in range(SHARD)])
    part = job.path.with_suffix(".tmp.npy")
    np.save(part, scenes)
    part.rename(job.path)


def make_cache(folder: Path, count: int, seed: int, workers: int) -> list[np.ndarray]:
    """At least `count` scenes as memory-mapped arrays (SHARD, SIDE, SIDE, CHANNELS); files that are there are kept.

    `workers` are processes; 0 is this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scenes-{seed}-{n:05d}.npy" for n in range(-(-count // SHARD))]
    jobs = [_Job(path, seed, n) for n, path in enumerate(paths) if not path.exists()]
    if not workers:
        for job in jobs:
            _make(job)
    elif jobs:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            for _ in tqdm(pool.imap_unordered(_make, jobs), total=len(jobs), unit="shard"):
                pass
    return [np.load(path, mmap_mode="r") for path in paths]


def example(rng: np.random.Generator, packed: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(image (size, size, 3) uint8, target (size, size) bool) of a scene; None where it shows nothing to ask for.

    The crop is what inference looks at: the scene, or the object's box with as much around it as a mask in the making has.
    """
    labels = packed[..., 4 if rng.random() < PART else 3]
    area = np.bincount(labels.ravel())
    area[0] = 0
    choices = np.flatnonzero(area >= LEAST)
    if not choices.size:
        return None
    number = choices[rng.integers(choices.size)]
    mask = labels == number
    x0, y0, x1, y1 = (0, 0, SIDE, SIDE) if rng.random() < WHOLE else _around(rng, mask)
    target = cv2.resize(mask[y0:y1, x0:x1].astype(np.float32), (size, size), interpolation=_kind(x1 - x0, size)) >= 0.5
    image = cv2.resize(packed[y0:y1, x0:x1, :3], (size, size), interpolation=_kind(x1 - x0, size))
    if np.count_nonzero(target) < LEAST_SHOWN:
        return None
    if rng.random() < 0.5:
        image, target = image[:, ::-1], target[:, ::-1]
    if rng.random() < 0.2:
        image, target = image[::-1], target[::-1]
    return photographed(rng, np.ascontiguousarray(image)), np.ascontiguousarray(target)


def _kind(source: int, size: int) -> int:
    return cv2.INTER_AREA if source > size else cv2.INTER_LINEAR


def _around(rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int, int, int]:
    """A window about the mask's box, 1.1 to 3 times as large, shifted and stretched a little."""
    x0, y0, x1, y1 = box_of(mask)
    ends = []
    for low, high in ((x0, x1 + 1), (y0, y1 + 1)):
        length = max((high - low) * np.exp(rng.uniform(np.log(1.1), np.log(3))), 24)
        middle = (low + high) / 2 + rng.uniform(-0.5, 0.5) * max(length - (high - low), 0)
        ends.append((int(max(0, middle - length / 2)), int(min(SIDE, middle + length / 2))))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def photographed(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Other colours, light and contrast, a lens out of focus, a sensor's noise, JPEG."""
    gain, lift = rng.uniform(0.6, 1.25) * rng.uniform(0.85, 1.15, 3), rng.uniform(-25, 25)
    table = np.clip((np.arange(256)[:, None] - 128) * gain + 128 + lift, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[None])
    if rng.random() < 0.25:  # less colour
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        share = rng.random()
        image = cv2.addWeighted(image, share, grey, 1 - share, 0)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5))
    if rng.random() < 0.5:
        grain = rng.uniform(0, 12) / 32
        image = cv2.addWeighted(image, 1.0, _paint.noise(rng, image.shape[:2]), grain, -128 * grain)
    if rng.random() < 0.4:
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])
        image = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return image
