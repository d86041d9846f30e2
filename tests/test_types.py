"""States that nobody can change and that travel; samples and masks that are what they say."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from fakes import BrushSegmenter, disc_sample

from segagent.environment import Environment
from segagent.errors import ActionError, ImageError, MaskError
from segagent.types import Box, Click, Sample, State, Trajectory, Transition, as_mask


def grown_state(steps: int = 3) -> State:
    environment = Environment(BrushSegmenter())
    state = environment.reset(disc_sample())
    for i in range(steps):
        state = environment.step(state, Click(10 + i % 30, 15, positive=i % 3 > 0))
    return state


def chain(state: State | None) -> list[State]:
    states = []
    while state is not None:
        states.append(state)
        state = state.previous
    return states


def test_a_state_cannot_be_changed():
    state = grown_state()
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.mask = np.zeros(state.size, bool)
    for array in (state.mask, state.image):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_a_state_does_not_follow_the_array_it_was_made_from():
    image, mask = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool)
    state = State(image, mask)
    image[:], mask[:] = 9, True
    assert not state.mask.any()
    assert not state.image.any()


def test_a_state_holds_no_target():
    fields = {field.name for field in dataclasses.fields(State)}
    assert fields == {"image", "mask", "actions", "memory", "previous"}
    target = disc_sample().target
    reachable = [value for state in chain(grown_state()) for value in (state.image, state.mask, state.memory)]
    assert not any(value is target for value in reachable)


@pytest.mark.parametrize("travel", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy])
def test_a_state_travels(travel):
    state = grown_state()
    arrived = travel(state)
    assert len(chain(arrived)) == len(chain(state)) == 4
    for before, after in zip(chain(state), chain(arrived), strict=True):
        assert (before.mask == after.mask).all()
        assert (before.image == after.image).all()
        assert (before.actions, before.memory) == (after.actions, after.memory)
        assert not after.mask.flags.writeable
        assert not after.image.flags.writeable
    assert len({id(s.image) for s in chain(arrived)}) == 1  # still one picture, however many states


def test_a_long_chain_of_states_travels():
    arrived = pickle.loads(pickle.dumps(grown_state(3000)))
    assert len(chain(arrived)) == 3001


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(MaskError, match=r"5×4 px and its image 4×5 px"):
        State(np.zeros((5, 4, 3), np.uint8), np.zeros((4, 5), bool))
    with pytest.raises(MaskError):
        Sample(np.zeros((5, 4, 3), np.uint8), "x", np.zeros((4, 5), bool))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 5)), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ImageError, match="load_image"):
        Sample(image, "x")


def test_masks_of_two_values():
    expected = [[False, True]]
    for mask in ([[False, True]], [[0, 1]], [[0, 255]], [[0.0, 1.0]], np.array([[0, 255]], np.uint8)):
        assert as_mask(mask).tolist() == expected
    assert not as_mask(np.zeros((3, 2, 2), np.uint8)).any()
    for mask in ([[0, 1, 255]], [[0, 7]], [[0.0, 0.5]], [[-1, 0]], [[0, np.nan]]):
        with pytest.raises(MaskError, match="threshold"):
            as_mask(mask)
    with pytest.raises(MaskError, match="two axes"):
        as_mask([True, False])


def test_a_box_has_ordered_corners():
    assert Box(1, 2, 1, 2) == Box(1, 2, 1, 2)
    with pytest.raises(ActionError):
        Box(3, 0, 2, 5)


def transition(
    state: State, action: Click | None, following: State, predicted: float | None, end: str | None = None
) -> Transition:
    return Transition(state, action, following, predicted_iou=predicted, iou=0.5, reward=0.6, end=end)


def test_a_trajectory_by_hand():
    sample = disc_sample()
    states = chain(grown_state())[::-1]
    click = Click(1, 1)
    steps = [transition(a, click, b, p) for a, b, p in zip(states, states[1:], (0.2, 0.9, 0.9), strict=False)]
    run = Trajectory(sample, (*steps, transition(states[3], None, states[3], 0.4, "steps")))
    assert list(run.states) == states
    assert run.predicted_ious == (0.2, 0.9, 0.9, 0.4)
    assert run.best() == 2  # the latest of the two
    assert len(run.steps) == 3
    assert len(run) == 4
    assert run.end == "steps"
    assert run.ious == (0.5, 0.6, 0.6, 0.6)
    unfinished = Trajectory(sample, tuple(steps))
    assert unfinished.predicted_ious == (0.2, 0.9, 0.9, None)
    assert unfinished.end is None
    silent = Trajectory(sample, (transition(states[0], click, states[1], None),))
    assert silent.best() == 1
    assert Trajectory(sample, ()).states == ()
