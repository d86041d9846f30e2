"""Predicted IoUs from sampled answers: their mean is near the expected value over the digits, and the seed decides them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import disc_sample

pytest.importorskip("torch")
import tiny_models

from segagent.judges import SecondOpinion
from segagent.mllm import MLLMPolicy
from segagent.policy import Observation
from segagent.runs import recolored
from segagent.types import State


@pytest.fixture(scope="module")
def speaker():
    return tiny_models.speaker()


@pytest.fixture(scope="module")
def observations():
    samples = [disc_sample(x=10 + 8 * i) for i in range(3)]
    return [Observation(State(s.image, s.target), s.expression, s.id) for s in samples]


def test_their_mean_is_near_the_expected_value(speaker, observations):
    greedy = MLLMPolicy(*speaker)
    sampled = greedy.sample_ious(observations, 200, seeds=[1, 2, 3])
    expected = [r.predicted_iou for r in recolored(greedy, iou_reading="expected").read(observations)]
    for values, mean in zip(sampled, expected, strict=True):
        assert len(values) > 100
        assert all(0 <= value <= 1 for value in values)
        assert abs(np.mean(values) - mean) < 4 * np.std(values) / np.sqrt(len(values)) + 0.02


def test_the_seed_decides_whatever_shares_the_batch(speaker, observations):
    policy = MLLMPolicy(*speaker)
    together = policy.sample_ious(observations, 5, seeds=[7, 8, 9])
    assert together[1] == policy.sample_ious(observations[1:2], 5, seeds=[8])[0]
    assert together[1] != together[2] or together[0] != together[1]


def test_models_without_reuse_sample_too(speaker, observations):
    policy = MLLMPolicy(*speaker, reuse=False)
    sampled = policy.sample_ious(observations[:2], 4, seeds=[1, 2])
    assert len(sampled) == 2
    assert all(0 <= value <= 1 for values in sampled for value in values)


def test_a_recolored_policy_shares_the_model(speaker):
    policy = MLLMPolicy(*speaker)
    assert recolored(policy, color=None) is policy
    assert recolored(policy, color="green") is policy
    with_judge = recolored(SecondOpinion(policy, policy, "min"), iou_reading="expected")
    assert with_judge.policy.settings.iou_reading == "expected"
    assert (with_judge.judge, with_judge.combine) == (policy, "min")
    blue = recolored(policy, color="blue", iou_reading="expected")
    assert blue.model is policy.model
    assert blue.settings == replace(policy.settings, color="blue", iou_reading="expected")
