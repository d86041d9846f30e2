"""Masks to refine: a folder of them beside one of pictures, or a COCO file; read one at a time, and put together at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segagent.data._coco_file import CocoFile, to_bytes
from segagent.data._coco_samples import CocoSamples
from segagent.data._samples import existing_folder, pictures_in, read_image, size_fault
from segagent.data.folder import read_labels
from segagent.errors import DataError
from segagent.export import png, write_file
from segagent.grammar import check_expression
from segagent.images import load_mask
from segagent.masks import box_of, from_rle
from segagent.types import Sample

_NO_OBJECT = 255  # of a palette: the outlines that VOC and DAVIS leave out


class FolderSource:
    """Pictures and masks of equal names, in folders of any depth; in a mask with a palette each value is an object, 255 none."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        expression: str,
        targets: Path | None = None,
        threshold: float | None = None,
        each: bool = True,
    ) -> None:
        """`expression` names the object; "{name}" in it is the name of the mask's folder, or its own where it lies in none.

        `threshold` is for masks of grey values: what reaches it is in the mask. With `each` False all objects of a mask
        with a palette are one. Raises DataError.
        """
        existing_folder(images, "of pictures")
        existing_folder(masks, "of masks")
        self.images, self.masks, self.targets = images, masks, targets and existing_folder(targets, "of targets")
        self.expression, self.each = check_expression(expression), each
        self._listed: dict[Path, dict[str, Path]] = {}  # pictures of a folder, by stem
        self.files: list[tuple[Path, int | None]] = []  # a mask's place in `masks`, and the value of the object in it
        self.faults: dict[str, list[str]] = {}
        for folder in sorted({masks, *(path for path in masks.rglob("*") if path.is_dir())}):
            for path in pictures_in(folder).values():
                self._add(path.relative_to(masks))
        if not self.files:
            raise DataError(f"There are no masks in {str(masks)!r}.")
        self.threshold = threshold
        self.key = {"images": str(images.resolve()), "masks": str(masks.resolve()), "expression": self.expression}
        self.key |= {"targets": targets and str(targets.resolve()), "threshold": threshold, "each": each}

    def _add(self, path: Path) -> None:
        values = palette_values(self.masks / path)
        single = values is None or len(values) < 2 or not self.each
        self.files += [(path, None)] if single else [(path, value) for value in values]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        path, value = self.files[number]
        return path.as_posix() if value is None else f"{path.as_posix()}, object {value}"

    def read(self, number: int) -> tuple[Sample, np.ndarray]:
        path, value = self.files[number]
        image = read_image(self._beside(self.images, path, "picture"))
        mask = self._mask(self.masks / path, value, image.shape[:2])
        target = None
        if self.targets is not None:
            file = self._beside(self.targets, path, "target")
            if value is not None and palette_values(file) is None:
                raise DataError(
                    f"The target {str(file)!r} does not tell objects apart, but the mask does: make them one."
                )
            target = self._mask(file, value, image.shape[:2])
        text = self.expression.replace("{name}", path.parent.name.replace("-", " ").replace("_", " ") or path.stem)
        return Sample(image, text, target, self.name(number)), mask

    def _beside(self, root: Path, path: Path, what: str) -> Path:
        folder = root / path.parent
        if folder not in self._listed:
            self._listed[folder] = pictures_in(folder) if folder.is_dir() else {}
        found = self._listed[folder]
        if path.stem not in found:
            raise DataError(f"The mask {path.as_posix()!r} has no {what} of its name in {str(root)!r}.")
        return found[path.stem]

    def _mask(self, file: Path, value: int | None, size: tuple[int, int]) -> np.ndarray:
        if value is not None:
            mask = read_labels(file) == value
        elif palette_values(file) is not None:
            mask = ~np.isin(read_labels(file), (0, _NO_OBJECT))
        else:
            mask = load_mask(file, threshold=self.threshold)
        if mask.shape != size:
            raise DataError(size_fault(f"The mask {str(file)!r}", mask.shape, "its picture", size))
        return mask

    def write(self, out: Path, records: Iterator[dict[str, Any]]) -> None:
        """masks/NAME.png, 0 and 255; of several objects one file each, NAME-VALUE.png."""
        for (path, value), record in zip(self.files, records, strict=True):
            if "fault" not in record:
                name = f"{path.stem}.png" if value is None else f"{path.stem}-{value}.png"
                target = out / "masks" / path.parent / name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_file(target, png(from_rle(record["mask"])))


def palette_values(file: Path) -> list[int] | None:
    """The objects' numbers in a mask with a palette; None for any other file."""
    try:
        with Image.open(file) as picture:
            if picture.mode != "P":
                return None
            return [int(v) for v in np.unique(np.asarray(picture)) if v not in (0, _NO_OBJECT)]
    except (OSError, SyntaxError, ValueError):  # read() will say what is wrong with it
        return None


class CocoSource:
    """The annotations of a COCO file, in the order of its pictures."""

    def __init__(self, file: Path, images: Path, expression: str = "place") -> None:
        self.coco = CocoFile(file)
        self.samples, self.order = CocoSamples(self.coco, images, expression), self.coco.order()
        self.faults = self.coco.faults
        self.key = {"file": self.coco.digest, "images": str(images.resolve()), "expression": expression}

    def __len__(self) -> int:
        return len(self.order)

    def name(self, number: int) -> str:
        return f"annotation {self.coco.annotation(self.order[number]).get('id')!r}"

    def read(self, number: int) -> tuple[Sample, np.ndarray]:
        sample = self.samples.read(self.order[number])
        return Sample(sample.image, sample.expression, None, sample.id), sample.target

    def write(self, out: Path, records: Iterator[dict[str, Any]]) -> None:
        """refined.json. What is held of each bettered annotation is its new RLE."""
        fresh = {self.order[record["number"]]: record["mask"] for record in records if record.get("state")}
        self.coco.write(
            out / "refined.json", lambda number: self._anew(number, fresh[number]) if number in fresh else True
        )

    def _anew(self, number: int, rle: dict[str, Any]) -> bytes:
        annotation, mask = self.coco.annotation(number), from_rle(rle)
        box = box_of(mask)
        x0, y0, x1, y1 = box or (0, 0, -1, -1)
        changed = {
            "segmentation": rle,
            "area": float(mask.sum()),
            "bbox": [float(n) for n in (x0, y0, x1 - x0 + 1, y1 - y0 + 1)],
        }
        return to_bytes(annotation | changed)
