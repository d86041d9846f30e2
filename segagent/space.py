"""What happens on the page, without the page: a session's history with undo and redo, and the models that all sessions share.

A Session is immutable: every event of the page makes a new one from the transitions that `rollout` yields, whoever clicks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from segagent.annotator import SimulatedAnnotator
from segagent.environment import Environment, check_action, reward
from segagent.errors import ActionError, MaskError, SegAgentError
from segagent.export import png, trajectory_to_json
from segagent.grammar import check_expression
from segagent.masks import to_polygons, to_rle
from segagent.policy import Observation, Policy, Proposal, Reading, ScriptedPolicy
from segagent.rollout import rollout
from segagent.segmenters import Segmenter, load_segmenter
from segagent.types import Action, Sample, State, Trajectory, Transition

if TYPE_CHECKING:
    from segagent.agent import SegAgent

EXPORTS = {
    "PNG": "mask.png",
    "COCO RLE": "mask-rle.json",
    "Polygons": "mask-polygons.json",
    "Trajectory": "trajectory.json",
}
GOOD = 0.95  # the IoU at which the simulated annotator is content on the page


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
    """One object of one picture: its moments, and which of them is shown. Undo and redo move; a new action cuts off what lay ahead."""

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

    def trajectory(self) -> Trajectory:
        """What led to the shown state, as one trajectory from the first state."""
        steps = [m.transition for m in self.moments[1 : self.position + 1]]
        closing = self.shown.closing
        return Trajectory(self.sample, tuple(self._scored(t) for t in (*steps, closing) if t is not None))

    def _scored(self, transition: Transition) -> Transition:
        """With the rewards of the target known now, which may have been given after the click."""
        return replace(
            transition, iou=_iou(self.sample, transition.state), reward=_iou(self.sample, transition.next_state)
        )


class Desk:
    """Where one person's session lies; the one thing here that changes. What a person does is done in turn, on the latest
    session; a run goes on only while nobody but itself has changed it."""

    def __init__(self, session: Session) -> None:
        self._session, self._lock = session, threading.Lock()
        self.note = ""  # what the page says to what the person did last
        self.run: object | None = None  # the latest run's own mark

    def __deepcopy__(self, _: Any) -> Desk:
        return Desk(self._session)

    @property
    def session(self) -> Session:
        return self._session

    def change(self, function: Callable[[Session], Session], note: str = "") -> Session:
        """A person's doing: the latest session becomes what `function` makes of it, and stays where that raises."""
        with self._lock:
            self._session, self.note = function(self._session), note
            return self._session

    def follow(self, before: Session, after: Session) -> bool:
        """A run's next session, unless someone took over since `before`; → whether it is the latest now."""
        with self._lock:
            if self._session is not before:
                return False
            self._session = after
            return True


def play(
    session: Session,
    environment: Environment,
    policy: Policy,
    *,
    steps: int = 7,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Session]:
    """The session after each transition of a rollout from its shown state."""
    for transition in rollout(
        environment, policy, session.sample, steps=steps, start=session.state, temperature=temperature, seed=seed
    ):
        session = session.after(transition)
        yield session


def click(session: Session, environment: Environment, action: Action, judge: Policy | None = None) -> Session:
    """The session after a person's action. `judge`, if any, reads the predicted IoU. Raises ActionError."""
    check_action(session.state, action)
    person: Policy = ScriptedPolicy([action])
    if judge is not None and session.sample.expression.strip():
        person = Judged(person, judge)
    *_, session = play(session, environment, person, steps=1)
    # The rollout's last word is that its one step is done, which says nothing about the mask.
    return replace(session, moments=(*session.moments[:-1], replace(session.shown, closing=None)))


def file_of(session: Session, kind: str, segmenter: str) -> bytes:
    """The shown mask, or what led to it, as a file of `kind` (see EXPORTS); `segmenter` is its reference. Raises DataError."""
    mask = session.state.mask
    if kind == "PNG":
        return png(mask)
    if kind == "COCO RLE":
        value: dict[str, Any] = to_rle(mask)
    elif kind == "Polygons":
        value = {"size": list(mask.shape), "segmentation": to_polygons(mask)}
    else:
        value = trajectory_to_json(session.trajectory(), segmenter)
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


class Judged:
    """One policy's actions with another's predicted IoU: what the model thinks of a person's or the annotator's masks."""

    def __init__(self, actor: Policy, judge: Policy) -> None:
        self._actor, self._judge = actor, judge

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        opinions = [reading.predicted_iou for reading in self._judge.read(observations)]
        return [_Judged(r, o) for r, o in zip(self._actor.read(observations), opinions, strict=True)]


@dataclass(frozen=True, slots=True)
class _Judged:
    reading: Reading
    predicted_iou: float | None

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        return self.reading.propose(candidates, temperature, seed)


class Models:
    """The agent and the segmenter, loaded once and shared by every session. Holds nothing of any user."""

    def __init__(self, agent: SegAgent | None = None, segmenter: Segmenter | None = None) -> None:
        self._agent, self._segmenter = agent, segmenter
        self._plain: Segmenter | None = None  # until the agent is there
        self._failure: SegAgentError | None = None
        self._lock = threading.Lock()

    def agent(self) -> SegAgent:
        """Loads the embedded one on first need. Raises CheckpointError and the like, each time where it cannot be had."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._agent is None:
                from segagent.agent import SegAgent

                try:
                    self._agent = SegAgent.from_pretrained(segmenter=self._segmenter)
                except SegAgentError as failure:
                    self._failure = failure
                    raise
            return self._agent

    def warm(self) -> threading.Thread:
        """Starts loading in the background; a failure is told to whoever needs the agent."""

        def load() -> None:
            try:
                self.agent()
            except SegAgentError:
                pass  # kept in self._failure

        thread = threading.Thread(target=load, name="segagent-warm", daemon=True)
        thread.start()
        return thread

    @property
    def loaded(self) -> bool:
        return self._agent is not None

    @property
    def judge(self) -> Policy | None:
        """The agent's policy if it is there already: a person's click does not wait for a model."""
        return self._agent.policy if self._agent is not None else None

    @property
    def environment(self) -> Environment:
        """With the embedded segmenter, which needs no weights, as long as the agent is not loaded."""
        if self._agent is not None:
            return Environment(self._agent.segmenter)
        if self._plain is None:
            self._plain = self._segmenter or load_segmenter("grabcut")
        return Environment(self._plain)

    def policy(self, who: str, sample: Sample) -> Policy:
        """Who clicks: "agent" or "annotator". Raises SegAgentError with what is missing."""
        if who == "agent":
            check_expression(sample.expression)
            return self.agent().policy
        if sample.target is None:
            raise SegAgentError(
                "The simulated annotator needs a target mask: give one, pick an example, or let the agent click."
            )
        annotator = SimulatedAnnotator(sample.target, sample.ignore, stop_iou=GOOD)
        return Judged(annotator, self.judge) if self.judge and sample.expression.strip() else annotator


def _iou(sample: Sample, state: State) -> float | None:
    return None if sample.target is None else reward(state, sample.target, sample.ignore)


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)
