"""Policies for measurements: floors, and policies around another one that change how it begins or ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segagent.policy import FixedReading, Observation, Policy, Proposal, Reading, propose_many, seed_for
from segagent.types import Action, Box, Click

TRIES = 8  # answers sampled in search of one of another kind than the likeliest
SAMPLING = 1.0  # their temperature
INSISTED = "insisted"  # in `details` of a click where the policy would have stopped


class BlindPolicy:
    """The floor: one positive click at a random pixel or at the image's centre, then no more."""

    def __init__(self, where: str, seed: int = 0) -> None:
        self.where, self.seed = where, seed

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        return [FixedReading((Proposal(self._action(o)),)) for o in observations]

    def _action(self, observation: Observation) -> Click | None:
        if observation.state.actions:
            return None
        height, width = observation.state.size
        if self.where == "center":
            return Click(width // 2, height // 2)
        rng = np.random.default_rng(seed_for(self.seed, observation.id, 0))
        return Click(int(rng.integers(width)), int(rng.integers(height)))


class Insistent:
    """Clicks on where the policy would stop: the paper's runs of a fixed number of steps, without a stop signal.

    Such a click is the first that comes among sampled answers; where none comes in TRIES, the run stops after all.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        return [_Other(reading, _insisting) for reading in self.policy.read(observations)]


class BoxFirst:
    """Begins with a box (paper, section 4.2 with SAM): the one that is `given` for each sample's id, or the policy's own.

    Its own is the first box among its answers, the likeliest first; where none comes in TRIES it begins as it would, and so
    it does where no box is given.
    """

    def __init__(self, policy: Policy, given: Callable[[str], Box | None] | None = None) -> None:
        self.policy, self.given = policy, given

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        readings = self.policy.read(observations)
        return [self._first(o, r) if not o.state.actions else r for o, r in zip(observations, readings, strict=True)]

    def _first(self, observation: Observation, reading: Reading) -> Reading:
        if self.given is None:
            return _Other(reading, _boxing)
        box = self.given(observation.id)
        return reading if box is None else FixedReading((Proposal(box, origin="given"),), reading.predicted_iou)


def _insisting(action: Action | None) -> bool:
    return action is not None


def _boxing(action: Action | None) -> bool:
    return isinstance(action, Box)


@dataclass(frozen=True, slots=True, eq=False)
class _Other:
    """A reading that proposes something else where the likeliest answer is not `wanted`."""

    reading: Reading
    wanted: Callable[[Action | None], bool]

    @property
    def predicted_iou(self) -> float | None:
        return self.reading.predicted_iou

    @property
    def text(self) -> str:
        return getattr(self.reading, "text", "")

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        return self.propose_many([self], candidates, temperature, [seed])[0]

    @classmethod
    def propose_many(
        cls, readings: Sequence[_Other], candidates: int, temperature: float, seeds: Sequence[int | None]
    ) -> list[list[Proposal]]:
        """The first proposal is of the wanted kind wherever one comes; all readings are decoded in one batch."""
        found = propose_many([r.reading for r in readings], candidates, temperature, seeds)
        wrong = [i for i, row in enumerate(found) if row and not readings[i].wanted(row[0].action)]
        if not wrong:
            return found
        again = propose_many([readings[i].reading for i in wrong], TRIES, SAMPLING, [seeds[i] for i in wrong])
        for i, row in zip(wrong, again, strict=True):
            other = next((p for p in row if readings[i].wanted(p.action)), None)
            if other is not None:
                found[i] = [replace(other, details=INSISTED), *found[i]]
        return found
