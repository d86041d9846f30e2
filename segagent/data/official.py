"""The released SegAgent code's trajectory files: {"data": [{"image_name", "height", "width", "gt_ann", "clicks_list"}]}.

Points are (y, x) there, and the mask and IoU beside a click are those after it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import groupby
from json import JSONDecodeError
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from segagent.data._annotations import elements, read_bytes_as_text, read_element
from segagent.data._samples import Faults, Samples, existing_folder, read_image
from segagent.environment import reward
from segagent.errors import DataError, MaskError
from segagent.masks import from_rle, to_rle
from segagent.types import Click, Sample, State, Trajectory, Transition


class _Record(NamedTuple):
    id: str
    offset: int
    length: int
    caption: int


def read_official_trajectories(
    path: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    *,
    stop: float | None = None,
    errors: str = "raise",
) -> Samples:
    """A lazy sequence of trajectories, one for each caption of each object, from {"data": [{"image_name", "clicks_list", …}]}.

    `images` is the folder that image names are relative to; numbers are COCO train2014's. Without it the pictures are blank
    (meta["blank"]). `stop` closes runs that reach this IoU with a "stop"; otherwise they are open. Raises DataError.
    """
    path = Path(path)
    folder = None if images is None else existing_folder(Path(images), "the pictures")
    if folder is None:
        warnings.warn(f"No pictures for {path.name}: give images=…; they are blank.", stacklevel=2)
    faults = Faults(errors)
    records: list[_Record] = []
    for number, (value, offset, length) in enumerate(objects(path, "data")):
        try:
            key = f"{value['image_name']}-{value['gt_ann']['object_id']}-{number}"
            captions = _captions(value)
        except (KeyError, TypeError) as error:
            faults.add(f"record {number}", f"Record {number} of {str(path)!r} is no trajectory: {error!r}.", error)
            continue
        records += [_Record(f"{key}-{i}", offset, length, i) for i in range(len(captions))]
    return Samples(records, _Reader(path, folder, stop).read, name=path.name, errors=errors, skipped=faults.skipped)


class _Reader:
    def __init__(self, path: Path, images: Path | None, stop: float | None) -> None:
        self.path, self.images, self.stop = path, images, stop

    def read(self, record: _Record) -> Trajectory:
        value = read_element(self.path, record.offset, record.length)
        try:
            sample = self._sample(record, value)
            return Trajectory(sample, tuple(self._transitions(sample, value["clicks_list"])))
        except DataError:
            raise
        except MaskError as error:
            raise DataError(f"Trajectory {record.id} of {str(self.path)!r}: {error}") from error
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise DataError(f"Trajectory {record.id} of {str(self.path)!r} is malformed: {error!r}.") from error

    def _sample(self, record: _Record, value: dict[str, Any]) -> Sample:
        size = (value["height"], value["width"])
        meta = {"source": "official", "image_name": value["image_name"], "object_id": value["gt_ann"]["object_id"]}
        meta |= {"record": record.id.rpartition("-")[0], "single": not isinstance(value["gt_ann"]["caption"], list)}
        if self.images is None:
            image = np.zeros((*size, 3), np.uint8)
            meta["blank"] = True
        else:
            file = self.images / image_file(value["image_name"])
            image = read_image(file, size, self.path.name)
            meta["file"] = str(file)
        target = from_rle(value["gt_ann"]["segmentation"])
        return Sample(image, _captions(value)[record.caption], target, record.id, meta=meta)

    def _transitions(self, sample: Sample, clicks: list[dict[str, Any]]) -> Iterator[Transition]:
        state = State(sample.image, np.zeros(sample.size, bool))
        iou = reward(state, sample.target)
        for click in clicks:
            y, x = click["coor"]
            action = Click(x, y, bool(click["is_positive"]))
            after = State(sample.image, from_rle(click["mask"]), (*state.actions, action), previous=state)
            yield Transition(state, action, after, iou=iou, reward=click["iou"], origin="simulated")
            state, iou = after, click["iou"]
        if self.stop is not None and iou >= self.stop:
            yield Transition(state, None, state, iou=iou, reward=iou, origin="simulated", end="stop")


def image_file(name: int | str) -> str:
    """The file of an `image_name`: a number is an image of COCO train2014, a name without an ending a JPEG."""
    if isinstance(name, int):
        return f"COCO_train2014_{name:012d}.jpg"
    return name if "." in Path(name).name else f"{name}.jpg"


def write_official_trajectories(trajectories: Iterable[Trajectory], path: str | PathLike[str]) -> int:
    """Writes trajectories of clicks from the empty mask as the released code does; → how many objects. Raises DataError.

    What `read_official_trajectories` read comes out equal, byte for byte: captions of one object are joined again.
    """

    def texts() -> Iterator[str]:
        for _, group in groupby(trajectories, key=lambda run: run.sample.meta.get("record", id(run))):
            yield json.dumps(_official(list(group)))

    return write_list(path, texts(), '{"data": [', "]}")


def _official(runs: list[Trajectory]) -> dict[str, Any]:
    """One object: its captions' trajectories are the same."""
    run, sample = runs[0], runs[0].sample
    if sample.target is None or (run.transitions and run.transitions[0].state.mask.any()):
        raise DataError(f"The run of {sample.id!r} has no target or does not start empty: the format cannot hold it.")
    clicks = []
    for i, step in enumerate(run.steps):
        if not isinstance(step.action, Click):
            raise DataError(
                f"The run of {sample.id!r} has a {type(step.action).__name__}: the format holds clicks only."
            )
        where = [whole(step.action.y), whole(step.action.x)]
        result = measured(step.next_state.mask, "mask", "box")
        clicks.append({"idx": i, "coor": where, "is_positive": step.action.positive, **result, "iou": step.reward})
    captions: Any = [each.sample.expression for each in runs]
    about = {
        "object_id": sample.meta.get("object_id", 1),
        "caption": captions[0] if sample.meta.get("single") else captions,
        **measured(sample.target, "segmentation", "bbox"),
    }
    name = sample.meta.get("image_name", Path(str(sample.meta.get("file", sample.id))).name)
    return {
        "image_name": name,
        "height": sample.size[0],
        "width": sample.size[1],
        "gt_ann": about,
        "clicks_list": clicks,
    }


