"""ClickNet as a segmenter: as SimpleClick zooms in and batches, and it looks twice at the first click.

There are no embedded weights: `python -m train.clicknet` makes them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from segagent.segmenters.base import Prediction
from segagent.segmenters.simpleclick import Encoded, SimpleClickSegmenter
from segagent.segmenters.weights import load_pretrained
from segagent.types import Box, Click, State


class ClickNetSegmenter(SimpleClickSegmenter):
    """A ClickNetModel. Where a click begins a mask, the network looks again, at what it found in the whole image."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        device: str | torch.device | None = None,
        *,
        size: int | None = None,
        zoom: bool | None = None,
        flip: bool | None = None,
        cache: int = 8,
        **options: Any,
    ) -> ClickNetSegmenter:
        """A folder or repository of safetensors; `options` go to the hub. Raises CheckpointError."""
        from segagent.segmenters.clicknet_model import ClickNetModel

        name = str(name_or_path)
        model = load_pretrained(ClickNetModel, name, **options).to(memory_format=torch.channels_last)
        return cls(model, reference=f"clicknet:{name}", size=size, zoom=zoom, flip=flip, device=device, cache=cache)

    def predict(self, embedding: Encoded, states: Sequence[State], actions: Sequence[Click | Box]) -> list[Prediction]:
        """One prediction a pair, in one call of the network, and a second for the pairs that begin a mask."""
        predictions = super().predict(embedding, states, actions)
        if not self.zoom:
            return predictions
        begun = [
            i
            for i, (state, action) in enumerate(zip(states, actions, strict=True))
            if isinstance(action, Click) and not state.mask.any() and predictions[i].mask.any()
        ]
        found = [replace(states[i], mask=predictions[i].mask, memory=predictions[i].memory) for i in begun]
        for i, again in zip(begun, super().predict(embedding, found, [actions[i] for i in begun]), strict=True):
            predictions[i] = again
        return predictions
