"""Policies: what looks at an observation and chooses actions. The protocols, and the policies that need no model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from segagent.types import Action, State


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What a policy sees: I, M_t and P (it drops the history, paper section 3.2; search and tools may look at `state`)."""

    state: State
    expression: str
    id: str = ""  # the sample's

    @property
    def image(self) -> np.ndarray:
        return self.state.image

    @property
    def mask(self) -> np.ndarray:
        return self.state.mask


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """A step whose outcome is known, so that it costs nothing: an undo, or an action that was done before."""

    action: Action
    state: State | None  # that it leads to; None for an undo, which the environment does
    predicted_iou: float | None = None  # of that state
    text: str = ""
    logprob: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    action: Action | None  # None: the mask is right, stop
    text: str = ""
    logprob: float | None = None  # of the text, natural logarithm, summed over its tokens
    state: State | None = None  # the next state, where finding the action already computed it
    origin: str = "policy"
    details: Any = None
    moves: tuple[Move, ...] = ()  # what is done before the action: the way to another state, which a search may take
    end: str | None = None  # why the run ends, where `action` is None and it is no plain "stop"


@runtime_checkable
class Reading(Protocol):
    """What was read off one observation: the PRM's IoU, and the means to propose actions without reading again."""

    predicted_iou: float | None

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        """At most `candidates` proposals, likeliest or first sampled first; empty when no valid text came (malformed).

        A reading may also have `settle() -> Proposal`: its last word where the run is at its limit of steps.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        """One reading each, in one batch."""
        ...


def propose_many(
    readings: Sequence[Reading],
    candidates: int = 1,
    temperature: float = 0.0,
    seeds: Sequence[int | None] | None = None,
) -> list[list[Proposal]]:
    """Proposals for several readings; those that know how (a classmethod `propose_many`) decode in one batch."""
    seeds = [None] * len(readings) if seeds is None else seeds
    kinds = {type(reading) for reading in readings}
    batched = getattr(kinds.pop(), "propose_many", None) if len(kinds) == 1 else None
    if batched is not None:
        return batched(readings, candidates, temperature, seeds)
    return [r.propose(candidates, temperature, seed) for r, seed in zip(readings, seeds, strict=True)]


def seed_for(seed: int, sample_id: str, step: int) -> int:
    """A seed of its own for each sample and step, so that a result does not depend on what shares the batch."""
    return int(np.random.SeedSequence([seed, zlib.crc32(sample_id.encode()), step]).generate_state(1)[0])


@dataclass(frozen=True)
class FixedReading:
    """A reading whose proposals are known already."""

    proposals: tuple[Proposal, ...]
    predicted_iou: float | None = None

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        return list(self.proposals[:candidates])


class ScriptedPolicy:
    """Plays a list of actions in their order (a person's clicks, a saved trajectory), then stops. One run an instance."""

    def __init__(self, actions: Sequence[Action], origin: str = "person") -> None:
        self._actions, self._origin = iter(actions), origin

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        return [FixedReading((Proposal(next(self._actions, None), origin=self._origin),)) for _ in observations]


def __getattr__(name: str) -> Any:
    if name == "MLLMPolicy":  # lives in its own module because it imports torch
        from segagent.mllm import MLLMPolicy

        return MLLMPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
