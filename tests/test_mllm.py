"""MLLMPolicy: readings and proposals, malformed answers, expected IoUs, threads, checkpoints and bad input."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import tiny_models
import torch
from fakes import BrushSegmenter

from segagent import MLLMPolicy
from segagent.consensus import agreed
from segagent.environment import Environment
from segagent.errors import CheckpointError, ExpressionError, ImageError, SegAgentError
from segagent.generation import Opening, Said
from segagent.grammar import Grammar
from segagent.masks import overlay
from segagent.mllm import MLLMReading, Settings
from segagent.policy import Observation, Policy, Reading, propose_many
from segagent.prefill import extended
from segagent.rollout import rollout_many
from segagent.types import Click, Sample, State


def observation(expression="the cup", color=(200, 60, 40), size=(48, 64), masked=False):
    mask = np.zeros(size, bool)
    mask[: size[0] // 2, : size[1] // 2] = masked
    return Observation(State(tiny_models.picture(color, size), mask), expression)


OBSERVATIONS = (
    observation(),
    observation("the very large red cup on the left side", (10, 60, 240), (90, 50), masked=True),
    observation("a", (20, 200, 20)),
)


@cache
def policy(**settings):
    return MLLMPolicy(*tiny_models.speaker(), **settings)


def generated(policy, observation):
    """The text that the model's own `generate` gives at temperature 0, from everything anew."""
    inputs = policy._inputs([policy._prompt(observation.expression)], [policy._picture(observation)])
    output = policy.model.generate(**inputs, do_sample=False, max_new_tokens=48)
    return policy.processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def recomputed(policy, observation, tokens):
    """Log-probabilities (V,) of the token after `tokens`, from everything anew."""
    inputs = policy._inputs([policy._prompt(observation.expression)], [policy._picture(observation)])
    logits = policy.model(**extended(inputs, tokens), use_cache=False).logits
    return torch.log_softmax(logits[0, -1], -1)


def brief(proposals):
    return [(p.action, p.text) for p in proposals]


# Reading and proposing


def test_iou_and_action_are_those_of_the_models_own_text():
    assert isinstance(policy(), Policy)
    readings = policy().read(OBSERVATIONS)
    for reading, observed in zip(readings, OBSERVATIONS, strict=True):
        text = generated(policy(), observed)
        parsed = policy().grammar.parse(text, observed.state.size)
        assert isinstance(reading, Reading)
        assert reading.predicted_iou == parsed.predicted_iou
        assert text.startswith(reading.text)
        assert brief(reading.propose()) == [(parsed.action, text)]
        assert brief(reading.propose(5)) == [(parsed.action, text)]  # greedy, and nothing beside it


def test_reading_one_by_one_and_without_reuse_gives_the_same():
    together = policy().read(OBSERVATIONS)
    assert policy().reuses
    assert not policy(reuse=False).reuses
    for other in (policy(), policy(reuse=False)):
        for reading, observed in zip(together, OBSERVATIONS, strict=True):
            (alone,) = other.read([observed])
            assert (alone.predicted_iou, alone.text) == (reading.predicted_iou, reading.text)
            assert brief(alone.propose()) == brief(reading.propose())
            assert alone.propose()[0].logprob == pytest.approx(reading.propose()[0].logprob, abs=1e-3)
    assert policy().read([]) == []


@pytest.mark.parametrize("reuse", [True, False])
def test_sampled_proposals(reuse):
    reading = policy(reuse=reuse).read(OBSERVATIONS[:1])[0]
    proposals = reading.propose(6, 1.0, seed=5)
    texts = [p.text for p in proposals]
    assert 2 <= len(set(texts)) == len(texts) <= 6
    assert all(text.startswith(reading.text) for text in texts)
    assert brief(proposals) == brief(reading.propose(6, 1.0, seed=5)) != brief(reading.propose(6, 1.0, seed=6))
    assert len({str(brief(reading.propose(1, 1.0))) for _ in range(6)}) > 1  # without a seed, always anew
    for proposal in proposals:
        assert policy().grammar.parse(proposal.text, (48, 64)).action == proposal.action


def test_logprob_is_that_of_the_whole_text():
    observed = OBSERVATIONS[1]
    words = policy().processor.tokenizer
    (reading,) = policy().read([observed])
    for proposal in [*reading.propose(2, 1.0, seed=0), *reading.propose()]:
        tokens = [*words(proposal.text)["input_ids"], words.eos_token_id]
        total = sum(recomputed(policy(), observed, tokens[:i])[token].item() for i, token in enumerate(tokens))
        assert proposal.logprob == pytest.approx(total, abs=1e-3)


