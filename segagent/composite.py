"""The one picture that a policy sees of a state: the image with its mask painted on (paper, section 3.2)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from PIL import Image

from segagent.masks import OVERLAY_COLORS, overlay
from segagent.policy import Observation
from segagent.segmenters.base import EmbeddingCache

SMALLEST = 8  # px, the shorter side of what a processor gets; some mistake a height of 1 or 3 for colour channels


class Painter:
    """Paints for one processor. Where that shrinks every picture to one small size, large images are shrunk before, once each."""

    def __init__(self, color: str, alpha: float, seen: tuple[int, int] | None) -> None:
        """`seen` is the (height, width) that the processor makes of any picture, or None where it depends on the picture."""
        self._color, self._alpha = color, alpha
        self._enough = None if seen is None else 2 * max(seen)
        self._shrunk = EmbeddingCache(self._shrink)

    def __call__(self, observation: Observation) -> Image.Image:
        image, mask = observation.image, observation.mask
        if self._factor(image) > 1:
            return Image.fromarray(self._paint_small(self._shrunk(image), mask))
        painted = overlay(image, mask, self._color, self._alpha)
        growth = -(-SMALLEST // min(painted.shape[:2]))
        if growth > 1:
            painted = painted.repeat(growth, axis=0).repeat(growth, axis=1)
        return Image.fromarray(painted)

    def _factor(self, image: np.ndarray) -> int:
        """By how much the image can shrink and still have twice the pixels a side that the model sees."""
        return 1 if self._enough is None else max(1, min(image.shape[:2]) // self._enough)

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        factor = self._factor(image)
        size = image.shape[1] // factor, image.shape[0] // factor
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def _paint_small(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A pixel that the mask covers in part is painted in part, as if the full image had been painted and then shrunk."""
        covered = cv2.resize(mask.view(np.uint8) * np.uint8(255), image.shape[1::-1], interpolation=cv2.INTER_AREA)
        weight = covered[..., None].astype(np.float32) * (self._alpha / 255)
        color = np.array(OVERLAY_COLORS[self._color], np.float32)
        return np.rint(image + weight * (color - image)).astype(np.uint8)


def size_seen(processor: Any) -> tuple[int, int] | None:
    """The (height, width) px that an image processor makes of any picture; None where that depends on the picture."""
    shapes = set()
    for size in ((64, 96), (160, 128)):
        values = processor(images=[Image.new("RGB", size)], return_tensors="np")["pixel_values"]
        shapes.add(np.shape(values))
    shape = shapes.pop()
    return shape[2:] if not shapes and len(shape) == 4 and shape[0] == 1 else None
