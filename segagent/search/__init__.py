"""PRM-guided search: sample K clicks, look at the K masks, go on from the best (paper, Algorithm 2), or back to a better one.

`TreeSearch` is a policy that any rollout can use; its strategies are told apart in `strategies`, what it saw is a `Tree`.
"""

from __future__ import annotations

from segagent.environment import Environment
from segagent.policy import Policy
from segagent.search.engine import TreeSearch
from segagent.search.strategies import (
    CANDIDATES,
    MCTS,
    STRATEGIES,
    Beam,
    BestFirst,
    Greedy,
    Plateau,
    Strategy,
    make_strategy,
)
from segagent.search.tree import Node, Spent, Tree

__all__ = [
    "CANDIDATES",
    "MCTS",
    "STRATEGIES",
    "Beam",
    "BestFirst",
    "Greedy",
    "GreedySearch",
    "Node",
    "Plateau",
    "Spent",
    "Strategy",
    "Tree",
    "TreeSearch",
    "make_strategy",
]


class GreedySearch(TreeSearch):
    """The paper's Algorithm 2: TreeSearch with the strategy "greedy"."""

    def __init__(
        self, policy: Policy, environment: Environment, candidates: int = CANDIDATES, plateau: Plateau | None = None
    ) -> None:
        super().__init__(policy, environment, Greedy(), candidates, plateau)
