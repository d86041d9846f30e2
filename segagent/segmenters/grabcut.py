"""The embedded default: OpenCV's GrabCut (Rother et al., 2004) driven by clicks and boxes. No weights, CPU only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segagent.segmenters.base import EmbeddingCache, Prediction
from segagent.types import Box, Click, State


@dataclass(frozen=True, slots=True, eq=False)
class Small:
    """An image at working size."""

    size: tuple[int, int]  # (H, W) of the original
    rgb: np.ndarray  # (h, w, 3) uint8


class GrabCutSegmenter:
    reference = "grabcut"

    def __init__(self, longest: int = 256, iterations: int = 2, radius: int = 4) -> None:
        self._longest, self._iterations, self._radius = longest, iterations, radius
        self._cache = EmbeddingCache(self._encode)

    def encode(self, image: np.ndarray) -> Small:
        return self._cache(image)

    def predict(self, embedding: Small, states: Sequence[State], actions: Sequence[Click | Box]) -> list[Prediction]:
        return [Prediction(self._one(embedding, s, a)) for s, a in zip(states, actions, strict=True)]

    def _encode(self, image: np.ndarray) -> Small:
        height, width = image.shape[:2]
        scale = min(1.0, self._longest / max(height, width))
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        return Small((height, width), cv2.resize(image, small, interpolation=cv2.INTER_AREA))

    def _one(self, embedding: Small, state: State, action: Click | Box) -> np.ndarray:
        (height, width), (h, w) = embedding.size, embedding.rgb.shape[:2]
        previous = cv2.resize(state.mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_AREA)
        labels = np.where(previous > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        for a in (*state.actions, action):
            if isinstance(a, Box):
                x0, y0, x1, y1 = a.x0 * w / width, a.y0 * h / height, a.x1 * w / width, a.y1 * h / height
                inside = np.zeros((h, w), bool)
                inside[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
                labels[~inside] = cv2.GC_BGD
                if not previous.any():
                    labels[inside] = cv2.GC_PR_FGD
            else:
                centre = (int((a.x + 0.5) * w / width), int((a.y + 0.5) * h / height))
                cv2.circle(labels, centre, self._radius, cv2.GC_FGD if a.positive else cv2.GC_BGD, -1)
        if not previous.any() and isinstance(action, Click) and action.positive:
            # Nothing is known of the object but one pixel: begin with what lies around it.
            around = np.zeros((h, w), np.uint8)
            cv2.circle(
                around, (int((action.x + 0.5) * w / width), int((action.y + 0.5) * h / height)), max(h, w) // 6, 1, -1
            )
            labels[(around > 0) & (labels == cv2.GC_PR_BGD)] = cv2.GC_PR_FGD
        known = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
        if known.any() and not known.all():
            cv2.setRNGSeed(0)  # its k-means draws from the calling thread's generator
            models = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.grabCut(embedding.rgb, labels, None, *models, self._iterations, cv2.GC_INIT_WITH_MASK)
            known = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
        mask = cv2.resize(known.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR) > 0
        for a in (*state.actions, action):
            if isinstance(a, Click):
                mask[int(a.y + 0.5), int(a.x + 0.5)] = a.positive
        return mask
