"""F_sim's trajectories of samples under the three rules, from several kinds of first masks; and single decisions of F_sim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segagent.annotator import SimulatedAnnotator
from segagent.data.corruptions import corrupt
from segagent.environment import Environment, reward
from segagent.errors import DataError
from segagent.masks import box_of
from segagent.policy import FixedReading, Observation, Proposal, Reading, seed_for
from segagent.rollout import rollout_many
from segagent.types import Action, Box, Click, Sample, State, Trajectory, Transition

INITIAL = ("empty", "box", "points", "beside")
STOP = FixedReading((Proposal(None, origin="simulated"),))


def initial_actions(kind: str, sample: Sample, rng: np.random.Generator) -> list[Action]:
    """The actions whose mask a trajectory starts from; none for the empty mask."""
    height, width = sample.size
    inside = np.argwhere(sample.target)
    if kind == "empty" or not len(inside):
        return []
    x0, y0, x1, y1 = box_of(sample.target)
    if kind == "box":
        jitter = rng.uniform(-0.1, 0.1, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        corners = np.rint(np.array([x0, y0, x1, y1]) + jitter).astype(int)
        corners = np.clip(corners, 0, [width - 1, height - 1, width - 1, height - 1])
        return [Box(*(int(v) for v in corners))]
    if kind == "points":
        # The paper's off-policy masks: points anywhere in the target's box, so some of them beside the target.
        count = rng.integers(1, 4)
        xs, ys = rng.integers(x0, x1 + 1, count), rng.integers(y0, y1 + 1, count)
        return [Click(int(x), int(y)) for x, y in zip(xs, ys, strict=True)]
    if kind != "beside":
        raise DataError(f"Unknown initial state {kind!r}: use one of {', '.join(INITIAL)}.")
    others = [other & ~sample.target for other in sample.meta.get("others", ())]
    others = [other for other in others if other.any()]  # a wrong object, where it is known where one is
    outside = np.argwhere(others[rng.integers(len(others))] if others else ~sample.target)
    if not len(outside):
        return []
    y, x = outside[rng.integers(len(outside))]
    return [Click(int(x), int(y))]


class Improving:
    """F_sim that stops in a state which an action led to that gained less than `gain` (rule three: nothing comes after it)."""

    def __init__(self, samples: Sequence[Sample], stop: float, gain: float) -> None:
        self.annotator = SimulatedAnnotator.for_samples(samples, stop_iou=stop)
        self.samples, self.gain = {sample.id: sample for sample in samples}, gain

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        readings = self.annotator.read(observations)
        return [STOP if self._lost(o) else reading for o, reading in zip(observations, readings, strict=True)]

    def _lost(self, observation: Observation) -> bool:
        state, sample = observation.state, self.samples[observation.id]
        if state.previous is None:
            return False
        before, after = (reward(s, sample.target, sample.ignore) for s in (state.previous, state))
        return after - before < self.gain


def simulate(
    environment: Environment, sample: Sample, *, kind: str, steps: int, stop: float, gain: float, seed: int
) -> Trajectory | None:
    """F_sim's trajectory of one sample under the three rules; None where not even its first action gains enough."""
    return simulate_many(environment, [sample], kinds=[kind], steps=steps, stop=stop, gain=gain, seed=seed)[0]


def simulate_many(
    environment: Environment,
    samples: Sequence[Sample],
    *,
    kinds: Sequence[str],
    steps: int,
    stop: float,
    gain: float,
    seed: int,
) -> list[Trajectory | None]:
    """`simulate` of several samples of different ids in lock step: those of one image share each call of the segmenter."""
    starts = [initial_mask(environment, *each, seed) for each in zip(samples, kinds, strict=True)]
    runs: list[list[Transition]] = [[] for _ in samples]
    policy = Improving(samples, stop, gain)
    for i, transition in rollout_many(environment, policy, samples, steps=steps, starts=starts):
        runs[i].append(transition)
    return [_kept(sample, run, gain) for sample, run in zip(samples, runs, strict=True)]


def initial_mask(environment: Environment, sample: Sample, kind: str, seed: int) -> np.ndarray | None:
    """The mask (H, W) that a trajectory starts from. Only that is kept: the policy is Markov in the mask."""
    rng = np.random.default_rng(seed_for(seed, sample.id, INITIAL.index(kind)))
    state: State = environment.reset(sample)
    for action in initial_actions(kind, sample, rng):
        state = environment.step(state, action)
    return state.mask


def _kept(sample: Sample, run: Sequence[Transition], gain: float) -> Trajectory | None:
    """The run up to the first action that gains less than `gain`."""
    kept = []
    for transition in run:
        if transition.action is not None and transition.reward - transition.iou < gain:
            break
        kept.append(transition)
    return Trajectory(sample, tuple(kept)) if kept else None


def decide(sample: Sample, *, stop: float, empty: float, seed: int) -> Trajectory:
    """One decision of F_sim on a mask made wrong without a segmenter; on the empty mask in a share `empty` of all."""
    rng = np.random.default_rng(seed_for(seed, sample.id, len(INITIAL) + 1))
    kind = "empty" if rng.random() < empty else None
    mask, kind = corrupt(sample.target, rng, kind, sample.meta.get("others", ()))
    state = State(sample.image, mask)
    annotator = SimulatedAnnotator(sample.target, sample.ignore, stop_iou=stop)
    action = annotator.read([Observation(state, sample.expression, sample.id)])[0].propose()[0].action
    value = reward(state, sample.target, sample.ignore)
    transition = Transition(
        state, action, state, iou=value, reward=value if action is None else None, origin="simulated",
        end="stop" if action is None else None, details=kind,
    )  # fmt: skip
    return Trajectory(sample, (transition,))
