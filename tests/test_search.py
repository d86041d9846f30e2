"""Greedy search: the best of K candidates at each step, with one batch of masks and one of readings for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from test_agent import IMAGE, Columns

from segagent import Click, Environment, Sample, SegAgent
from segagent.policy import FixedReading, Proposal, seed_for
from segagent.rollout import collect, rollout, rollout_many
from segagent.search import GreedySearch


class Sampler:
    """Clicks at random columns, seeded; knows the true IoU with the columns up to `goal`, and counts its work."""

    def __init__(self, goal=30, stop_at=1.1):
        self.goal, self.stop_at, self.batches = goal, stop_at, []

    def read(self, observations):
        self.batches.append([o.state for o in observations])
        return [SamplerReading(self, self.iou(o.mask), o.mask) for o in observations]

    def iou(self, mask):
        target = np.broadcast_to(np.arange(mask.shape[1]) <= self.goal, mask.shape)
        return float((mask & target).sum() / (mask | target).sum())


class SamplerReading:
    def __init__(self, sampler, predicted_iou, mask):
        self.sampler, self.predicted_iou = sampler, predicted_iou
        self.heard = []

    def propose(self, candidates=1, temperature=0.0, seed=None):
        assert temperature > 0
        if self.predicted_iou >= self.sampler.stop_at:
            return [Proposal(None, "stop")]
        columns = np.random.default_rng(seed).integers(0, 50, candidates)
        return [Proposal(Click(float(x), 5.0), f"x {x}", -float(x)) for x in columns]


class Counting(Columns):
    def __init__(self):
        self.batches = []

    def predict(self, embedding, states, actions):
        self.batches.append(len(states))
        return super().predict(embedding, states, actions)


def test_one_batch_of_masks_and_one_of_readings_a_step():
    sampler, segmenter = Sampler(), Counting()
    environment = Environment(segmenter)
    run = collect(
        Sample(IMAGE, "x"), rollout(environment, GreedySearch(sampler, environment, 3), Sample(IMAGE, "x"), steps=4)
    )
    assert len(run.steps) == 4
    assert segmenter.batches == [3] * 4
    assert [len(batch) for batch in sampler.batches] == [1, 3, 3, 3, 3]  # the last state was read already
    assert len({id(state) for batch in sampler.batches for state in batch}) == 13  # none twice


def test_each_step_keeps_the_candidate_that_looks_best():
    sampler, environment = Sampler(), Environment(Columns())
    run = collect(
        Sample(IMAGE, "x"), rollout(environment, GreedySearch(sampler, environment, 5), Sample(IMAGE, "x"), seed=4)
    )
    for number, step in enumerate(run.steps):
        drawn = np.random.default_rng(seed_for(4, "", number)).integers(0, 50, 5)
        assert [c.action.x for c in step.details] == drawn.tolist()
        ious = [sampler.iou(environment.step(step.state, c.action).mask) for c in step.details]
        assert [c.predicted_iou for c in step.details] == ious
        assert step.action == step.details[int(np.argmax(ious))].action
        assert step.logprob == -step.action.x
    assert list(run.predicted_ious) == [sampler.iou(state.mask) for state in run.states]


def test_more_candidates_are_better_on_average():
    def quality(candidates):
        agent = SegAgent(Sampler(), Columns())
        return np.mean(
            [
                agent.segment(IMAGE, "x", candidates=candidates, temperature=1.0, steps=2, seed=s).predicted_iou
                for s in range(20)
            ]
        )

    assert quality(1) < quality(3) < quality(8)


def test_a_stop_competes_with_the_mask_that_there_is():
    class Undecided(Sampler):
        def read(self, observations):
            return [
                FixedReading((Proposal(Click(self.x, 1.0)), Proposal(None, "stop")), self.iou(o.mask))
                for o in observations
            ]

    policy, environment = Undecided(goal=20), Environment(Columns())
    policy.x = 20.0
    start = np.broadcast_to(np.arange(50) <= 10, (40, 50))
    run = collect(
        Sample(IMAGE, "x"), rollout(environment, GreedySearch(policy, environment, 2), Sample(IMAGE, "x"), start=start)
    )
    assert [t.end for t in run] == [None, "stop"]  # the second click changes nothing: no better than to stop
    policy.x = 40.0
    run = collect(
        Sample(IMAGE, "x"), rollout(environment, GreedySearch(policy, environment, 2), Sample(IMAGE, "x"), start=start)
    )
    assert [t.end for t in run] == ["stop"]
    assert [c.action for c in run.transitions[0].details] == [Click(40, 1), None]


def test_malformed_ends_the_run():
    class Mute:
        def read(self, observations):
            return [FixedReading((), 0.5) for _ in observations]

    environment = Environment(Columns())
    run = collect(Sample(IMAGE, "x"), rollout(environment, GreedySearch(Mute(), environment, 3), Sample(IMAGE, "x")))
    assert run.end == "malformed"


def test_runs_in_lock_step_are_the_runs_alone():
    environment = Environment(Columns())
    samples = [Sample(IMAGE, "x", id=str(i)) for i in range(4)]
    together = {i: [] for i in range(4)}
    search = GreedySearch(Sampler(stop_at=0.95), environment, 3)
    for i, transition in rollout_many(environment, search, samples, steps=5):
        together[i].append((transition.action, transition.predicted_iou, transition.end))
    for i, sample in enumerate(samples):
        alone = rollout(environment, GreedySearch(Sampler(stop_at=0.95), environment, 3), sample, steps=5)
        assert [(t.action, t.predicted_iou, t.end) for t in alone] == together[i]
    assert len({len(run) for run in together.values()}) > 1


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_model_searches(candidates):
    from tiny_models import speaker

    from segagent import MLLMPolicy

    agent = SegAgent(MLLMPolicy(*speaker()), "grabcut")
    runs = [agent.segment(IMAGE, "the cup", candidates=candidates, temperature=1.0, seed=5, steps=2) for _ in range(2)]
    assert [t.text for t in runs[0].trajectory] == [t.text for t in runs[1].trajectory]
    for step in runs[0].trajectory.steps:
        assert (step.details is None) == (candidates == 1)
        if step.details:
            assert step.action in [c.action for c in step.details]
    state = runs[0].trajectory.states[-1]
    assert agent.score(IMAGE, "the cup", state.mask) == pytest.approx(runs[0].trajectory.predicted_ious[-1])
