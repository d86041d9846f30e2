"""The search as a policy: one step is one batched call of the segmenter for all candidates and one batched read of all masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segagent.environment import Environment
from segagent.errors import SegAgentError
from segagent.policy import Observation, Policy, Proposal, Reading, propose_many, seed_for
from segagent.search.growth import Growth
from segagent.search.strategies import CANDIDATES, Plateau, Strategy, check_count, make_strategy
from segagent.types import State

HELD = 16  # see TreeSearch
SAMPLING = 1.0  # the temperature of several candidates where none is given: greedy ones would all be one


@dataclass(slots=True, eq=False)
class _Candidate:
    """A candidate on its way into a tree."""

    growth: Growth
    parent: int
    proposal: Proposal
    merged: int  # other candidates that it stands for
    state: State | None = None  # where it leads to


class TreeSearch:
    """A policy that looks ahead with another one, which proposes K candidates for a state and reads what they lead to.

    It may serve several runs in lock step, each with a tree of its own, but one rollout at a time. The tree is in
    `Transition.details` of each of its decisions. Candidates that do the same, or lead from one state to the same mask, are
    merged before they cost a mask or a reading; those that the segmenter cannot carry out are left out and counted.
    """

    def __init__(
        self,
        policy: Policy,
        environment: Environment,
        strategy: str | Strategy = "greedy",
        candidates: int = CANDIDATES,
        plateau: Plateau | None = None,
        held: int = HELD,
    ) -> None:
        """`strategy`: a name of STRATEGIES, or one of these with its own settings. `held`: of how many states that may yet be
        expanded a run keeps the readings, a large model's gigabytes of keys and values; the others are read again if need be.
        Raises SegAgentError.
        """
        check_count("candidates", candidates)
        self.policy, self.environment, self.candidates = policy, environment, candidates
        self.strategy = make_strategy(strategy) if isinstance(strategy, str) else strategy
        self.plateau, self.held = plateau or Plateau(), held
        self._runs: dict[int, Growth] = {}  # by id of the state where the run stands, which the tree holds

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        """The readings of states that the search has been led to, which are known, and those of new runs in one batch."""
        runs = [self._runs.pop(id(o.state), None) for o in observations]
        self._runs = {}  # the runs not asked for have ended
        fresh = [i for i, run in enumerate(runs) if run is None]
        again = [(run, index) for run in runs if run is not None for index in run.unread()]
        seen = [*(observations[i] for i in fresh), *(run.seen(index) for run, index in again)]
        readings = self.policy.read(seen) if seen else []
        for i, reading in zip(fresh, readings, strict=False):
            runs[i] = Growth.begin(observations[i], reading, self.strategy.name)
        for (run, index), reading in zip(again, readings[len(fresh) :], strict=True):
            run.readings[index] = reading
            run.count(read=1)
        return [SearchReading.of(self, run) for run in runs]

    def _step(self, runs: Sequence[Growth], temperature: float, seeds: Sequence[int | None]) -> list[Proposal]:
        """One step of every run: expand, look, choose."""
        for run in runs:
            run.begin_step()
        going = [i for i, run in enumerate(runs) if not self.plateau.reached(run.progress)]
        candidates = self._propose([runs[i] for i in going], temperature, [seeds[i] for i in going])
        self._carry_out([c for c in candidates if c.proposal.action is not None])
        fresh = self._look([c for c in candidates if c.state is not None or c.proposal.action is None])
        results = {i: self._go(runs[i], fresh.get(id(runs[i]), [])) for i in going}
        return [results[i] if i in results else self._end(run, "converged") for i, run in enumerate(runs)]

    def _propose(self, runs: Sequence[Growth], temperature: float, seeds: Sequence[int | None]) -> list[_Candidate]:
        """The distinct candidates of all nodes that this step expands, drawn in one batch."""
        nodes = [(run, index) for run in runs for index in run.frontier]
        own = [
            seed if seed is None or place == 0 else seed_for(seed, "", place)
            for run, seed in zip(runs, seeds, strict=True)
            for place in range(len(run.frontier))
        ]
        temperature = temperature or (SAMPLING if self.candidates > 1 else 0.0)
        readings = [run.readings[index] for run, index in nodes]
        drawn = propose_many(readings, self.candidates, temperature, own) if nodes else []
        return [
            _Candidate(run, index, proposal, merged)
            for (run, index), row in zip(nodes, drawn, strict=True)
            for proposal, merged in run.distinct(index, row)
        ]

    def _carry_out(self, candidates: Sequence[_Candidate]) -> None:
        """Gives each candidate its next state, all in one batch; those that the segmenter refuses stay without one."""
        try:
            self._apply(candidates)
        except SegAgentError:
            for candidate in candidates:  # one by one, to lose only those that fail
                try:
                    self._apply([candidate])
                except SegAgentError as error:
                    candidate.growth.skip(str(error))

    def _apply(self, candidates: Sequence[_Candidate]) -> None:
        before = [c.growth.nodes[c.parent].state for c in candidates]
        after = self.environment.step_many(before, [c.proposal.action for c in candidates])
        for candidate, state in zip(candidates, after, strict=True):
            candidate.state = state

    def _look(self, candidates: Sequence[_Candidate]) -> dict[int, list[int]]:
        """Reads the candidates' distinct masks in one batch and adds them to their trees; → the new nodes of each run, by id."""
        distinct = _distinct_masks(candidates)
        acting = [c for c in distinct if c.state is not None]
        seen = [replace(c.growth.observation, state=c.state) for c in acting]
        readings = dict(zip(map(id, acting), self.policy.read(seen) if seen else [], strict=True))
        fresh: dict[int, list[int]] = {}
        for c in distinct:
            if c.state is None:
                index = c.growth.stop(c.parent, c.proposal, c.merged)
            else:
                index = c.growth.child(c.parent, c.proposal, c.state, readings[id(c)], c.merged)
            fresh.setdefault(id(c.growth), []).append(index)
        return fresh

    def _go(self, run: Growth, fresh: list[int]) -> Proposal:
        """The run's decision after a step."""
        target, frontier, keep = self.strategy.choose(run, fresh)
        run.end_step(frontier, keep, self.held)
        if target is None:
            return self._end(run, "malformed")
        node = run.nodes[target]
        if node.stop:
            moves = run.go(node.parent)
            return Proposal(None, node.text, node.logprob, details=run.snapshot(), moves=moves)
        *moves, last = run.go(target)
        self._runs[id(last.state)] = run
        return Proposal(last.action, last.text, last.logprob, last.state, details=run.snapshot(), moves=tuple(moves))

    def _end(self, run: Growth, end: str) -> Proposal:
        """The end of a run that no stop of the policy's ends; it takes place at the best state, if the strategy returns to it."""
        moves = run.go(run.snapshot().best) if self.strategy.returns else ()
        reason = run.skipped[-1] if end == "malformed" and run.skipped else ""
        return Proposal(None, reason, details=run.snapshot(), moves=moves, end=end)


