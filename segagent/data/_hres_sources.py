"""The sources of HRES on disk: DIS5K and ThinObject5K, in every layout in which they are handed round.

DIS5K        DIS-TR/{im,gt}  DIS-VD/{im,gt}  DIS-TE1..4/{im,gt}     (its own archive, and HQSeg-44K's DIS5K/)
ThinObject5K images/  masks/  list/{train,val,test}.txt             (its own archive)
             images_train/ masks_train/  images_test/ masks_test/   (HQSeg-44K's thin_object_detection/ThinObject5K/)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from segagent.data._samples import Faults, existing_folder, pictures_in, read_image, size_fault
from segagent.errors import DataError, MaskError
from segagent.images import load_mask
from segagent.types import Sample

SPLITS = ("test", "validation", "train")  # in the order of building: a picture of two splits stays in the first
_DIS = {"DIS-TR": "train", "DIS-VD": "validation", **{f"DIS-TE{i}": "test" for i in range(1, 5)}, "DIS5K-test": "test"}
_THIN = {"train": "train", "val": "validation", "test": "test"}
NO_NAME = "main object"


class Pair(NamedTuple):
    """One picture and its mask, and where they are from."""

    id: str
    image: Path
    mask: Path
    source: str  # DIS5K | ThinObject5K
    part: str  # the source's own name of the split, e.g. DIS-TE3
    split: str  # train | validation | test


def find_pairs(root: Path, faults: Faults) -> Iterator[Pair]:
    """The pictures with masks of both data sets below a folder, whatever the layout."""
    for folder in _folders(existing_folder(root, "with DIS5K or ThinObject5K")):
        inside = {path.name for path in folder.iterdir() if path.is_dir()}
        if {"im", "gt"} <= inside:
            split = _DIS.get(folder.name, "test")
            yield from _paired(folder / "im", folder / "gt", "DIS5K", folder.name, split, faults)
        for part, split in _THIN.items():
            if {f"images_{part}", f"masks_{part}"} <= inside:
                images, masks = folder / f"images_{part}", folder / f"masks_{part}"
                yield from _paired(images, masks, "ThinObject5K", part, split, faults)
        if {"images", "masks", "list"} <= inside:
            for part, split in _THIN.items():
                names = _listed(folder / "list" / f"{part}.txt")
                yield from _paired(folder / "images", folder / "masks", "ThinObject5K", part, split, faults, names)


def _folders(root: Path, depth: int = 4) -> Iterator[Path]:
    yield root
    if depth:
        for path in sorted(root.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from _folders(path, depth - 1)


def _listed(path: Path) -> set[str]:
    """Stems of the pictures that a list names; an absent list names none."""
    if not path.is_file():
        return set()
    return {Path(line.strip()).stem for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}


def _paired(
    images: Path, masks: Path, source: str, part: str, split: str, faults: Faults, names: Iterable[str] | None = None
) -> Iterator[Pair]:
    pictures, found = pictures_in(images), pictures_in(masks)
    for stem in sorted(pictures if names is None else names):
        key = f"{source.lower()}-{stem}"
        if stem not in pictures:
            faults.add(key, f"{source}'s list of {part} names {stem!r}, which is not in {str(images)!r}.")
        elif stem not in found:
            faults.add(key, f"The picture {pictures[stem].name!r} has no mask of its name in {str(masks)!r}.")
        else:
            yield Pair(key, pictures[stem], found[stem], source, part, split)


def read_pair(pair: Pair) -> Sample:
    """The sample of one pair. Raises DataError: unreadable, of two sizes, an empty mask."""
    image = read_image(pair.image)
    try:
        mask = load_mask(pair.mask, threshold=128)
    except MaskError as error:
        raise DataError(str(error)) from error
    if mask.shape != image.shape[:2]:
        fault = size_fault(
            f"The mask {str(pair.mask)!r}", mask.shape, f"its picture {pair.image.name!r}", image.shape[:2]
        )
        raise DataError(fault)
    if not mask.any():
        raise DataError(f"The mask {str(pair.mask)!r} is empty.")
    group, category = category_of(pair.image.stem, pair.source)
    meta = {
        "file": str(pair.image),
        "source": pair.source,
        "part": pair.part,
        "split": pair.split,
        "category": category,
        "group": group,
    }
    return Sample(image, f"the {category or NO_NAME}", mask, pair.id, meta=meta)


def category_of(stem: str, source: str) -> tuple[str, str]:
    """(group, category) in plain words, as a file's name tells them; "" where it does not.

    DIS5K: "4#Architecture#10#Pavilion#5795028920_o" → ("architecture", "pavilion"). ThinObject5K: "electric_guitar_PNG24"
    → ("", "electric guitar").
    """
    if source == "DIS5K":
        parts = stem.split("#")
        return (words(parts[1]), words(parts[3])) if len(parts) >= 5 else ("", "")
    name = re.match(r"[A-Za-z]+(?:[ _-][A-Za-z]+)*", re.sub(r"(?i)[ _-]?png(?![a-z]).*", "", stem))
    return "", words(name[0]) if name else ""


def words(name: str) -> str:
    """ "BicycleRack" → "bicycle rack"; abbreviations keep their capitals: "TVStand" → "TV stand"."""
    found = re.findall(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[A-Z]|\d+", name.replace("_", " "))
    return " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in found)


class Seen:
    """Finds pictures that were there before: the same bytes, or the same look and mask at another size or quality."""

    _NEAR = 6  # of 256 bits that may differ
    _MASK = 0.02  # share of a 64×64 mask's pixels that may differ

    def __init__(self) -> None:
        self._files: dict[bytes, str] = {}
        self._looks = np.zeros((0, 32), np.uint8)
        self._masks = np.zeros((0, 512), np.uint8)
        self._ids: list[str] = []

    def add(self, pair: Pair, sample: Sample) -> str | None:
        """The id of the sample that this one repeats; None where it is new, and then it is remembered."""
        digest = hashlib.sha256(pair.image.read_bytes() + pair.mask.read_bytes()).digest()
        grey = cv2.cvtColor(cv2.resize(sample.image, (17, 16), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        look = np.packbits(grey[:, 1:] > grey[:, :-1])
        small = cv2.resize(sample.target.astype(np.uint8) * 255, (64, 64), interpolation=cv2.INTER_AREA)
        mask = np.packbits(small >= 128)
        twin = self._files.get(digest)
        if twin is None and self._ids:
            near = np.flatnonzero(np.bitwise_count(self._looks ^ look).sum(1) <= self._NEAR)
            alike = [i for i in near if np.bitwise_count(self._masks[i] ^ mask).sum() <= self._MASK * 4096]
            twin = self._ids[alike[0]] if alike else None
        if twin is None:
            self._files[digest] = pair.id
            self._looks, self._masks = np.vstack([self._looks, look]), np.vstack([self._masks, mask])
            self._ids.append(pair.id)
        return twin
