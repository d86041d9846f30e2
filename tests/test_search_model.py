"""A model searches: the same by seed, alone or in company, and as a plain loop of Algorithm 2 does, one call after another."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny_models
from fakes import disc_sample

from segagent import MLLMPolicy, SegAgent
from segagent.environment import Environment
from segagent.policy import Observation, seed_for
from segagent.rollout import collect, rollout, rollout_many
from segagent.search import STRATEGIES, GreedySearch, TreeSearch
from segagent.segmenters import load_segmenter


@cache
def agent() -> SegAgent:
    return SegAgent(MLLMPolicy(*tiny_models.speaker()), "grabcut")


def told(transition):
    masks = transition.state.mask.tobytes(), transition.next_state.mask.tobytes()
    return (*masks, transition.action, transition.text, transition.predicted_iou, transition.end)


def plain(environment, policy, sample, candidates, steps, seed):
    """Algorithm 2, one call after another."""
    observation = Observation(environment.reset(sample), sample.expression, sample.id)
    masks = []
    for step in range(steps):
        reading = policy.read([observation])[0]
        tried = []
        for proposal in reading.propose(candidates, 1.0, seed_for(seed, sample.id, step)):
            if proposal.action is None:
                tried.append((reading.predicted_iou, True, observation.state))
            else:
                state = environment.step(observation.state, proposal.action)
                after = policy.read([replace(observation, state=state)])[0]
                tried.append((after.predicted_iou, False, state))
        _, stop, state = max(
            tried, key=lambda each: (-1.0 if each[0] is None else each[0], each[1] and each[0] is not None)
        )
        if stop:
            break
        observation = replace(observation, state=state)
        masks.append(state.mask)
    return masks


def test_the_search_is_algorithm_2():
    environment, policy = agent().environment, agent().policy
    for seed in range(3):
        sample = disc_sample()
        run = collect(sample, rollout(environment, GreedySearch(policy, environment, 3), sample, steps=3, seed=seed))
        masks = [state.mask for state in run.states[1:]]
        wanted = plain(environment, policy, sample, 3, 3, seed)
        assert len(masks) == len(wanted)
        assert all((a == b).all() for a, b in zip(masks, wanted, strict=True))


def test_one_candidate_is_the_policy_itself():
    environment, policy, sample = agent().environment, agent().policy, disc_sample()
    search = GreedySearch(policy, environment, 1)
    runs = [list(rollout(environment, who, sample, steps=3)) for who in (policy, search)]
    assert [told(t) for t in runs[0]] == [told(t) for t in runs[1]]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_same_by_seed_alone_or_in_company(strategy):
    environment, policy = Environment(load_segmenter("grabcut")), agent().policy
    samples = [disc_sample(name, x=x) for name, x in (("a", 12), ("b", 30))]
    together = {0: [], 1: []}
    search = TreeSearch(policy, environment, strategy, 2)
    for i, transition in rollout_many(environment, search, samples, steps=3, seed=7):
        together[i].append(told(transition))
    for i, sample in enumerate(samples):
        alone = TreeSearch(policy, environment, strategy, 2)
        assert [told(t) for t in rollout(environment, alone, sample, steps=3, seed=7)] == together[i]


def test_the_agent_keeps_the_tree_and_its_answer():
    image = disc_sample().image
    runs = [agent().segment(image, "the disc", strategy="best-first", candidates=2, steps=3, seed=s) for s in (5, 5, 6)]
    trees = [run.tree.to_json() for run in runs]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]
    result = runs[0]
    best = result.tree.nodes[result.tree.best]
    assert np.array_equal(best.state.mask, result.mask)
    assert agent().score(image, "the disc", result.mask) == pytest.approx(result.predicted_iou)
