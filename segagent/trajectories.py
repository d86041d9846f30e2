"""Trajectory ↔ dataset rows: what is stored of D_traj, and what is derived from it for training.

One row is one trajectory: the plain image once, every mask as COCO RLE. The pictures that a model is trained on (the mask
painted on) are derived when a batch is made, never stored. The last entry of `steps` holds the final mask; its `kind` is
not an action but how the run ended: "stop", "steps", "malformed" or "converged", or "open" where the record ends before the run did.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from segagent.environment import check_action
from segagent.errors import DataError, MaskError
from segagent.grammar import Grammar
from segagent.masks import from_rle, overlay, to_rle
from segagent.types import Action, Box, Click, Sample, State, Trajectory, Transition, Undo

if TYPE_CHECKING:
    from datasets import Features

ENDS = ("stop", "steps", "malformed", "converged", "open")
# What Pillow raises on what is no picture, or a damaged one: a broken chunk of a PNG is a SyntaxError, a false size a bomb.
_UNREADABLE = (OSError, AttributeError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)


def features() -> Features:
    """The columns of a trajectory data set, as `datasets` features (also the schema of its parquet files)."""
    from datasets import Features, Image, List, Value

    rle = {"size": List(Value("int32")), "counts": Value("string")}
    step = {
        "mask": rle,  # M_t, before the action
        "kind": Value("string"),  # click | box | undo, and in the last entry one of ENDS
        "x": Value("float64"),  # px; of a box the top-left corner
        "y": Value("float64"),
        "x1": Value("float64"),  # px; the bottom-right corner of a box, else null
        "y1": Value("float64"),
        "positive": Value("bool"),
        "frame": Value("int32"),
        "iou_before": Value("float64"),
        "iou_after": Value("float64"),
        "predicted_iou": Value("float64"),
        "origin": Value("string"),  # simulated | policy | corrected | person
    }
    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "expression": Value("string"),
            "target": rle,
            "ignore": rle,
            "segmenter": Value("string"),
            "round": Value("int32"),  # 0: D_traj; n: the n-th round of StaR+
            "source": Value("string"),
            "initial": Value("string"),  # how the first mask was made: empty | box | points | …
            "steps": List(step),
        }
    )


def to_row(
    trajectory: Trajectory,
    *,
    segmenter: str = "",
    round: int = 0,
    source: str = "",
    initial: str = "empty",
    image: Any = None,
) -> dict[str, Any]:
    """The row of one trajectory, ready for `Dataset.from_list(rows, features=features())`. Raises DataError.

    `image` is an encoded picture {"bytes", "path"} to store instead of a PNG of the sample's. `source` and `image`
    default to what the sample's reader noted in `meta` ("source"; "file", where that decodes to this very image).
    """
    if not trajectory.transitions:
        raise DataError(
            f"The trajectory of sample {trajectory.sample.id!r} has no transitions: there is nothing to store."
        )
    sample = trajectory.sample
    steps = [_step(t, None) for t in trajectory.steps]
    last = trajectory.transitions[-1]
    steps.append(_step(last, last.end or "open"))
    return {
        "id": sample.id,
        "image": encode_image(sample) if image is None else image,
        "expression": sample.expression,
        "target": None if sample.target is None else to_rle(sample.target),
        "ignore": None if sample.ignore is None else to_rle(sample.ignore),
        "segmenter": segmenter,
        "round": round,
        "source": source or str(sample.meta.get("source", "")),
        "initial": initial,
        "steps": steps,
    }


def from_row(row: Mapping[str, Any]) -> Trajectory:
    """The trajectory that `to_row` stored; the segmenter's memory, texts and log-probabilities are not kept. Raises DataError."""
    name = f"trajectory row {row.get('id')!r}"
    try:
        sample = Sample(
            decode_image(row["image"]),
            row["expression"],
            None if row["target"] is None else from_rle(row["target"]),
            row["id"],
            None if row.get("ignore") is None else from_rle(row["ignore"]),
            {key: row[key] for key in ("segmenter", "round", "source", "initial") if key in row},
        )
        entries = _entries(row["steps"])
        transitions = _transitions(sample, entries)
    except (KeyError, TypeError) as error:
        raise DataError(f"In {name} a column is missing or of another type: {error!r}.") from error
    except MaskError as error:
        raise DataError(f"In {name}: {error}") from error
    return Trajectory(sample, tuple(transitions))


def encode_image(sample: Sample) -> dict[str, Any]:
    """{"bytes", "path"} for a datasets Image column: the sample's own file where that decodes to its image, else a PNG."""
    file = sample.meta.get("file")
    if file is not None:
        with Image.open(file) as picture:
            plain = picture.mode == "RGB" and picture.size == sample.size[::-1] and picture.getexif().get(274, 1) == 1
            if plain and picture.format in ("JPEG", "PNG"):
                with open(file, "rb") as stream:
                    return {"bytes": stream.read(), "path": None}
    buffer = io.BytesIO()
    Image.fromarray(sample.image).save(buffer, "png", compress_level=3)
    return {"bytes": buffer.getvalue(), "path": None}


