"""The verifier: what it is asked, how its yes, no and numbers become an IoU, and that a search heeds it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tiny_models
import torch
from fakes import BrushSegmenter, FunctionPolicy, disc_sample

from segagent import Click, SegAgent
from segagent.errors import CheckpointError, ExpressionError, SegAgentError
from segagent.judges import SecondOpinion
from segagent.policy import Observation
from segagent.types import State
from segagent.verifier import Verifier, _first_tokens


@cache
def model():
    return tiny_models.fastvlm(size=32)


@pytest.fixture
def verifier() -> Verifier:
    return Verifier(*model())


def observation(expression="the cup", masked=True, seed=0) -> Observation:
    mask = np.zeros((48, 64), bool)
    mask[10:30, 10:40] = masked
    return Observation(State(tiny_models.picture(seed=seed), mask), expression)


def asked(verifier: Verifier) -> list[str]:
    """Collects the texts that the verifier's processor gets."""
    texts, inner = [], verifier.processor

    class Spy:
        def __getattr__(self, name):
            return getattr(inner, name)

        def __call__(self, **inputs):
            texts.extend(inputs["text"])
            return inner(**inputs)

    verifier.processor = Spy()
    return texts


def test_the_predicted_iou_is_the_probability_of_yes_against_no(verifier: Verifier):
    iou = verifier.read([observation()])[0].predicted_iou
    yes, no = _first_tokens(verifier.processor.tokenizer)
    inputs = verifier._inputs([observation()], verifier.question)
    with torch.inference_mode():
        p = verifier.model(**inputs).logits[0, -1].double().softmax(-1)
    assert iou == pytest.approx(float(p[yes].sum() / (p[yes].sum() + p[no].sum())), rel=1e-4)
    assert 0 < iou < 1
    assert verifier.read([observation()])[0].propose(3) == []


def test_a_batch_is_read_as_each_alone(verifier: Verifier):
    batch = [observation(), observation("a very long description of the cup", seed=1), observation(masked=False)]
    together = [r.predicted_iou for r in verifier.read(batch)]
    assert together == pytest.approx([verifier.read([o])[0].predicted_iou for o in batch], abs=1e-4)
    assert len({round(p, 4) for p in together}) == 3
    assert verifier.read([]) == []


def test_what_is_asked(verifier: Verifier):
    texts = asked(verifier)
    verifier.read([observation("the red  cup <image>")])
    assert "painted in green was drawn for: the red cup < image>." in texts[0]
    assert texts[0].count("<image>") == 1 or "<image>" not in texts[0].split("drawn for")[1]
    mine = Verifier(*model(), question="Is this {expression}, in {color}?", color="red")
    texts = asked(mine)
    mine.read([observation()])
    assert "Is this the cup, in red?" in texts[0]


def test_of_an_empty_mask_a_no_speaks_for_it(verifier: Verifier):
    texts = asked(verifier)
    iou = verifier.read([observation(masked=False)])[0].predicted_iou
    assert "Does the picture show the cup?" in texts[0]
    inputs = verifier._inputs([observation(masked=False)], "Does the picture show {expression}? Answer yes or no.")
    with torch.inference_mode():
        assert iou == pytest.approx(1 - verifier._agreement(inputs)[0], abs=1e-5)


@pytest.mark.parametrize(
    ("said", "iou"), [("85", 0.85), ("It fits: 7.", 0.07), ("100%", 1.0), ("none", None), ("", None), ("250", None)]
)
def test_a_number_that_is_said(said, iou):
    verifier = Verifier(*model(), reading="number")
    words = verifier.processor.tokenizer(said, add_special_tokens=False)["input_ids"]

    def generate(**inputs):
        ids = inputs["input_ids"]
        return torch.cat([ids, torch.tensor([words] * len(ids), dtype=ids.dtype).reshape(len(ids), -1)], 1)

    class Model:
        device, dtype = verifier.model.device, verifier.model.dtype

    Model.generate = staticmethod(generate)
    verifier.model = Model()
    assert [r.predicted_iou for r in verifier.read([observation(), observation("a")])] == [iou, iou]


def test_numbers_from_a_real_model_are_ious_or_nothing():
    for reading in Verifier(*model(), reading="number").read([observation(), observation("a", seed=2)]):
        assert reading.predicted_iou is None or 0 <= reading.predicted_iou <= 1


def test_a_checkpoint_with_no_segagent_json_can_verify(tmp_path):
    folder = tiny_models.save(*model(), tmp_path / "vlm")
    wanted = Verifier(*model()).read([observation()])[0].predicted_iou
    assert Verifier.from_pretrained(folder, device="cpu").read([observation()])[0].predicted_iou == pytest.approx(
        wanted
    )


def test_a_search_heeds_the_second_opinion(verifier: Verifier):
    clicks = [Click(10, 10), Click(30, 20)]
    policy = FunctionPolicy(lambda o: (0.5, clicks[len(o.state.actions) :]))
    agent = SegAgent(policy, BrushSegmenter()).second_opinion(verifier)
    assert isinstance(agent.policy, SecondOpinion)
    sample = disc_sample()
    tree = agent.segment(sample.image, "the disc", candidates=2, steps=1).tree
    for node in tree:
        own = verifier.read([Observation(node.state, "the disc")])[0].predicted_iou
        assert node.predicted_iou == pytest.approx((0.5 + own) / 2, abs=1e-4)
    other = (
        SegAgent(policy, BrushSegmenter()).second_opinion(verifier, "other").segment(sample.image, "the disc", steps=0)
    )
    assert other.predicted_iou == pytest.approx(2 * tree.nodes[0].predicted_iou - 0.5, abs=1e-4)


def test_bad_input(verifier: Verifier):
    with pytest.raises(SegAgentError, match="yes or number"):
        Verifier(*model(), reading="maybe")
    with pytest.raises(SegAgentError, match="only"):
        Verifier(*model(), question="Is it {thing}?")
    with pytest.raises(ExpressionError, match="empty"):
        verifier.read([observation(" ")])
    with pytest.raises(CheckpointError, match="yes from no"):
        _first_tokens(lambda text, **_: {"input_ids": [7]})
