"""T(s, a): pure, batched, and refusing what cannot be done."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from fakes import BrushSegmenter, disc, disc_sample

from segagent.environment import Environment, reward
from segagent.errors import ActionError, MaskError, SegmenterError
from segagent.masks import iou
from segagent.types import Box, Click, Sample, Undo


@pytest.fixture
def environment() -> Environment:
    return Environment(BrushSegmenter())


def same(a, b) -> bool:
    return (a.mask == b.mask).all() and a.actions == b.actions and a.memory == b.memory


def test_reset_starts_empty_or_from_a_mask(environment: Environment):
    sample = disc_sample()
    state = environment.reset(sample)
    assert not state.mask.any()
    assert (state.actions, state.memory, state.previous) == ((), None, None)
    assert state.image is sample.image
    assert (environment.reset(sample, sample.target).mask == sample.target).all()
    with pytest.raises(MaskError):
        environment.reset(sample, np.zeros((3, 3), bool))


def test_step_leaves_the_state_as_it_was(environment: Environment):
    state = environment.reset(disc_sample())
    before = pickle.dumps(state)
    following = environment.step(state, Click(20, 15))
    assert pickle.dumps(state) == before
    assert following.previous is state
    assert following.actions == (Click(20, 15),)
    assert following.memory == 1
    assert (following.mask == disc(state.size, 20, 15, 6)).all()


def test_undo_is_a_step_back(environment: Environment):
    first = environment.reset(disc_sample())
    second = environment.step(first, Click(20, 15))
    third = environment.step(second, Click(20, 15, positive=False))
    assert environment.step(third, Undo()) is second
    assert environment.step(environment.step(third, Undo()), Undo()) is first
    with pytest.raises(ActionError, match="nothing to undo"):
        environment.step(first, Undo())


def test_many_steps_are_the_single_ones(environment: Environment):
    rng, samples = np.random.default_rng(0), [disc_sample("a"), disc_sample("b", size=(30, 60))]
    states, actions = [], []
    for i in range(12):
        state = environment.step(environment.reset(samples[i % 2]), Click(i, i))
        kind = (Click(int(rng.integers(50)), int(rng.integers(30)), bool(rng.integers(2))), Box(3, 4, 9, 20), Undo())
        states.append(state)
        actions.append(kind[i % 3])
    single = [environment.step(s, a) for s, a in zip(states, actions, strict=True)]
    environment.segmenter.calls.clear()
    many = environment.step_many(states, actions)
    assert all(same(a, b) for a, b in zip(single, many, strict=True))
    assert environment.segmenter.calls == [4, 4]  # one batch a picture; undo needs no segmenter
    assert environment.step_many([], []) == []
    with pytest.raises(ActionError, match="one action for each state"):
        environment.step_many(states, actions[1:])


@pytest.mark.parametrize(
    "action",
    [
        Click(-0.6, 3),
        Click(50, 3),
        Click(49.5, 3),
        Click(3, 39.5),
        Click(float("nan"), 3),
        Box(0, 0, 50, 10),
        Box(-1, 0, 5, 5),
    ],
)
def test_actions_outside_the_picture_are_refused(environment: Environment, action):
    state = environment.reset(disc_sample())  # 50 px wide, 40 px high
    with pytest.raises(ActionError, match="outside the image, which is 50×40 px"):
        environment.step(state, action)
    assert environment.segmenter.calls == []


def test_the_edges_of_the_outer_pixels_are_inside(environment: Environment):
    state = environment.reset(disc_sample())
    for action in (Click(-0.5, -0.5), Click(49.4, 39.4), Box(-0.5, -0.5, 49.4, 39.4)):
        assert environment.step(state, action).actions == (action,)


def test_what_is_no_action_is_refused(environment: Environment):
    with pytest.raises(ActionError, match="got str"):
        environment.step(environment.reset(disc_sample()), "click")


def test_a_segmenter_that_forgets_an_action_is_named():
    class Forgetful(BrushSegmenter):
        def predict(self, embedding, states, actions):
            return super().predict(embedding, states, actions)[1:]

    environment = Environment(Forgetful())
    with pytest.raises(SegmenterError, match="0 masks for 1 actions"):
        environment.step(environment.reset(disc_sample()), Click(1, 1))


def test_reward_is_the_iou_without_the_ignored_pixels(environment: Environment):
    sample = disc_sample()
    state = environment.step(environment.reset(sample), Click(20, 15))
    assert reward(state, sample.target) == iou(state.mask, sample.target)
    hidden = disc(sample.size, 20, 15, 3)
    assert reward(state, sample.target, hidden) == iou(state.mask & ~hidden, sample.target & ~hidden)
    assert reward(environment.reset(sample), np.zeros(sample.size, bool)) == 1


def test_a_sample_of_one_pixel(environment: Environment):
    sample = Sample(np.zeros((1, 1, 3), np.uint8), "the dot", np.ones((1, 1), bool))
    assert environment.step(environment.reset(sample), Click(0, 0)).mask.all()