def _distinct_masks(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Without those that lead from the same state to the mask of an earlier one."""
    kept: list[_Candidate] = []
    siblings: dict[tuple[int, int], list[_Candidate]] = {}
    for candidate in candidates:
        row = siblings.setdefault((id(candidate.growth), candidate.parent), [])
        mask = None if candidate.state is None else candidate.state.mask
        twin = next((c for c in row if mask is not None and np.array_equal(c.state.mask, mask)), None)
        if twin is None:
            kept.append(candidate)
            row += [candidate] if mask is not None else []
        else:
            twin.merged += 1 + candidate.merged
            candidate.growth.count(segmented=1, merged=1)
    return kept


@dataclass(frozen=True, slots=True, eq=False)
class SearchReading:
    """A reading whose one proposal is the search's decision."""

    search: TreeSearch
    run: Growth
    predicted_iou: float | None
    text: str

    @classmethod
    def of(cls, search: TreeSearch, run: Growth) -> SearchReading:
        """Of the state where the run stands."""
        reading = run.readings[run.cursor]
        return cls(search, run, run.nodes[run.cursor].predicted_iou, getattr(reading, "text", ""))

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        return self.propose_many([self], candidates, temperature, [seed])[0]

    @classmethod
    def propose_many(
        cls, readings: Sequence[SearchReading], candidates: int, temperature: float, seeds: Sequence[int | None]
    ) -> list[list[Proposal]]:
        """One proposal for each reading of one search, whatever `candidates` is: the search has its own number."""
        return [[p] for p in readings[0].search._step([r.run for r in readings], temperature, seeds)]

    def settle(self) -> Proposal:
        """The run is at its limit of steps: back to the best state, if the strategy returns to it."""
        return self.search._end(self.run, "steps")
