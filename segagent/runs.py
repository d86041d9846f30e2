"""Runs for measurements: a `Setup` says all that one depends on besides its sample, a `Run` is what is kept of it; see `players`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from segagent.clickers import INSISTED, BlindPolicy
from segagent.environment import Environment
from segagent.errors import DataError
from segagent.judges import SecondOpinion
from segagent.ledger import code_of, fingerprint
from segagent.masks import to_rle
from segagent.policy import Policy
from segagent.search.tree import Tree
from segagent.settings import READINGS
from segagent.types import Action, Box, Click, Trajectory

BASELINES = ("simulated", "random", "center")
FIRST = ("click", "given box", "own box")
START = ("empty", "corrupted")


@dataclass(frozen=True)
class Setup:
    """Who clicks on what, and how. Picklable, so that every process builds its own."""

    policy: str | None = None  # a checkpoint, or one of BASELINES; None: the embedded nano
    segmenter: str | None = None  # instead of the checkpoint's
    steps: int = 7
    insist: bool = False  # click on where the policy would stop; see clickers.Insistent
    first: str = "click"  # one of FIRST; a given box is the target's own, which makes it an upper bound
    start: str = "empty"  # one of START
    candidates: int = 1  # K; more than one makes it a search
    strategy: str = "greedy"  # of the search; see search.STRATEGIES
    verifier: str | None = None  # a checkpoint whose second opinion is combined with the policy's predicted IoU
    combine: str = "mean"  # see judges.COMBINE
    judge: str = "own"  # or "truth": the true IoU in place of the policy's own, a perfect PRM
    color: str | None = None  # of the mask painted on, instead of the checkpoint's
    iou_reading: str | None = None  # instead of the checkpoint's
    click_reading: str | None = None  # instead of the checkpoint's
    temperature: float = 0.0
    seed: int = 0

    def key(self, data: str, batch: int) -> dict[str, Any]:
        """What tells its runs from others, the number of steps left out."""
        who = self.policy if self.policy in BASELINES else fingerprint(self.policy)
        code = code_of("segmenters", *(["search"] if self.candidates > 1 else []))
        second = self.verifier and fingerprint(self.verifier)
        return {
            **asdict(self),
            "policy": who,
            "verifier": second,
            "data": data,
            "batch": batch,
            "steps": None,
            "code": code,
        }

    def build(self) -> tuple[Policy | str, Environment]:
        """("simulated" or a policy, the environment it acts in). Raises SegAgentError."""
        if self.policy in BASELINES:
            from segagent.segmenters import load_segmenter

            environment = Environment(load_segmenter(self.segmenter or "grabcut"))
            return "simulated" if self.policy == "simulated" else BlindPolicy(self.policy, self.seed), environment
        from segagent.agent import SegAgent

        agent = SegAgent.from_pretrained(self.policy, segmenter=self.segmenter)
        readings = {name: getattr(self, name) for name in READINGS}
        policy = recolored(agent.policy, color=self.color, **readings)
        if self.verifier is not None:
            from segagent.verifier import Verifier

            policy = SecondOpinion(policy, Verifier.from_pretrained(self.verifier), self.combine)
        return policy, agent.environment


def recolored(policy: Policy, **changes: Any) -> Policy:
    """The policy with other settings of settings.Settings, sharing its model; those that are None stay. Raises SegAgentError."""
    if isinstance(policy, SecondOpinion):
        return SecondOpinion(recolored(policy.policy, **changes), policy.judge, policy.combine)
    changes = {name: value for name, value in changes.items() if value is not None}
    if not changes or changes == {name: getattr(policy.settings, name) for name in changes}:
        return policy
    return type(policy)(policy.model, policy.processor, policy.grammar, **{**asdict(policy.settings), **changes})


@dataclass(frozen=True, eq=False)
class Run:
    """What is kept of one run; lists are by state, s_0 … s_T. Or, with `error`, why a sample could not be used."""

    id: str
    group: str = ""
    size: tuple[int, int] = (0, 0)
    target: dict[str, Any] | None = None  # COCO RLE, as all masks
    ignore: dict[str, Any] | None = None
    masks: tuple[dict[str, Any], ...] = ()
    ious: tuple[float, ...] = ()
    predicted: tuple[float | None, ...] = ()
    actions: tuple[tuple[Any, ...], ...] = ()  # ("click", x, y, positive), ("box", x0, y0, x1, y1) or ("undo",)
    stop: int | None = None  # the state in which the policy itself would have stopped
    end: str = ""
    hit: bool | None = None  # whether the first action is a positive click on the target
    start: str = "empty"  # or the kind of corruption that it began with
    ceiling: dict[str, Any] | None = None  # of a search: the mask of the highest true IoU in its whole tree
    error: str = ""

    @classmethod
    def of(cls, trajectory: Trajectory, group: str = "level", start: str = "empty") -> Run:
        """Raises DataError where the sample has no target."""
        sample = trajectory.sample
        if sample.target is None:
            raise DataError(f"Sample {sample.id!r} has no target mask: nothing to measure against.")
        insisted = [t.details == INSISTED for t in trajectory.steps]
        stop = insisted.index(True) if True in insisted else len(insisted) if trajectory.end == "stop" else None
        return cls(
            sample.id,
            str(sample.meta.get(group, "")),
            sample.size,
            to_rle(sample.target),
            None if sample.ignore is None else to_rle(sample.ignore),
            tuple(to_rle(state.mask) for state in trajectory.states),
            trajectory.ious,
            trajectory.predicted_ious,
            tuple(_action(t.action) for t in trajectory.steps),
            stop,
            trajectory.end or "",
            first_click_hits(trajectory) if sample.target.any() else None,
            start,
            _ceiling(trajectory),
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Run:
        lists = {name: tuple(value[name]) for name in ("size", "masks", "ious", "predicted")}
        return cls(**{**value, **lists, "actions": tuple(map(tuple, value["actions"]))})

    @property
    def has_target(self) -> bool:
        return self.hit is not None

    def until(self, steps: int) -> Run:
        """The run as it would have been with at most `steps` clicks."""
        if len(self.actions) <= steps:
            return self
        stop = self.stop if self.stop is not None and self.stop <= steps else None
        states = {name: getattr(self, name)[: steps + 1] for name in ("masks", "ious", "predicted")}
        return replace(self, **states, actions=self.actions[:steps], stop=stop, end="steps")

    def heeding_stop(self) -> Run:
        """The run that ends where the policy itself would have stopped."""
        return self if self.stop is None else replace(self.until(self.stop), stop=self.stop, end="stop")

    def best(self) -> int:
        """The state of the highest predicted IoU, the latest of equals; the last where none was predicted (Algorithm 2)."""
        scored = [(p, i) for i, p in enumerate(self.predicted) if said(p)]
        return max(scored)[1] if scored else len(self.masks) - 1


def said(predicted_iou: float | None) -> bool:
    """Whether a model said an IoU: a number from 0 to 1, and not nan."""
    return predicted_iou is not None and 0 <= predicted_iou <= 1


def _ceiling(trajectory: Trajectory) -> dict[str, Any] | None:
    if not any(isinstance(t.details, Tree) for t in trajectory.transitions):
        return None
    return to_rle(max(Tree.of(trajectory), key=lambda node: node.iou).state.mask)


def _action(action: Action) -> tuple[Any, ...]:
    if isinstance(action, Click):
        return "click", float(action.x), float(action.y), action.positive
    if isinstance(action, Box):
        return "box", float(action.x0), float(action.y0), float(action.x1), float(action.y1)
    return ("undo",)


def first_click_hits(trajectory: Trajectory) -> bool:
    """Whether the first action is a positive click on the target's own pixels."""
    steps = trajectory.steps
    if not steps or not isinstance(steps[0].action, Click) or not steps[0].action.positive:
        return False
    click, (height, width) = steps[0].action, trajectory.sample.size
    x, y = min(int(click.x + 0.5), width - 1), min(int(click.y + 0.5), height - 1)
    return bool(trajectory.sample.target[y, x])
