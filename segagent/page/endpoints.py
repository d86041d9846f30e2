"""What programs and MCP clients call on the page by name. The docstrings are what they are shown. No gradio here."""

from __future__ import annotations

from typing import Any

from segagent.errors import SegAgentError
from segagent.images import load_image
from segagent.page.files import checked
from segagent.page.runs import Runs


class Endpoints:
    """The methods of SegAgent over files, answered in JSON. Raises what SegAgent raises."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def segment(self, image: str, expression: str, steps: int = 7, candidates: int = 1) -> dict[str, Any]:
        """Segments the object that a referring expression names in a picture, by clicking as a human annotator does.

        Parameters:
            image: the picture, a PNG, JPEG or WebP of at most 4 megapixels (16 where the page is not shared)
            expression: what to segment, in English, such as "the red cup on the left"
            steps: the most clicks, 0 to 50; it stops earlier where it is content
            candidates: 1 for its first thought at each step, more for a search that keeps the best of so many clicks
        Returns:
            mask (COCO RLE: size [height, width] and counts), predicted_iou (0 to 1, how good it thinks the mask is),
            and trajectory (each click with the mask before it and the model's words)
        """
        pixels = checked(load_image(image))
        options = {"candidates": _at_most(16, candidates, "candidates")} if candidates != 1 else {}
        steps = _at_most(50, steps, "steps")
        return self._runs.segment(pixels, expression, steps=steps, **options).to_json()

    def refine(self, image: str, expression: str, mask: str, steps: int = 7) -> dict[str, Any]:
        """Corrects a given mask of an object by further clicks; of all masks on the way it returns the one it rates best.

        Parameters:
            image: the picture, a PNG, JPEG or WebP of at most 4 megapixels (16 where the page is not shared)
            expression: what the mask should show, in English, such as "the red cup on the left"
            mask: the mask, of the picture's size: a black and white PNG, or a COCO RLE in a .json file
            steps: the most clicks, 0 to 50; it stops earlier where it is content
        Returns:
            mask (COCO RLE), predicted_iou (0 to 1) and trajectory, as segment does
        """
        steps = _at_most(50, steps, "steps")
        return self._runs.refine(checked(load_image(image)), expression, mask, steps).to_json()

    def score(self, image: str, expression: str, mask: str) -> float:
        """Says how good a mask of an object is, without the true one: annotation filtering, quality control.

        Parameters:
            image: the picture, a PNG, JPEG or WebP of at most 4 megapixels (16 where the page is not shared)
            expression: what the mask should show, in English, such as "the red cup on the left"
            mask: the mask, of the picture's size: a black and white PNG, or a COCO RLE in a .json file
        Returns:
            the predicted IoU of the mask with what the expression names, from 0 (wrong) to 1 (exact)
        """
        return self._runs.score(checked(load_image(image)), expression, mask)


def _at_most(most: int, value: float, name: str) -> int:
    """The value as a whole number. Raises SegAgentError where one call would cost too much."""
    if value > most:
        raise SegAgentError(f"{name} is at most {most} here; got {value}.")
    return int(value)
