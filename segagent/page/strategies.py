"""How the agent chooses among its own clicks, as the page names it."""

from __future__ import annotations

from segagent.environment import Environment
from segagent.policy import Policy
from segagent.search import GreedySearch

STRATEGIES = [("Its first thought (greedy)", "none"), ("Best of K (the paper's search)", "greedy")]


def searching(strategy: str, policy: Policy, environment: Environment, candidates: int) -> Policy:
    """The policy that plays by the strategy of that name."""
    return policy if strategy == "none" else GreedySearch(policy, environment, candidates)
