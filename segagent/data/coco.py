"""COCO instances, with expressions made from their categories and places."""

from __future__ import annotations

import re
from collections import defaultdict
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from segagent.data._annotations import Annotation, Annotations
from segagent.data._samples import Faults, Samples, existing_folder, read_image, unique
from segagent.data.refer import find_coco_image
from segagent.errors import DataError
from segagent.types import Sample

ORDINALS = ("", "second ", "third ", "fourth ", "fifth ", "sixth ", "seventh ", "eighth ", "ninth ", "tenth ")
LARGER = 1.5  # "the largest" holds when it is larger than the next by this factor
APART = 0.02  # "the second from the left" is clear when neighbours are this share of the width apart
CLEAR_RANK = 4  # nobody counts further
PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
    "mouse": "mice",
    "knife": "knives",
    "broccoli": "broccoli",
    "wine glass": "wine glasses",
}


class _Record(NamedTuple):
    id: str
    expression: str
    image_id: int
    annotation_id: int
    ambiguous: bool


def read_coco(
    annotations: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    *,
    crowd: bool = True,
    ambiguous: str = "keep",
    errors: str = "raise",
) -> Samples:
    """One sample for each annotation of a COCO instances file, in order of pictures; read when asked for. Raises DataError.

    `annotations` is the JSON, or a folder with annotations/instances*.json and images/; `images` the folder of pictures.
    Expressions name the category, and where there are several of it, size ("the largest dog") or place ("the second dog from
    the left"); crowds are "the group of people". One that a person may read otherwise (meta["ambiguous"]) is left out with
    ambiguous="skip". Crowds of the target's category are the sample's `ignore`; crowd=False leaves out crowds as targets.
    """
    if ambiguous not in ("keep", "skip"):
        raise DataError(f'ambiguous is "keep" or "skip"; got {ambiguous!r}.')
    file, folder = _files(Path(annotations), images)
    instances = Annotations(file)
    faults = Faults(errors)
    for number in instances.twice:
        faults.add(
            f"coco-{number} (again)", f"Annotation {number} is there twice in {str(file)!r}: ids must be unique."
        )
    groups: dict[tuple[int, int], list[Annotation]] = defaultdict(list)
    for annotation in instances.annotations.values():
        groups[annotation.image_id, annotation.category_id].append(annotation)
    records = []
    for (image_id, category_id), group in groups.items():
        fault = _fault(image_id, category_id, instances)
        if fault:
            faults.add(f"image {image_id}", f"Annotation {group[0].id} of {str(file)!r} {fault}.")
            continue
        records += _records(group, instances)
    order = {image_id: i for i, image_id in enumerate(instances.images)}
    records.sort(key=lambda record: order[record.image_id])
    records = [r for r in records if crowd or not instances.annotations[r.annotation_id].crowd]
    records = [r for r in records if ambiguous == "keep" or not r.ambiguous]
    source = _Source(instances, folder, groups)
    return Samples(
        unique(records, faults, file.name), source.sample, name=file.name, errors=errors, skipped=faults.skipped
    )


class _Source:
    def __init__(self, instances: Annotations, images: Path, groups: dict[tuple[int, int], list[Annotation]]) -> None:
        self.instances, self.images, self.groups = instances, images, groups

    def sample(self, record: _Record) -> Sample:
        picture = self.instances.images[record.image_id]
        size = (picture.height, picture.width)
        annotation = self.instances.annotations[record.annotation_id]
        target = self.instances.mask(annotation)
        if not target.any():
            raise DataError(f"The mask of annotation {annotation.id} of {str(self.instances.path)!r} is empty.")
        crowds = [a for a in self.groups[annotation.image_id, annotation.category_id] if a.crowd and a != annotation]
        ignore = self.instances.union(crowds, size) & ~target if crowds else None
        file = find_coco_image(self.images, picture)
        image = read_image(file, size, f"{self.instances.path.name} (image {record.image_id})")
        meta = {
            "source": "coco",
            "file": str(file),
            "image_id": record.image_id,
            "annotation_id": annotation.id,
            "category": self.instances.categories[annotation.category_id],
            "crowd": annotation.crowd,
            "ambiguous": record.ambiguous,
        }
        return Sample(image, record.expression, target, record.id, ignore, meta)