def decode_image(value: Any) -> np.ndarray:
    """(H, W, 3) uint8 from what an Image column gives: a PIL image, {"bytes", "path"}, or an array. Raises DataError."""
    if isinstance(value, np.ndarray):
        return value
    try:
        if isinstance(value, Mapping):
            value = Image.open(value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"]))
        return np.asarray(value.convert("RGB"))
    except _UNREADABLE as error:
        raise DataError(f"The image column holds no readable picture: {error}.") from error


def _step(transition: Transition, end: str | None) -> dict[str, Any]:
    """One entry of `steps`: an action (`end` None), or the closing one, which holds the final state."""
    state = transition.state if end is None else transition.next_state
    iou = transition.iou if end is None else transition.reward
    action = transition.action if end is None else None
    where: dict[str, Any] = dict.fromkeys(("x", "y", "x1", "y1", "positive", "frame"))
    if isinstance(action, Click):
        where.update(x=float(action.x), y=float(action.y), positive=action.positive, frame=action.frame)
    elif isinstance(action, Box):
        where.update(x=float(action.x0), y=float(action.y0), x1=float(action.x1), y1=float(action.y1))
        where.update(frame=action.frame)
    read_here = end is None or transition.action is None  # an open end's last reading belongs to the state before
    return {
        "mask": to_rle(state.mask),
        "kind": end or type(action).__name__.lower(),
        **where,
        "iou_before": iou,
        "iou_after": transition.reward,
        "predicted_iou": transition.predicted_iou if read_here else None,
        "origin": transition.origin,
    }


def _entries(steps: Any) -> list[Mapping[str, Any]]:
    """`steps` as a list of dicts; a struct of lists (as older readers of parquet give it) is turned round."""
    if isinstance(steps, Mapping):
        return [dict(zip(steps, values, strict=True)) for values in zip(*steps.values(), strict=True)]
    return list(steps)


def _action(entry: Mapping[str, Any]) -> Action:
    needed = {"click": ("x", "y", "positive"), "box": ("x", "y", "x1", "y1")}.get(entry["kind"], ())
    absent = [name for name in needed if entry[name] is None or entry[name] != entry[name]]  # null or nan
    if absent:
        raise DataError(f"A {entry['kind']} has no {', '.join(absent)}: it needs {', '.join(needed)}.")
    if entry["kind"] == "click":
        return Click(entry["x"], entry["y"], bool(entry["positive"]), entry["frame"] or 0)
    if entry["kind"] == "box":
        return Box(entry["x"], entry["y"], entry["x1"], entry["y1"], entry["frame"] or 0)
    if entry["kind"] == "undo":
        return Undo()
    raise DataError(
        f"A step's kind is click, box or undo, and in the last entry one of {', '.join(ENDS)}; got {entry['kind']!r}."
    )


def _transitions(sample: Sample, entries: list[Mapping[str, Any]]) -> list[Transition]:
    if not entries or entries[-1]["kind"] not in ENDS:
        raise DataError(
            f"The steps of row {sample.id!r} do not end with the final mask (a last entry of kind {', '.join(ENDS)})."
        )
    transitions = []
    state = State(sample.image, from_rle(entries[0]["mask"]))
    for entry, following in pairwise(entries):
        action = _action(entry)
        if isinstance(action, Undo):
            if state.previous is None:
                raise DataError(f"In row {sample.id!r} a step undoes the first state.")
            after = state.previous
        else:
            after = State(sample.image, from_rle(following["mask"]), (*state.actions, action), previous=state)
        transitions.append(_transition(state, action, after, entry, None))
        state = after
    if entries[-1]["kind"] != "open":
        transitions.append(_transition(state, None, state, entries[-1], entries[-1]["kind"]))
    return transitions


def _transition(
    state: State, action: Action | None, after: State, entry: Mapping[str, Any], end: str | None
) -> Transition:
    return Transition(
        state,
        action,
        after,
        predicted_iou=entry.get("predicted_iou"),
        iou=entry["iou_before"],
        reward=entry["iou_after"],
        origin=entry["origin"],
        end=end,
    )


def sft_rows(
    row: Mapping[str, Any],
    grammar: Grammar | None = None,
    *,
    color: str = "green",
    alpha: float = 0.5,
    only: int | None = None,
    paint: Callable[[np.ndarray, np.ndarray], Image.Image] | None = None,
) -> Iterator[dict[str, Any]]:
    """TRL rows {"images", "prompt", "completion"} of one trajectory row: one for each action and for a "stop".

    `images` holds the picture (H, W) with the mask painted on, as PIL. An undo, what it took back, and an end that is no
    decision (all but "stop") teach nothing and give no row. The IoU said is the true one where it is known.
    `only` draws one of the decisions, by its place among those that teach. `paint(image, mask)` paints in place of
    `overlay`, e.g. smaller. Raises DataError, MaskError, and ActionError for a point outside the picture.
    """
    grammar = grammar or Grammar()
    image = decode_image(row["image"])
    prompt = [{"role": "user", "content": grammar.ask(row["expression"], color)}]
    decisions = _kept(_entries(row["steps"]))
    for entry in decisions if only is None else decisions[only : only + 1]:
        action = None if entry["kind"] == "stop" else _action(entry)
        said = entry["predicted_iou"] if entry["iou_before"] is None else entry["iou_before"]
        if action is None and said is None:
            continue  # a person's stop on a picture without a target: no IoU to say
        state = State(image, from_rle(entry["mask"]))
        if action is not None:
            check_action(state, action)  # the words for a point outside would be those of the border
        text = grammar.format(action, said, state.size)
        paint_on = paint or (lambda *on: Image.fromarray(overlay(*on, color, alpha)))
        painted = paint_on(state.image, state.mask)
        yield {
            "images": [painted],
            "prompt": prompt,
            "completion": [{"role": "assistant", "content": text}],
        }


def _kept(entries: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries that were decided and not taken back."""
    kept: list[Mapping[str, Any]] = []
    for entry in entries:
        if entry["kind"] == "undo":
            del kept[-1:]
        elif entry["kind"] == "stop" or entry["kind"] not in ENDS:
            kept.append(entry)
    return kept
