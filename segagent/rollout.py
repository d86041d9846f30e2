"""The loop. Data generation, StaR+ rounds, evaluation, search, the command line and the page all consume this generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np

from segagent.environment import Environment, reward
from segagent.errors import SegAgentError
from segagent.policy import Observation, Policy, Proposal, Reading, propose_many, seed_for
from segagent.types import Sample, State, Trajectory, Transition


def rollout(
    environment: Environment,
    policy: Policy,
    sample: Sample,
    *,
    steps: int = 7,
    start: State | np.ndarray | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Transition]:
    """Transitions of one run: at most `steps` that act, then a closing one whose `end` says why.

    `start` is an initial mask (H, W) (mask refinement) or a State to go on from; nothing means the empty mask.
    Ends: "stop" (the policy says the mask is right), "steps" (the limit), "malformed" (no valid answer came), "converged"
    (a search sees no more gain).
    """
    for _, transition in rollout_many(
        environment, policy, [sample], steps=steps, starts=[start], temperature=temperature, seed=seed
    ):
        yield transition


def rollout_many(
    environment: Environment,
    policy: Policy,
    samples: Sequence[Sample],
    *,
    steps: int = 7,
    starts: Sequence[State | np.ndarray | None] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[tuple[int, Transition]]:
    """Runs of several samples in lock step, each step one batched read; yields (index of the sample, transition).

    A step is one decision. Where a search goes back to another state first, the moves there are transitions of their own,
    which count for nothing.
    """
    if steps < 0:
        raise SegAgentError(f"steps counts transitions and cannot be {steps}.")
    states = {
        i: start if isinstance(start, State) else environment.reset(sample, start)
        for i, (sample, start) in enumerate(zip(samples, repeat(None) if starts is None else starts, strict=False))
    }
    for step in range(steps + 1):
        if not states:
            return
        rows = list(states)
        readings = policy.read([Observation(states[i], samples[i].expression, samples[i].id) for i in rows])
        if step == steps:
            for i, reading in zip(rows, readings, strict=True):
                settled = reading.settle() if hasattr(reading, "settle") else None
                for transition in _run(environment, samples[i], states[i], reading, settled, "steps"):
                    yield i, transition
            return
        seeds = [seed_for(seed, samples[i].id, step) for i in rows]
        drawn = propose_many(readings, 1, temperature, seeds)
        chosen = {i: (reading, row[0] if row else None) for i, reading, row in zip(rows, readings, drawn, strict=True)}
        pending = [i for i, (_, p) in chosen.items() if p is not None and p.action is not None and p.state is None]
        stepped = environment.step_many([states[i] for i in pending], [chosen[i][1].action for i in pending])
        for i, state in zip(pending, stepped, strict=True):
            chosen[i] = chosen[i][0], replace(chosen[i][1], state=state)
        for i, (reading, proposal) in chosen.items():
            for transition in _run(environment, samples[i], states[i], reading, proposal):
                states[i] = transition.next_state
                yield i, transition
            if proposal is None or proposal.action is None:
                del states[i]


def collect(sample: Sample, transitions: Iterator[Transition]) -> Trajectory:
    """The trajectory that a rollout yields."""
    return Trajectory(sample, tuple(transitions))


def _run(
    environment: Environment,
    sample: Sample,
    state: State,
    reading: Reading,
    proposal: Proposal | None,
    end: str | None = None,
) -> Iterator[Transition]:
    """The transitions of one decision: its moves, then its action, whose state is known, or the end of the run."""
    predicted = reading.predicted_iou
    for move in proposal.moves if proposal else ():
        after = environment.step(state, move.action) if move.state is None else move.state
        yield _transition(sample, state, after, predicted, Proposal(move.action, move.text, move.logprob))
        state, predicted = after, move.predicted_iou
    if proposal is not None and proposal.action is not None:
        yield _transition(sample, state, proposal.state, predicted, proposal, said=getattr(reading, "text", ""))
        return
    end = end or (proposal.end or "stop" if proposal else "malformed")
    yield _transition(sample, state, state, predicted, proposal, end, getattr(reading, "text", ""))


def _transition(
    sample: Sample,
    state: State,
    next_state: State,
    predicted_iou: float | None,
    proposal: Proposal | None,
    end: str | None = None,
    said: str = "",
) -> Transition:
    known = sample.target is not None
    return Transition(
        state=state,
        action=proposal.action if proposal else None,
        next_state=next_state,
        predicted_iou=predicted_iou,
        iou=reward(state, sample.target, sample.ignore) if known else None,
        reward=reward(next_state, sample.target, sample.ignore) if known else None,
        text=(proposal.text if proposal else "") or said,
        logprob=proposal.logprob if proposal else None,
        origin=proposal.origin if proposal else "policy",
        end=end,
        details=proposal.details if proposal else None,
    )
