"""The folders of the interactive segmentation benchmarks: one sample for each object that is to be clicked.

grabcut    images/a.jpg, masks/a.png (also image, im, img, data_GT; mask, gt, boundary_GT): GrabCut, Berkeley, DIS5K, CrackForest
davis      JPEGImages/[480p/]sequence/00000.jpg, Annotations/[480p/]sequence/00000.png: all objects of a frame are one
sbd        img/a.jpg, inst/a.mat: each instance; the names in val.txt where it is there
sstem      raw/00.tif, mitochondria/00.png: each 4-connected component
coco       images/, annotations/instances*.json: each annotation that is no crowd
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy.io import loadmat

from segagent.data._samples import Samples, existing_folder, pictures_in, read_image, size_fault
from segagent.data.coco import read_coco
from segagent.data.folder import read_labels
from segagent.errors import DataError
from segagent.types import Sample

_IMAGES = ("images", "image", "im", "img", "data_GT")
_MASKS = ("masks", "mask", "gt", "boundary_GT")
_TINT = 32  # what the channels of a grey mask may differ by, where it was compressed


class _Record(NamedTuple):
    id: str
    image: Path
    mask: Path
    value: int | None = None  # the object's number among the mask's; None where the mask holds one object


def read_objects(root: str | PathLike[str], layout: str | None = None) -> Samples:
    """The objects in `root`, in the order of their names, read when asked for. Raises DataError.

    `layout` is grabcut, davis, sbd, sstem or coco; None tells by the folders that are there. In masks of two values, of colours,
    and of numbers under 128, what is not 0 is the object; in others what is over 127; a value of 128 between 0 and 255 alone
    marks pixels to ignore, as in GrabCut.
    """
    root = existing_folder(Path(root), "of pictures and masks")
    layout = layout or _layout_of(root)
    if layout == "coco":
        return read_coco(root, crowd=False)
    if layout not in _LAYOUTS:
        raise DataError(f"There is no layout {layout!r}: use one of coco, {', '.join(_LAYOUTS)}.")
    records, target = _LAYOUTS[layout]
    found = list(records(root))
    if not found:
        raise DataError(f"{str(root)!r} holds no picture with a mask in the layout {layout}.")

    def sample(record: _Record) -> Sample:
        image, (mask, ignore) = read_image(record.image), target(record)
        if mask.shape != image.shape[:2]:
            fault = size_fault(
                f"The mask {str(record.mask)!r}", mask.shape, f"its picture {record.image.name!r}", image.shape[:2]
            )
            raise DataError(fault)
        return Sample(image, "the object", mask, record.id, ignore, {"source": layout, "file": str(record.image)})

    return Samples(found, sample, name=str(root))


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _pairs(root: Path) -> Iterator[_Record]:
    masks = pictures_in(_first(root, _MASKS) or root / "masks")
    for stem, image in pictures_in(_first(root, _IMAGES) or root / "images").items():
        if stem not in masks:
            raise DataError(f"The picture {str(image)!r} has no mask of its name.")
        yield _Record(stem, image, masks[stem])


def _frames(root: Path) -> Iterator[_Record]:
    for folder in sorted((root / "Annotations").rglob("*")):
        if folder.is_dir() and any(folder.glob("*.png")):
            place = folder.relative_to(root / "Annotations")
            images = pictures_in(root / "JPEGImages" / place)
            for stem, mask in pictures_in(folder).items():
                if stem in images:
                    yield _Record(f"{place.name}/{stem}", images[stem], mask)


def _sections(root: Path) -> Iterator[_Record]:
    images = pictures_in(root / "raw")
    for stem, mask in pictures_in(root / "mitochondria").items():
        if stem not in images:
            raise DataError(f"The mask {str(mask)!r} has no picture of its name in raw/.")
        for number in range(1, _components(mask).max() + 1):
            yield _Record(f"{stem}/{number}", images[stem], mask, number)


def _instances(root: Path) -> Iterator[_Record]:
    names, images = root / "val.txt", pictures_in(root / "img")
    stems = names.read_text(encoding="utf-8").split() if names.is_file() else sorted(images)
    for stem in stems:
        mask = root / "inst" / f"{stem}.mat"
        if stem not in images or not mask.is_file():
            raise DataError(f"{stem!r} has no picture in img/ or no instances in inst/.")
        numbers = np.unique(_mat(mask))
        for number in numbers[(numbers != 0) & (numbers != 255)]:
            yield _Record(f"{stem}/{number}", images[stem], mask, int(number))


def _components(mask: Path) -> np.ndarray:
    """(H, W) int32: the 4-connected components of a mask, from 1."""
    return cv2.connectedComponents((read_labels(mask) > 0).astype(np.uint8), connectivity=4)[1]


def _mat(path: Path) -> np.ndarray:
    """(H, W) uint8: the instances' numbers in a file of SBD. Raises DataError."""
    try:
        return np.asarray(loadmat(path)["GTinst"][0]["Segmentation"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{str(path)!r} holds no instances of SBD: {error!r}.") from error


def _whole(record: _Record) -> tuple[np.ndarray, np.ndarray | None]:
    """(target, ignore) of a mask of one object."""
    try:
        with Image.open(record.mask) as picture:
            labels = picture.mode in ("P", "1")
            grey = np.asarray(picture if labels else picture.convert("L"))
            if picture.mode in ("RGB", "RGBA"):
                channels = np.asarray(picture.convert("RGB"))
                labels = bool((channels.max(axis=2) - channels.min(axis=2)).max() > _TINT)
                grey = channels.max(axis=2) if labels else grey
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"The mask {str(record.mask)!r} cannot be read: {error}.") from error
    values = np.unique(grey).tolist()
    if labels or len(values) <= 2 or values[-1] < 128:
        return grey != 0, None
    if values == [0, 128, 255]:
        return grey == 255, grey == 128
    return grey > 127, None


# layout → its records of a folder, and a record's target and pixels to ignore
_LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "grabcut": (_pairs, _whole),
    "davis": (_frames, _whole),
    "sbd": (_instances, lambda record: (_mat(record.mask) == record.value, None)),
    "sstem": (_sections, lambda record: (_components(record.mask) == record.value, None)),
}


def _layout_of(root: Path) -> str:
    """The layout whose folders are there. Raises DataError."""
    if any((root / "annotations").glob("instances*.json")):
        return "coco"
    for layout, names in (
        ("davis", ("JPEGImages", "Annotations")),
        ("sbd", ("img", "inst")),
        ("sstem", ("raw", "mitochondria")),
    ):
        if all((root / name).is_dir() for name in names):
            return layout
    if _first(root, _IMAGES) and _first(root, _MASKS):
        return "grabcut"
    raise DataError(f"{str(root)!r} has the folders of no known layout, such as images/ and masks/.")
