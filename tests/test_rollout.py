"""The loop: what it yields, when it ends, and that company in a batch changes nothing."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from fakes import BrushSegmenter, FunctionPolicy, RandomPolicy, disc_sample, scripted

from segagent.environment import Environment
from segagent.errors import ActionError, SegAgentError
from segagent.policy import FixedReading, Proposal, ScriptedPolicy, propose_many, seed_for
from segagent.rollout import collect, rollout, rollout_many
from segagent.types import Click, Sample, Trajectory, Transition, Undo


@pytest.fixture
def environment() -> Environment:
    return Environment(BrushSegmenter())


def told(transition: Transition) -> tuple:
    """What a transition says, comparable."""
    masks = (transition.state.mask.tobytes(), transition.next_state.mask.tobytes())
    said = (transition.action, transition.predicted_iou, transition.iou, transition.reward, transition.text)
    return masks + said + (transition.origin, transition.end)


def test_the_step_limit_counts_transitions(environment: Environment):
    policy = FunctionPolicy(lambda o: (0.5, [Click(5, 5)]))
    for steps in (0, 1, 4):
        run = collect(disc_sample(), rollout(environment, policy, disc_sample(), steps=steps))
        assert len(run.steps) == steps
        assert len(run) == steps + 1
        assert run.end == "steps"
        assert run.predicted_ious == (0.5,) * (steps + 1)  # the last mask is read too
    with pytest.raises(SegAgentError):
        next(rollout(environment, policy, disc_sample(), steps=-1))


def test_undo_counts_as_a_transition(environment: Environment):
    policy = ScriptedPolicy([Click(5, 5), Undo(), Click(6, 6), Undo()])
    run = collect(disc_sample(), rollout(environment, policy, disc_sample(), steps=3))
    assert [t.action for t in run.steps] == [Click(5, 5), Undo(), Click(6, 6)]
    assert run.end == "steps"
    assert run.states[2] is run.states[0]
    assert run.states[3].actions == (Click(6, 6),)
    assert run.steps[0].origin == "person"


def test_a_run_stops_when_the_policy_says_so(environment: Environment):
    sample = disc_sample()
    policy = scripted((0.1, Click(20, 15)), (0.6, Click(25, 15)), (0.9, None))
    run = collect(sample, rollout(environment, policy, sample, steps=7))
    assert run.end == "stop"
    assert len(run.steps) == 2
    assert run.predicted_ious == (0.1, 0.6, 0.9)
    assert run.best() == 2
    closing = run.transitions[-1]
    assert closing.action is None
    assert closing.next_state is closing.state is run.states[-1]
    assert closing.iou == closing.reward == run.ious[-1]
    assert closing.text == "None"


def test_malformed_answers_end_a_run(environment: Environment):
    run = collect(disc_sample(), rollout(environment, scripted((0.1, Click(9, 9)), (0.2, "malformed")), disc_sample()))
    assert run.end == "malformed"
    assert len(run.steps) == 1
    assert run.predicted_ious == (0.1, 0.2)


def test_rewards_need_a_target(environment: Environment):
    known, unknown = disc_sample(), Sample(disc_sample().image, "something")
    policy = scripted((0.1, Click(20, 15)), (0.2, None))
    first = next(rollout(environment, policy, known))
    assert first.iou == 0
    assert 0 < first.reward < 1
    run = collect(unknown, rollout(environment, policy, unknown))
    assert run.ious == (None, None)
    assert run.predicted_ious == (0.1, 0.2)


def test_a_run_may_start_from_a_mask_or_go_on_from_a_state(environment: Environment):
    sample, policy = disc_sample(), FunctionPolicy(lambda o: (None, [Click(1, 1)]))
    refined = next(rollout(environment, policy, sample, start=sample.target))
    assert refined.iou == 1
    assert refined.state.actions == ()
    going_on = next(rollout(environment, policy, sample, start=refined.next_state))
    assert going_on.state is refined.next_state
    assert going_on.next_state.actions == (Click(1, 1), Click(1, 1))


def test_an_impossible_action_is_an_error_not_a_loop(environment: Environment):
    with pytest.raises(ActionError, match="outside"):
        list(rollout(environment, FunctionPolicy(lambda o: (None, [Click(500, 1)])), disc_sample()))


def test_transitions_come_as_they_happen(environment: Environment):
    policy = FunctionPolicy(lambda o: (None, [Click(1, 1)]))
    assert len(list(itertools.islice(rollout(environment, policy, disc_sample(), steps=10**6), 3))) == 3
    assert len(environment.segmenter.calls) == 3


def samples_for_batches() -> list[Sample]:
    return [disc_sample(f"s{i}", size=(30 + i, 40), x=8 + 3 * i, radius=4 + i) for i in range(5)]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_a_batch_is_its_runs_one_by_one(environment: Environment, seed: int):
    samples = samples_for_batches()
    alone = [collect(s, rollout(environment, RandomPolicy(), s, steps=4, seed=seed)) for s in samples]
    together: dict[int, list[Transition]] = {}
    for i, transition in rollout_many(environment, RandomPolicy(), samples, steps=4, seed=seed):
        together.setdefault(i, []).append(transition)
    for i, run in enumerate(alone):
        assert [told(t) for t in run] == [told(t) for t in together[i]]
    backwards: dict[int, list[Transition]] = {}
    for i, transition in rollout_many(environment, RandomPolicy(), samples[::-1], steps=4, seed=seed):
        backwards.setdefault(len(samples) - 1 - i, []).append(transition)
    assert {i: [told(t) for t in run] for i, run in backwards.items()} == {
        i: [told(t) for t in run] for i, run in together.items()
    }


def test_another_seed_is_another_run(environment: Environment):
    runs = {
        tuple(t.action for t in rollout(environment, RandomPolicy(), disc_sample(), steps=3, seed=seed))
        for seed in range(5)
    }
    assert len(runs) == 5
    assert len({seed_for(0, sample, step) for sample in ("a", "b") for step in range(10)}) == 20


def test_a_batch_reads_once_a_step_and_drops_those_that_are_done(environment: Environment):
    samples = samples_for_batches()

    def decide(observation):
        done = len(observation.state.actions) >= int(observation.id[1:])  # s0 at once, s1 after one click, …
        return 0.5, [None if done else Click(3, 3)]

    policy = FunctionPolicy(decide)
    ends = [(i, t.end) for i, t in rollout_many(environment, policy, samples, steps=3) if t.end]
    assert policy.batches == [5, 4, 3, 2]
    assert sorted(ends) == [(0, "stop"), (1, "stop"), (2, "stop"), (3, "steps"), (4, "steps")]


def test_each_of_a_batch_may_have_its_own_start(environment: Environment):
    samples = samples_for_batches()[:3]
    state = environment.step(environment.reset(samples[1]), Click(9, 9))
    policy = FunctionPolicy(lambda o: (None, [None]))
    runs = dict(rollout_many(environment, policy, samples, starts=[None, state, samples[2].target]))
    assert not runs[0].state.mask.any()
    assert runs[1].state is state
    assert runs[2].iou == 1


def test_a_state_that_a_proposal_brings_is_not_computed_again(environment: Environment):
    sample = disc_sample()
    ahead = environment.step(environment.reset(sample), Click(7, 7))

    class Searching:
        def read(self, observations):
            return [
                FixedReading((Proposal(Click(7, 7), state=ahead, details={"looked": 9}),), 0.3) for _ in observations
            ]

    environment.segmenter.calls.clear()
    first = next(rollout(environment, Searching(), sample, steps=1))
    assert first.next_state is ahead
    assert first.details == {"looked": 9}
    assert environment.segmenter.calls == []


def test_readings_that_can_are_asked_in_one_batch():
    class Batched(FixedReading):
        asked = 0

        @classmethod
        def propose_many(cls, readings, candidates, temperature, seeds):
            cls.asked += 1
            assert (candidates, temperature, list(seeds)) == (2, 0.5, [3, 4])
            return [list(r.proposals) for r in readings]

    readings = [Batched((Proposal(Click(i, i)),)) for i in range(2)]
    expected = [[r.proposals[0]] for r in readings]
    assert propose_many(readings, 2, 0.5, [3, 4]) == expected
    assert Batched.asked == 1
    assert propose_many([readings[0], FixedReading(readings[1].proposals)], 2, 0.5) == expected
    assert Batched.asked == 1  # of two kinds: one by one


def test_a_trajectory_travels(environment: Environment):
    run = collect(disc_sample(), rollout(environment, RandomPolicy(), disc_sample(), steps=5))
    arrived = pickle.loads(pickle.dumps(run))
    assert isinstance(arrived, Trajectory)
    assert [told(t) for t in arrived] == [told(t) for t in run]
    assert np.array_equal(arrived.sample.target, run.sample.target)
