"""Tiny models of standard transformers classes with random weights, their processors and tokenizers, all from configs.

model, processor = fastvlm("gpt2")      # or "llama", "qwen2", "window", "lfm2"; llava(), qwen2_5_vl(), qwen3_vl()
model, processor = speaker()            # a fastvlm that was taught the grammar in about two seconds
save(model, processor, directory)       # what from_pretrained loads
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segagent import _torchvision
from segagent.grammar import Grammar
from segagent.types import Box, Click

_torchvision.mend()

import transformers as tf  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

IMAGE, EOS, PAD = "<image>", "<eos>", "<pad>"
QWEN = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: "
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{IMAGE}{% endif %}{% endfor %}"
    " A: {% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}<eos>{% endif %}{% endfor %}"
)


def answers(count: int, seed: int = 0) -> list[str]:
    """Texts of the grammar: mostly clicks, some boxes and stops."""
    rng, grammar = np.random.default_rng(seed), Grammar()
    texts = []
    for _ in range(count):
        kind, (x, y), iou = rng.random(), rng.uniform(0, 999, 2), rng.random()
        action: Any = Click(x, y, bool(rng.random() < 0.6))
        if kind < 0.15:
            action, iou = None, 1 - iou / 20
        elif kind < 0.3:
            action = Box(x / 2, y / 2, x, y)
        texts.append(grammar.format(action, iou, (1000, 1000)))
    return texts


@cache
def _trained_tokenizer(single_digits: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[PAD, EOS, IMAGE, *QWEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = answers(200) + [Grammar().ask("the red cup on the left"), " A: "] * 20
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def tokenizer(single_digits: bool = True, **special: str) -> Any:
    """A byte-level BPE of 420 tokens; without `single_digits` it also merges digits."""
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer(single_digits)),
        pad_token=PAD,
        eos_token=EOS,
        padding_side="right",  # as for training; whoever decodes asks for the left side
        clean_up_tokenization_spaces=False,
        **special,
    )


def _llava_processor(size: int, patch: int, single_digits: bool = True) -> Any:
    return tf.LlavaProcessor(
        tf.CLIPImageProcessorPil(size={"height": size, "width": size}, do_center_crop=False),
        tokenizer(single_digits, extra_special_tokens={"image_token": IMAGE}),
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE.replace("{IMAGE}", IMAGE),
    )


def _finish(model: Any, processor: Any, spread: float = 1.0) -> tuple[Any, Any]:
    """Evaluation mode, end and padding tokens set, and output logits spread out so that no two tie."""
    with torch.no_grad():
        model.lm_head.weight.normal_(0, spread)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


def _text_config(kind: str, hidden: int, layers: int, vocabulary: int) -> Any:
    if kind == "gpt2":
        return tf.GPT2Config(
            n_embd=hidden,
            n_layer=layers,
            n_head=4,
            n_positions=512,
            vocab_size=vocabulary,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=1,
        )
    if kind == "lfm2":  # convolutions keep a state of their own beside keys and values
        return tf.Lfm2Config(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
            vocab_size=vocabulary,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    window = {"use_sliding_window": True, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
    config = {"llama": tf.LlamaConfig, "qwen2": tf.Qwen2Config, "window": tf.Qwen2Config}[kind]
    return config(
        **(window if kind == "window" else {}),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


def fastvlm(
    text: str = "gpt2",
    *,
    size: int = 64,
    widths: tuple[int, ...] = (8, 16),
    hidden: int = 32,
    layers: int = 2,
    single_digits: bool = True,
    seed: int = 0,
) -> tuple[Any, Any]:
    """FastVLM with a ResNet tower; the image is `size` px and gives (size / 4 / 2^(stages - 1))² tokens."""
    torch.manual_seed(seed)
    stride = 4 * 2 ** (len(widths) - 1)
    processor = _llava_processor(size, stride, single_digits)
    vision = tf.ResNetConfig(
        embedding_size=widths[0], hidden_sizes=list(widths), depths=[1] * len(widths), layer_type="basic"
    )
    vision.hidden_size = widths[-1]
    config = tf.FastVlmConfig(
        vision_config=vision,
        text_config=_text_config(text, hidden, layers, len(processor.tokenizer)),
        image_token_index=processor.image_token_id,
        image_seq_length=(size // stride) ** 2,
    )
    return _finish(tf.FastVlmForConditionalGeneration(config), processor)


def llava(seed: int = 0) -> tuple[Any, Any]:
    """LLaVA with a SigLIP tower, 64 px in patches of 16, and a Llama text model."""
    torch.manual_seed(seed)
    processor = _llava_processor(64, 16)
    vision = tf.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        vision_use_head=False,
    )
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=_text_config("llama", 32, 2, len(processor.tokenizer)),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    )
    return _finish(tf.LlavaForConditionalGeneration(config), processor)


def qwen2_5_vl(seed: int = 0) -> tuple[Any, Any]:
    """Qwen2.5-VL (M-RoPE; as many image tokens as the picture is large)."""
    torch.manual_seed(seed)
    words = tokenizer(extra_special_tokens={"image_token": QWEN[0], "video_token": QWEN[3]})
    image, start, end, video = words.convert_tokens_to_ids(list(QWEN))
    processor = tf.Qwen2_5_VLProcessor(
        tf.Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=96 * 96),
        words,
        tf.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE.replace("{IMAGE}", QWEN[1] + QWEN[0] + QWEN[2]),
    )
    text = _text_config("qwen2", 32, 2, len(words)).to_dict()
    text = {k: v for k, v in text.items() if k not in ("model_type", "architectures", "transformers_version")}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = tf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 8,
            "spatial_patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return _finish(tf.Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl(seed: int = 0) -> tuple[Any, Any]:
    """Qwen3-VL (features of several depths of its tower go into the text model)."""
    torch.manual_seed(seed)
    words = tokenizer(extra_special_tokens={"image_token": QWEN[0], "video_token": QWEN[3]})
    image, start, end, video = words.convert_tokens_to_ids(list(QWEN))
    processor = tf.Qwen3VLProcessor(
        tf.Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=96 * 96),
        words,
        tf.Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE.replace("{IMAGE}", QWEN[1] + QWEN[0] + QWEN[2]),
    )
    config = tf.Qwen3VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": len(words),
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 8,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return _finish(tf.Qwen3VLForConditionalGeneration(config), processor)


def picture(color: tuple[int, int, int] = (200, 60, 40), size: tuple[int, int] = (48, 64), seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: one colour and a little noise."""
    noise = np.random.default_rng(seed).integers(-30, 30, (*size, 3))
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


