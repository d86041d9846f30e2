"""SimpleClick as a segmenter: zooms in on the object, averages over a flip, takes all candidates in one batch.

The numbers of the zoom are the released evaluation's: after the first click the network sees the previous mask's box grown
1.4 times, at least 200 px, and keeps that crop until a positive click leaves it or the box has become another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from segagent.errors import SegmenterError
from segagent.masks import box_of
from segagent.segmenters.base import EmbeddingCache, Prediction
from segagent.segmenters.weights import load_pretrained
from segagent.types import Box, Click, State

THRESHOLD = 0.49  # of a probability; RITM's and SimpleClick's
GROWTH, LEAST = 1.4, 200  # of the crop: times the box, and px
KEEP = 0.5  # overlap with the box's crop above which the last crop is kept

Crop = tuple[int, int, int, int]  # x0, y0, x1, y1 px of the image, corners inclusive


class Memory(NamedTuple):
    """What the next click wants back."""

    probabilities: np.ndarray  # (S, S) float32, of the crop stretched to the network's input
    crop: Crop


@dataclass(frozen=True, eq=False)
class Encoded:
    image: np.ndarray  # (H, W, 3) uint8
    patches: Callable[
        [Crop], torch.Tensor
    ]  # the image's part of the first layer, (1 or 2 with the flip, C, h, w); cached


class SimpleClickSegmenter:
    """A SimpleClickModel. It takes no boxes: a box becomes a click at its centre on a previous mask that fills it."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        reference: str = "",
        size: int | None = None,
        zoom: bool | None = None,
        flip: bool | None = None,
        device: str | torch.device | None = None,
        cache: int = 8,
    ) -> None:
        """`size` is the side of the network's input in px, a multiple of its patch. All three are by default what the model's
        config says: the size of its training, with zoom and flip."""
        self.reference = reference
        self.size = size or model.config.input_size or int(np.max(model.config.image_size))
        if self.size < 1 or self.size % model.config.patch_size:
            raise SegmenterError(
                f"The input size {self.size} is no multiple of the model's patch, {model.config.patch_size} px."
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device, torch.float32).eval().requires_grad_(False)
        self.zoom = model.config.zoom if zoom is None else zoom
        self.flip = model.config.flip if flip is None else flip
        self.encode = EmbeddingCache(self._encode, cache)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        device: str | torch.device | None = None,
        *,
        num_attention_heads: int | None = None,
        size: int | None = None,
        zoom: bool | None = None,
        flip: bool | None = None,
        cache: int = 8,
        **options: Any,
    ) -> SimpleClickSegmenter:
        """A released `.pth`, or a folder or repository of safetensors; `options` go to the hub.

        Raises CheckpointError, and SegmenterError for options that a file does not take.
        """
        from segagent.segmenters.simpleclick_model import SimpleClickModel

        name = str(name_or_path)
        if name.endswith((".pth", ".pt")):
            if options:
                given = ", ".join(options)
                raise SegmenterError(f"A .pth file takes num_attention_heads, size, zoom and flip, and not {given}.")
            model = SimpleClickModel.from_pretrained(name, num_attention_heads=num_attention_heads)
        else:
            model = load_pretrained(SimpleClickModel, name, **options)
        return cls(model, reference=f"simpleclick:{name}", size=size, zoom=zoom, flip=flip, device=device, cache=cache)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes weights (safetensors) and settings, which `from_pretrained` and load_segmenter take. Raises SegmenterError."""
        self.model.config.update({"input_size": self.size, "zoom": self.zoom, "flip": self.flip})
        try:
            self.model.save_pretrained(folder)
        except OSError as error:
            raise SegmenterError(f"The segmenter cannot be saved to {folder}: {error.strerror or error}.") from error

    def _encode(self, image: np.ndarray) -> Encoded:
        @lru_cache(maxsize=4)
        @torch.inference_mode()
        def patches(crop: Crop) -> torch.Tensor:
            pixels = torch.from_numpy(_sample(image, *self._positions(crop))).permute(2, 0, 1)[None] / 255
            both = torch.cat([pixels, pixels.flip(-1)]) if self.flip else pixels
            return self.model.embed_image(both.to(self.device))

        return Encoded(image, patches)

    @torch.inference_mode()
    def predict(self, embedding: Encoded, states: Sequence[State], actions: Sequence[Click | Box]) -> list[Prediction]:
        """One prediction a pair, all in one call of the network."""
        pairs = list(zip(states, actions, strict=True))
        if not pairs:
            return []
        clicks = [[_as_click(a, s.size) for a in (*s.actions, action)] for s, action in pairs]
        crops = [self._crop(s, a, c) for (s, a), c in zip(pairs, clicks, strict=True)]
        points = torch.from_numpy(self._points(clicks, crops)).to(self.device)
        previous = np.stack([self._previous(s, a, crop) for (s, a), crop in zip(pairs, crops, strict=True)])
        previous = torch.from_numpy(previous)[:, None].to(self.device)
        patches = torch.stack([embedding.patches(crop) for crop in crops], dim=1).flatten(0, 1)
        if self.flip:
            mirrored = points.clone()
            mirrored[..., 1] = torch.where(points[..., 2] < 0, -1, self.size - 1 - points[..., 1])
            points, previous = torch.cat([points, mirrored]), torch.cat([previous, previous.flip(-1)])
        logits = self.model(points=points, previous=previous, image_embeddings=patches)[:, 0]
        if self.flip:  # the mean is of the logits
            plain, flipped = logits.chunk(2)
            logits = (plain + flipped.flip(-1)) / 2
        probabilities = logits.sigmoid()
        return [
            Prediction(_paste(p, crop, embedding.image.shape[:2]), Memory(p.cpu().numpy().copy(), crop))
            for p, crop in zip(probabilities, crops, strict=True)
        ]

    def _positions(self, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, px of the image, of the network's input pixels: the crop's outer pixels on its outer pixels."""
        x0, y0, x1, y1 = crop
        return np.linspace(y0, y1, self.size), np.linspace(x0, x1, self.size)

    def _crop(self, state: State, action: Click | Box, clicks: Sequence[Click]) -> Crop:
        """What of the image the network sees."""
        height, width = state.size
        x0, y0, x1, y1 = 0, 0, width - 1, height - 1
        if not self.zoom:
            return x0, y0, x1, y1
        inside = [(round(c.x), round(c.y)) for c in clicks if c.positive]
        region = _box_pixels(action, state.size) if isinstance(action, Box) else box_of(state.mask)
        if region is not None:
            xs, ys = [region[0], region[2], *(x for x, _ in inside)], [region[1], region[3], *(y for _, y in inside)]
            (x0, x1), (y0, y1) = _grow(min(xs), max(xs), width), _grow(min(ys), max(ys), height)
        last = state.memory.crop if isinstance(state.memory, Memory) else None
        if last is not None and all(last[0] <= x < last[2] and last[1] <= y < last[3] for x, y in inside):
            overlap = _overlap((x0, x1), (last[0], last[2])) * _overlap((y0, y1), (last[1], last[3]))
            if overlap >= KEEP:
                return last
        return x0, y0, x1, y1

    def _points(self, clicks: Sequence[Sequence[Click]], crops: Sequence[Crop]) -> np.ndarray:
        """(K, 2N, 3) float32 rows (y, x, order) px of the network's input, positive ones first; (-1, -1, -1) for none."""
        most = max(sum(c.positive == sign for c in row) for row in clicks for sign in (True, False))
        points = np.full((len(clicks), 2, most, 3), -1, dtype=np.float32)
        for row, crop, out in zip(clicks, crops, points, strict=True):
            x0, y0, x1, y1 = crop
            # Not the scale of the pixels, (S - 1) / (length - 1), but what the released models are used with.
            scale_x, scale_y = self.size / (x1 - x0 + 1), self.size / (y1 - y0 + 1)
            taken = [0, 0]
            for order, click in enumerate(row):
                kind = 0 if click.positive else 1
                out[kind, taken[kind]] = (click.y - y0) * scale_y, (click.x - x0) * scale_x, order
                taken[kind] += 1
        return points.reshape(len(clicks), 2 * most, 3)

    def _previous(self, state: State, action: Click | Box, crop: Crop) -> np.ndarray:
        """(S, S) float32: the last probabilities in the crop, by way of the image's pixels, as the released models are used;
        or the mask's 0 and 1 where no network made it."""
        rows, columns = self._positions(crop)
        if isinstance(action, Box):
            x0, y0, x1, y1 = _box_pixels(action, state.size)
            filled = ((rows >= y0) & (rows <= y1))[:, None] & ((columns >= x0) & (columns <= x1))
            return filled.astype(np.float32)
        if not isinstance(state.memory, Memory):
            return _sample(state.mask, rows, columns)
        probabilities, (x0, y0, x1, y1) = state.memory
        whole = np.pad(_enlarged(torch.from_numpy(probabilities), (y1 - y0 + 1, x1 - x0 + 1)).numpy(), 1)  # 0 outside
        ends = np.array(whole.shape) - 1
        return _sample(whole, (rows - y0 + 1).clip(0, ends[0]), (columns - x0 + 1).clip(0, ends[1]))


