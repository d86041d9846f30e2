"""How likely a colour is foreground: kernel density estimates over the bins of an image's own colours."""

from __future__ import annotations

import cv2
import numpy as np

BINS = 16  # of each channel
KERNEL = 3.0  # Lab units: standard deviation of the kernel
LIGHTNESS = 0.7  # lightness counts less than hue: shading changes it within one object
FLOOR = 0.15  # share of a uniform density mixed in, so that an unseen colour says nothing
CONFIDENCE = 3.0  # nats: no colour says more than this


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 → CIE Lab float32, its lightness scaled down."""
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab[..., 0] *= LIGHTNESS
    return lab


class Palette:
    """The colour bins of an image, and the two channels along which its colours differ most."""

    def __init__(self, lab: np.ndarray) -> None:
        colours = lab.reshape(-1, 3)
        self._low = colours.min(axis=0)
        self._step = np.maximum((colours.max(axis=0) - self._low) / (BINS - 1e-3), 1.0)
        offsets = np.subtract.outer(np.arange(BINS), np.arange(BINS))
        self._kernels = [np.exp(-((offsets * step) ** 2) / (2 * KERNEL**2)) for step in self._step]
        self._mean = colours.mean(axis=0)
        _, axes = np.linalg.eigh(np.cov(colours.T, ddof=0).astype(np.float64))
        axes *= np.where(axes.sum(axis=0) < 0, -1, 1)  # an eigenvector's sign is arbitrary
        self._axes = axes[:, :0:-1].astype(np.float32)

    def bins(self, lab: np.ndarray) -> np.ndarray:
        """(h, w, 3) → (h, w) int32, the bin of each pixel."""
        index = np.clip(((lab - self._low) / self._step).astype(np.int32), 0, BINS - 1)
        return (index[..., 0] * BINS + index[..., 1]) * BINS + index[..., 2]

    def contrast(self, lab: np.ndarray) -> np.ndarray:
        """(h, w, 3) → (h, w, 2) uint8: what `min_cut` measures differences of neighbours in."""
        return np.clip((lab - self._mean) @ self._axes * 1.5 + 128.5, 0, 255).astype(np.uint8)

    def density(self, bins: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(BINS³,) probabilities of the colours of pixels with these weights, (h, w) each; all zero where no weight is."""
        count = np.bincount(bins.ravel(), weight.ravel(), minlength=BINS**3)
        first, second, third = self._kernels
        smooth = (first @ count.reshape(BINS, -1)).reshape(BINS, BINS, BINS)
        smooth = second @ smooth @ third
        return smooth.ravel() / max(smooth.sum(), 1e-9)


def log_ratio(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(BINS³,) nats by which a colour speaks for the foreground, within ±CONFIDENCE."""
    floor = FLOOR / BINS**3
    return np.clip(np.log((foreground + floor) / (background + floor)), -CONFIDENCE, CONFIDENCE)