def _files(annotations: Path, images: str | PathLike[str] | None) -> tuple[Path, Path]:
    """(the JSON file, the folder of pictures)."""
    file = annotations
    if annotations.is_dir():
        found = sorted(annotations.glob("annotations/instances*.json")) or sorted(annotations.glob("*.json"))
        if len(found) != 1:
            raise DataError(
                f"{str(annotations)!r} holds {len(found)} instances files: give the path of the one that you mean."
            )
        file = found[0]
    if images is not None:
        return file, existing_folder(Path(images), "COCO's pictures")
    year = re.search(r"(train|val|test)20\d\d", file.stem)
    names = ([year[0]] if year else []) + ["images"]
    for parent in (file.parent.parent, file.parent):
        for name in names:
            if (parent / name).is_dir():
                return file, parent / name
    raise DataError(f"No pictures beside {str(file)!r} (in {' or '.join(names)}): give images=<their folder>.")


def _fault(image_id: int, category_id: int, instances: Annotations) -> str:
    if image_id not in instances.images:
        return f"is on image {image_id}, which is not listed"
    if category_id not in instances.categories:
        return f"is of category {category_id}, which is not listed"
    return ""


def _records(group: list[Annotation], instances: Annotations) -> list[_Record]:
    """Those of one category in one picture."""
    name = instances.categories[group[0].category_id]
    width = instances.images[group[0].image_id].width
    single = [a for a in group if not a.crowd]
    crowds = [a for a in group if a.crowd]
    said = describe(name, single, width) | describe(f"group of {plural(name)}", crowds, width)
    # Beside a crowd of its kind nothing but "the largest" is sure to be understood.
    return [
        _Record(
            f"coco-{a.id}",
            said[a.id][0],
            a.image_id,
            a.id,
            said[a.id][1] or bool(crowds and not a.crowd and "largest" not in said[a.id][0]),
        )
        for a in group
    ]


def describe(name: str, annotations: list[Annotation], width: int) -> dict[int, tuple[str, bool]]:
    """{annotation id: (expression, whether a person may take it otherwise)} for all of one name in a picture."""
    if len(annotations) == 1:
        return {annotations[0].id: (f"the {name}", False)}
    centres = {a.id: a.box[0] + a.box[2] / 2 for a in annotations}
    row = sorted(annotations, key=lambda a: (centres[a.id], a.box[1], a.id))
    sizes = sorted((a.area for a in annotations), reverse=True)
    said: dict[int, tuple[str, bool]] = {}
    for i, annotation in enumerate(row):
        rank, side = (i, "left") if i < (len(row) + 1) // 2 else (len(row) - 1 - i, "right")
        near = [centres[other.id] for other in (row[max(i - 1, 0)], *row[i + 1 : i + 2]) if other is not annotation]
        close = any(abs(centres[annotation.id] - x) < APART * width for x in near)
        unclear = close or rank >= CLEAR_RANK
        if unclear and annotation.area == sizes[0] >= LARGER * sizes[1]:
            said[annotation.id] = (f"the largest {name}", False)
        elif rank == 0:
            said[annotation.id] = (f"the {name} on the {side}" if len(row) == 2 else f"the {side}most {name}", unclear)
        else:
            nth = ORDINALS[rank] if rank < len(ORDINALS) else f"{_nth(rank + 1)} "
            said[annotation.id] = (f"the {nth}{name} from the {side}", unclear)
    return said


def _nth(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def plural(name: str) -> str:
    """The plural of a category's name."""
    if name in PLURALS:
        return PLURALS[name]
    if name.endswith(("s", "x", "sh", "ch")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"
