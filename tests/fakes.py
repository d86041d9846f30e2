"""Stand-ins for models: segmenters and policies that do what a test tells them, and small samples to run them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segagent.policy import FixedReading, Observation, Proposal, Reading
from segagent.segmenters.base import Prediction
from segagent.types import Action, Box, Click, Sample, State


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    """(H, W) bool, True within `radius` px of (x, y)."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def disc_sample(
    name: str = "disc", size: tuple[int, int] = (40, 50), x: float = 20, y: float = 15, radius: float = 8
) -> Sample:
    """A grey picture with one bright disc, which is the target."""
    target = disc(size, x, y, radius)
    image = np.full((*size, 3), 60, np.uint8)
    image[target] = 200
    return Sample(image, f"the {name}", target, id=name)


class FaultySamples(list):
    """A data set some of whose samples cannot be read: an exception in the list is raised where it stands."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if isinstance(item, Exception):
            raise item
        return item


class BrushSegmenter:
    """Each click paints (or, negative, wipes) a disc, each box a rectangle, on the state's mask; memory counts the actions.

    `calls` holds the size of each batch, `encoded` how many pictures were encoded.
    """

    reference = "fake:brush"

    def __init__(self, radius: float = 6) -> None:
        self.radius, self.calls, self.encoded = radius, [], 0

    def encode(self, image: np.ndarray) -> tuple[int, int]:
        self.encoded += 1
        return image.shape[:2]

    def predict(
        self, embedding: tuple[int, int], states: Sequence[State], actions: Sequence[Click | Box]
    ) -> list[Prediction]:
        self.calls.append(len(states))
        return [
            Prediction(self._painted(embedding, s, a), len(s.actions) + 1) for s, a in zip(states, actions, strict=True)
        ]

    def _painted(self, size: tuple[int, int], state: State, action: Click | Box) -> np.ndarray:
        if isinstance(action, Box):
            rows, columns = np.ogrid[: size[0], : size[1]]
            inside = (columns >= action.x0) & (columns <= action.x1) & (rows >= action.y0) & (rows <= action.y1)
            return state.mask | inside
        brush = disc(size, action.x, action.y, self.radius)
        return state.mask | brush if action.positive else state.mask & ~brush


class FunctionPolicy:
    """What `decide(observation)` says: (predicted IoU or None, actions best first; an empty list is malformed text)."""

    def __init__(self, decide: Callable[[Observation], tuple[float | None, Sequence[Action | None]]]) -> None:
        self.decide, self.batches = decide, []

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        self.batches.append(len(observations))
        readings: list[Reading] = []
        for observation in observations:
            predicted, actions = self.decide(observation)
            readings.append(FixedReading(tuple(Proposal(a, text=repr(a)) for a in actions), predicted))
        return readings


class RandomPolicy:
    """Clicks anywhere, by the seed that propose is given alone: shows whether a loop passes its seeds on."""

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        return [_RandomReading(o.state.size) for o in observations]


class _RandomReading:
    predicted_iou = None

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        rng = np.random.default_rng(seed)
        return [Proposal(self._click(rng)) for _ in range(candidates)]

    def _click(self, rng: np.random.Generator) -> Click:
        height, width = self.size
        return Click(int(rng.integers(width)), int(rng.integers(height)), positive=bool(rng.random() < 0.7))


def scripted(*replies: tuple[float | None, Any]) -> FunctionPolicy:
    """Replies by how many actions led to the state: (predicted IoU, an action, None to stop, or "malformed")."""

    def decide(observation: Observation) -> tuple[float | None, list[Action | None]]:
        predicted, action = replies[min(len(observation.state.actions), len(replies) - 1)]
        return predicted, [] if action == "malformed" else [action]

    return FunctionPolicy(decide)
