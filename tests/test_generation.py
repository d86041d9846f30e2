"""Reuse changes nothing: decoding from one prefill against `generate` and against full recomputation, on tiny random models."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from segagent.drafts import Drafts
from segagent.fallback import PlainDecoder
from segagent.generation import Decoder, Said
from segagent.prefill import ROOM, extended, supports, windowed

BUILDERS = {
    "fastvlm-gpt2": lambda: tiny_models.fastvlm("gpt2"),
    "fastvlm-llama": lambda: tiny_models.fastvlm("llama"),
    "fastvlm-qwen2": lambda: tiny_models.fastvlm("qwen2"),
    "fastvlm-window": lambda: tiny_models.fastvlm("window"),
    "llava": tiny_models.llava,
    "qwen2.5-vl": tiny_models.qwen2_5_vl,
}
LIMIT = 14
PROMPTS = (  # of different lengths, so that a batch is padded; pictures of different sizes, which Qwen2.5-VL sees
    ("a cup", tiny_models.picture((200, 60, 40))),
    ("the red cup on the left of the table, not the other one", tiny_models.picture((30, 90, 200), (90, 60), 1)),
    ("the mask", tiny_models.picture((20, 200, 20), (30, 96), 2)),
)


@cache
def build(name):
    return BUILDERS[name]()


def encode(processor, prompts):
    words = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text, _ in prompts]
    return dict(
        processor(
            text=processor.apply_chat_template(words, add_generation_prompt=True),
            images=[[Image.fromarray(image)] for _, image in prompts],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
    )


@cache
def said_by_generate(name):
    model, processor = build(name)
    return generated(model, encode(processor, PROMPTS))


def generated(model, inputs, length=LIMIT):
    """What `generate` says at temperature 0, up to the end-of-text token."""
    output = model.generate(**inputs, max_new_tokens=length, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    end = model.generation_config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in output.tolist()]


def decoder(model, drafts=(), limit=LIMIT):
    return Decoder(model, frozenset({model.generation_config.eos_token_id}), limit, Drafts(drafts))


def recomputed(model, processor, prompt, tokens):
    """Logits (V,) of the token after `tokens`, from everything anew: alone, unpadded, without a cache."""
    inputs = extended(encode(processor, [prompt]), tokens)
    return model(**inputs, use_cache=False).logits[0, -1]


def examples(name, kind):
    """Sequences to learn guesses from: none, this model's own (most guesses right), those of the first prompt alone (guessed
    from the prefill on, and wrong for the other prompts), or mangled (most end up wrong)."""
    if windowed(build(name)[0]):
        return []
    own = said_by_generate(name)
    mangled = [[token + (i % 3 == 2) for i, token in enumerate(tokens)] for tokens in own]
    return {"none": [], "right": own, "first": own[:1], "wrong": mangled}[kind]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("kind", ["none", "right", "first", "wrong"])
@torch.inference_mode()
def test_greedy_tokens_are_those_of_generate(name, kind):
    model, processor = build(name)
    assert supports(model)
    plain = said_by_generate(name)
    ours = decoder(model, examples(name, kind))
    openings = ours.read(encode(processor, PROMPTS), lambda tokens: len(tokens) <= 5)
    assert [o.said.tokens for o in openings] == [tokens[:5] for tokens in plain]
    for where in ("start", "prompt"):
        said = [Said(list(o.said.tokens) if where == "start" else []) for o in openings]
        ours.go_on([getattr(o, where) for o in openings], said, 0.0)
        assert [s.tokens for s in said] == plain
        assert [s.ended for s in said] == [len(tokens) < LIMIT for tokens in plain]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("kind", ["first", "wrong"])
@torch.inference_mode()
def test_logits_are_those_of_a_full_recomputation(name, kind):
    model, processor = build(name)
    ours = decoder(model, examples(name, kind))
    for length in (4, 9):
        openings = ours.read(encode(processor, PROMPTS), lambda tokens, most=length: len(tokens) <= most)
        for opening, prompt in zip(openings, PROMPTS, strict=True):
            for start, tokens in ((opening.start, opening.said.tokens), (opening.prompt, [])):
                torch.testing.assert_close(
                    start.logits, recomputed(model, processor, prompt, tokens), atol=1e-4, rtol=0
                )


@pytest.mark.parametrize("name", BUILDERS)
@torch.inference_mode()
def test_rows_of_several_reads_go_on_together(name):
    model, processor = build(name)
    ours = decoder(model)
    apart = [ours.read(encode(processor, [prompt]), lambda tokens: len(tokens) <= 3)[0] for prompt in PROMPTS]
    together = ours.read(encode(processor, PROMPTS), lambda tokens: len(tokens) <= 6)
    starts = [together[2].start, apart[0].start, apart[1].prompt, together[0].start, together[2].start]
    said = [Said([]) for _ in starts]
    said[0].tokens, said[1].tokens = list(together[2].said.tokens), list(apart[0].said.tokens)
    said[3].tokens, said[4].tokens = list(together[0].said.tokens), list(together[2].said.tokens)
    ours.go_on(starts, said, 0.0)
    plain = said_by_generate(name)
    assert [s.tokens for s in said] == [plain[2], plain[0], plain[1], plain[0], plain[2]]


@torch.inference_mode()
def test_sampling_follows_the_distribution():
    model, processor = build("fastvlm-gpt2")
    opening = decoder(model).read(encode(processor, PROMPTS[:1]), lambda tokens: len(tokens) <= 2)[0]
    count, temperature = 1500, 1.7
    said = [Said([], numbers=np.full(2, (i + 0.5) / count)) for i in range(count)]  # evenly spread: no luck involved
    decoder(model, limit=1).go_on([opening.start] * count, said, temperature)
    end = model.generation_config.eos_token_id
    drawn = np.bincount([end if s.ended else s.tokens[0] for s in said], minlength=len(opening.start.logits))
    logits = recomputed(model, processor, PROMPTS[0], opening.said.tokens)
    assert np.abs(drawn / count - torch.softmax(logits / temperature, -1).numpy()).max() < 1.5 / count
    logprobs = torch.log_softmax(logits, -1)
    assert all(abs(s.logprob - logprobs[end if s.ended else s.tokens[0]]) < 1e-4 for s in said)


@pytest.mark.parametrize("name", ["fastvlm-llama", "qwen2.5-vl"])
@torch.inference_mode()
def test_a_sample_depends_on_its_own_numbers_alone(name):
    model, processor = build(name)
    ours = decoder(model, examples(name, "right"))
    openings = ours.read(encode(processor, PROMPTS), lambda tokens: False)

    def sample(rows, seeds):
        said = [Said([], numbers=np.random.default_rng(seed).random(LIMIT + 1)) for seed in seeds]
        ours.go_on([openings[row].start for row in rows], said, 1.0)
        return [(s.tokens, s.ended) for s in said]

    together = sample([0, 0, 1, 2, 2], [3, 4, 3, 5, 6])
    assert together == [sample([row], [seed])[0] for row, seed in zip([0, 0, 1, 2, 2], [3, 4, 3, 5, 6], strict=True)]
    assert together[0] != together[1]


@torch.inference_mode()
def test_an_answer_may_outgrow_the_room_of_its_batch():
    model, processor = build("fastvlm-llama")
    inputs = encode(processor, PROMPTS)
    model.generation_config.eos_token_id, end = None, model.generation_config.eos_token_id
    try:
        plain = model.generate(**inputs, max_new_tokens=ROOM + 10, do_sample=False, pad_token_id=0)
    finally:
        model.generation_config.eos_token_id = end
    endless = Decoder(model, frozenset(), ROOM + 10, Drafts([]))
    openings = endless.read(inputs, lambda tokens: len(tokens) <= ROOM + 10)
    assert [o.said.tokens for o in openings] == plain[:, inputs["input_ids"].shape[1] :].tolist()


@torch.inference_mode()
def test_guesses_save_passes_and_vision_is_seen_once():
    model, processor = build("fastvlm-gpt2")
    passes, sights = [], []
    hooks = [
        model.register_forward_hook(lambda *_: passes.append(1)),
        model.model.vision_tower.register_forward_hook(lambda *_: sights.append(1)),
    ]
    counts = {}
    for kind in ("none", "right"):
        guesses = examples("fastvlm-gpt2", kind)
        passes.clear()
        sights.clear()
        ours = decoder(model, guesses)
        openings = ours.read(encode(processor, PROMPTS), lambda tokens: len(tokens) <= 5)
        for _ in range(3):
            ours.go_on([o.start for o in openings], [Said(list(o.said.tokens)) for o in openings], 0.0)
        counts[kind] = len(passes)
        assert len(sights) == 1
    for hook in hooks:
        hook.remove()
    assert counts["right"] * 2 < counts["none"]


def test_drafts_learn_the_form_and_leave_the_numbers_open():
    examples = [[1, 2, d, e, 3, f, 4] for d in (5, 6, 7) for e in (5, 6, 7) for f in (5, 6, 7)]
    drafts = Drafts(examples, alike={5, 6, 7})
    assert drafts([]) == [1, 2]
    assert drafts([1]) == [2]
    assert drafts([1, 2]) == drafts([1, 2, 5]) == []
    assert drafts([1, 2, 5, 7]) == [3]
    assert drafts([1, 2, 5, 7, 3, 6]) == [4]
    assert Drafts([[1] * 30], longest=4)([1] * 5) == [1] * 4


def test_models_with_a_state_of_their_own_fall_back():
    assert windowed(build("fastvlm-window")[0])
    assert not windowed(build("fastvlm-qwen2")[0])
    assert not supports(tiny_models.fastvlm("lfm2")[0])  # convolutions
    assert not supports(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("text", ["gpt2", "lfm2"])
@torch.inference_mode()
def test_the_fallback_says_what_generate_says(text):
    model, processor = tiny_models.fastvlm(text)
    plain = PlainDecoder(model, frozenset({model.generation_config.eos_token_id}), LIMIT)
    for prompt in PROMPTS[:2]:
        inputs = encode(processor, [prompt])
        expected = generated(model, inputs)[0]
        (opening,) = plain.read(inputs, lambda tokens: len(tokens) <= 5)
        assert opening.said.tokens == expected[:5]
        said = [Said(list(opening.said.tokens), opening.said.logprob), Said([])]
        plain.go_on([opening.start, opening.prompt], said, 0.0)
        assert [s.tokens for s in said] == [expected, expected]
        assert said[0].logprob == pytest.approx(said[1].logprob, abs=1e-3)
        logprobs = [
            torch.log_softmax(recomputed(model, processor, prompt, expected[:i]), -1)[token].item()
            for i, token in enumerate([*expected, *[model.generation_config.eos_token_id] * said[0].ended])
        ]
        assert said[0].logprob == pytest.approx(sum(logprobs), abs=1e-3)


@torch.inference_mode()
def test_the_fallback_samples_the_models_own_distribution():
    model, processor = tiny_models.fastvlm("gpt2")
    model.generation_config.update(top_k=1, repetition_penalty=1.3)  # as checkpoints come; not the policy's choice
    plain = PlainDecoder(model, frozenset({model.generation_config.eos_token_id}), LIMIT)
    (opening,) = plain.read(encode(processor, PROMPTS[:1]), lambda tokens: False)
    before = torch.get_rng_state()

    def sample(seed):
        said = [Said([], numbers=np.random.default_rng(seed).random(2)) for _ in range(20)]
        plain.go_on([opening.start] * 20, said, 3.0)
        return [s.tokens for s in said]

    assert sample(1) == sample(1) != sample(2)
    assert len({tuple(tokens) for tokens in sample(1)}) > 10
    assert (torch.get_rng_state() == before).all()
