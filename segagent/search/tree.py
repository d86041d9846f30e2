"""What a search saw: every state that it made and had read, which of them the run went to, and what it cost. Plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from segagent.masks import iou, to_rle
from segagent.types import Action, Sample, State, Trajectory


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A state, and the action that led to it from its parent's. `action` None under a parent is the candidate "stop here"."""

    index: int  # into Tree.nodes; a child comes after its parent
    parent: int | None  # None: the root, where the search began
    action: Action | None
    state: State  # a stop shows its parent's
    depth: int = 0  # actions since the root; a stop is as deep as its parent
    predicted_iou: float | None = None  # what the PRM reads off the state; None where it says no number in [0, 1]
    iou: float | None = None  # true, where the target is known: see Tree.scored
    logprob: float | None = None  # of the policy's text
    text: str = ""
    merged: int = 0  # further candidates that came to the same
    expanded: int | None = None  # the step, from 0, at which its candidates were made; None: not yet
    visits: int = 0  # readings at and under it
    value: float | None = None  # their mean, what MCTS goes by

    @property
    def stop(self) -> bool:
        return self.action is None and self.parent is not None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a search has cost so far."""

    steps: int = 0
    expanded: int = 0  # states whose candidates were made
    proposed: int = 0  # candidates that the policy gave, stops included
    segmented: int = 0  # masks that the segmenter made
    read: int = 0  # states that the PRM read, the root included
    merged: int = 0  # candidates that cost no mask or no reading because another came to the same
    failed: int = 0  # candidates that the segmenter could not carry out
    unread: int = 0  # states for which the PRM said no number in [0, 1]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The whole search as it stands after one of its steps. The first node is the root."""

    nodes: tuple[Node, ...]
    walk: tuple[int, ...]  # the nodes that the run stood at, in order, from the root on
    strategy: str
    spent: Spent = Spent()
    skipped: tuple[str, ...] = ()  # why candidates failed, one sentence each

    @classmethod
    def of(cls, trajectory: Trajectory) -> Tree:
        """The tree of the search that made a trajectory, true IoUs included; its root is where the search began.

        Without a search, the run itself as a tree: one branch, or several where something was undone.
        """
        found = next((t.details for t in reversed(trajectory.transitions) if isinstance(t.details, Tree)), None)
        return (found or _of_run(trajectory)).scored(trajectory.sample)

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def best(self) -> int:
        """The node of the highest predicted IoU, which is what a run returns (Algorithm 2).

        Of equals the one where the run stood last; where nothing was predicted, the last one that it stood at.
        """
        stood = {index: place for place, index in enumerate(self.walk)}
        if all(node.predicted_iou is None for node in self.nodes):
            return self.walk[-1]
        known = [node for node in self.nodes if node.predicted_iou is not None and not node.stop]
        return max(known, key=lambda n: (n.predicted_iou, stood.get(n.index, -1), -n.index)).index

    @property
    def path(self) -> tuple[int, ...]:
        """From the root to the best node, both included."""
        return self.path_to(self.best)

    def path_to(self, index: int) -> tuple[int, ...]:
        """From the root to a node, both included."""
        path = [index]
        while (parent := self.nodes[path[-1]].parent) is not None:
            path.append(parent)
        return tuple(path[::-1])

    @property
    def jumps(self) -> tuple[tuple[int, int], ...]:
        """(from, to) wherever the run went back: each undo, from a node to its parent."""
        return tuple((a, b) for a, b in pairwise(self.walk) if self.nodes[a].parent == b)

    def children(self, index: int) -> tuple[Node, ...]:
        """The candidates of a node, in the order drawn; none where it was not expanded."""
        return tuple(node for node in self.nodes if node.parent == index)

    def scored(self, sample: Sample) -> Tree:
        """The same tree with each node's true IoU; the tree itself where the sample has no target."""
        if sample.target is None:
            return self
        known: dict[int, float] = {}
        for node in self.nodes:
            if id(node.state) not in known:
                known[id(node.state)] = iou(node.state.mask, sample.target, sample.ignore)
        return replace(self, nodes=tuple(replace(node, iou=known[id(node.state)]) for node in self.nodes))

    def to_json(self, masks: bool = True) -> dict[str, Any]:
        """A dict ready for json.dumps. `masks`: with each node's mask as COCO RLE (a stop has its parent's, so none)."""
        path = set(self.path)
        return {
            "strategy": self.strategy,
            "best": self.best,
            "walk": list(self.walk),
            "jumps": [list(jump) for jump in self.jumps],
            "spent": asdict(self.spent),
            "skipped": list(self.skipped),
            "nodes": [self._node(node, node.index in path, masks) for node in self.nodes],
        }

    def _node(self, node: Node, chosen: bool, masks: bool) -> dict[str, Any]:
        plain = ("index", "parent", "depth", "predicted_iou", "iou", "logprob", "text", "merged", "expanded", "visits")
        return {
            **{name: getattr(node, name) for name in plain},
            "value": node.value,
            "action": None
            if node.action is None
            else {"kind": type(node.action).__name__.lower(), **asdict(node.action)},
            "stop": node.stop,
            "chosen": chosen,
            **({"mask": to_rle(node.state.mask)} if masks and not node.stop else {}),
        }


def _of_run(trajectory: Trajectory) -> Tree:
    """The states of a run without a search; where it was, it had one candidate."""
    states, predicted, steps = trajectory.states, trajectory.predicted_ious, trajectory.steps
    nodes = [Node(0, None, None, states[0], predicted_iou=predicted[0])] if states else []
    at, walk = {id(node.state): node.index for node in nodes}, [0] * len(nodes)
    for number, (step, iou_) in enumerate(zip(steps, predicted[1:], strict=True)):
        here = walk[-1]
        if id(step.next_state) not in at:
            at[id(step.next_state)] = len(nodes)
            depth = nodes[here].depth + 1
            nodes[here] = replace(nodes[here], expanded=number)
            nodes.append(
                Node(len(nodes), here, step.action, step.next_state, depth, iou_, logprob=step.logprob, text=step.text)
            )
        walk.append(at[id(step.next_state)])
    known = sum(p is not None for p in predicted)
    spent = Spent(len(steps), len(nodes) - 1, len(steps), len(nodes) - 1, known, unread=len(states) - known)
    return Tree(tuple(nodes), tuple(walk), "none", spent)