def test_more_candidates_begin_with_the_same_ones():
    reading = policy().read(OBSERVATIONS[:1])[0]
    many = brief(reading.propose(8, 1.0, seed=1))
    assert brief(reading.propose(1, 1.0, seed=1)) == many[:1]
    assert brief(reading.propose(3, 1.0, seed=1)) == many[: len(brief(reading.propose(3, 1.0, seed=1)))]


@pytest.mark.parametrize("reuse", [True, False])
def test_the_likeliest_answer_may_be_the_first_candidate(reuse):
    asked = {"candidates": 4, "temperature": 1.0, "seeds": [5, 6, 7]}
    drawn = propose_many(policy(reuse=reuse).read(OBSERVATIONS), **asked)
    with_it = propose_many(policy(reuse=reuse, likeliest=True).read(OBSERVATIONS), **asked)
    for reading, row, others in zip(policy(reuse=reuse).read(OBSERVATIONS), with_it, drawn, strict=True):
        assert row[0].text == reading.propose()[0].text
        assert row[0].logprob == pytest.approx(reading.propose()[0].logprob, abs=1e-4)
        if reuse:  # the others are drawn as without it
            assert {p.text for p in row[1:]} <= {p.text for p in others}
    alone = propose_many(policy(likeliest=True).read(OBSERVATIONS), 1, 1.0, [5, 6, 7])
    assert [row[0].text for row in alone] == [
        row[0].text for row in propose_many(policy().read(OBSERVATIONS), 1, 1.0, [5, 6, 7])
    ]


@pytest.mark.parametrize("reuse", [True, False])
def test_the_click_agreed_on(reuse):
    agreeing, moved = policy(reuse=reuse, click_reading="consensus"), 0
    readings = agreeing.read(OBSERVATIONS)
    for reading, (found,), observed in zip(readings, propose_many(readings), OBSERVATIONS, strict=True):
        (greedy,) = policy(reuse=reuse).read([observed])[0].propose()
        assert type(found.action) is type(greedy.action)
        if isinstance(found.action, Click):
            assert found.action.positive == greedy.action.positive
        assert agreeing.grammar.parse(found.text, observed.state.size).action == found.action
        assert brief(reading.propose(4, 0.0, seed=9)) == brief([found])  # whatever the seed and the company
        moved += found.action != greedy.action
        drawn = policy(reuse=reuse).read([observed])[0].propose(3, 1.0, seed=4)
        assert brief(reading.propose(3, 1.0, seed=4)) == brief(drawn)  # what is sampled is left alone
    assert moved
    first = policy(reuse=reuse, click_reading="consensus", likeliest=True).read(OBSERVATIONS[:1])[0]
    assert brief(first.propose(4, 1.0, seed=4))[0] == brief(readings[0].propose())[0]


def test_where_most_clicks_are():
    near = [Click(100, 50), Click(104, 52), Click(98, 49)]
    assert agreed([Click(10, 10), *near, Click(300, 90), Click(290, 10)], (100, 400)) in (1, 2, 3)
    assert agreed([Click(10, 10), Click(390, 90)], (100, 400)) == 0  # neither has more: the greedy one, which is first
    assert agreed([Click(7, 7)], (100, 400)) == 0
    # Of equal distances in px, the one along the longer side is the nearer by shares.
    assert agreed([Click(200, 20), Click(200, 50), Click(230, 50)], (100, 400)) in (1, 2)


def test_readings_of_several_reads_and_policies_propose_in_one_batch():
    first, other = policy().read(OBSERVATIONS), policy(alpha=0.25).read(OBSERVATIONS[:2])
    chosen = [first[2], policy().read(OBSERVATIONS[:1])[0], other[1], first[0]]
    seeds = [4, 5, 6, 4]
    together = propose_many(chosen, 3, 1.0, seeds)
    assert [brief(p) for p in together] == [
        brief(r.propose(3, 1.0, seed)) for r, seed in zip(chosen, seeds, strict=True)
    ]


def test_the_mask_is_painted_on_the_picture():
    observed = observation(masked=True)
    for color in ("green", "blue"):
        painted = MLLMPolicy(*tiny_models.speaker(), color=color, alpha=0.25)._picture(observed)
        assert (np.asarray(painted) == overlay(observed.image, observed.mask, color, 0.25)).all()
        assert color in policy(color=color)._prompt("the cup")
    plain, masked = policy().read([observation(), observed])
    assert (plain.start.logits - masked.start.logits).abs().max() > 1e-3


