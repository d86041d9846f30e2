"""The Segment Anything family through transformers: SAM, SAM-HQ, SAM 2 and the SAM 3 tracker, by name or path.

What they share: an image encoder run once an image, and a light mask decoder run at every click on points, a box and the
low-resolution logits of the previous mask. The first click is ambiguous, so the decoder is asked for several masks and the
one of the highest predicted IoU is kept; from then on it gives one mask and is fed the logits of the last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from segagent import _torchvision
from segagent.errors import SegmenterError
from segagent.segmenters.base import EmbeddingCache, Prediction
from segagent.segmenters.weights import faults_of, load_pretrained, normalisation_of
from segagent.types import Box, Click, State

MASK_LOGIT = 10.0  # what stands for "surely" where a mask without logits is fed back
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Family:
    """What differs between the models."""

    model: str  # class in transformers
    stretch: bool  # the image is stretched to the square input; else its longest side fills it and zeros pad the rest
    normalisation: tuple[
        tuple[float, ...], tuple[float, ...]
    ]  # mean, deviation of RGB in [0, 1]; the checkpoint's go first
    limit: float | None  # logits are clamped to ±limit before they are fed back


_SAM2 = Family("Sam2Model", True, IMAGENET, 32.0)
_SAM3 = Family("Sam3TrackerModel", True, HALF, 32.0)
FAMILIES = {  # by config.model_type; the published checkpoints of SAM 2 and 3 carry their video model's
    "sam": Family("SamModel", False, IMAGENET, None),
    "sam_hq": Family("SamHQModel", False, IMAGENET, None),
    "sam2": _SAM2,
    "sam2_video": _SAM2,
    "sam3_tracker": _SAM3,
    "sam3_tracker_video": _SAM3,
    "sam3_video": _SAM3,
}


@dataclass(frozen=True)
class Geometry:
    """Between the pixels of an image and a model's square input and low-resolution masks."""

    size: tuple[int, int]  # (H, W) of the image
    side: int  # px of the input
    low: tuple[int, int]  # (h, w) of the masks that the decoder takes and gives
    stretch: bool

    @property
    def covered(self) -> tuple[int, int]:
        """(height, width) of the input that the image covers, from its top-left corner."""
        if self.stretch:
            return self.side, self.side
        scale = self.side / max(self.size)
        return max(1, int(self.size[0] * scale + 0.5)), max(1, int(self.size[1] * scale + 0.5))

    def pixels(self, image: np.ndarray, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        """image (H, W, 3) uint8 → (1, 3, side, side) float32; mean and deviation (3, 1, 1)."""
        height, width = self.covered
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        tensor = (torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 255 - mean) / deviation
        return functional.pad(tensor, (0, self.side - width, 0, self.side - height))[None]

    def points(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        """(x, y) pixels of the image → (N, 2) float32 pixels of the input, scaled as the released predictors scale them."""
        scale = np.array(self.covered[::-1]) / np.array(self.size[::-1])
        return (np.array(points, dtype=np.float64).reshape(-1, 2) * scale).astype(np.float32)

    def logits(self, mask: np.ndarray) -> np.ndarray:
        """mask (H, W) bool → logits (h, w) float32, ±MASK_LOGIT and between where a cell is half covered."""
        tensor = torch.from_numpy(mask.astype(np.float32))[None, None]
        tensor = functional.interpolate(tensor, self.covered, mode="bilinear", antialias=True)
        tensor = functional.pad(tensor, (0, self.side - tensor.shape[-1], 0, self.side - tensor.shape[-2]))
        return ((functional.adaptive_avg_pool2d(tensor, self.low)[0, 0] * 2 - 1) * MASK_LOGIT).numpy()

    def mask(self, logits: torch.Tensor) -> np.ndarray:
        """logits (h, w) → mask (H, W) bool, thresholded at the image's resolution."""
        logits = logits[None, None]
        if not self.stretch:
            height, width = self.covered
            logits = functional.interpolate(logits, (self.side, self.side), mode="bilinear")[..., :height, :width]
        return (functional.interpolate(logits, self.size, mode="bilinear")[0, 0] > 0).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Encoded:
    geometry: Geometry
    features: Any  # the model's own, on its device


@dataclass(frozen=True, eq=False)
class Prompts:
    """Of K candidates that have the same kinds of prompt, in pixels of the model's input."""

    points: torch.Tensor | None  # (K, N, 2) float32
    labels: torch.Tensor | None  # (K, N) int64, 1 positive, 0 negative
    boxes: torch.Tensor | None  # (K, 4) float32
    logits: torch.Tensor | None  # (K, 1, h, w) float32
    multimask: bool


class PromptSegmenter(ABC):
    """Points, box and previous logits to masks; a subclass says how its model encodes an image and decodes prompts."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        reference: str,
        side: int,
        low: tuple[int, int],
        stretch: bool,
        normalisation: tuple[Sequence[float], Sequence[float]],
        limit: float | None,
        device: str | torch.device | None = None,
        cache: int = 8,
    ) -> None:
        self.reference = reference
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device, torch.float32).eval().requires_grad_(False)
        self._side, self._low, self._stretch, self._limit = side, tuple(low), stretch, limit
        self._mean, self._deviation = (torch.tensor(values).view(3, 1, 1) for values in normalisation)
        self.encode = EmbeddingCache(self._encode, cache)

    @abstractmethod
    def _features(self, pixels: torch.Tensor) -> Any:
        """pixels (1, 3, side, side) → the model's image embedding."""

    @abstractmethod
    def _decode(self, features: Any, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        """One call of the mask decoder → logits (K, M, h, w) and predicted IoUs (K, M)."""

    @torch.inference_mode()
    def _encode(self, image: np.ndarray) -> Encoded:
        geometry = Geometry(image.shape[:2], self._side, self._low, self._stretch)
        pixels = geometry.pixels(image, self._mean, self._deviation).to(self.device)
        return Encoded(geometry, self._features(pixels))

    @torch.inference_mode()
    def predict(self, embedding: Encoded, states: Sequence[State], actions: Sequence[Click | Box]) -> list[Prediction]:
        """One prediction a pair. Candidates with as many clicks share one call of the decoder (those of one state do).

        Others get a call of their own: the padding that the models know is no mask, the decoder attends to it, so a padded
        candidate's result would depend on what shares its batch.
        """
        groups: dict[tuple, list[int]] = {}
        rows = [self._prompt(embedding.geometry, s, a) for s, a in zip(states, actions, strict=True)]
        for i, (points, _, box, logits) in enumerate(rows):
            groups.setdefault((len(points), box is None, logits is None), []).append(i)
        results: dict[int, Prediction] = {}
        for members in groups.values():
            logits, scores = self._decode(embedding.features, self._stack([rows[i] for i in members]))
            best = logits[torch.arange(len(members), device=logits.device), scores.argmax(dim=1)]  # (K, h, w)
            memory = best if self._limit is None else best.clamp(-self._limit, self._limit)
            for i, low, remembered in zip(members, best, memory.float().cpu().numpy(), strict=True):
                results[i] = Prediction(embedding.geometry.mask(low), remembered.copy())
        return [results[i] for i in range(len(rows))]

    def _prompt(self, geometry: Geometry, state: State, action: Click | Box) -> tuple:
        """points (N, 2), labels (N,), box (4,) or None (the last one given), logits (h, w) or None."""
        history = (*state.actions, action)
        clicks = [a for a in history if isinstance(a, Click)]
        boxes = [a for a in history if isinstance(a, Box)]
        points = geometry.points([(c.x, c.y) for c in clicks])
        labels = np.array([int(c.positive) for c in clicks], dtype=np.int64)
        box = geometry.points([(boxes[-1].x0, boxes[-1].y0), (boxes[-1].x1, boxes[-1].y1)]).ravel() if boxes else None
        logits = state.memory
        if not isinstance(logits, np.ndarray) or logits.shape != self._low:
            # The start of a run, or of a refinement, or another segmenter's state: all that is known is the mask.
            logits = geometry.logits(state.mask) if state.mask.any() else None
        return points, labels, box, logits

    def _stack(self, rows: list[tuple]) -> Prompts:
        points, labels, boxes, logits = (
            None if column[0] is None else torch.from_numpy(np.stack(column)).to(self.device)
            for column in zip(*rows, strict=True)
        )
        clicks = points.shape[1]
        return Prompts(
            points if clicks else None,
            labels if clicks else None,
            boxes,
            None if logits is None else logits[:, None].float(),
            multimask=clicks == 1 and boxes is None and logits is None,
        )


class SamSegmenter(PromptSegmenter):
    """A SamModel, SamHQModel, Sam2Model or Sam3TrackerModel."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        family: Family,
        reference: str = "",
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
        device: str | torch.device | None = None,
        cache: int = 8,
        hq_token_only: bool = False,
    ) -> None:
        """`hq_token_only` is SAM-HQ's: its high-quality mask alone, without the ordinary one added to it; SegmenterError for others."""
        if hq_token_only and model.config.model_type != "sam_hq":
            raise SegmenterError(
                f"hq_token_only is an option of SAM-HQ, and this is a {model.config.model_type} model."
            )
        self._hq_only = {"hq_token_only": True} if hq_token_only else {}
        encoder = model.prompt_encoder
        super().__init__(
            model,
            reference=reference,
            side=encoder.input_image_size,
            low=tuple(4 * n for n in encoder.image_embedding_size),
            stretch=family.stretch,
            normalisation=normalisation or family.normalisation,
            limit=family.limit,
            device=device,
            cache=cache,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        device: str | torch.device | None = None,
        *,
        cache: int = 8,
        hq_token_only: bool = False,
        **options: Any,
    ) -> SamSegmenter:
        """A checkpoint of the hub or a folder; `options` go to the hub (revision, token, cache_dir, …).

        Raises CheckpointError where there is none or it is broken, SegmenterError where it is of another kind of model.
        """
        _torchvision.mend()
        import transformers

        name = str(name_or_path)
        with faults_of(name):
            config = transformers.AutoConfig.from_pretrained(name, **options)
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise SegmenterError(
                f"{name} is a {config.model_type} model: give a checkpoint of {', '.join(sorted(FAMILIES))}."
            )
        model = load_pretrained(getattr(transformers, family.model), name, **options)
        return cls(
            model,
            family=family,
            reference=f"sam:{name}",
            normalisation=normalisation_of(name, **options),
            device=device,
            cache=cache,
            hq_token_only=hq_token_only,
        )

    def _features(self, pixels: torch.Tensor) -> Any:
        return self.model.get_image_embeddings(pixels)

    def _decode(self, features: Any, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        # Candidates lie along the batch axis: only there can each have logits of its own.
        count = len(prompts.points if prompts.points is not None else prompts.boxes)
        more = dict(self._hq_only)
        if isinstance(features, tuple):  # SAM-HQ: the embedding, and the first layers' features for its own head
            features, more["intermediate_embeddings"] = features
        if isinstance(features, list):  # SAM 2 and 3: the finer levels too
            features = [level.expand(count, -1, -1, -1) for level in features]
        else:
            features = features.expand(count, -1, -1, -1)
        output = self.model(
            image_embeddings=features,
            input_points=None if prompts.points is None else prompts.points[:, None],
            input_labels=None if prompts.labels is None else prompts.labels[:, None],
            input_boxes=None if prompts.boxes is None else prompts.boxes[:, None],
            input_masks=prompts.logits,
            multimask_output=prompts.multimask,
            **more,
        )
        masks = output.pred_masks[:, 0]
        return masks, output.iou_scores[:, 0, : masks.shape[1]]  # SAM-HQ's own mask is one, with the scores of three
