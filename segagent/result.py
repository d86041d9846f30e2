"""What a run of the agent gives: the best mask, the run and its search tree, in every form in which they leave."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segagent.errors import SegAgentError
from segagent.export import png, trajectory_to_json, write_file
from segagent.masks import overlay, to_polygons, to_rle
from segagent.search.tree import Tree
from segagent.types import Trajectory


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The best mask of a run by predicted IoU (paper, Algorithm 2), and the run."""

    mask: np.ndarray  # (H, W) bool
    predicted_iou: float | None
    trajectory: Trajectory
    segmenter: str = ""  # what load_segmenter takes to make the run's segmenter again

    @property
    def tree(self) -> Tree:
        """All that the search saw; without a search, the run as a tree of one branch (see Tree.of)."""
        return Tree.of(self.trajectory)

    @classmethod
    def of(cls, trajectory: Trajectory, segmenter: str = "") -> Result:
        best = trajectory.best()
        return cls(trajectory.states[best].mask, trajectory.predicted_ious[best], trajectory, segmenter)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the mask: a .png of 0 and 255, or a .json COCO RLE. Raises SegAgentError."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".json"):
            raise SegAgentError(f"A mask is saved as .png or, as COCO RLE, as .json; not as {os.fspath(path)!r}.")
        write_file(path, png(self.mask) if suffix == ".png" else json.dumps(self.rle()).encode())

    def rle(self) -> dict[str, Any]:
        """COCO RLE, ready for JSON."""
        return to_rle(self.mask)

    def polygons(self, tolerance: float = 0.0) -> list[list[float]]:
        """COCO polygons of the outer contours, in pixels; see masks.to_polygons."""
        return to_polygons(self.mask, tolerance)

    def overlay(self, color: str | tuple[int, int, int] = "green", alpha: float = 0.5) -> np.ndarray:
        """(H, W, 3) uint8: the picture with the mask painted on."""
        return overlay(self.trajectory.sample.image, self.mask, color, alpha)

    def to_json(self) -> dict[str, Any]:
        """A dict ready for json.dumps: the mask as COCO RLE, its predicted IoU, and the whole run (export.replay takes it)."""
        return {
            "mask": self.rle(),
            "predicted_iou": self.predicted_iou,
            "trajectory": trajectory_to_json(self.trajectory, self.segmenter),
        }
