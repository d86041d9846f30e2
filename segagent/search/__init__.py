"""PRM-guided greedy search (paper, Algorithm 2): sample K clicks, look at the K masks, keep the one that looks best.

One step is one batched call of the segmenter for the K candidates and one batched read of the K states that they lead to;
the reading of the state that is kept serves the next step, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from segagent.environment import Environment
from segagent.errors import SegAgentError
from segagent.policy import Observation, Policy, Proposal, Reading, propose_many
from segagent.search.tree import Node, Spent, Tree
from segagent.types import Action, State

__all__ = ["Candidate", "GreedySearch", "Node", "Spent", "Tree"]

SAMPLING = 1.0  # the temperature of candidates where none is given: greedy candidates would all be one


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the K actions of a step, as it stands in `Transition.details`."""

    action: Action | None  # None: the mask is right, stop
    predicted_iou: float | None  # of the mask that it leads to
    logprob: float | None


class GreedySearch:
    """A policy that looks one step ahead with another one. One run an instance: it remembers the readings it has paid for."""

    def __init__(self, policy: Policy, environment: Environment, candidates: int) -> None:
        if candidates < 1:
            raise SegAgentError(f"candidates counts from 1; got {candidates}.")
        self.policy, self.environment, self.candidates = policy, environment, candidates
        self._known: dict[int, tuple[State, Reading]] = {}  # by id; the state is held so that its id stays its own

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        known = [self._known.get(id(o.state)) for o in observations]
        fresh = iter(self._read([o for o, k in zip(observations, known, strict=True) if k is None]))
        readings = [next(fresh) if k is None else k[1] for k in known]
        return [SearchReading(self, o, reading) for o, reading in zip(observations, readings, strict=True)]

    def _read(self, observations: Sequence[Observation]) -> list[Reading]:
        return self.policy.read(observations) if observations else []

    def _look_ahead(
        self, readings: Sequence[SearchReading], temperature: float, seeds: Sequence[int | None]
    ) -> list[list[Proposal]]:
        """The best proposal of each reading, its state computed and read."""
        drawn = propose_many([r.reading for r in readings], self.candidates, temperature or SAMPLING, seeds)
        acting = [(i, k) for i, row in enumerate(drawn) for k, p in enumerate(row) if p.action is not None]
        states = self.environment.step_many(
            [readings[i].observation.state for i, _ in acting], [drawn[i][k].action for i, k in acting]
        )
        ahead = self._read(
            [replace(readings[i].observation, state=s) for (i, _), s in zip(acting, states, strict=True)]
        )
        reached = {key: pair for key, *pair in zip(acting, states, ahead, strict=True)}
        self._known = {}
        return [self._best(i, readings[i].reading, row, reached) for i, row in enumerate(drawn)]

    def _best(
        self, i: int, reading: Reading, row: Sequence[Proposal], reached: dict[tuple[int, int], Any]
    ) -> list[Proposal]:
        """The candidate of the highest predicted IoU; of equals a stop, which counts as the mask that there is, or the first."""
        if not row:
            return []
        ious = [reached[i, k][1].predicted_iou if (i, k) in reached else reading.predicted_iou for k in range(len(row))]
        details = tuple(Candidate(p.action, iou, p.logprob) for p, iou in zip(row, ious, strict=True))
        best = max(range(len(row)), key=lambda k: (-1.0 if ious[k] is None else ious[k], row[k].action is None, -k))
        if (i, best) not in reached:
            return [replace(row[best], details=details)]
        state, ahead = reached[i, best]
        self._known[id(state)] = state, ahead
        return [replace(row[best], state=state, details=details)]


@dataclass(frozen=True, slots=True, eq=False)
class SearchReading:
    """A reading whose one proposal is the best of the search's candidates."""

    search: GreedySearch
    observation: Observation
    reading: Reading

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
        cls, readings: Sequence[SearchReading], candidates: int, temperature: float, seeds: Sequence[int | None]
    ) -> list[list[Proposal]]:
        """One proposal for each reading of one search, whatever `candidates` is: the search has its own number."""
        return readings[0].search._look_ahead(readings, temperature, seeds)
