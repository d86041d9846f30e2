"""The shared types: a leaf file of frozen dataclasses. One shape line a field; design words are the paper's (see README).

Coordinates are (x, y) pixels of the original image: origin top-left, x right, y down, pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segagent.errors import ActionError, ImageError, MaskError


def read_only(array: np.ndarray) -> np.ndarray:
    """The array itself if nobody can write to it, else a contiguous read-only copy."""
    if not array.flags.writeable:
        return array
    array = np.array(array, order="C")
    array.flags.writeable = False
    return array


def as_mask(mask: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """A read-only bool mask (..., H, W) from a bool, 0/1 or 0/255 array; `size` is (H, W). Raises MaskError."""
    mask = np.asarray(mask)
    if mask.ndim < 2:
        raise MaskError(f"A mask has at least two axes (height, width); this one has shape {mask.shape}.")
    if mask.dtype != bool:
        highest = mask.max(initial=0)
        if highest not in (0, 1, 255) or not ((mask == 0) | (mask == highest)).all():
            raise MaskError("A mask holds only two values (False and True, 0 and 1, or 0 and 255): threshold it first.")
        mask = mask != 0
    if size is not None and mask.shape[-2:] != tuple(size):
        raise MaskError(
            f"The mask is {mask.shape[-1]}×{mask.shape[-2]} px and its image {size[1]}×{size[0]} px: they must be equal."
        )
    return read_only(mask)


@dataclass(frozen=True, slots=True)
class Click:
    x: float  # px, in [-0.5, W - 0.5)
    y: float  # px, in [-0.5, H - 0.5)
    positive: bool = True
    frame: int = 0


@dataclass(frozen=True, slots=True)
class Box:
    """Corners in pixels, both inclusive; ordered on construction."""

    x0: float
    y0: float
    x1: float
    y1: float
    frame: int = 0

    def __post_init__(self) -> None:
        if self.x0 > self.x1 or self.y0 > self.y1:
            raise ActionError(f"A box goes from its top-left to its bottom-right corner; got {self}.")


@dataclass(frozen=True, slots=True)
class Undo:
    """Goes back to `state.previous`."""


Action = Click | Box | Undo


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One task: (I, P, M_target) of the paper. `id` seeds whatever is random about it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    expression: str
    target: np.ndarray | None = None  # (H, W) bool; all False when no such object is there
    id: str = ""
    ignore: np.ndarray | None = None  # (H, W) bool, pixels that count as no error
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image = np.asarray(self.image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(
                f"An image is (H, W, 3) uint8 RGB; got shape {image.shape}, {image.dtype}. Use load_image()."
            )
        object.__setattr__(self, "image", read_only(image))
        for name in ("target", "ignore"):
            mask = getattr(self, name)
            if mask is not None:
                object.__setattr__(self, name, as_mask(mask, self.size))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """s_t: what F_iter needs to go on. Immutable, picklable, and without the target."""

    image: np.ndarray  # (H, W, 3) uint8 RGB, shared by all states of a run
    mask: np.ndarray  # (H, W) bool, M_t
    actions: tuple[Click | Box, ...] = ()  # a_0 .. a_t-1, those that led here
    memory: Any = None  # the segmenter's own, e.g. low-resolution logits; plain data
    previous: State | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", read_only(self.image))
        object.__setattr__(self, "mask", as_mask(self.mask, self.image.shape[:2]))

    def __reduce__(self):
        # A flat list: a chain of a thousand states must not recurse; the constructor makes the arrays read-only again.
        chain = []
        state: State | None = self
        while state is not None:
            chain.append((state.mask, state.actions, state.memory))
            state = state.previous
        return _restore_state, (self.image, chain)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.mask.shape[-2], self.mask.shape[-1]

    @property
    def clicks(self) -> tuple[Click, ...]:
        return tuple(action for action in self.actions if isinstance(action, Click))


def _restore_state(image: np.ndarray, chain: list) -> State:
    image.flags.writeable = False
    state = None
    for mask, actions, memory in reversed(chain):
        mask.flags.writeable = False
        state = State(image, mask, actions, memory, previous=state)
    return state


@dataclass(frozen=True, slots=True, eq=False)
class Transition:
    """One step of a rollout. The last of a rollout is closing: `action` is None, `end` says why, `next_state` is `state`."""

    state: State
    action: Action | None
    next_state: State
    predicted_iou: float | None = None  # what the policy read off `state`
    iou: float | None = None  # of state.mask with the target, where one is known
    reward: float | None = None  # R(s_t+1): of next_state.mask with the target, where one is known
    text: str = ""  # what the policy said
    logprob: float | None = None
    origin: str = "policy"  # simulated | policy | corrected | person
    end: str | None = None  # stop | steps | malformed | converged; only in a closing transition
    details: Any = None  # a policy's own record of the decision, e.g. a search tree


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """[s_0, a_0, s_1, …] of one sample, as the transitions of one rollout (the closing one included, where it got there)."""

    sample: Sample
    transitions: tuple[Transition, ...]

    @property
    def steps(self) -> tuple[Transition, ...]:
        """The transitions that acted."""
        return tuple(t for t in self.transitions if t.action is not None)

    @property
    def states(self) -> tuple[State, ...]:
        """s_0 … s_T."""
        if not self.transitions:
            return ()
        return (self.transitions[0].state, *(t.next_state for t in self.steps))

    @property
    def end(self) -> str | None:
        return self.transitions[-1].end if self.transitions else None

    @property
    def ious(self) -> tuple[float | None, ...]:
        """True IoU of each state, where a target is known."""
        if not self.transitions:
            return ()
        return (self.transitions[0].iou, *(t.reward for t in self.steps))

    @property
    def predicted_ious(self) -> tuple[float | None, ...]:
        """Predicted IoU of each state; None where none was read."""
        read = tuple(t.predicted_iou for t in self.transitions)
        return (read + (None,) * len(self.states))[: len(self.states)]

    def best(self) -> int:
        """Index into `states` of the highest predicted IoU (Algorithm 2), the latest of equals; the last state where none was predicted."""
        scored = [(p, i) for i, p in enumerate(self.predicted_ious) if p is not None]
        return max(scored)[1] if scored else len(self.states) - 1

    def __iter__(self) -> Iterator[Transition]:
        return iter(self.transitions)

    def __len__(self) -> int:
        return len(self.transitions)
