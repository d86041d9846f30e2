"""One object of one picture: its history with undo and redo, whoever clicks. Immutable; rollout makes what follows.

Every event of the page makes a new Session from the transitions that `rollout` yields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segagent.environment import Environment, check_action, reward
from segagent.errors import ActionError, MaskError
from segagent.page.models import Judged
from segagent.policy import Policy, ScriptedPolicy
from segagent.rollout import rollout
from segagent.search.tree import Tree
from segagent.types import Action, Sample, State, Trajectory, Transition


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One state of a session's history and how it came about."""

    state: State
    transition: Transition | None = None  # what led here; None for the first state
    closing: Transition | None = None  # a policy's last word on this state, where it ended here
    iou: float | None = None  # true, where a target is known
    predicted_iou: float | None = None  # what a policy read off this state, once it has


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A history's moments, and which of them is shown. Undo and redo move; a new action cuts off what lay ahead."""

    sample: Sample
    moments: tuple[Moment, ...]
    position: int = 0

    @classmethod
    def begin(cls, sample: Sample, mask: np.ndarray | None = None) -> Session:
        """`mask` (H, W) makes it a refinement. Raises MaskError on another size than the picture's."""
        if mask is not None and mask.shape != sample.size:
            raise MaskError(
                f"The mask is {mask.shape[1]}×{mask.shape[0]} px and the picture {sample.size[1]}×{sample.size[0]} px: "
                "they must be equal."
            )
        state = State(sample.image, np.zeros(sample.size, bool) if mask is None else mask)
        return cls(sample, (Moment(state, iou=_iou(sample, state)),))

    @property
    def shown(self) -> Moment:
        return self.moments[self.position]

    @property
    def state(self) -> State:
        return self.shown.state

    @property
    def can_undo(self) -> bool:
        return self.position > 0

    @property
    def can_redo(self) -> bool:
        return self.position + 1 < len(self.moments)

    def go(self, position: int) -> Session:
        """The same history at another of its moments. Raises ActionError where there is none."""
        if not 0 <= position < len(self.moments):
            raise ActionError("There is nothing to undo." if position < 0 else "There is nothing to redo.")
        return replace(self, position=position)

    def undo(self) -> Session:
        return self.go(self.position - 1)

    def redo(self) -> Session:
        return self.go(self.position + 1)

    def copy(self) -> Session:
        """Another session of the same content: a run that follows this one ends (see Desk)."""
        return replace(self)

    def restart(self) -> Session:
        """The first state alone; what a policy read off it stays."""
        return replace(self, moments=(replace(self.moments[0], closing=None),), position=0)

    def ask(self, expression: str) -> Session:
        """The same session for another expression; the target, if any, stays."""
        return replace(self, sample=replace(self.sample, expression=expression))

    def aim(self, target: np.ndarray) -> Session:
        """The same session with a target mask (H, W): true IoUs are known from now on. Raises MaskError."""
        sample = replace(self.sample, target=target)
        return replace(self, sample=sample, moments=tuple(replace(m, iou=_iou(sample, m.state)) for m in self.moments))

    def after(self, transition: Transition) -> Session:
        """The session after a transition of a rollout that began at `state`, or at what followed from it."""
        now = replace(self.shown, predicted_iou=_first(transition.predicted_iou, self.shown.predicted_iou))
        if transition.action is None:
            past = self.moments[: self.position]
            return replace(self, moments=(*past, replace(now, closing=transition), *self.moments[self.position + 1 :]))
        after = Moment(transition.next_state, transition, iou=_iou(self.sample, transition.next_state))
        return replace(
            self,
            moments=(*self.moments[: self.position], replace(now, closing=None), after),
            position=self.position + 1,
        )

    @property
    def tree(self) -> Tree | None:
        """The latest search of the history, as far as it had come."""
        for moment in reversed(self.moments):
            for transition in (moment.closing, moment.transition):
                if transition is not None and isinstance(transition.details, Tree):
                    return transition.details
        return None

    def branch(self, index: int) -> Session:
        """The session at a node of its tree, by the way from the search's beginning to it. Raises ActionError."""
        tree = self.tree
        if tree is None or not 0 <= index < len(tree):
            raise ActionError("There is no such candidate any more: run the search again.")
        root = next((i for i, m in enumerate(self.moments) if m.state is tree.nodes[0].state), None)
        if root is None:
            raise ActionError("The search began at a mask that is gone: run it again.")
        session = self.go(root)
        for before, number in zip(tree.path_to(index), tree.path_to(index)[1:], strict=False):
            node = tree.nodes[number]
            if node.stop:
                break
            transition = Transition(
                tree.nodes[before].state,
                node.action,
                node.state,
                predicted_iou=tree.nodes[before].predicted_iou,
                text=node.text,
                logprob=node.logprob,
                details=tree,
            )
            session = session.after(transition)
        return session._read(tree.nodes[index].predicted_iou)

    def _read(self, predicted_iou: float | None) -> Session:
        """With what was read off the shown state."""
        shown = replace(self.shown, predicted_iou=_first(self.shown.predicted_iou, predicted_iou))
        return replace(self, moments=(*self.moments[: self.position], shown, *self.moments[self.position + 1 :]))

    def trajectory(self, whole: bool = False) -> Trajectory:
        """What led to the shown state, or all of the history, as one trajectory from the first state."""
        last = len(self.moments) - 1 if whole else self.position
        steps = [m.transition for m in self.moments[1 : last + 1]]
        closing = self.moments[last].closing
        return Trajectory(self.sample, tuple(self._scored(t) for t in (*steps, closing) if t is not None))

    def _scored(self, transition: Transition) -> Transition:
        """With the rewards of the target known now, which may have been given after the click."""
        return replace(
            transition, iou=_iou(self.sample, transition.state), reward=_iou(self.sample, transition.next_state)
        )


def play(session: Session, environment: Environment, policy: Policy, **options: Any) -> Iterator[Session]:
    """The session after each transition of a rollout from its shown state; options as of `rollout`."""
    for transition in rollout(environment, policy, session.sample, start=session.state, **options):
        session = session.after(transition)
        yield session


def act(session: Session, environment: Environment, action: Action, judge: Policy | None = None) -> Session:
    """The session after a person's action. `judge`, if any, reads the predicted IoU. Raises ActionError."""
    check_action(session.state, action)
    person: Policy = ScriptedPolicy([action])
    if judge is not None and session.sample.expression.strip():
        person = Judged(person, judge)
    *_, session = play(session, environment, person, steps=1)
    # The rollout's last word is that its one step is done, which says nothing about the mask.
    return replace(session, moments=(*session.moments[:-1], replace(session.shown, closing=None)))


def _iou(sample: Sample, state: State) -> float | None:
    return None if sample.target is None else reward(state, sample.target, sample.ignore)


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)
