"""Superpixels by watershed, and geodesic distances over their graph."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

SIDE = 4  # px between the markers of two superpixels
EDGE = 8.0  # Lab units: differences count by their square, relative to this, so that texture adds up to little
STRAIGHT = 0.2  # what a pixel of way costs beside the colour differences

FAR = 1e3  # the distance where there is nothing to measure from


class Superpixels:
    """Of an image in (scaled) Lab, (h, w, 3) float32.

    labels: (h, w) int32 in [0, count); area: (count,) px; centre: (count, 2) x, y; border: (count,) bool, at the frame.
    """

    def __init__(self, rgb: np.ndarray, lab: np.ndarray) -> None:
        self.labels, self.count = _watershed(rgb)
        self._flat = self.labels.ravel()
        self.area = np.bincount(self._flat, minlength=self.count).astype(np.float64)
        y, x = np.indices(self.labels.shape)
        self.centre = np.stack([self.mean(x), self.mean(y)], axis=-1)
        self.border = np.zeros(self.count, bool)
        for edge in (self.labels[0], self.labels[-1], self.labels[:, 0], self.labels[:, -1]):
            self.border[edge] = True
        self._graph = self._neighbours(lab)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """(h, w) → (count,), the mean over each superpixel."""
        return np.bincount(self._flat, values.ravel(), minlength=self.count) / self.area

    def distance(self, seeds: np.ndarray) -> np.ndarray:
        """(count,) geodesic distance from the nearest of the superpixels `seeds`, in Lab units; FAR without seeds."""
        if not len(seeds):
            return np.full(self.count, FAR)
        distance = dijkstra(self._graph, directed=False, indices=np.unique(seeds), min_only=True)
        return np.minimum(distance, FAR)

    def _neighbours(self, lab: np.ndarray) -> csr_matrix:
        """Neighbours and the cost of going from one centre to the other: colours, the edge between them, the way."""
        a = np.concatenate([self.labels[:, :-1].ravel(), self.labels[:-1].ravel()])
        b = np.concatenate([self.labels[:, 1:].ravel(), self.labels[1:].ravel()])
        smooth = cv2.GaussianBlur(lab, (0, 0), 1.0)
        steps = [np.sqrt((np.diff(smooth, axis=axis) ** 2).sum(-1)).ravel() for axis in (1, 0)]
        between = a != b
        a, b, step = a[between], b[between], np.concatenate(steps)[between]
        pairs, which = np.unique(np.minimum(a, b) * np.int64(self.count) + np.maximum(a, b), return_inverse=True)
        step = np.bincount(which, step, minlength=len(pairs)) / np.bincount(which, minlength=len(pairs))
        a, b = pairs // self.count, pairs % self.count
        colour = np.stack([self.mean(lab[..., i]) for i in range(3)], axis=-1)
        cost = (np.linalg.norm(colour[a] - colour[b], axis=1) + step) ** 2 / EDGE
        cost += STRAIGHT * np.linalg.norm(self.centre[a] - self.centre[b], axis=1)
        return csr_matrix((cost + 1e-6, (a, b)), shape=(self.count, self.count))


def _watershed(rgb: np.ndarray) -> tuple[np.ndarray, int]:
    """(labels, count) of (h, w, 3) uint8: one superpixel grown from each marker of a regular grid."""
    height, width = rgb.shape[:2]
    rows = np.arange(min(SIDE // 2, height // 2), height, SIDE)
    columns = np.arange(min(SIDE // 2, width // 2), width, SIDE)
    count = len(rows) * len(columns)
    # OpenCV leaves the frame and the lines between basins unlabelled: pad the frame away, then fill the lines.
    labels = np.zeros((height + 2, width + 2), np.int32)
    labels[np.ix_(rows + 1, columns + 1)] = np.arange(1, count + 1).reshape(len(rows), len(columns))
    smooth = cv2.GaussianBlur(rgb, (3, 3), 0)
    cv2.watershed(cv2.copyMakeBorder(smooth, 1, 1, 1, 1, cv2.BORDER_REPLICATE), labels)
    labels = np.maximum(labels[1:-1, 1:-1], 0).astype(np.float32)
    while not labels.all():
        labels = np.where(labels > 0, labels, cv2.dilate(labels, np.ones((3, 3), np.uint8)))
    return labels.astype(np.int32) - 1, count