def test_a_rollout_of_several_samples():
    samples = [Sample(o.image, o.expression, id=str(i)) for i, o in enumerate(OBSERVATIONS)]
    done = {}
    for i, transition in rollout_many(Environment(BrushSegmenter()), policy(), samples, steps=3, temperature=1.0):
        done.setdefault(i, []).append(transition)
    assert set(done) == {0, 1, 2}
    for transitions in done.values():
        assert transitions[-1].end in ("stop", "steps", "malformed")
        assert all(t.text.startswith("Current mIoU: ") and 0 <= t.predicted_iou <= 1 for t in transitions)


# Malformed answers


class ScriptedDecoder:
    """Stands where the decoder stands: says the scripted texts, one a call for each answer, and counts the calls."""

    def __init__(self, words, script):
        self.words, self.script, self.heats = words, script, []

    def read(self, inputs, belongs):
        return [Opening(Said([]), None, None)] * len(inputs["input_ids"])

    def go_on(self, starts, said, temperature):
        texts = self.script[min(len(self.heats), len(self.script) - 1)]
        self.heats.append(temperature)
        for answer, text in zip(said, texts, strict=False):
            answer.tokens = self.words(text)["input_ids"]


def scripted(*script, **settings):
    spoken = MLLMPolicy(*tiny_models.speaker(), **settings)
    spoken._decoder = ScriptedDecoder(spoken.processor.tokenizer, script)
    return spoken, spoken.read(OBSERVATIONS[:1])[0]


GOOD, OTHER, BAD = "Positive point: (500, 250)", "Negative point: (1, 2)", "Positive point: (500"


def test_malformed_answers_are_sampled_again():
    spoken, reading = scripted([BAD, GOOD, BAD], [OTHER, BAD], [OTHER])
    proposals = reading.propose(3, 0.8, seed=0)
    assert [p.text for p in proposals] == [OTHER, GOOD]  # in the order of candidates, duplicates merged
    action = proposals[1].action
    assert (action.x, action.y, action.positive) == (pytest.approx(31.532), pytest.approx(11.524), True)
    assert spoken._decoder.heats == [0.8, 0.8, 0.8]


def test_a_malformed_greedy_answer_is_sampled():
    spoken, reading = scripted([BAD], [BAD], [GOOD])
    assert [p.text for p in reading.propose()] == [GOOD]
    assert spoken._decoder.heats == [0.0, 1.0, 1.0]


def test_malformed_answers_are_dropped_in_the_end():
    spoken, reading = scripted([BAD, "", "junk"], attempts=3)
    assert reading.propose(3, 1.0) == []
    assert len(spoken._decoder.heats) == 3
    assert reading.predicted_iou is None
    assert reading.text == ""


def test_a_random_model_reads_and_proposes_nothing():
    random = MLLMPolicy(*tiny_models.qwen2_5_vl(), attempts=2, max_new_tokens=25)
    for reading in random.read(OBSERVATIONS):
        assert (reading.predicted_iou, reading.text, reading.propose(2, 1.0, seed=0)) == (None, "", [])


def test_only_an_opening_of_the_grammar_is_read():
    words = policy().processor.tokenizer

    def opens(text):
        return policy()._is_opening(tuple(words(text)["input_ids"]))

    for text in (
        "Cur",
        "Current mIoU:",
        "Current mIoU: 0",
        "Current mIoU: 0.5",
        "current IoU: 0.53. ",
        " Current mIoU: 1.",
    ):
        assert opens(text), text
    for text in (
        "Positive",
        "Current mIoU: 0.53. P",
        "Current mIoU: .5",
        "Current mIoU: x",
        "mIoU",
        "Current mIoU: 0.53.<eos>",
    ):
        assert not opens(text), text


# The expected IoU


def test_expected_iou_is_the_mean_over_all_ious():
    expected = policy(iou_reading="expected")
    words = expected.processor.tokenizer
    digits = [words(str(d))["input_ids"][0] for d in range(10)]

    def choice(observed, text, tokens):
        return torch.softmax(recomputed(expected, observed, words(text)["input_ids"])[tokens], -1)

    for reading, greedy, observed in zip(
        expected.read(OBSERVATIONS), policy().read(OBSERVATIONS), OBSERVATIONS, strict=True
    ):
        zero, one = choice(observed, "Current mIoU: ", digits[:2])
        tenths = choice(observed, "Current mIoU: 0.", digits)
        mean = one.item()
        for d in range(10):
            for e, hundredth in enumerate(choice(observed, f"Current mIoU: 0.{d}", digits)):
                mean += (zero * tenths[d] * hundredth).item() * (d / 10 + e / 100)
        assert reading.predicted_iou == pytest.approx(mean, abs=2e-4)
        assert reading.text == greedy.text  # the proposals go on from what the model says
        assert brief(reading.propose()) == brief(greedy.propose())


