"""HRES: high-resolution referring segmentation (SegAgent, section 5), built from local copies of DIS5K and ThinObject5K."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from segagent.data._hres_sources import SPLITS, Seen, find_pairs, read_pair
from segagent.data._hub import filled_card, load_rows, push_folder
from segagent.data._samples import Faults, Samples, SampleStream
from segagent.data._shards import SHARD_BYTES, ShardWriter
from segagent.errors import DataError
from segagent.images import load_image, load_mask
from segagent.trajectories import encode_image
from segagent.types import Sample

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from segagent.segmenters.base import Segmenter

CLICK_LIMIT = 20  # as NoC counts
CLICK_SIDE = 1024  # px; complexity is measured on pictures scaled down to this


@dataclass
class Built:
    """What a build did."""

    counts: dict[str, int]  # samples of each split
    duplicates: dict[str, str] = field(default_factory=dict)  # id left out: the id that it repeats
    skipped: dict[str, str] = field(default_factory=dict)  # id or file: what is wrong with it


def features() -> Features:
    """The columns of HRES."""
    from datasets import Features, Image, Value

    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "mask": Image(),  # 0 and 255
            "expression": Value("string"),
            "category": Value("string"),
            "group": Value("string"),  # DIS5K's group of categories
            "source": Value("string"),
            "split": Value("string"),
            "part": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            # Clicks of the simulated annotator until IoU 0.80 / 0.85, at most 20; null where they were not measured.
            "clicks_80": Value("int32"),
            "clicks_85": Value("int32"),
        }
    )


def build_hres(
    sources: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    segmenter: Segmenter | None = None,
    limit: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    errors: str = "raise",
) -> Built:
    """Writes HRES as parquet shards to `out`/data; what is in memory is one picture and a row group. Raises DataError.

    `segmenter` is what complexity is measured with (None: not measured; it takes most of the time). `limit` stops each
    split after so many samples. Masks are cut at half of their highest value. A picture that is there again, in any
    encoding or size and with the same mask, is left out; between splits the test split keeps it. With errors="skip",
    pictures that cannot be used are counted instead of stopping the build, which otherwise leaves nothing behind.
    """
    sources = [sources] if isinstance(sources, str | PathLike) else list(sources)
    faults = Faults(errors)
    pairs = [pair for source in sources for pair in find_pairs(Path(source), faults)]
    if not pairs:
        where = ", ".join(repr(str(source)) for source in sources)
        raise DataError(
            f"Neither DIS5K nor ThinObject5K was found in {where}: see the layouts in segagent/data/_hres_sources.py."
        )
    seen = Seen()
    built = Built({}, skipped=faults.skipped)
    with ShardWriter(out, features(), shard_bytes=shard_bytes) as writer:
        for pair in sorted(pairs, key=lambda pair: (SPLITS.index(pair.split), pair.id)):
            if limit is not None and writer.counts[pair.split] >= limit:
                continue
            try:
                sample = read_pair(pair)
            except DataError as error:
                faults.add(pair.id, str(error), error)
                continue
            twin = seen.add(pair, sample)
            if twin is not None:
                built.duplicates[pair.id] = twin
                continue
            clicks = clicks_to(segmenter, sample) if segmenter is not None else (None, None)
            writer.write(pair.split, to_row(sample, clicks))
    built.counts = dict(writer.counts)
    return built


def to_row(sample: Sample, clicks: tuple[int | None, int | None]) -> dict[str, Any]:
    """The row of one sample; the picture keeps its file's own encoding."""
    buffer = io.BytesIO()
    Image.fromarray(sample.target.astype(np.uint8) * 255).save(buffer, "png", compress_level=6)
    height, width = sample.size
    kept = {key: sample.meta[key] for key in ("category", "group", "source", "split", "part")}
    return {
        "id": sample.id,
        "image": encode_image(sample),
        "mask": {"bytes": buffer.getvalue(), "path": None},
        "expression": sample.expression,
        **kept,
        "width": width,
        "height": height,
        "clicks_80": clicks[0],
        "clicks_85": clicks[1],
    }


