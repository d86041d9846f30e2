"""ReasonSeg: one labelme-like JSON beside each picture, with polygons "target" and "ignore" and one or more questions.

<root>/train | val | test/<name>.jpg, <name>.json
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from segagent.data._samples import Faults, Samples, existing_folder, pictures_in, read_image, read_json, some, unique
from segagent.errors import DataError
from segagent.types import Sample


class _Record(NamedTuple):
    id: str
    expression: str
    image: Path
    labels: Path
    split: str
    sentence: bool  # a question to reason about, not a short phrase


def read_reasonseg(
    root: str | PathLike[str], split: str = "val", *, sentences: str | None = None, errors: str = "raise"
) -> Samples:
    """One sample for each question, in order of file names, read when asked for. Raises DataError.

    `sentences` is "all" or "first": of a picture with several questions, LISA's evaluation asks only the first and its
    training all, which is the default (None). Masks are drawn as there: polygons by OpenCV, outlines included, the largest
    first, so that what lies on a larger one counts; "ignore" regions are the sample's `ignore`.
    """
    if sentences not in (None, "all", "first"):
        raise DataError(f'sentences is "all", "first" or None; got {sentences!r}.')
    folder = _folder(Path(root), split)
    first = sentences == "first" or (sentences is None and not split.startswith("train"))
    faults = Faults(errors)
    pictures = pictures_in(folder)
    labels = {path.stem: path for path in folder.glob("*.json")}
    records: list[_Record] = []
    for stem, image in pictures.items():
        if stem not in labels:
            faults.add(stem, f"The picture {image.name!r} in {str(folder)!r} has no {stem}.json.")
            continue
        try:
            records += _records(image, labels[stem], split, first)
        except DataError as error:
            faults.add(stem, str(error), error)
    for stem in sorted(labels.keys() - pictures.keys()):
        faults.add(stem, f"{stem}.json in {str(folder)!r} has no picture.")
    if not records and not faults.skipped:
        raise DataError(f"{str(folder)!r} holds no pictures with labels.")
    name = f"reasonseg {split}"
    return Samples(unique(records, faults, name), _sample, name=name, errors=errors, skipped=faults.skipped)


def _folder(root: Path, split: str) -> Path:
    existing_folder(root, "of ReasonSeg")
    if (root / split).is_dir():
        return root / split
    have = [path.name for path in root.iterdir() if path.is_dir()]
    raise DataError(f"ReasonSeg in {str(root)!r} has no split {split!r}; it has {some(have) or 'none'}.")


def _read(path: Path) -> dict[str, Any]:
    # Some of the files were saved on Windows.
    value = read_json(path, ("utf-8", "cp1252"))
    if not isinstance(value, dict) or not isinstance(value.get("shapes"), list) or "text" not in value:
        raise DataError(f"{str(path)!r} is not a label file of ReasonSeg: it needs shapes and text.")
    return value


def _records(image: Path, labels: Path, split: str, first: bool) -> list[_Record]:
    value = _read(labels)
    texts = [value["text"]] if isinstance(value["text"], str) else list(value["text"])
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{str(labels)!r} has an empty question.")
    return [
        _Record(f"reasonseg-{split}-{image.stem}-{i}", text, image, labels, split, bool(value.get("is_sentence")))
        for i, text in enumerate(texts[:1] if first else texts)
    ]


def _sample(record: _Record) -> Sample:
    image = read_image(record.image)
    value = _read(record.labels)
    size = (value.get("imageHeight", image.shape[0]), value.get("imageWidth", image.shape[1]))
    if size != image.shape[:2]:
        read_image(record.image, size, record.labels.name)
    drawn = draw(value["shapes"], image.shape[:2], record.labels)
    meta = {
        "source": "reasonseg",
        "split": record.split,
        "file": str(record.image),
        "sentence": record.sentence,
    }
    ignore = drawn == 255
    return Sample(image, record.expression, drawn == 1, record.id, ignore if ignore.any() else None, meta)


def draw(shapes: list[Any], size: tuple[int, int], path: Path) -> np.ndarray:
    """(H, W) uint8 of labelme shapes: 1 target, 255 ignore, 0 neither; the smaller a shape, the later it is drawn."""
    layers = []
    for shape in shapes:
        try:
            label = str(shape["label"]).lower()
            points = np.array(shape["points"], np.float64).astype(np.int32)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"A shape of {str(path)!r} has no label or points: {error!r}.") from error
        if label == "flag":
            continue
        if points.ndim != 2 or points.shape[1] != 2:
            raise DataError(f"A shape of {str(path)!r} is no polygon: its points have shape {points.shape}.")
        layers.append(
            (_filled(np.zeros(size, np.uint8), points, 1).sum(dtype=np.int64), points, 255 if "ignore" in label else 1)
        )
    drawn = np.zeros(size, np.uint8)
    for _, points, value in sorted(layers, key=lambda layer: -layer[0]):
        _filled(drawn, points, value)
    return drawn


def _filled(canvas: np.ndarray, points: np.ndarray, value: int) -> np.ndarray:
    cv2.polylines(canvas, [points], True, value, 1)
    cv2.fillPoly(canvas, [points], value)
    return canvas
