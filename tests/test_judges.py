"""Another's opinion as the predicted IoU, and the ceiling that the true one gives a search."""

from __future__ import annotations

from typing import ClassVar

import pytest
from fakes import BrushSegmenter, FunctionPolicy, disc_sample

from segagent import Click, Environment
from segagent.errors import DataError, SegAgentError
from segagent.judges import SecondOpinion, TrueIoU
from segagent.masks import iou
from segagent.policy import FixedReading, Observation, Proposal
from segagent.rollout import collect, rollout
from segagent.search import GreedySearch
from segagent.types import Sample


@pytest.mark.parametrize(
    ("combine", "own", "other", "said"),
    [
        ("mean", 0.2, 0.6, 0.4),
        ("min", 0.2, 0.6, 0.2),
        ("product", 0.5, 0.6, 0.3),
        ("other", 0.2, 0.6, 0.6),
        ("mean", None, 0.6, 0.6),
        ("mean", 0.2, None, 0.2),
        ("other", 0.2, None, 0.2),
        ("min", None, None, None),
    ],
)
def test_two_opinions_become_one(combine, own, other, said):
    policy = FunctionPolicy(lambda o: (own, [Click(1, 2), None]))
    judge = FunctionPolicy(lambda o: (other, [Click(30, 30)]))
    observation = Observation(Environment(BrushSegmenter()).reset(disc_sample()), "x")
    readings = SecondOpinion(policy, judge, combine).read([observation] * 2)
    assert [r.predicted_iou for r in readings] == [pytest.approx(said)] * 2
    assert policy.batches == judge.batches == [2]
    assert [p.action for p in readings[0].propose(2)] == [Click(1, 2), None]  # never the judge's


def test_proposals_are_still_drawn_in_one_batch():
    class Batched(FixedReading):
        batches: ClassVar[list] = []

        @classmethod
        def propose_many(cls, readings, candidates, temperature, seeds):
            cls.batches.append((len(readings), candidates, temperature, list(seeds)))
            return [[Proposal(Click(1, 1))] for _ in readings]

    class Policy:
        def read(self, observations):
            return [Batched((), 0.5) for _ in observations]

    environment = Environment(BrushSegmenter())
    policy = SecondOpinion(Policy(), Policy())
    collect(disc_sample(), rollout(environment, GreedySearch(policy, environment, 3), disc_sample(), steps=2))
    assert [batch[:3] for batch in Batched.batches] == [(1, 3, 1.0)] * 2


def test_the_true_iou_finds_what_a_misled_model_does_not():
    """The model thinks the best of the click beside the object; the truth over the same candidates takes the right one."""
    sample = disc_sample()
    clicks = [Click(45, 35), Click(20, 15)]
    policy = FunctionPolicy(lambda o: (0.9 if o.mask[35, 45] else 0.1, clicks))
    environment = Environment(BrushSegmenter(radius=8))

    def best(policy) -> float:
        run = collect(sample, rollout(environment, GreedySearch(policy, environment, 2), sample, steps=1))
        return iou(run.states[run.best()].mask, sample.target)

    assert best(policy) == 0
    assert best(SecondOpinion(policy, TrueIoU.for_samples([sample]), "other")) == 1


def test_pixels_to_ignore_do_not_count():
    sample = disc_sample()
    ignoring = Sample(sample.image, "x", sample.target, "a", ignore=~sample.target)
    observation = Observation(Environment(BrushSegmenter()).reset(ignoring, sample.target | True), "x", "a")
    assert TrueIoU.for_samples([ignoring]).read([observation])[0].predicted_iou == 1


def test_bad_input():
    with pytest.raises(SegAgentError, match="mean, min, product, other"):
        SecondOpinion(None, None, "max")
    with pytest.raises(DataError, match="no target mask"):
        TrueIoU.for_samples([Sample(disc_sample().image, "x")])
    with pytest.raises(DataError, match="Two samples"):
        TrueIoU.for_samples([disc_sample("a"), disc_sample("a")])
    observation = Observation(Environment(BrushSegmenter()).reset(disc_sample("b")), "x", "b")
    with pytest.raises(DataError, match="'b' is not known"):
        TrueIoU.for_samples([disc_sample("a")]).read([observation])
