"""The generic form: a folder of pictures, one of masks, and a CSV or JSONL that says what each mask is.

<root>/images/a.jpg
<root>/masks/a.png
<root>/metadata.csv      image,mask,expression      a.jpg,a.png,the red cup
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from segagent.data._samples import Faults, Samples, existing_folder, pictures_in, read_image, size_fault, some, unique
from segagent.errors import DataError, MaskError
from segagent.images import load_mask
from segagent.masks import from_polygons, from_rle
from segagent.types import Sample

IMAGE_FOLDERS = ("images", "image", "im", "JPEGImages", ".")
MASK_FOLDERS = ("masks", "mask", "gt", "labels", "annotations", "SegmentationClass", ".")
_ALIASES = {"file_name": "image", "text": "expression", "caption": "expression", "segmentation": "mask"}


class _Record(NamedTuple):
    id: str
    expression: str
    image: Path
    mask: Any  # a path, a COCO RLE, polygons, or None
    value: int | None  # the object's index in a mask of several
    meta: dict[str, Any]


def read_folder(
    root: str | PathLike[str],
    table: str | PathLike[str] | None = None,
    *,
    images: str | PathLike[str] | None = None,
    masks: str | PathLike[str] | None = None,
    expression: str | None = None,
    threshold: float | None = None,
    empty: bool = False,
    errors: str = "raise",
) -> Samples:
    """One sample for each row of the table, or for each picture and its mask of the same name. Raises DataError.

    `table` is a CSV or JSONL with the columns image, mask and expression (or file_name, segmentation, text); `id` and
    `value` (an object's index in a palette or label mask) are optional, others become `meta`. In JSONL a mask may be a
    COCO RLE or polygons. `expression` is for what has none of its own: rows without, or a folder without a table.
    `threshold` is for masks with grey values (soft alpha); `empty` allows masks without a pixel.
    """
    root = existing_folder(Path(root), "of pictures and masks")
    folders = _folder(root, images, IMAGE_FOLDERS), _folder(root, masks, MASK_FOLDERS)
    table = _table(root, table)
    faults = Faults(errors)
    if table is not None:
        records = list(_rows(table, folders, expression, faults))
    elif expression is not None:
        records = list(_pairs(*folders, expression, faults))
    else:
        raise DataError(f"Nothing in {str(root)!r} says what its masks are: add a metadata.csv, or give expression=….")
    name = str(root)
    source = _Source(threshold, empty)
    return Samples(unique(records, faults, name), source.sample, name=name, errors=errors, skipped=faults.skipped)


class _Source:
    def __init__(self, threshold: float | None, empty: bool) -> None:
        self.threshold, self.empty = threshold, empty

    def sample(self, record: _Record) -> Sample:
        image = read_image(record.image)
        target = None if record.mask is None else self._mask(record, image.shape[:2])
        if target is not None and not self.empty and not target.any():
            raise DataError(f"The mask {_name(record)} is empty: empty=True allows that.")
        meta = {"source": "folder", "file": str(record.image), **record.meta}
        return Sample(image, record.expression, target, record.id, meta=meta)

    def _mask(self, record: _Record, size: tuple[int, int]) -> np.ndarray:
        try:
            if isinstance(record.mask, dict):
                mask = from_rle(record.mask)
            elif isinstance(record.mask, list):
                mask = from_polygons(record.mask, size)
            elif record.value is not None:
                mask = read_labels(record.mask) == record.value
            else:
                mask = load_mask(record.mask, threshold=self.threshold)
        except MaskError as error:
            raise DataError(f"The mask {_name(record)}: {error}") from error
        if mask.shape != size:
            raise DataError(
                size_fault(f"The mask {_name(record)}", mask.shape, f"its picture {record.image.name!r}", size)
            )
        return mask


def _name(record: _Record) -> str:
    return f"of {record.id!r}" if isinstance(record.mask, dict | list) else f"{str(record.mask)!r}"


def read_labels(path: Path) -> np.ndarray:
    """(H, W) integers of a mask whose values, or palette indices, number the objects. Raises DataError."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "1") and not picture.mode.startswith("I"):
                raise DataError(f"The mask {str(path)!r} has colours, not numbers: objects cannot be told by value.")
            return np.asarray(picture).astype(np.int64)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The mask {str(path)!r} cannot be read: {error}.") from error


def _folder(root: Path, given: str | PathLike[str] | None, names: tuple[str, ...]) -> Path:
    if given is None:
        return next(root / name for name in names if (root / name).is_dir())
    return existing_folder(root / given, "as given")


def _table(root: Path, given: str | PathLike[str] | None) -> Path | None:
    if given is not None:
        path = next((p for p in (Path(given), root / given) if p.is_file()), None)
        if path is None:
            raise DataError(f"There is no table {str(given)!r}.")
    else:
        found = [p for p in sorted(root.iterdir()) if p.suffix.lower() in (".csv", ".jsonl")]
        found = [p for p in found if p.stem == "metadata"] or found
        if len(found) > 1:
            raise DataError(f"{str(root)!r} holds several tables ({some(p.name for p in found)}): give table=….")
        path = found[0] if found else None
    if path is not None and path.suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"The table {str(path)!r} must be .csv or .jsonl.")
    return path


