"""What programs call on the page by name. The docstrings are what they are shown. No gradio here."""

from __future__ import annotations

from typing import Any

from segagent.page.models import Models


class Endpoints:
    """The methods of SegAgent over files, answered in JSON. Raises what SegAgent raises."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def segment(self, image: str, expression: str, steps: int = 7) -> dict[str, Any]:
        """Segments what a referring expression names: the mask as COCO RLE, its predicted IoU, and every click."""
        return self._models.agent().segment(image, expression, steps=steps).to_json()

    def refine(self, image: str, expression: str, mask: str, steps: int = 7) -> dict[str, Any]:
        """Corrects a mask (a PNG, or a COCO RLE as .json, of the image's size) by clicks; answers as segment does."""
        return self._models.agent().refine(image, expression, mask, steps=steps).to_json()

    def score(self, image: str, expression: str, mask: str) -> float:
        """Predicts the IoU, from 0 to 1, of a mask with what the expression names: how good an annotation is."""
        return self._models.agent().score(image, expression, mask)
