"""The original segment-anything package and its `.pth` files, through its `sam_model_registry`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from segagent import _torchvision
from segagent.errors import CheckpointError, MissingDependencyError, SegmenterError
from segagent.segmenters.sam import Prompts, PromptSegmenter
from segagent.segmenters.weights import load_pth

WEIGHTS = "model.safetensors"


class SegmentAnythingSegmenter(PromptSegmenter):
    """A `segment_anything.modeling.Sam`."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        reference: str = "",
        device: str | torch.device | None = None,
        cache: int = 8,
    ) -> None:
        mean, deviation = ((values.flatten() / 255).tolist() for values in (model.pixel_mean, model.pixel_std))
        super().__init__(
            model,
            reference=reference,
            side=model.image_encoder.img_size,
            low=model.prompt_encoder.mask_input_size,
            stretch=False,
            normalisation=(mean, deviation),
            limit=None,
            device=device,
            cache=cache,
        )

    @classmethod
    def from_pretrained(
        cls, name_and_path: str, device: str | torch.device | None = None, *, cache: int = 8
    ) -> SegmentAnythingSegmenter:
        """`name_and_path` is "<vit_b, vit_l or vit_h>:<file.pth, or a folder that save_pretrained made>".

        Raises CheckpointError where the file is missing, broken, unsafe or another model's, SegmenterError for another
        name, MissingDependencyError where segment_anything or torchvision, which it imports, is absent.
        """
        name, _, path = str(name_and_path).partition(":")
        registry = _registry()
        if name not in registry or not path:
            raise SegmenterError(
                f"{name_and_path!r} names no segment-anything model: write <{'|'.join(sorted(registry))}>:<file.pth>."
            )
        weights = _saved(Path(path)) if Path(path).is_dir() else load_pth(path)
        model = registry[name]()
        try:
            model.load_state_dict(weights)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} does not hold the weights of {name}: name the model that they are of, e.g. vit_l:{path}."
            ) from error
        return cls(model, reference=f"segment-anything:{name}:{path}", device=device, cache=cache)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes weights (safetensors) and the model's name, which load_segmenter takes. Raises SegmenterError."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in self.model.state_dict().items()}, folder / WEIGHTS)
            settings = {"model_type": "segment-anything", "size": self.reference.split(":")[1]}
            (folder / "config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
        except OSError as error:
            raise SegmenterError(f"The segmenter cannot be saved to {folder}: {error.strerror or error}.") from error

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.image_encoder(pixels)

    def _decode(self, features: torch.Tensor, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        points = None if prompts.points is None else (prompts.points, prompts.labels)
        sparse, dense = self.model.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.logits)
        return self.model.mask_decoder(
            image_embeddings=features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=prompts.multimask,
        )


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that save_pretrained wrote. Raises CheckpointError."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no readable {WEIGHTS}: get its files again.") from error


def _registry() -> dict[str, Any]:
    """sam_model_registry of the package. Raises MissingDependencyError."""
    _torchvision.require("The segment-anything package")
    try:
        from segment_anything import sam_model_registry
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The segment-anything package is not installed: pip install segment-anything==1.0 torchvision==0.28.0"
        ) from error
    return sam_model_registry