def _pairs(images: Path, masks: Path, expression: str, faults: Faults) -> Iterator[_Record]:
    pictures, found = pictures_in(images), pictures_in(masks)
    if images == masks:
        raise DataError(f"Pictures and masks lie together in {str(images)!r}: give images= and masks=, or a table.")
    if not pictures:
        raise DataError(f"There are no pictures in {str(images)!r}.")
    for stem, path in pictures.items():
        if stem not in found:
            faults.add(stem, f"The picture {path.name!r} has no mask of its name in {str(masks)!r}.")
            continue
        yield _Record(stem, expression, path, found[stem], None, {})
    for stem in sorted(found.keys() - pictures.keys()):
        faults.add(stem, f"The mask {found[stem].name!r} has no picture of its name in {str(images)!r}.")


def _rows(table: Path, folders: tuple[Path, Path], expression: str | None, faults: Faults) -> Iterator[_Record]:
    for line, row in _read_table(table, faults):
        row = {_ALIASES.get(key, key): value for key, value in row.items() if value not in (None, "")}
        where = f"{table.name}, line {line}"
        try:
            said = row.pop("expression", expression)
            if not isinstance(said, str) or not said.strip():
                raise DataError("it has no expression")
            image = _find(row.pop("image", None), table.parent, folders[0], "image")
            mask = row.pop("mask", None)
            if isinstance(mask, str):
                mask = _find(mask, table.parent, folders[1], "mask")
            value = row.pop("value", None)
            value = None if value is None else int(value)
        except (DataError, ValueError) as error:
            faults.add(where, f"In {where}: {error}.", error)
            continue
        yield _Record(str(row.pop("id", f"{image.stem}-{line}")), said, image, mask, value, row)


def _find(name: Any, root: Path, folder: Path, what: str) -> Path:
    if not isinstance(name, str):
        raise DataError(f"it has no column {what}")
    for parent in (root, folder):
        if (parent / name).is_file():
            return parent / name
    raise DataError(f"there is no {what} {name!r} in {str(folder)!r}")


def _read_table(table: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row)."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            if table.suffix.lower() == ".csv":
                reader = csv.DictReader(stream)
                for row in reader:
                    yield reader.line_num, {key: value for key, value in row.items() if key is not None}
            else:
                yield from _read_lines(stream, table, faults)
    except OSError as error:
        raise DataError(f"{str(table)!r} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(table)!r} is no table in UTF-8: {error}.") from error


def _read_lines(stream: Any, table: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(stream, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            faults.add(f"{table.name}, line {line}", f"{table.name}, line {line} is not JSON: {error}.", error)
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            faults.add(f"{table.name}, line {line}", f"{table.name}, line {line} is no JSON object.")
