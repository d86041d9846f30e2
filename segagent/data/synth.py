"""HRES-Synth: procedural scenes with thin and hollow objects, exact masks and unambiguous referring expressions.

Everything is deterministic by (seed, split, level, index): `hres_synth("train")[5]` is the same again with the
pinned versions of numpy and OpenCV, and costs some milliseconds whenever it is asked for; nothing is stored.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral

import numpy as np

from segagent.data._english import vocabulary
from segagent.data._expressions import KINDS, Expression, expressions, one_expression
from segagent.data._scenes import LEAST_SIDE, LEVELS, Scene, SceneObject, make_scene
from segagent.errors import DataError
from segagent.types import Sample

__all__ = [
    "KINDS",
    "LEVELS",
    "HRESSynth",
    "Scene",
    "SceneObject",
    "expressions",
    "hres_synth",
    "make_scene",
    "vocabulary",
]

COUNTS = {"train": 100_000, "validation": 1_000, "test": 1_000}
ABSENT = 0.04  # share of samples whose expression denotes no object
_SIDES = (192, 320)  # px, shortest and longest side of a scene whose size is not asked for


def hres_synth(
    split: str = "test",
    level: str | None = None,
    count: int | None = None,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> HRESSynth:
    """A lazy sequence of samples: "train", "validation" or "test", of one level or (None) of easy, medium, hard in turn.

    `size`: (height, width) px of every scene; or its longest side, the aspect ratio varying; or None for 192–320 px a side.
    `count`: how many (by default 100,000 / 1,000 / 1,000); a longer one begins with the shorter. Raises DataError.
    """
    return HRESSynth(split, level, count, size, seed)


class HRESSynth(Sequence):
    """See `hres_synth`. Picklable, without state: safe to index from many processes."""

    def __init__(self, split: str, level: str | None, count: int | None, size, seed: int) -> None:
        if split not in COUNTS:
            raise DataError(f"HRES-Synth has no split {split!r}: choose one of {', '.join(COUNTS)}.")
        if level is not None and level not in LEVELS:
            raise DataError(f"HRES-Synth has no level {level!r}: choose one of {', '.join(LEVELS)}, or None for all.")
        if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
            raise DataError(f"The seed of HRES-Synth is an integer from 0 to 2³² - 1, not {seed!r}.")
        if count is not None and (not isinstance(count, Integral) or count < 0):
            raise DataError(f"The count of HRES-Synth samples is an integer of at least 0, not {count!r}.")
        sides = size if isinstance(size, tuple) else (size, size)
        if size is not None and not (
            len(sides) == 2 and all(isinstance(n, Integral) and n >= LEAST_SIDE for n in sides)
        ):
            raise DataError(
                f"The size of HRES-Synth scenes is (height, width) or the longest side, integers of at least {LEAST_SIDE} px, not {size!r}."
            )
        self.split, self.level, self.size, self.seed = split, level, size, seed
        self.numbers = range(COUNTS[split] if count is None else count)  # of the samples in this sequence

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            part = copy.copy(self)
            part.numbers = self.numbers[index]
            return part
        level, inner = self._where(index)
        rng = self._rng(level, inner)
        scene = make_scene(rng, level, self._size(rng))
        return self._sample(scene, one_expression(scene, rng, ABSENT), self._id(level, inner))

    def samples(self, index: int) -> list[Sample]:
        """The scene of sample `index` with every expression made for it: many samples at the price of one picture."""
        level, inner = self._where(index)
        scene, found = self.scene(index)
        return [self._sample(scene, one, f"{self._id(level, inner)}/{n}") for n, one in enumerate(found)]

    def _id(self, level: str, inner: int) -> str:
        seed = f"-{self.seed}" if self.seed else ""
        return f"hres-synth{seed}/{self.split}/{level}/{inner:06d}"

    @staticmethod
    def _sample(scene: Scene, expression: Expression, name: str) -> Sample:
        text, targets, kind = expression
        target = scene.objects[targets[0]].mask if targets else np.zeros(scene.size, bool)
        category = scene.objects[targets[0]].shape if targets else ""
        meta = {"level": scene.level, "kind": kind, "category": category, "objects": len(scene.objects)}
        return Sample(scene.image, text, target, name, meta=meta)

    def scene(self, index: int) -> tuple[Scene, list[Expression]]:
        """The whole scene of a sample, and all expressions made for it."""
        level, inner = self._where(index)
        rng = self._rng(level, inner)
        scene = make_scene(rng, level, self._size(rng))
        return scene, expressions(scene, rng)

    def _where(self, index: int) -> tuple[str, int]:
        """(level, index within the level's own stream). Raises IndexError."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"This HRES-Synth {self.split} has {len(self)} samples; there is no number {index}.")
        number = self.numbers[int(index)]
        if self.level is not None:
            return self.level, number
        return tuple(LEVELS)[number % len(LEVELS)], number // len(LEVELS)

    def _rng(self, level: str, inner: int) -> np.random.Generator:
        # Splits and levels are words of the seed, so no two of them can ever share a stream.
        words = (self.seed, tuple(COUNTS).index(self.split), tuple(LEVELS).index(level), inner)
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """(height, width) px of one scene."""
        if isinstance(self.size, tuple):
            return self.size
        height, width = (int(n) for n in rng.integers(_SIDES[0], _SIDES[1] + 1, 2))
        if self.size is None:
            return height, width
        scale = self.size / max(height, width)
        return max(LEAST_SIDE, round(height * scale)), max(LEAST_SIDE, round(width * scale))
