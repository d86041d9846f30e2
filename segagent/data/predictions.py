"""The released SegAgent code's prediction files: a list of samples with `pred_list`, read, written and scored as there.

Points are (y, x). The mask of a prediction is the one after its click; its text speaks of the mask before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from segagent.data._samples import read_image
from segagent.data.official import measured, objects, whole, write_list
from segagent.environment import reward
from segagent.errors import DataError, MaskError
from segagent.grammar import Grammar
from segagent.masks import from_rle
from segagent.metrics import RESMetrics
from segagent.types import Box, Click, Sample, State, Trajectory, Transition

FIRST = 5000  # expressions that the released evaluator looks at
_SAYS = "Current IOU: "
_GRAMMAR = Grammar(order="yx")


def read_predictions(path: str | PathLike[str]) -> Iterator[dict[str, Any]]:
    """The samples of a prediction file, one after the other. Raises DataError."""
    for number, (value, _, _) in enumerate(objects(Path(path), "")):
        missing = {"img_path", "height", "width", "caption", "gt_mask", "pred_list"} - set(value)
        if missing or not isinstance(value["pred_list"], list):
            raise DataError(
                f"Sample {number} of {str(path)!r} lacks {', '.join(sorted(missing)) or 'a list pred_list'}."
            )
        yield value


def write_predictions(samples: Iterable[dict[str, Any]], path: str | PathLike[str]) -> int:
    """Writes what `read_predictions` or `to_prediction` gave; → how many. Raises DataError."""
    return write_list(path, map(json.dumps, samples), "[", "]")


def evaluate_predictions(
    path: str | PathLike[str], convention: str = "official", *, limit: int | None = None, click: int | None = None
) -> dict[str, Any]:
    """cIoU, gIoU and more of a prediction file. Raises DataError.

    "official": of the first 5,000 samples, the mask before the step with the highest IoU that the model said of itself,
    1e-5 added to unions; samples without a prediction do not count. "plain": of all samples, the last mask, exactly; no
    prediction is an empty mask. `limit` and `click` (the mask after that click, from 0) replace the convention's choice.
    """
    if convention not in ("official", "plain"):
        raise DataError(f'convention is "official" or "plain"; got {convention!r}.')
    official = convention == "official"
    limit = FIRST if official and limit is None else limit
    metrics = RESMetrics("lisa" if official else "plain")
    unpredicted = 0
    for number, value in enumerate(islice(read_predictions(path), limit)):
        try:
            target = from_rle(value["gt_mask"])
            chosen = _chosen(value["pred_list"], official, click)
            unpredicted += chosen is None
            if chosen is not None:
                metrics.update(from_rle(chosen), target)
            elif not official:
                metrics.update(np.zeros_like(target), target)
        except (MaskError, KeyError, TypeError) as error:
            raise DataError(f"Sample {number} of {str(path)!r}: {error}") from error
    return {**metrics.compute(), "convention": convention, "limit": limit, "unpredicted": unpredicted}


def _chosen(predictions: Sequence[dict[str, Any]], official: bool, click: int | None) -> dict[str, Any] | None:
    """The RLE that counts; None where nothing was predicted."""
    if not predictions:
        return None
    if click is not None:
        return predictions[min(click, len(predictions) - 1)]["mask"]
    if not official:
        return predictions[-1]["mask"]
    best = int(np.argmax(said_ious([each["outputs"] for each in predictions])))
    return predictions[max(best - 1, 0)]["mask"]


def said_ious(texts: Sequence[str | None]) -> list[float]:
    """The IoUs that a run's texts state, as the released evaluator reads them: all 0 where one cannot be read."""
    for cut in (r",", r"[PN]"):
        try:
            return [0.0 if text is None else float(re.split(cut, text.split(_SAYS)[-1])[0]) for text in texts]
        except ValueError:
            continue
    return [0.0] * len(texts)


def from_prediction(value: dict[str, Any], images: str | PathLike[str] | None = None) -> Trajectory:
    """The trajectory of one sample of a prediction file; `images` replaces the folder of its path, None: a blank picture."""
    try:
        size = (value["height"], value["width"])
        file = None if images is None else Path(images) / Path(value["img_path"]).name
        image = np.zeros((*size, 3), np.uint8) if file is None else read_image(file, size, "the prediction file")
        target = from_rle(value["gt_mask"])
        other = {key: value[key] for key in value.keys() - {"height", "width", "caption", "gt_mask", "pred_list"}}
        sample = Sample(
            image, value["caption"][0], target, str(value["img_path"]), meta={"source": "official", "official": other}
        )
        state, transitions = State(image, np.zeros(size, bool)), []
        for each in value["pred_list"]:
            after = State(image, from_rle(each["mask"]), (*state.actions, _action(each)), previous=state)
            said = None if each["outputs"] is None or _SAYS not in each["outputs"] else said_ious([each["outputs"]])[0]
            known = reward(state, target), reward(after, target)
            transitions.append(
                Transition(
                    state, _action(each), after, said, *known, text=each["outputs"] or "", details=each["used_box"]
                )
            )
            state = after
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise DataError(f"Not a sample of a prediction file: {error}.") from error
    return Trajectory(sample, tuple(transitions))


def _action(each: dict[str, Any]) -> Click | Box:
    if not each["clicks"]:
        return Box(*each["used_box"])
    y, x = each["clicks"]["coords"]
    return Click(x, y, bool(each["clicks"]["is_positive"]))


def to_prediction(run: Trajectory) -> dict[str, Any]:
    """One sample of a prediction file; texts are the run's own where they state an IoU as the format does. Raises DataError."""
    sample = run.sample
    if sample.target is None:
        raise DataError(f"The run of {sample.id!r} has no target: the format cannot hold it.")
    predictions = []
    for i, step in enumerate(run.steps):
        clicks: Any = []
        if isinstance(step.action, Click):
            clicks = {"is_positive": step.action.positive, "coords": [whole(step.action.y), whole(step.action.x)]}
        elif not isinstance(step.action, Box):
            raise DataError(f"The run of {sample.id!r} has an undo: the format cannot hold it.")
        beside = step.details if isinstance(step.details, list) else None
        box = beside if clicks else [step.action.x0, step.action.y0, step.action.x1, step.action.y1]
        mask = measured(step.next_state.mask, "mask", "box")["mask"]
        predictions.append(
            {"click_id": i, "clicks": clicks, "used_box": box, "mask": mask, "outputs": _text(step, sample)}
        )
    about = sample.meta.get("official") or {"img_path": str(sample.meta.get("file", sample.id))}
    return {
        **about,
        "height": sample.size[0],
        "width": sample.size[1],
        "caption": [sample.expression],
        "gt_mask": measured(sample.target, "mask", "box")["mask"],
        "pred_list": predictions,
    }


def _text(step: Transition, sample: Sample) -> str | None:
    if _SAYS in step.text or step.predicted_iou is None:
        return step.text or None
    return f"{_SAYS}{step.predicted_iou:.2f}, {_GRAMMAR.format(step.action, None, sample.size)}"
