"""COCO-style annotation files of any size: indexed in one pass, each annotation's outline read from the file when asked for.

A parsed file of COCO's size takes gigabytes, nearly all of it outlines; the index keeps where each annotation lies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from json.decoder import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segagent.errors import DataError, MaskError
from segagent.masks import from_polygons, from_rle

_SPACE = re.compile(r"[ \t\r\n]*")


class Picture(NamedTuple):
    file_name: str
    height: int
    width: int


class Annotation(NamedTuple):
    id: int
    image_id: int
    category_id: int
    crowd: bool
    area: float  # px²
    box: tuple[float, float, float, float]  # x, y, width, height in px
    offset: int  # bytes into the file
    length: int


class Annotations:
    """`images`, `annotations` and `categories` of one instances file, by id. Raises DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: dict[int, Picture] = {}
        self.annotations: dict[int, Annotation] = {}
        self.categories: dict[int, str] = {}
        self.twice: list[int] = []  # annotation ids that came again; the first counts
        try:
            for key, value, offset, length in elements(read_bytes_as_text(path)):
                self._add(key, value, offset, length)
        except (JSONDecodeError, RecursionError) as error:
            raise DataError(f"{str(path)!r} is not JSON: {error}.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{str(path)!r} is not a COCO instances file (images, annotations, categories): {error!r}."
            ) from error
        if not self.images:
            raise DataError(f"{str(path)!r} lists no images: it is not a COCO instances file.")

    def _add(self, key: str, value: Any, offset: int, length: int) -> None:
        if key == "images":
            self.images[int(value["id"])] = Picture(
                _plain(value["file_name"]), int(value["height"]), int(value["width"])
            )
        elif key == "categories":
            self.categories[int(value["id"])] = _plain(value["name"])
        elif key == "annotations":
            number = int(value["id"])
            if number in self.annotations:
                self.twice.append(number)
                return
            self.annotations[number] = Annotation(
                number,
                int(value["image_id"]),
                int(value["category_id"]),
                bool(value.get("iscrowd", 0)),
                float(value.get("area", 0)),
                tuple(float(n) for n in value.get("bbox", (0, 0, 0, 0))),
                offset,
                length,
            )

    def image_of(self, image_id: int, asked_by: str) -> Picture:
        if image_id not in self.images:
            raise DataError(f"{asked_by} names image {image_id}, which {str(self.path)!r} does not list.")
        return self.images[image_id]

    def mask(self, annotation: Annotation) -> np.ndarray:
        """(H, W) bool: polygons merged, or a crowd's RLE. Raises DataError."""
        picture = self.image_of(annotation.image_id, f"Annotation {annotation.id}")
        size = (picture.height, picture.width)
        outline = read_element(self.path, annotation.offset, annotation.length).get("segmentation")
        try:
            mask = from_rle(outline) if isinstance(outline, dict) else from_polygons(outline or [], size)
        except MaskError as error:
            raise DataError(f"Annotation {annotation.id} of {str(self.path)!r}: {error}") from error
        if mask.shape != size:
            raise DataError(
                f"Annotation {annotation.id} of {str(self.path)!r} has an RLE of {mask.shape[1]}×{mask.shape[0]} px on a "
                f"picture of {size[1]}×{size[0]} px."
            )
        return mask

    def union(self, annotations: list[Annotation], size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool of all of them; none: all False."""
        mask = np.zeros(size, bool)
        for annotation in annotations:
            mask |= self.mask(annotation)
        return mask


def read_bytes_as_text(path: Path) -> str:
    """The file with a character for each byte, so that places in it are places in the file. Raises DataError."""
    try:
        return path.read_bytes().decode("latin-1")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from error


def read_element(path: Path, offset: int, length: int) -> dict[str, Any]:
    """The JSON object at a place in a file. Raises DataError."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            value = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} has changed since it was opened: open it again ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{str(path)!r} has changed since it was opened: open it again.")
    return value


def _plain(text: str) -> str:
    """The text in UTF-8, as it was written, though it was read as Latin-1; an escaped \\u00e9 is right already."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def elements(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """(key, element, offset, length) of each element of the lists in a JSON object; other values are passed over.

    A file that is itself a list has the key "". Raises JSONDecodeError.
    """
    decode = JSONDecoder().raw_decode
    at = _skip(text, 0)
    if text[at : at + 1] == "[":
        yield from _list(text, at, "")
        return
    at = _expect(text, 0, "{")
    while text[at : at + 1] != "}":
        key, at = decode(text, at)
        at = _expect(text, at, ":")
        if text[at : at + 1] == "[":
            at = yield from _list(text, at, key)
        else:
            _, at = decode(text, at)
        at = _next(text, at, "}")


def _list(text: str, at: int, key: str) -> Generator[tuple[str, Any, int, int], None, int]:
    """The elements of the list that begins at `at`; → the place after it."""
    decode = JSONDecoder().raw_decode
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        value, end = decode(text, at)
        yield key, value, at, end - at
        at = _next(text, end, "]")
    return at + 1


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _expect(text: str, at: int, character: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != character:
        raise JSONDecodeError(f"Expecting {character!r}", text, at)
    return _skip(text, at + 1)


def _next(text: str, at: int, close: str) -> int:
    """Past a comma, or at the closing bracket."""
    at = _skip(text, at)
    return at if text[at : at + 1] == close else _expect(text, at, ",")
