"""Makes an untrained segagent-nano: a vision-language model of standard transformers classes, small enough for two CPU cores.

    python -m train.nano --out runs/nano/untrained

A ResNet tower (stride 16) → a projector → a four-layer Llama, as `FastVlmForConditionalGeneration`. Three choices make it
learn from nothing: the expression comes before the image, so that the image's tokens already know what is asked for; the
tower is deep enough at its last stage for the zero padding to tell each cell its place; digits are single tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from segagent._torchvision import mend
from segagent.grammar import Grammar
from train.command import as_command

INPUT = 160  # px, the side of the model's square input
STRIDE = 16  # px, of one image token
# Whole phrases of the grammar as single tokens: a shorter answer is a faster one.
PHRASES = ("Current mIoU: ", ". Positive point: (", ". Negative point: (", ". Box: (", ", ", "), (", ")", ".")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}{% endif %}"
    "{% else %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<eos>"
    "{% endif %}{% endfor %}"
)


def grammar() -> Grammar:
    """nano's: the expression alone is the prompt, for it has no instructions to understand."""
    return Grammar(prompt="{expression}")


def make_tokenizer(expressions: list[str], vocabulary: int = 640):
    """Byte-level BPE (any text can be said) learnt from `expressions`; digits and the grammar's phrases are single tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        expressions,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<pad>", "<eos>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )


def make_processor(tokenizer, size: int = INPUT):
    """The picture is squeezed to a square: coordinates are relative to width and height, so nothing is lost but shape."""
    mend()
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"height": size, "width": size}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer, width: int = 192, layers: int = 4):
    """An untrained model; about 4 M parameters."""
    mend()
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlamaConfig, ResNetConfig

    vision = ResNetConfig(embedding_size=32, hidden_sizes=[32, 80, 192], depths=[1, 2, 3], layer_type="basic")
    vision.hidden_size = vision.hidden_sizes[-1]  # the projector reads it
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=round(width * 8 / 3),
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = FastVlmConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(INPUT // STRIDE) ** 2,
        tie_word_embeddings=False,
    )
    model = FastVlmForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=192, help="of the text model; a multiple of 32")
    parser.add_argument("--layers", type=int, default=4, help="of the text model")
    parser.add_argument(
        "--scenes", type=int, default=400, help="of HRES-Synth's train whose words the tokenizer learns"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    import torch

    from segagent.data import hres_synth

    torch.manual_seed(args.seed)
    scenes = hres_synth("train")
    tokenizer = make_tokenizer([text for i in range(args.scenes) for text, _, _ in scenes.scene(i)[1]])
    model = make_model(tokenizer, args.width, args.layers)
    model.save_pretrained(args.out)
    make_processor(tokenizer).save_pretrained(args.out)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{args.out}: {count:.2f} M parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    as_command(main)
