"""Trajectories → what a vision-language model is tuned on: one example for each decision, drawn when a batch is made.

An example that cannot be drawn (a broken picture in the middle of a million) is skipped: it is logged, noted in a file that all
processes share, and its place in the batch is taken by the next one. What is wrong throughout is an error before training.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segagent.composite import Painter
from segagent.data._hub import explained, load_rows
from segagent.errors import DataError, SegAgentError
from segagent.grammar import Grammar
from segagent.policy import Observation
from segagent.trajectories import ENDS, decode_image, features, sft_rows
from segagent.types import State

COLUMNS = ("image", "expression", "steps")
PROBES = 16  # rows that are tried before training
PATIENCE = 100  # examples in a row that may be skipped
log = logging.getLogger(__name__)


def load_trajectories(sources: Iterable[str | Path]):
    """One `datasets.Dataset` of the parquet shards in these folders, or repositories of the Hub. Raises DataError.

    Pictures stay encoded; shards without a row are passed over.
    """
    from datasets import Image as ImageColumn
    from datasets import concatenate_datasets

    sources = [str(source) for source in sources]
    parts = [part for part in map(_load, sources) if part is not None]
    if not parts:
        raise DataError(f"No trajectory in {', '.join(sources)}: make some with `python -m train.generate`.")
    with explained(", ".join(sources), "join"):
        return concatenate_datasets(parts).cast_column("image", ImageColumn(decode=False))


def _load(source: str):
    """The rows of one source; None where its shards have none. Raises DataError."""
    import pyarrow.parquet as parquet
    from datasets import Dataset

    folder = Path(source)
    if not folder.exists() and source.count("/") == 1 and not source.startswith((".", "~")):
        rows = load_rows(source, "train", streaming=False, revision=None, token=None, cache_dir=None)
    else:
        files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/train-*.parquet"))
        if not files:
            raise DataError(f"No .parquet file in {source}: make some with `python -m train.generate`.")
        with explained(source, "read"):
            files = [str(file) for file in files if parquet.read_metadata(file).num_rows]
            if not files:
                return None
            rows = Dataset.from_parquet(files)
    missing = [column for column in COLUMNS if column not in rows.features]
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(missing)}, but {', '.join(rows.features)}: trajectories are made with "
            "`python -m train.generate`."
        )
    return rows


def as_examples(
    trajectories, grammar: Grammar, *, color: str, alpha: float, seen: tuple[int, int] | None = None,
    skipped: Path | None = None, fits: Callable[[Mapping[str, Any]], object] | None = None,
):  # fmt: skip
    """One example for each decision of each trajectory: light rows (which trajectory, which decision), drawn when read.

    `seen` is the size that the model's processor makes of every picture, if it is one: larger ones are then painted small, as
    the policy does. `skipped` is where what could not be drawn is noted; `fits` raises DataError for an example that cannot be
    used although it can be drawn (see Fits). Raises DataError.
    """
    from datasets import Dataset

    if "image" in trajectories.features and getattr(trajectories.features["image"], "decode", False):
        from datasets import Image as ImageColumn

        trajectories = trajectories.cast_column("image", ImageColumn(decode=False))
    rows, decisions = _decisions(trajectories)
    if not rows:
        raise DataError("The trajectories hold no decision to learn from: no action, and no stop whose IoU is known.")
    drawer = Drawer(trajectories, rows, decisions, grammar, color, alpha, seen, skipped, fits)
    drawer.probe()
    return Dataset.from_dict({"place": np.arange(len(rows))}).with_transform(drawer)


def _decisions(trajectories) -> tuple[list[int], list[int]]:
    """(row, place among the row's decisions) of each example; without decoding a mask."""
    _check_steps(trajectories.features["steps"])
    rows, decisions = [], []
    index = 0
    for batch in trajectories.select_columns("steps").with_format("arrow").iter(1000):
        for steps in batch.column("steps"):
            if not steps.is_valid or not len(steps):
                raise DataError(f"Trajectory number {index} has no steps: leave it out of the data set.")
            fields = steps.values
            kinds = fields.field("kind").to_pylist()
            said = zip(fields.field("iou_before").to_pylist(), fields.field("predicted_iou").to_pylist(), strict=True)
            if "undo" in kinds:
                raise DataError("Trajectories with an undo cannot be trained on: leave out what was taken back.")
            unknown = set(kinds) - {"click", "box", *ENDS}
            if unknown:
                raise DataError(
                    f"A step's kind is click or box, and in the last entry one of {', '.join(ENDS)}; got {unknown.pop()!r} in "
                    f"trajectory number {index}."
                )
            taught = [(kind, *ious) for kind, ious in zip(kinds, said, strict=True) if kind in ("click", "box", "stop")]
            for place, (kind, *ious) in enumerate(taught):
                if kind != "stop" or any(iou is not None for iou in ious):
                    rows.append(index)
                    decisions.append(place)
            index += 1
    return rows, decisions


def _check_steps(feature: Any) -> None:
    """Raises DataError where the column `steps` is no list of records with the fields that teaching needs."""
    wanted = features()["steps"].feature
    found = getattr(feature, "feature", None)
    missing = list(wanted) if not isinstance(found, Mapping) else [name for name in wanted if name not in found]
    missing = [name for name in missing if name not in ("iou_after", "origin")]
    if missing:
        raise DataError(
            f"The column steps has no {', '.join(missing)}: it is a list of records as `python -m train.generate` writes them."
        )


class Fits:
    """Tells whether an example is of at most `limit` tokens, its picture's among them: cut, it would teach half an answer."""

    def __init__(self, processor: Any, limit: int) -> None:
        self.processor, self.limit = processor, limit

    def __call__(self, example: Mapping[str, Any]) -> None:
        """Raises DataError where it is longer."""
        from trl.data_utils import apply_chat_template, prepare_multimodal_messages

        texts = apply_chat_template(
            {
                "prompt": prepare_multimodal_messages(example["prompt"], images=example["images"]),
                "completion": prepare_multimodal_messages(example["completion"]),
            },
            self.processor,
        )
        pictures, silent = [example["images"]], {"add_special_tokens": False}
        asked = self.processor(images=pictures, text=[texts["prompt"]], **silent)["input_ids"]
        said = self.processor(text=[texts["completion"]], **silent)["input_ids"]
        tokens = sum(np.size(ids) for ids in (asked, said))
        if tokens > self.limit:
            raise DataError(
                f"An example of {tokens} tokens is over --max-length {self.limit}: give more, or a processor that makes "
                "pictures smaller."
            )


class Drawer:
    """The transform of the data set of examples. Picklable, so that worker processes may have it however they are started."""

    def __init__(
        self, trajectories, rows: list[int], decisions: list[int], grammar: Grammar, color: str, alpha: float,
        seen: tuple[int, int] | None, skipped: Path | None, fits: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:  # fmt: skip
        self.trajectories, self.grammar, self.color, self.alpha = trajectories, grammar, color, alpha
        self.rows, self.decisions = np.asarray(rows), np.asarray(decisions)
        self.seen, self.skipped, self.fits = seen, skipped, fits
        self._painter: Painter | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_painter": None}  # it holds a lock

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        drawn = [self._next(int(place)) for place in batch["place"]]
        return {key: [example[key] for example in drawn] for key in ("images", "prompt", "completion")}

    def _next(self, place: int) -> dict[str, Any]:
        """The example at this place, or the first after it that can be drawn. Raises DataError."""
        for offset in range(PATIENCE):
            number = (place + offset) % len(self.rows)
            try:
                return self.draw(number)
            except (SegAgentError, OSError) as error:
                last = error
                self._skip(number, error)
        raise DataError(f"{PATIENCE} examples in a row cannot be drawn, the last because of this: {last}") from last

    def draw(self, number: int) -> dict[str, Any]:
        row = self.trajectories[int(self.rows[number])]
        example = next(
            sft_rows(
                row, self.grammar, color=self.color, alpha=self.alpha, only=int(self.decisions[number]),
                paint=self.paint,
            )
        )  # fmt: skip
        if self.fits is not None:
            self.fits(example)
        return example

    def paint(self, image: np.ndarray, mask: np.ndarray) -> Image.Image:
        if self._painter is None:
            self._painter = Painter(self.color, self.alpha, self.seen)
        return self._painter(Observation(State(image, mask), ""))

    def probe(self) -> None:
        """Draws some examples from everywhere. Raises DataError where a trajectory's masks do not fit its picture, or none can be
        drawn: that is no accident in the middle but a fault of the data set."""
        places = np.unique(np.linspace(0, len(self.rows) - 1, PROBES).astype(int))
        faults = []
        for place in places:
            try:
                _check_sizes(self.trajectories[int(self.rows[place])])
                self.draw(place)
            except _SizeError:
                raise
            except (SegAgentError, OSError) as error:
                faults.append(error)
        if len(faults) == len(places):
            raise DataError(f"None of {len(places)} examples tried can be drawn: {faults[-1]}") from faults[-1]

    def _skip(self, number: int, error: Exception) -> None:
        row = int(self.rows[number])
        name = self.trajectories.select_columns("id")[row]["id"] if "id" in self.trajectories.features else str(row)
        log.warning("Example %d, of trajectory %s, is skipped: %s", number, name, error)
        if self.skipped is not None:
            with self.skipped.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"example": number, "trajectory": name, "why": str(error)}) + "\n")


@contextmanager
def alone() -> Iterator[None]:
    """Within it OpenCV has no threads of its own, so that processes which draw batches can be forked off.

    A child that inherits OpenCV's pool without the pool's threads waits for them for ever.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _SizeError(DataError):
    pass


def _check_sizes(row: Mapping[str, Any]) -> None:
    height, width = decode_image(row["image"]).shape[:2]
    for entry in row["steps"]:
        size = tuple(entry["mask"]["size"])
        if size != (height, width):
            raise _SizeError(
                f"In trajectory {row.get('id')!r} the picture is {width}×{height} px and a mask "
                f"{size[1]}×{size[0]} px: make the trajectories again from pictures and masks of one size."
            )


def count_skipped(file: Path) -> int:
    """How many different examples were noted as skipped."""
    if not file.exists():
        return 0
    return len({json.loads(line)["example"] for line in file.read_text(encoding="utf-8").splitlines()})
