"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO in the layout of the refer API:

<root>/<dataset>/refs(<split_by>).p or .json   (gRefCOCO: grefs(<split_by>).json)
<root>/<dataset>/instances.json
<root>/images/mscoco/images/train2014/COCO_train2014_000000000009.jpg
"""

from __future__ import annotations

import pickle
import re
import warnings
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segagent.data._annotations import Annotations, Picture
from segagent.data._samples import Faults, Samples, existing_folder, read_image, read_json, some, unique
from segagent.errors import DataError
from segagent.types import Sample


class _Record(NamedTuple):
    id: str
    expression: str
    image_id: int
    annotation_ids: tuple[int, ...]  # none: nothing in the picture is meant
    ref_id: int
    split: str


class _PlainUnpickler(pickle.Unpickler):
    """Lists, dicts, strings and numbers only: whatever would import a name, and so could run code, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants to import {module}.{name}, and plain data needs no import")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside itself")


def read_refer(
    root: str | PathLike[str],
    dataset: str,
    split_by: str,
    split: str,
    images: str | PathLike[str] | None = None,
    *,
    errors: str = "raise",
) -> Samples:
    """One sample for each sentence, in the file's order, read when asked for. Raises DataError.

    `dataset` names a folder of `root` (refcoco, refcoco+, refcocog, grefcoco), `split_by` unc, google or umd, `split` train,
    val, test, testA or testB. `images` holds COCO's train2014 pictures; without it they are looked for where refer keeps
    them, and where they are not there either, the samples carry blank pictures (meta["blank"]) and a warning is given.
    The target is the union of the annotations; gRefCOCO's expressions without a target have an empty one.
    """
    folder = _dataset_folder(Path(root), dataset)
    faults = Faults(errors)
    refs = _read_refs(folder, split_by)
    chosen = [ref for ref in refs if _in_split(str(ref.get("split")), split)]
    if not chosen:
        raise DataError(
            f"{dataset} ({split_by}) has no split {split!r}; it has {some({str(ref.get('split')) for ref in refs})}."
        )
    instances = Annotations(folder / "instances.json")
    name = f"{dataset} ({split_by}) {split}"
    records = unique(_records(chosen, f"{dataset}-{split_by}", instances, faults), faults, name)
    source = _Source(instances, _image_folder(Path(root), images), name, dataset)
    if source.images is None:
        warnings.warn(f"No pictures for {name}: give images=…; the samples' pictures are blank.", stacklevel=2)
    return Samples(records, source.sample, name=name, errors=errors, skipped=faults.skipped)


class _Source:
    def __init__(self, instances: Annotations, images: Path | None, name: str, dataset: str) -> None:
        self.instances, self.images, self.name, self.dataset = instances, images, name, dataset

    def sample(self, record: _Record) -> Sample:
        picture = self.instances.image_of(record.image_id, f"Ref {record.ref_id}")
        size = (picture.height, picture.width)
        annotations = [self.instances.annotations[number] for number in record.annotation_ids]
        target = self.instances.union(annotations, size)
        if annotations and not target.any():
            raise DataError(
                f"Ref {record.ref_id} of {self.name}: the mask of annotation {record.annotation_ids} is empty."
            )
        meta = {
            "source": self.dataset,
            "split": record.split,
            "ref_id": record.ref_id,
            "image_id": record.image_id,
            "category": ", ".join(sorted({self.instances.categories.get(a.category_id, "") for a in annotations})),
        }
        if self.images is None:
            blank = np.zeros((*size, 3), np.uint8)
            return Sample(blank, record.expression, target, record.id, meta={**meta, "blank": True})
        file = find_coco_image(self.images, picture)
        image = read_image(file, size, f"instances.json (image {record.image_id})")
        return Sample(image, record.expression, target, record.id, meta={**meta, "file": str(file)})


