"""A COCO file's annotations as samples, one at a time, each with its mask and an expression; what cannot be used says why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from segagent.data._annotations import Annotation, Picture
from segagent.data._coco_file import CocoFile
from segagent.data._samples import existing_folder, read_image
from segagent.data.coco import describe, plural
from segagent.data.refer import find_coco_image
from segagent.errors import DataError, ExpressionError, MaskError
from segagent.grammar import check_expression
from segagent.masks import from_polygons, from_rle
from segagent.types import Sample

EXPRESSIONS = ("place", "category")  # besides the name of any field of the annotations


class UnusableError(DataError):
    """An annotation that cannot be used; `kind` is what a report counts it under."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class CocoSamples:
    """Reads annotation `number` of a file as a sample whose target is the annotation's mask.

    `expression`: "place" names the category, and where a picture has several of it, their order ("the second dog from the
    left"); "category" names it alone; anything else is the annotations' field that holds the expression, a string or a
    list of which the first counts. Of the pictures the last ones decoded are kept, of the annotations those of one picture.
    """

    def __init__(self, coco: CocoFile, images: Path, expression: str = "place") -> None:
        self.coco, self.images, self.expression = coco, existing_folder(images, "the annotations' pictures"), expression
        self._group: tuple[Any, dict[Any, str]] = (
            None,
            {},
        )  # of the last picture: its id, {annotation number: expression}

    def read(self, number: int) -> Sample:
        """meta: "annotation", "number". Raises UnusableError."""
        annotation = self.coco.annotation(number)
        name = f"Annotation {annotation.get('id')!r}"
        if number in self.coco.duplicates:
            raise UnusableError("duplicate ids", f"{name} is there twice; the first one counts.")
        key = annotation.get("image_id")
        picture = self.coco.images.get(key) if isinstance(key, int | str) else None
        if picture is None:
            raise UnusableError("unlisted images", f"{name} is on image {key!r}, which the file does not list.")
        text = self._said(number, annotation, picture, name)
        image = self._image(picture, name)
        mask = self._mask(annotation, picture, name)
        meta = {"number": number, "annotation": annotation, "file_name": picture.file_name}
        return Sample(image, text, mask, f"coco-{annotation.get('id')}", meta=meta)

    def _image(self, picture: Picture, name: str) -> np.ndarray:
        try:
            file = find_coco_image(self.images, picture)
        except DataError as error:
            raise UnusableError("missing pictures", f"{name}: {error}") from error
        size = (picture.height, picture.width)
        try:
            image = read_image(file)
        except DataError as error:
            raise UnusableError("unreadable pictures", f"{name}: {error}") from error
        if image.shape[:2] != size:
            found = f"{image.shape[1]}×{image.shape[0]}"
            sentence = f"{name}: the picture {file.name!r} is {found} px, but the file says {size[1]}×{size[0]} px."
            raise UnusableError("wrong sizes", sentence)
        return image

    def _mask(self, annotation: dict[str, Any], picture: Picture, name: str) -> np.ndarray:
        """(H, W) bool; an empty list of polygons is an empty mask."""
        outline, size = annotation.get("segmentation"), (picture.height, picture.width)
        try:
            if isinstance(outline, dict):
                if list(outline.get("size", ())) != list(size):  # before a wrong size takes all memory
                    said = outline.get("size")
                    sentence = f"{name} has an RLE of size {said} on a picture of (height, width) {list(size)}."
                    raise UnusableError("wrong sizes", sentence)
                return from_rle(outline)
            if isinstance(outline, list):
                _check_polygons(outline, size)
                return from_polygons(outline, size)
        except (MaskError, TypeError, ValueError) as error:
            if isinstance(error, UnusableError):
                raise
            raise UnusableError("broken outlines", f"{name}: {error}") from error
        raise UnusableError("broken outlines", f"{name} has no segmentation: polygons or an RLE.")

    def _said(self, number: int, annotation: dict[str, Any], picture: Picture, name: str) -> str:
        if self.expression not in EXPRESSIONS:
            said = annotation.get(self.expression)
            said = said[0] if isinstance(said, list) and said else said
            if not isinstance(said, str):
                raise UnusableError("no expression", f"{name} has no text in its field {self.expression!r}.")
        else:
            key = annotation.get("category_id")
            category = self.coco.categories.get(key) if isinstance(key, int | str) else None
            if category is None:
                raise UnusableError("no expression", f"{name} is of category {key!r}, which the file does not list.")
            said = f"the {category}"
            if self.expression == "place":
                said = self._places(annotation["image_id"], picture).get(number, said)
        try:
            return check_expression(said)
        except ExpressionError as error:
            raise UnusableError("no expression", f"{name}: {error}") from error

    def _places(self, image_id: Any, picture: Picture) -> dict[int, str]:
        """Expressions that tell the annotations of one picture apart."""
        if self._group[0] == (image_id,):
            return self._group[1]
        groups: dict[tuple[str, bool], list[Annotation]] = {}
        for number in self.coco.numbers_of(image_id):
            value = self.coco.annotation(number)
            category = self.coco.categories.get(value.get("category_id"))
            if category is None or number in self.coco.duplicates:
                continue
            try:
                box = tuple(float(n) for n in value.get("bbox") or (0, 0, 0, 0))
                crowd, area = bool(value.get("iscrowd", 0)), float(value.get("area") or 0)
            except (TypeError, ValueError):
                continue
            where = Annotation(number, 0, 0, crowd, area, box, 0, 0) if len(box) == 4 else None
            if where is not None:
                groups.setdefault((category, crowd), []).append(where)
        said: dict[int, str] = {}
        for (category, crowd), group in groups.items():
            words = f"group of {plural(category)}" if crowd else category
            said |= {number: text for number, (text, _) in describe(words, group, picture.width).items()}
        self._group = ((image_id,), said)
        return said


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Raises MaskError for coordinates far outside the picture: their outline would be drawn point by point."""
    reach = 2 * max(size)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise MaskError("A polygon is a list of x, y pairs.")
        if not all(math.isfinite(n) and -reach <= n <= 2 * reach for n in map(float, polygon)):
            raise MaskError("A polygon has corners far outside its picture, or that are no numbers.")
