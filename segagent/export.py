"""What leaves the package: a mask as PNG, a trajectory as JSON that holds all that a replay needs, and whole files only."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segagent import __version__
from segagent.environment import Environment, check_action
from segagent.errors import ActionError, DataError, SegAgentError
from segagent.images import load_image
from segagent.policy import FixedReading, Observation, Proposal, Reading
from segagent.rollout import collect, rollout
from segagent.segmenters import Segmenter, load_segmenter
from segagent.trajectories import from_row, to_row
from segagent.types import Trajectory

FORMAT = "segagent-trajectory"
VERSION = 1
_ROW = ("id", "expression", "target", "ignore", "segmenter", "steps")


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of a mask (H, W) bool, as 0 and 255, or of a picture (H, W, 3) uint8."""
    buffer = BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(buffer, "png")
    return buffer.getvalue()


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a whole file or none: under a temporary name beside it, then renamed. Raises SegAgentError."""
    target = Path(os.path.realpath(path))  # through a link, not over it
    if target.exists() and not target.is_file() and not target.is_dir():  # a device or a pipe must not be replaced
        target.write_bytes(data)
        return
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as failure:
        raise SegAgentError(f"{os.fspath(path)!r} cannot be written: {failure.strerror}.") from failure


def trajectory_to_json(trajectory: Trajectory, segmenter: str | None = None) -> dict[str, Any]:
    """A dict ready for json.dumps: everything of a run but its picture, with every mask as COCO RLE. Raises DataError.

    `steps` is as in a trajectory row (the mask before each action; the last entry holds the final mask and how the run
    ended), with the texts and log-probabilities; `best` is the index of the entry whose mask is the run's result;
    `segmenter` is what load_segmenter takes to make the run's segmenter again.
    """
    if trajectory.transitions and trajectory.transitions[0].state.actions:
        raise DataError("The trajectory begins in the middle of a run: export the whole run, from its first state.")
    row = to_row(trajectory, segmenter=segmenter or "", image={})
    for entry, transition in zip_longest(row["steps"], trajectory.transitions):
        entry["text"] = transition.text if transition else ""
        entry["logprob"] = transition.logprob if transition else None
    return {
        "format": FORMAT,
        "version": VERSION,
        "segagent": __version__,
        "size": list(trajectory.sample.size),
        "best": trajectory.best(),
        **{key: row[key] for key in _ROW},
    }


def trajectory_from_json(value: Mapping[str, Any] | str | bytes, image: Any) -> Trajectory:
    """The trajectory of trajectory_to_json's dict (or its JSON text) on its picture; see load_image for `image`.

    Only the segmenter's memory is not kept. Raises DataError, ImageError.
    """
    value, image = _checked(value), load_image(image)
    if list(image.shape[:2]) != value.get("size"):
        raise DataError(
            f"The trajectory is of a picture of (height, width) {value.get('size')}, and this one has {list(image.shape[:2])}."
        )
    trajectory = from_row({**{key: value.get(key) for key in _ROW}, "image": image})
    for number, step in enumerate(trajectory.steps, 1):
        try:
            check_action(step.state, step.action)
        except (ActionError, TypeError) as error:
            raise DataError(f"Step {number} of the trajectory cannot be done: {error}") from error
    texts = [(str(entry.get("text", "")), entry.get("logprob")) for entry in value["steps"]]
    said = zip(trajectory.transitions, texts, strict=False)  # an open end has no transition of its own
    return replace(trajectory, transitions=tuple(replace(t, text=text, logprob=p) for t, (text, p) in said))


def replay(value: Mapping[str, Any] | str | bytes, image: Any, segmenter: Segmenter | None = None) -> Trajectory:
    """Does a saved run again, click by click, with `segmenter` or the one that made it: the identical masks, on one machine.

    Raises DataError, ImageError, SegmenterError.
    """
    value = _checked(value)
    saved = trajectory_from_json(value, image)
    environment = Environment(segmenter or load_segmenter(value.get("segmenter") or "grabcut"))
    acted = len(saved.steps)
    transitions = rollout(
        environment,
        _Playback(saved),
        saved.sample,
        steps=acted if saved.end in ("steps", None) else acted + 1,
        start=saved.states[0].mask,
    )
    return collect(saved.sample, islice(transitions, len(saved.transitions)))


class _Playback:
    """Says at each step what was said in a saved run. One run an instance."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._transitions = chain(trajectory.transitions, [None])  # the state after an open end was never read

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        readings: list[Reading] = []
        for _ in observations:
            saved = next(self._transitions)
            if saved is None or saved.end == "malformed":
                readings.append(FixedReading((), saved.predicted_iou if saved else None))
            else:
                proposal = Proposal(saved.action, saved.text, saved.logprob, origin=saved.origin)
                readings.append(FixedReading((proposal,), saved.predicted_iou))
        return readings


def _checked(value: Mapping[str, Any] | str | bytes) -> Mapping[str, Any]:
    """The dict itself, of a format and version that this package reads. Raises DataError."""
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as failure:
            raise DataError(f"The trajectory is no JSON: {failure}.") from failure
    if not isinstance(value, Mapping) or value.get("format") != FORMAT or not isinstance(value.get("steps"), list):
        raise DataError(f'No saved trajectory: give a JSON object with "format": "{FORMAT}" and its "steps".')
    version = value.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise DataError(
            f"The trajectory is of format version {version}, newer than this segagent reads ({VERSION}): upgrade segagent."
        )
    return value
