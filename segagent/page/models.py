"""The models that all sessions share: policies and segmenters by name, each loaded once. Holds nothing of any user."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segagent.annotator import SimulatedAnnotator
from segagent.environment import Environment
from segagent.errors import CheckpointError, SegAgentError
from segagent.grammar import check_expression
from segagent.policy import Observation, Policy, Proposal, Reading
from segagent.segmenters import Segmenter, load_segmenter
from segagent.types import Sample

if TYPE_CHECKING:
    from segagent.agent import SegAgent

GOOD = 0.95  # the IoU at which the simulated annotator is content on the page
MOST = 3  # policies, and as many segmenters, that are kept beside the embedded ones
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")


def on_a_space() -> bool:
    return "SPACE_ID" in os.environ


def gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`spaces.GPU` where that package is (a ZeroGPU Space lends its GPU to functions so marked), else the function itself."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(function)


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


class Shelf:
    """Things by name, each made once, the least lately used given up beyond `most`; two who ask at once wait for one."""

    def __init__(self, make: Callable[[str], Any], most: int) -> None:
        self._make, self._most, self._lock = make, most, threading.Lock()
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}

    def __call__(self, name: str) -> Any:
        with self._lock:
            making = self._making.setdefault(name, threading.Lock())
        with making:
            with self._lock:
                if name in self._kept:
                    self._kept.move_to_end(name)
                    return self._kept[name]
            made = self._make(name)
            with self._lock:
                self._kept[name] = made
                while len(self._kept) > self._most:
                    gone, _ = self._kept.popitem(last=False)
                    self._making.pop(gone, None)
            return made

    def __contains__(self, name: str) -> bool:
        return name in self._kept


class Models:
    """The embedded agent, and others by name. Names: "" is what is embedded, else a repository of the Hub (or, where
    the page does not run as a Space, a folder); a segmenter as load_segmenter takes it."""

    def __init__(self, agent: SegAgent | None = None, segmenter: Segmenter | None = None) -> None:
        self._agent, self._segmenter = agent, segmenter
        self._plain: Segmenter | None = None  # until the agent is there
        self._failure: SegAgentError | None = None
        self._lock = threading.Lock()
        self._policies, self._segmenters = Shelf(_load_agent, MOST), Shelf(load_segmenter, MOST)

    def agent(self, name: str = "") -> SegAgent:
        """Loads it on first need. Raises CheckpointError and the like, each time where it cannot be had."""
        if name:
            return self._policies(_allowed(name))
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

    def loaded(self, name: str = "") -> bool:
        return name in self._policies if name else self._agent is not None

    def judge(self, name: str = "") -> Policy | None:
        """The agent's policy if it is there already: a person's click does not wait for a model."""
        return self.agent(name).policy if self.loaded(name) else None

    def environment(self, segmenter: str = "", policy: str = "") -> Environment:
        """With the segmenter of that name, or the one that the policy came with.

        Without names the embedded one, which needs no weights and is there before the agent is loaded.
        """
        if segmenter:
            return Environment(self._segmenters(_allowed(segmenter)))
        if policy and self.loaded(policy):
            return self.agent(policy).environment
        if self._agent is not None:
            return self._agent.environment
        if self._plain is None:
            self._plain = self._segmenter or load_segmenter("grabcut")
        return Environment(self._plain)

    def policy(self, who: str, sample: Sample, name: str = "") -> Policy:
        """Who clicks: "agent" or "annotator". Raises SegAgentError with what is missing."""
        if who == "agent":
            check_expression(sample.expression)
            return self.agent(name).policy
        if sample.target is None:
            raise SegAgentError(
                "The simulated annotator needs a target mask: give one, pick an example, or let the agent click."
            )
        annotator = SimulatedAnnotator(sample.target, sample.ignore, stop_iou=GOOD)
        judge = self.judge(name)
        return Judged(annotator, judge) if judge and sample.expression.strip() else annotator


def _load_agent(name: str) -> SegAgent:
    from segagent.agent import SegAgent

    return SegAgent.from_pretrained(name)


def _allowed(name: str) -> str:
    """The name itself. On a public Space nobody may have the server look into its own folders. Raises CheckpointError."""
    name = name.strip()
    kind, _, repository = name.rpartition(":")
    public = name in ("grabcut", "clicknet") or (
        kind in ("", "sam", "simpleclick") and _REPOSITORY.fullmatch(repository)
    )
    if on_a_space() and not public:
        raise CheckpointError(f"{name!r} is no repository of the Hub: write owner/name.")
    return name
