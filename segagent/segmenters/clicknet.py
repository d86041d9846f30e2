"""ClickNet as a segmenter: the classical segmenter, its evidence corrected by a small network before it is cut.

So what holds of the classical one holds of it: clicked pixels keep their label, and of a correction only the connected part
with the click is taken over. Embedded weights are in segagent/clicknet; `python -m train.clicknet` makes others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segagent.errors import CheckpointError, SegmenterError
from segagent.segmenters.classical.evidence import Evidence
from segagent.segmenters.classical.views import Embedding
from segagent.segmenters.clicknet_maps import MAPS, maps_of
from segagent.segmenters.grabcut import GrabCutSegmenter
from segagent.segmenters.weights import load_pretrained
from segagent.types import Box, Click

EMBEDDED = Path(__file__).parents[1] / "clicknet"


class ClickNetSegmenter(GrabCutSegmenter):
    """A ClickNetModel around the classical segmenter. It looks once at a correcting click, at the coarser view; beginnings
    are the classical segmenter's."""

    def __init__(
        self, model: torch.nn.Module, *, reference: str = "", device: str | torch.device | None = None
    ) -> None:
        super().__init__()
        self.reference = reference
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device, torch.float32, memory_format=torch.channels_last).eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike = EMBEDDED, device: str | torch.device | None = None, **options: Any
    ) -> ClickNetSegmenter:
        """A folder or repository of safetensors, by default the embedded one; `options` go to the hub. Raises CheckpointError."""
        from segagent.segmenters.clicknet_model import ClickNetModel

        name = str(name_or_path)
        model = load_pretrained(ClickNetModel, name, **options).requires_grad_(False)
        if tuple(model.config.maps) != MAPS:
            raise CheckpointError(f"{name} is a ClickNet for other maps than this version makes: train it again.")
        reference = "clicknet" if name_or_path == EMBEDDED else f"clicknet:{name}"
        return cls(model, reference=reference, device=device)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes weights (safetensors) and settings, which `from_pretrained` and load_segmenter take. Raises SegmenterError."""
        try:
            self.model.save_pretrained(folder)
        except OSError as error:
            raise SegmenterError(f"The segmenter cannot be saved to {folder}: {error.strerror or error}.") from error

    def adjust(
        self, embedding: Embedding, evidence: Evidence, mask: np.ndarray, actions: Sequence[Click | Box]
    ) -> Evidence:
        """The evidence with what the network says of it; that of a beginning as it is, of which the network knows no better."""
        return (
            evidence if evidence.keep is None else self.corrected(evidence, maps_of(embedding, evidence, mask, actions))
        )

    @torch.inference_mode()
    def corrected(self, evidence: Evidence, maps: np.ndarray) -> Evidence:
        """The evidence with what the network says of its maps, by the strength in its config."""
        learned = self.model(torch.from_numpy(maps)[None].to(self.device))[0].cpu().numpy()
        return replace(evidence, learned=self.model.config.strength * learned)