def _as_click(action: Click | Box, size: tuple[int, int]) -> Click:
    """A click on a pixel's centre or between centres, never outside the outer ones; `size` is (H, W)."""
    if isinstance(action, Box):
        action = Click((action.x0 + action.x1) / 2, (action.y0 + action.y1) / 2)
    return Click(min(max(action.x, 0), size[1] - 1), min(max(action.y, 0), size[0] - 1), action.positive)


def _box_pixels(box: Box, size: tuple[int, int]) -> Crop:
    """The pixels that a box covers; `size` is (H, W)."""
    (x0, x1), (y0, y1) = (
        np.clip(np.rint(ends), 0, length - 1).astype(int).tolist()
        for ends, length in (((box.x0, box.x1), size[1]), ((box.y0, box.y1), size[0]))
    )
    return x0, y0, x1, y1


def _grow(first: int, last: int, length: int) -> tuple[int, int]:
    """The ends of one side of the crop, grown about its centre and cut at the image's edges."""
    centre, half = (first + last) / 2, max(GROWTH * (last - first + 1), LEAST) / 2
    return max(0, round(centre - half)), min(length - 1, round(centre + half))


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Intersection over union of two ranges with inclusive ends."""
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]) + 1)
    return shared / (a[1] - a[0] + b[1] - b[0] + 2 - shared)


def _sample(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values of (H, W, …) at the grid of rows × columns → float32. Reads four pixels a value, however large H, W."""

    def split(positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        below = np.floor(positions).astype(int).clip(0, length - 1)
        return below, (below + 1).clip(max=length - 1), (positions - below).astype(np.float32)

    top, bottom, down = split(rows, array.shape[0])
    left, right, across = split(columns, array.shape[1])
    down, across = (w.reshape(s + (1,) * (array.ndim - 2)) for w, s in ((down, (-1, 1)), (across, (1, -1))))

    def line(ys: np.ndarray) -> np.ndarray:
        picked = array[ys]
        return picked[:, left] * (1 - across) + picked[:, right] * across

    return line(top) * (1 - down) + line(bottom) * down


def _enlarged(probabilities: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(S, S) → `shape`, the outer pixels on the outer pixels."""
    return functional.interpolate(probabilities[None, None], shape, mode="bilinear", align_corners=True)[0, 0]


def _paste(probabilities: torch.Tensor, crop: Crop, size: tuple[int, int]) -> np.ndarray:
    """Probabilities (S, S) of a crop → mask (H, W) bool at the image's resolution, False outside the crop."""
    x0, y0, x1, y1 = crop
    enlarged = _enlarged(probabilities, (y1 - y0 + 1, x1 - x0 + 1))
    mask = np.zeros(size, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = (enlarged > THRESHOLD).cpu().numpy()
    return mask
