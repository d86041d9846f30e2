"""A search tree in the making: what `Tree` shows, plus readings of states that may still be expanded."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from segagent.environment import check_action
from segagent.errors import ActionError
from segagent.policy import Move, Observation, Proposal, Reading
from segagent.search.tree import Node, Spent, Tree
from segagent.types import Action, Box, Click, State, Undo


def rank(node: Node) -> tuple[float, bool, int]:
    """What a search prefers: a higher predicted IoU; of equals to stop, then the earliest. Without one, the first drawn."""
    if node.predicted_iou is None:
        return (-1.0, False, -node.index)
    return (node.predicted_iou, node.stop, -node.index)


def same(action: Action | None) -> tuple:
    """A key that is equal for candidates that do the same: both stop, or they mean the same pixels."""
    if isinstance(action, Click):
        return ("click", action.positive, action.frame, *_pixels(action.x, action.y))
    if isinstance(action, Box):
        return ("box", action.frame, *_pixels(action.x0, action.y0, action.x1, action.y1))
    return (type(action).__name__,)


def _pixels(*values: float) -> tuple[float, ...]:
    # What is no number lies in no pixel; check_action says so.
    return tuple(math.floor(v + 0.5) if math.isfinite(v) else math.inf for v in values)


def sound(predicted_iou: float | None) -> float | None:
    """The predicted IoU; None where it is no number in [0, 1]."""
    return predicted_iou if predicted_iou is not None and 0 <= predicted_iou <= 1 else None


@dataclass(slots=True, eq=False)
class Growth:
    """One run's tree. Its `frontier` are the nodes that the next step expands, its `cursor` where the run stands."""

    observation: Observation  # the root's
    strategy: str
    nodes: list[Node] = field(default_factory=list)
    alive: set[int] = field(default_factory=set)  # nodes that may still be expanded
    readings: dict[int, Reading] = field(default_factory=dict)  # of the best of these
    walk: list[int] = field(default_factory=lambda: [0])
    frontier: list[int] = field(default_factory=lambda: [0])
    spent: Spent = field(default_factory=Spent)
    skipped: list[str] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)  # the best predicted IoU at the beginning of each step

    @classmethod
    def begin(cls, observation: Observation, reading: Reading, strategy: str) -> Growth:
        growth = cls(observation, strategy)
        growth._add(None, Proposal(None), observation.state, reading)
        return growth

    @property
    def cursor(self) -> int:
        return self.walk[-1]

    def count(self, **more: int) -> None:
        """Adds to what the search has spent."""
        self.spent = replace(self.spent, **{name: getattr(self.spent, name) + n for name, n in more.items()})

    def distinct(self, index: int, proposals: Sequence[Proposal]) -> list[tuple[Proposal, int]]:
        """The proposals for a node, each with how many later ones do the same, without those that cannot be done."""
        self.nodes[index] = replace(self.nodes[index], expanded=self.spent.steps)
        kept: dict[tuple, list] = {}
        for proposal in proposals:
            try:
                if isinstance(proposal.action, Undo):
                    raise ActionError("A search goes back by itself: an undo is no candidate.")
                if proposal.action is not None:
                    check_action(self.nodes[index].state, proposal.action)
            except ActionError as error:
                self.skip(str(error))
                continue
            kept.setdefault(same(proposal.action), [proposal, -1])[1] += 1
        self.count(expanded=1, proposed=len(proposals), merged=sum(more for _, more in kept.values()))
        return [(proposal, more) for proposal, more in kept.values()]

    def skip(self, reason: str) -> None:
        self.skipped.append(reason)
        self.count(failed=1)

    def stop(self, parent: int, proposal: Proposal, merged: int) -> int:
        """Adds the candidate "stop here", which reads as its parent does and costs nothing; → its index."""
        node = self.nodes[parent]
        index = len(self.nodes)
        self.nodes.append(
            Node(
                index, parent, None, node.state, node.depth, node.predicted_iou,
                logprob=proposal.logprob, text=proposal.text, merged=merged,
            )
        )  # fmt: skip
        return index

    def child(self, parent: int, proposal: Proposal, state: State, reading: Reading, merged: int) -> int:
        """Adds a state that was made and read; → its index."""
        return self._add(parent, proposal, state, reading, merged)

    def _add(self, parent: int | None, proposal: Proposal, state: State, reading: Reading, merged: int = 0) -> int:
        index, predicted = len(self.nodes), sound(reading.predicted_iou)
        depth = 0 if parent is None else self.nodes[parent].depth + 1
        self.nodes.append(
            Node(
                index, parent, proposal.action, state, depth, predicted,
                logprob=proposal.logprob, text=proposal.text, merged=merged,
            )
        )  # fmt: skip
        self.alive.add(index)
        self.readings[index] = reading
        self.count(read=1, segmented=int(parent is not None), unread=int(predicted is None))
        if predicted is not None:
            self._back_up(index, predicted)
        return index

    def _back_up(self, index: int | None, predicted: float) -> None:
        """Every ancestor learns of a new reading under it."""
        while index is not None:
            node = self.nodes[index]
            mean = ((node.value or 0.0) * node.visits + predicted) / (node.visits + 1)
            self.nodes[index] = replace(node, visits=node.visits + 1, value=mean)
            index = node.parent

    def begin_step(self) -> None:
        known = [node.predicted_iou for node in self.nodes if node.predicted_iou is not None]
        self.progress.append(max(known, default=0.0))

    def end_step(self, frontier: Sequence[int], keep: Collection[int], held: int) -> None:
        """`frontier` is expanded next, of the others only `keep` may be later; the best `held` of these keep their readings."""
        self.frontier, self.alive = list(frontier), set(keep)
        best = sorted((i for i in self.alive if i in self.readings), key=lambda i: rank(self.nodes[i]), reverse=True)
        self.readings = {i: self.readings[i] for i in {*frontier, *best[:held]} if i in self.readings}
        self.count(steps=1)

    def unread(self) -> list[int]:
        """The nodes to expand next whose readings were given up."""
        return [index for index in self.frontier if index not in self.readings]

    def seen(self, index: int) -> Observation:
        """What the policy sees of a node."""
        return replace(self.observation, state=self.nodes[index].state)

    def open(self) -> list[int]:
        """The nodes that can still be expanded."""
        return sorted(
            index for index in self.alive if self.nodes[index].expanded is None and not self.nodes[index].stop
        )

    def go(self, target: int) -> tuple[Move, ...]:
        """The way from the cursor to `target`: undos, then known actions. The run stands there now."""
        here, there = (self.snapshot().path_to(index) for index in (self.cursor, target))
        common = sum(a == b for a, b in zip(here, there, strict=False))
        self.walk += [*here[common - 1 : -1][::-1], *there[common:]]
        undone = [Move(Undo(), None, self.nodes[i].predicted_iou) for i in here[common - 1 : -1][::-1]]
        done = [self.nodes[index] for index in there[common:]]
        return (*undone, *(Move(n.action, n.state, n.predicted_iou, n.text, n.logprob) for n in done))

    def snapshot(self) -> Tree:
        return Tree(tuple(self.nodes), tuple(self.walk), self.strategy, self.spent, tuple(self.skipped))
