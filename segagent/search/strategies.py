"""Which states a search expands, and where the run goes next. A step expands one state (beam: up to B), whatever the strategy.

| strategy | a step expands | the run goes to | K candidates, T steps cost at most |
|---|---|---|---|
| greedy | the state it stands at | its best candidate, even if that reads worse | T·K masks, 1 + T·K readings |
| beam | the B best states of the last step | the best of all their candidates | (1 + (T - 1)·B)·K masks, as many readings + 1 |
| best-first | the state it stands at | the best state not yet expanded, wherever it is | as greedy |
| mcts | the state it stands at | a state not yet expanded, by UCT; at the end the best of all | as greedy |

The first step of a beam expands one state, so at equal budgets one of width B is given 1 + (T - 1) / B steps. Going back
is an Undo, which like going on to a known state is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from segagent.errors import SegAgentError
from segagent.search.growth import Growth, rank

CANDIDATES = 3  # K where a strategy is given and no K (the paper's, on HRES)
MOST = 100  # of candidates and of a beam's width


class Choice(NamedTuple):
    target: int | None  # the node to go to; a stop ends the run there; None: nothing is left that could be done
    frontier: tuple[int, ...] = ()  # the nodes that the next step expands
    keep: tuple[int, ...] = ()  # the nodes that a later step may expand


class Strategy(Protocol):
    name: str
    returns: bool  # whether the run ends where the best state is

    def choose(self, growth: Growth, fresh: list[int]) -> Choice:
        """What follows from a step that added the nodes `fresh`, stops among them."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The paper's Algorithm 2: always on from the best candidate."""

    name = "greedy"
    returns = False

    def choose(self, growth: Growth, fresh: list[int]) -> Choice:
        best = max(fresh, key=lambda index: rank(growth.nodes[index]), default=None)
        kept = () if best is None else (best,)
        return Choice(best, kept, kept)


@dataclass(frozen=True)
class Beam:
    """The `width` best candidates of a step are all expanded in the next one. It ends where the best of a step is a stop."""

    width: int = 3
    name = "beam"
    returns = True

    def __post_init__(self) -> None:
        check_count("width", self.width)

    def choose(self, growth: Growth, fresh: list[int]) -> Choice:
        ranked = sorted(fresh, key=lambda index: rank(growth.nodes[index]), reverse=True)
        going = tuple(index for index in ranked if not growth.nodes[index].stop)[: self.width]
        return Choice(ranked[0], going, going) if ranked else Choice(None)


@dataclass(frozen=True)
class BestFirst:
    """Goes to the state of highest predicted IoU among all that were not expanded, back by Undo where it must.

    It ends at a stop that no such state reads better than, provided that no expanded one does either.
    """

    name = "best-first"
    returns = True

    def choose(self, growth: Growth, fresh: list[int]) -> Choice:
        left = _left(growth)
        best = max(left, key=lambda index: rank(growth.nodes[index]), default=None)
        return Choice(best, () if best is None else (best,), tuple(left))


@dataclass(frozen=True)
class MCTS:
    """Monte Carlo tree search by UCT, with the PRM in the place of random playouts.

    A node's value is the mean of the predicted IoUs at and under it, n their number; from the root on, the child of highest
    value + exploration · sqrt(ln n_parent / n) is followed to a state not yet expanded. It ends at stops as best-first does.
    """

    exploration: float = 0.05  # see tests/benchmarks/strategies.py
    name = "mcts"
    returns = True

    def __post_init__(self) -> None:
        if not (isinstance(self.exploration, int | float) and 0 <= self.exploration < math.inf):
            raise SegAgentError(f"exploration is a number from 0; got {self.exploration!r}.")

    def choose(self, growth: Growth, fresh: list[int]) -> Choice:
        left = _left(growth)
        best = max(left, key=lambda index: rank(growth.nodes[index]), default=None)
        if best is None or growth.nodes[best].stop:
            return Choice(best)
        tree = growth.snapshot()
        live = {index for leaf in left if not growth.nodes[leaf].stop for index in tree.path_to(leaf)}
        at = 0
        while growth.nodes[at].expanded is not None:
            parent = at
            at = max(
                (node.index for node in tree.children(parent) if node.index in live),
                key=lambda index: (self._bound(growth, parent, index), -index),
            )
        return Choice(at, (at,), tuple(left))

    def _bound(self, growth: Growth, parent: int, index: int) -> float:
        node = growth.nodes[index]
        if not node.visits:  # no reading: what is unknown is worth as little as it is likely to be looked at
            return 0.0
        return node.value + self.exploration * math.sqrt(math.log(growth.nodes[parent].visits) / node.visits)


def _left(growth: Growth) -> list[int]:
    """The nodes not yet expanded, and the stops that stand at the best state of all (others are no answer)."""
    best = growth.snapshot().best
    at_best = growth.nodes[best].predicted_iou
    stops = [n.index for n in growth.nodes if n.stop and (n.parent == best or n.predicted_iou == at_best)]
    return [*growth.open(), *stops]


STRATEGIES = {cls.name: cls for cls in (Greedy, Beam, BestFirst, MCTS)}


def make_strategy(name: str, width: int = 3) -> Strategy:
    """The strategy of a name; `width` is the beam's. Raises SegAgentError."""
    if name not in STRATEGIES:
        raise SegAgentError(f"Unknown strategy {name!r}: use {', '.join(STRATEGIES)}.")
    return Beam(width) if name == Beam.name else STRATEGIES[name]()


@dataclass(frozen=True)
class Plateau:
    """When the predicted reward has converged (Algorithm 2): the best predicted IoU of the run rose by less than `gain` in the
    last `patience` steps. Judged before a step costs anything; patience 0 means never."""

    patience: int = 0
    gain: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or isinstance(self.patience, bool) or self.patience < 0:
            raise SegAgentError(f"patience counts steps: a whole number from 0; got {self.patience!r}.")
        if not isinstance(self.gain, int | float) or isinstance(self.gain, bool) or not 0 <= self.gain <= 1:
            raise SegAgentError(f"gain is a difference of predicted IoUs, from 0 to 1; got {self.gain!r}.")

    def reached(self, progress: list[float]) -> bool:
        """`progress`: the best predicted IoU at the beginning of each step so far."""
        return 0 < self.patience < len(progress) and progress[-1] - progress[-1 - self.patience] < self.gain


def check_count(name: str, value: int) -> None:
    """Raises SegAgentError where `value` is no number of candidates, or of a beam's states."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise SegAgentError(f"{name} is a whole number from 1 to {MOST}; got {value!r}.")