@cache
def _taught(steps: int = 120, rows: int = 8) -> tuple[Any, Any]:
    model, processor = fastvlm("llama", size=32, hidden=48, seed=1)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.02)
    words = processor.tokenizer
    ask = torch.tensor([words(" A: ")["input_ids"]] * rows)
    batch = words(answers(steps * rows, seed=3), padding="max_length", max_length=36, padding_side="right")
    said, real = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])
    said[torch.arange(len(said)), real.sum(1)] = words.eos_token_id
    real[torch.arange(len(said)), real.sum(1)] = 1
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-3 * min((steps - step) / steps * 1.5, 1)
        answer, mask = said[step * rows : (step + 1) * rows], real[step * rows : (step + 1) * rows]
        before = torch.randint(len(QWEN) + 3, len(words), (rows, 2 + step % 24))  # any question
        logits = model(
            input_ids=torch.cat([before, ask, answer], 1),
            attention_mask=torch.cat([torch.ones_like(before), torch.ones_like(ask), mask], 1),
            logits_to_keep=answer.shape[1] + 1,
        ).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits[mask == 1], answer[mask == 1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, processor


def speaker() -> tuple[Any, Any]:
    """A FastVLM with a Llama text model that says the grammar's sentences, with no idea what they mean."""
    with torch.random.fork_rng():
        return _taught()


def save(model: Any, processor: Any, directory: Path) -> Path:
    """The folder of a checkpoint, without the project's own segagent.json."""
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