def clicks_to(segmenter: Segmenter, sample: Sample, thresholds: Sequence[float] = (0.80, 0.85)) -> tuple[int, ...]:
    """Clicks of the simulated annotator until each IoU, from the empty mask; CLICK_LIMIT where it is not reached."""
    from segagent.annotator import SimulatedAnnotator
    from segagent.environment import Environment
    from segagent.rollout import collect, rollout

    scale = min(1.0, CLICK_SIDE / max(sample.size))
    if scale < 1:
        size = [max(1, round(n * scale)) for n in sample.size[::-1]]
        image = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA)
        target = cv2.resize(sample.target.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) >= 128
        sample = Sample(image, sample.expression, target, sample.id)
    annotator = SimulatedAnnotator(sample.target, stop_iou=max(thresholds))
    run = collect(sample, rollout(Environment(segmenter), annotator, sample, steps=CLICK_LIMIT))
    reached = [[n for n, iou in enumerate(run.ious) if n and iou >= threshold] for threshold in thresholds]
    return tuple(numbers[0] if numbers else CLICK_LIMIT for numbers in reached)


def load_hres(
    path_or_repo: str | PathLike[str],
    split: str = "test",
    *,
    streaming: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    errors: str = "raise",
) -> Samples | SampleStream:
    """HRES from a folder that `build_hres` wrote or a repository of the Hub, as samples read when asked for. Raises DataError.

    With `streaming` nothing is stored and samples can only be gone through. Other columns are in `meta`.
    """
    from datasets import Image

    name = f"HRES {split} of {path_or_repo}"
    local = Path(path_or_repo).is_dir()
    if local and not any(Path(path_or_repo).glob(f"data/{split}-*.parquet")):
        have = sorted({path.name.split("-")[0] for path in Path(path_or_repo).glob("data/*.parquet")})
        raise DataError(f"{str(path_or_repo)!r} has no split {split!r}; it has {', '.join(have) or 'no data'}.")
    rows = load_rows(path_or_repo, split, streaming=streaming, revision=revision, token=token, cache_dir=cache_dir)
    if rows.features is not None and not {"image", "mask", "expression"} <= set(rows.features):
        raise DataError(f"{path_or_repo} has no columns image, mask and expression: it is not HRES.")
    for column in ("image", "mask"):
        rows = rows.cast_column(column, Image(decode=False))
    if streaming:
        return SampleStream(rows, from_row, name=name, errors=errors)
    return Samples(Rows(rows), from_row, name=name, errors=errors)


def from_row(row: Mapping[str, Any]) -> Sample:
    """The sample of one row whose pictures are not decoded yet ({"bytes", "path"})."""
    pictures = ("image", "mask")
    missing = [key for key in pictures if row[key] is None]
    if missing:
        raise DataError(f"The row has no {' and no '.join(missing)}: leave it out of the data set.")
    image, mask = (row[key]["bytes"] if row[key]["bytes"] is not None else row[key]["path"] for key in pictures)
    meta = {key: value for key, value in row.items() if key not in (*pictures, "id", "expression")}
    return Sample(load_image(image), row["expression"], _mask(mask), row["id"], meta=meta)


def _mask(source: bytes | str) -> np.ndarray:
    """(H, W) bool of an encoded mask; the usual one, a grey PNG, by OpenCV, which is twice as quick as Pillow."""
    if isinstance(source, bytes) and source.startswith(b"\x89PNG"):  # of other kinds OpenCV raises on damaged ones
        grey = cv2.imdecode(np.frombuffer(source, np.uint8), cv2.IMREAD_UNCHANGED)
        if grey is not None and grey.ndim == 2 and grey.dtype == np.uint8:
            mask = grey >= (128 if cv2.minMaxLoc(grey)[1] > 1 else 1)
            mask.flags.writeable = False  # so that nobody needs a copy
            return mask
    return load_mask(source)


class Rows(Sequence[dict[str, Any]]):
    """A `datasets.Dataset` as a sequence: a slice is one too, and an iteration reads in the data set's own batches."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Rows(self.dataset.select(range(*index.indices(len(self)))))
        return self.dataset[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dataset)


def push_hres(
    folder: str | PathLike[str],
    repo: str,
    *,
    card: str | PathLike[str],
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> str:
    """Uploads what `build_hres` wrote, with the card (data_cards/hres.md) as its README; → the commit's address. Raises DataError.

    Both sources are for research only and forbid passing them on: keep the repository private unless you may publish it.
    """
    (Path(folder) / "README.md").write_text(filled_card(card, repo), encoding="utf-8")
    return push_folder(
        folder,
        repo,
        private=private,
        token=token,
        revision=revision,
        message="Upload HRES",
        replace=("data/*.parquet",),
    )