def test_expected_iou_needs_one_token_a_digit_and_reuse():
    with pytest.raises(CheckpointError, match="merges digits"):
        MLLMPolicy(*tiny_models.fastvlm(single_digits=False), iou_reading="expected")
    with pytest.raises(CheckpointError, match="keys and values"):
        policy(iou_reading="expected", reuse=False)


# Threads


def test_threads_share_one_policy():
    def run(seed):
        readings = policy().read(OBSERVATIONS[: 1 + seed % 3])
        return [brief(p) for p in MLLMReading.propose_many(readings, 2, 1.0, [seed] * len(readings))]

    alone = [run(seed) for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(6))) == alone


def test_the_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    for reuse in (True, False):
        policy(reuse=reuse).read(OBSERVATIONS[:1])[0].propose(2, 1.0, seed=1)
    assert (torch.get_rng_state() == before).all()


# Bad input


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 3), (2000, 2), (3, 64)])
def test_pictures_of_any_shape(size):
    assert policy().read([observation(size=size)])[0].predicted_iou is not None


def test_a_picture_that_the_processor_refuses():
    with pytest.raises(ImageError, match="cannot take this picture"):
        MLLMPolicy(*tiny_models.qwen2_5_vl()).read([observation(size=(8, 2000))])


def test_expressions():
    with pytest.raises(ExpressionError, match="empty"):
        policy().read([observation(" ")])
    with pytest.raises(ExpressionError, match="shorten"):
        policy().read([observation("ÿ" * 900)])
    (reading,) = policy().read([observation("the <image> on <eos><pad> <|image_pad|> the left")])
    assert reading.predicted_iou is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"color": "mauve"},
        {"alpha": 0},
        {"attempts": 0},
        {"max_new_tokens": 5},
        {"iou_reading": "loud"},
        {"click_reading": "loud"},
    ],
)
def test_impossible_settings(settings):
    with pytest.raises(SegAgentError):
        Settings(**settings)


def test_impossible_proposals():
    reading = policy().read(OBSERVATIONS[:1])[0]
    for arguments in ((0,), (1, -1.0), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(SegAgentError, match="count from 1"):
            reading.propose(*arguments)
    with pytest.raises(SegAgentError, match="one seed"):
        MLLMReading.propose_many([reading], 1, 1.0, [1, 2])


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_models.save(*tiny_models.speaker(), tmp_path_factory.mktemp("model") / "speaker")


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_from_pretrained(checkpoint):
    loaded = MLLMPolicy.from_pretrained(
        checkpoint, grammar=Grammar(order="yx"), device="cpu", dtype=torch.float32, alpha=0.5, local_files_only=True
    )
    assert loaded.grammar.order == "yx"
    assert loaded.reuses
    ours, theirs = loaded.read(OBSERVATIONS), policy().read(OBSERVATIONS)
    assert [r.predicted_iou for r in ours] == [r.predicted_iou for r in theirs]
    assert [r.propose()[0].text for r in ours] == [r.propose()[0].text for r in theirs]


def refused(folder, words):
    with pytest.raises(CheckpointError, match=words) as error:
        MLLMPolicy.from_pretrained(folder, local_files_only=True)
    assert "\n" not in str(error.value)


def test_folders_that_are_no_checkpoint(tmp_path, copy):
    refused(tmp_path / "nowhere", "no folder")
    refused(copy / "config.json", "is a file")
    refused("nobody/nothing", "nobody/nothing")
    refused(tmp_path, "no model")
    tiny_models.tf.ResNetModel(tiny_models.tf.ResNetConfig(hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    refused(tmp_path, "no model")


def test_checkpoints_with_parts_missing_or_broken(copy):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(copy, "no model")
    (copy / "model.safetensors").unlink()
    refused(copy, "no model")
    state = tiny_models.speaker()[0].state_dict()
    from safetensors.torch import save_file

    kept = {name: tensor.contiguous() for name, tensor in state.items() if name != "lm_head.weight"}
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    refused(copy, "lacks 1 of its model's weights")
    save_file({**kept, "lm_head.weight": torch.zeros(3, 3)}, copy / "model.safetensors", {"format": "pt"})
    refused(copy, r"no model|lacks 1")
    (copy / "model.safetensors").write_bytes(weights)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text("{")
    refused(copy, "no model")
    (copy / "config.json").write_text(json.dumps({**config, "image_seq_length": "many"}))
    refused(copy, "no model")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("chat_template.jinja",), "no chat template"),
        (("tokenizer.json", "tokenizer_config.json"), "no processor"),
        (("processor_config.json", "preprocessor_config.json"), "processor"),
    ],
)
def test_processors_that_are_not_whole(copy, missing, words):
    for name in missing:
        (copy / name).unlink(missing_ok=True)
    refused(copy, words)
