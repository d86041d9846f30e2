"""The click environment: a pure transition T and reward R (paper, section 3.1). It keeps nothing between calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segagent.errors import ActionError, SegmenterError
from segagent.masks import iou
from segagent.segmenters.base import Segmenter
from segagent.types import Action, Box, Click, Sample, State, Undo


class Environment:
    """s_t+1 = T(s_t, a_t), with F_iter the segmenter."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def reset(self, sample: Sample, mask: np.ndarray | None = None) -> State:
        """s_0: the empty mask, or `mask` (H, W), which makes it mask refinement. Raises MaskError on another size."""
        return State(sample.image, np.zeros(sample.size, bool) if mask is None else mask)

    def step(self, state: State, action: Action) -> State:
        """The next state; `state` stays as it is. Raises ActionError for an action impossible in it."""
        return self.step_many([state], [action])[0]

    def step_many(self, states: Sequence[State], actions: Sequence[Action]) -> list[State]:
        """One next state for each pair; candidates on one image share one call of the segmenter."""
        if len(states) != len(actions):
            raise ActionError(f"{len(states)} states and {len(actions)} actions: give one action for each state.")
        results: list[State | None] = [None] * len(states)
        groups: dict[int, list[int]] = {}
        for i, (state, action) in enumerate(zip(states, actions, strict=True)):
            check_action(state, action)
            if isinstance(action, Undo):
                results[i] = state.previous
            else:
                groups.setdefault(id(state.image), []).append(i)
        for rows in groups.values():
            embedding = self.segmenter.encode(states[rows[0]].image)
            predictions = self.segmenter.predict(embedding, [states[i] for i in rows], [actions[i] for i in rows])
            if len(predictions) != len(rows):
                raise SegmenterError(f"The segmenter gave {len(predictions)} masks for {len(rows)} actions.")
            for i, prediction in zip(rows, predictions, strict=True):
                state = states[i]
                results[i] = State(
                    state.image, prediction.mask, (*state.actions, actions[i]), prediction.memory, previous=state
                )
        return results


def check_action(state: State, action: Action) -> None:
    """Raises ActionError where `action` cannot be done in `state`."""
    height, width = state.size
    if isinstance(action, Undo):
        if state.previous is None:
            raise ActionError("There is nothing to undo: this is the first state.")
        return
    if isinstance(action, Click):
        points = [(action.x, action.y)]
    elif isinstance(action, Box):
        points = [(action.x0, action.y0), (action.x1, action.y1)]
    else:
        raise ActionError(f"An action is a Click, a Box or an Undo; got {type(action).__name__}.")
    for x, y in points:
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise ActionError(f"({x:g}, {y:g}) lies outside the image, which is {width}×{height} px.")


def reward(state: State, target: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """R(s) = IoU(M, M_target), in [0, 1]; pixels of `ignore` do not count."""
    return iou(state.mask, target, ignore)
