"""The loop. Data generation, StaR+ rounds, evaluation, search, the command line and the page all consume this generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    Ends: "stop" (the policy says the mask is right), "steps" (the limit), "malformed" (no valid answer came).
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
    """Runs of several samples in lock step, each step one batched read; yields (index of the sample, transition)."""
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
                yield i, _closing(samples[i], states[i], reading, "steps")
            return
        seeds = [seed_for(seed, samples[i].id, step) for i in rows]
        chosen: dict[int, tuple[Reading, Proposal]] = {}
        for i, reading, proposals in zip(rows, readings, propose_many(readings, 1, temperature, seeds), strict=True):
            if proposals and proposals[0].action is not None:
                chosen[i] = reading, proposals[0]
            else:
                proposal = proposals[0] if proposals else None
                yield i, _closing(samples[i], states.pop(i), reading, "stop" if proposal else "malformed", proposal)
        pending = [i for i in chosen if chosen[i][1].state is None]
        stepped = environment.step_many([states[i] for i in pending], [chosen[i][1].action for i in pending])
        fresh = dict(zip(pending, stepped, strict=True))
        for i, (reading, proposal) in chosen.items():
            before, states[i] = states[i], proposal.state or fresh[i]
            yield i, _transition(samples[i], before, reading, proposal, states[i])


def collect(sample: Sample, transitions: Iterator[Transition]) -> Trajectory:
    """The trajectory that a rollout yields."""
    return Trajectory(sample, tuple(transitions))


def _transition(
    sample: Sample, state: State, reading: Reading, proposal: Proposal | None, next_state: State, end: str | None = None
) -> Transition:
    known = sample.target is not None
    return Transition(
        state=state,
        action=proposal.action if proposal else None,
        next_state=next_state,
        predicted_iou=reading.predicted_iou,
        iou=reward(state, sample.target, sample.ignore) if known else None,
        reward=reward(next_state, sample.target, sample.ignore) if known else None,
        text=(proposal.text if proposal else "") or getattr(reading, "text", ""),
        logprob=proposal.logprob if proposal else None,
        origin=proposal.origin if proposal else "policy",
        end=end,
        details=proposal.details if proposal else None,
    )


def _closing(sample: Sample, state: State, reading: Reading, end: str, proposal: Proposal | None = None) -> Transition:
    return _transition(sample, state, reading, proposal, state, end)