def measured(mask: np.ndarray, name: str, box: str) -> dict[str, Any]:
    """The mask as RLE under `name`, its box (x, y, width, height) under `box`, and its area, in px."""
    rle = to_rle(mask)
    area = {box: coco.toBbox(rle).tolist(), "area": int(coco.area(rle))}
    return {name: {"counts": rle["counts"], "size": rle["size"]}, **area}


def whole(value: float) -> float | int:
    """The number as JSON writes a whole one."""
    return int(value) if value == int(value) else value


def _captions(value: dict[str, Any]) -> list[str]:
    captions = value["gt_ann"]["caption"]
    return captions if isinstance(captions, list) else [captions]


def objects(path: Path, key: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(object, offset, length) of each element of the list under `key`. Raises DataError."""
    found = False
    text = read_bytes_as_text(path)
    try:
        for name, value, offset, length in elements(text):
            if name == key and isinstance(value, dict):
                found = True
                raw = text[offset : offset + length]
                yield value if raw.isascii() else json.loads(raw.encode("latin-1")), offset, length
    except (JSONDecodeError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}.") from error
    if not found:
        what = f'an object with a list "{key}"' if key else "a list of samples"
        raise DataError(f"{str(path)!r} is not of the released code's format: it is not {what}, or that is empty.")


def write_list(path: str | PathLike[str], texts: Iterable[str], begin: str, end: str) -> int:
    """Writes the file, or nothing where it fails; → how many texts."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(begin)
            for count, text in enumerate(texts, 1):
                stream.write(f", {text}" if count > 1 else text)
            stream.write(end)
        os.replace(partial, target)
    except OSError as error:
        raise DataError(f"{str(target)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count
