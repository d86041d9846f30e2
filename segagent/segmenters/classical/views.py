"""A picture at working sizes: windows of it, resampled to a bounded area, and what is computed once for all clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segagent.segmenters.classical.palette import Palette, to_lab
from segagent.segmenters.classical.superpixels import Superpixels

AREA = 20_000  # px of a working image

Window = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the image; the last two exclusive


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A window of the image, resampled."""

    window: Window
    lab: np.ndarray  # (h, w, 3) float32
    bins: np.ndarray  # (h, w) int32
    contrast: np.ndarray  # (h, w, 2) uint8

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.bins.shape

    @property
    def scale(self) -> float:
        """Pixels of the view for one pixel of the image, along an axis."""
        x0, y0, x1, y1 = self.window
        return float(np.sqrt(self.bins.size / ((x1 - x0) * (y1 - y0))))

    def holds(self, x: float, y: float) -> bool:
        """Whether a point of the image lies in the window."""
        x0, y0, x1, y1 = self.window
        return x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1

    def point(self, x: float, y: float) -> tuple[int, int]:
        """(column, row) of the view's pixel that holds a point of the image; of the nearest where it lies outside."""
        (h, w), (x0, y0, x1, y1) = self.size, self.window
        column, row = int((x + 0.5 - x0) * w / (x1 - x0)), int((y + 0.5 - y0) * h / (y1 - y0))
        return min(max(column, 0), w - 1), min(max(row, 0), h - 1)

    def down(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) of the image → (h, w) bool; what is too small for half a pixel is kept where all is."""
        x0, y0, x1, y1 = self.window
        part = mask[y0:y1, x0:x1]
        if part.shape == self.size:
            return part
        share = cv2.resize(part.astype(np.float32), self.size[::-1], interpolation=cv2.INTER_AREA)
        half = share >= 0.5
        return half if half.any() else share > 0

    def up(self, mask: np.ndarray) -> np.ndarray:
        """A mask (h, w) → (bottom − top, right − left) bool."""
        x0, y0, x1, y1 = self.window
        if mask.shape == (y1 - y0, x1 - x0):
            return mask
        return cv2.resize(mask.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) >= 0.5

    def crop(self, values: np.ndarray, part: View) -> np.ndarray:
        """Values (h, w) float32 of this view → those at the pixels of `part`, a view of a window inside this one's."""
        if part is self:
            return values
        x0, y0, x1, y1 = self.window
        scale_x, scale_y = self.size[1] / (x1 - x0), self.size[0] / (y1 - y0)
        step_x = (part.window[2] - part.window[0]) * scale_x / part.size[1]
        step_y = (part.window[3] - part.window[1]) * scale_y / part.size[0]
        # Where the centre of the part's first pixel lies among the centres of this view's.
        x = (part.window[0] - x0) * scale_x + step_x / 2 - 0.5
        y = (part.window[1] - y0) * scale_y + step_y / 2 - 0.5
        places = np.array([[step_x, 0, x], [0, step_y, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(values, places, part.size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    pyramid: tuple[np.ndarray, ...]  # the image (H, W, 3) uint8 and its halvings
    palette: Palette
    whole: View
    superpixels: Superpixels  # of `whole`

    def view(self, window: Window, area: int = AREA) -> View:
        """A window resampled to at most `area` px."""
        return _view(to_lab(_resample(self.pyramid, window, area)), window, self.palette)


def encode(image: np.ndarray) -> Embedding:
    """image (H, W, 3) uint8 RGB → all that the clicks on it share."""
    pyramid = [image]
    while pyramid[-1].shape[0] * pyramid[-1].shape[1] > 8 * AREA and min(pyramid[-1].shape[:2]) > 1:
        height, width = pyramid[-1].shape[:2]
        size = (width + 1) // 2, (height + 1) // 2
        pyramid.append(cv2.resize(pyramid[-1], size, interpolation=cv2.INTER_AREA))
    window = (0, 0, image.shape[1], image.shape[0])
    rgb = _resample(pyramid, window, AREA)
    lab = to_lab(rgb)
    palette = Palette(lab)
    return Embedding(tuple(pyramid), palette, _view(lab, window, palette), Superpixels(rgb, lab))


def _view(lab: np.ndarray, window: Window, palette: Palette) -> View:
    return View(window, lab, palette.bins(lab), palette.contrast(lab))


def _resample(pyramid: Sequence[np.ndarray], window: Window, area: int) -> np.ndarray:
    """(h, w, 3) uint8: the window at `area` px or its own size, shrunk from the smallest level that is larger."""
    x0, y0, x1, y1 = window
    scale = min(1.0, (area / ((x1 - x0) * (y1 - y0))) ** 0.5)
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    level = max(i for i in range(len(pyramid)) if i == 0 or scale <= 0.5**i)
    n = 2**level
    part = pyramid[level][y0 // n : max(-(-y1 // n), y0 // n + 1), x0 // n : max(-(-x1 // n), x0 // n + 1)]
    return part if part.shape[1::-1] == size else cv2.resize(part, size, interpolation=cv2.INTER_AREA)
