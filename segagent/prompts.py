"""What a vision-language model is given: a user's turn as its chat template writes it, and a batch of these with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from segagent.errors import ImageError


def control_tokens(processor: Any) -> list[str]:
    """The tokens that steer a model, such as an image's placeholder; longest first."""
    tokens = {str(t) for t in processor.tokenizer.added_tokens_decoder.values() if t.special and len(str(t)) > 1}
    return sorted(tokens | set(processor.tokenizer.all_special_tokens), key=len, reverse=True)


def render(processor: Any, text: str) -> str:
    """The prompt of one picture and `text`; tokens that steer a model are words where a user typed them."""
    for token in control_tokens(processor):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return processor.apply_chat_template([message], add_generation_prompt=True)


def encode(
    model: Any, processor: Any, prompts: Sequence[str], images: Sequence[Image.Image]
) -> dict[str, torch.Tensor]:
    """One batch for `model`, a picture a prompt, padded on the left, for decoding goes on at the right. Raises ImageError."""
    try:
        inputs = processor(
            images=[[image] for image in images],
            text=list(prompts),
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # none beyond the template's, as in training with TRL
            return_tensors="pt",
        )
    except ValueError as error:
        raise ImageError(f"The model's processor cannot take this picture: {error}") from error
    return dict(inputs.to(model.device, model.dtype))