def find_coco_image(folder: Path, picture: Picture) -> Path:
    """The picture's file under any of the names that COCO's releases gave it. Raises DataError."""
    name = Path(picture.file_name).name
    digits = re.search(r"(\d{12})\.jpg$", name)
    prefix = re.match(r"COCO_((?:train|val|test)\d{4})_", name)
    names = [picture.file_name, name] + ([f"{digits[1]}.jpg"] if digits else [])
    folders = [folder] + ([folder / prefix[1]] if prefix else []) + [folder / "train2017", folder / "train2014"]
    for parent in folders:
        for candidate in names:
            if (parent / candidate).is_file():
                return parent / candidate
    raise DataError(f"There is no picture {name!r} in {str(folder)!r}: download COCO's pictures into it.")


def _dataset_folder(root: Path, dataset: str) -> Path:
    existing_folder(root, "of the refer layout")
    folder = root / dataset
    if not folder.is_dir():
        have = [path.name for path in root.iterdir() if (path / "instances.json").is_file()]
        raise DataError(f"{str(root)!r} holds no data set {dataset!r}; it holds {some(have) or 'none'}.")
    return folder


def _image_folder(root: Path, images: str | PathLike[str] | None) -> Path | None:
    if images is not None:
        return existing_folder(Path(images), "COCO's pictures")
    for candidate in ("images/mscoco/images/train2014", "images/train2014", "train2014", "images"):
        if (root / candidate).is_dir():
            return root / candidate
    return None


def _read_refs(folder: Path, split_by: str) -> list[dict[str, Any]]:
    names = [f"{stem}({split_by}){ending}" for stem in ("refs", "grefs") for ending in (".p", ".json")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        have = [found[1] for p in folder.iterdir() if (found := re.match(r"g?refs\((.+)\)\.(?:p|json)$", p.name))]
        raise DataError(
            f"{str(folder)!r} has no refs({split_by}).p; split_by is one of {some(set(have)) or 'none'} there."
        )
    refs = _unpickle(path) if path.suffix == ".p" else read_json(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise DataError(f"{str(path)!r} is not a list of refs (dicts).")
    return refs


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    # What the unpickler raises on refused, damaged and cut-off files.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise DataError(f"{str(path)!r} is no pickle of plain data: {error}.") from error


def _in_split(have: str, asked: str) -> bool:
    """refer's rule: "test" takes every test part, and "testA" also parts named for several, as "testAB"."""
    if asked == "test":
        return have.startswith("test")
    if re.fullmatch("test[A-C]", asked):
        return have.startswith("test") and asked[-1] in have[4:]
    return have == asked


def _records(refs: list[dict[str, Any]], prefix: str, instances: Annotations, faults: Faults) -> list[_Record]:
    records = []
    for ref in refs:
        try:
            ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
            ids = tuple(
                int(number) for number in ids if int(number) >= 0
            )  # gRefCOCO writes [-1] where nothing is meant
            image_id, ref_id = int(ref["image_id"]), int(ref["ref_id"])
            sentences = [(int(s["sent_id"]), str(s["sent"])) for s in ref["sentences"]]
        except (KeyError, TypeError, ValueError) as error:
            faults.add(
                f"ref {ref.get('ref_id')}", f"Ref {ref.get('ref_id')} of {prefix} is malformed: {error!r}.", error
            )
            continue
        fault = _fault(ids, image_id, instances)
        if fault:
            faults.add(f"ref {ref_id}", f"Ref {ref_id} of {prefix} {fault}.")
            continue
        records += [
            _Record(f"{prefix}-{ref_id}-{i}", text, image_id, ids, ref_id, str(ref["split"])) for i, text in sentences
        ]
    return records


def _fault(ids: tuple[int, ...], image_id: int, instances: Annotations) -> str:
    if image_id not in instances.images:
        return f"names image {image_id}, which instances.json does not list"
    for number in ids:
        if number not in instances.annotations:
            return f"names annotation {number}, which instances.json does not list"
        if instances.annotations[number].image_id != image_id:
            return f"is on image {image_id}, its annotation {number} on {instances.annotations[number].image_id}"
    return ""
