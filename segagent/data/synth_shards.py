"""HRES-Synth as parquet shards that `datasets.load_dataset` (and `load_hres`) reads, for those who train elsewhere."""

from __future__ import annotations

import io
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from segagent.data._hub import filled_card, push_folder
from segagent.data._shards import SHARD_BYTES, ShardWriter
from segagent.data.hres import clicks_to
from segagent.data.synth import hres_synth
from segagent.trajectories import encode_image

if TYPE_CHECKING:
    from datasets import Features

    from segagent.segmenters.base import Segmenter
    from segagent.types import Sample


def features() -> Features:
    """The columns of HRES-Synth."""
    from datasets import Features, Image, Value

    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "mask": Image(),  # 0 and 255; all 0 where the expression denotes nothing
            "expression": Value("string"),
            "category": Value("string"),  # the target's shape; empty where there is no target
            "level": Value("string"),
            "kind": Value("string"),  # of expression: attribute, size, place, order, relation, absent
            "objects": Value("int32"),
            "complexity": Value("float32"),  # see `complexity`; null where there is no target
            "clicks_80": Value("int32"),  # as in HRES; null where they were not measured or there is no target
            "clicks_85": Value("int32"),
        }
    )


def build_hres_synth(
    out: str | PathLike[str],
    counts: Mapping[str, int],
    *,
    level: str | None = None,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    segmenter: Segmenter | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, int]:
    """Writes so many samples of each split, e.g. {"train": 10000, "test": 1000}, to `out`/data; → what was written.

    What is in memory is one picture and a row group. `segmenter` is what the clicks are measured with (None: not measured).
    The other arguments are those of `hres_synth`. Raises DataError.
    """
    with ShardWriter(out, features(), shard_bytes=shard_bytes) as writer:
        for split, count in counts.items():
            for sample in hres_synth(split, level, count, size, seed):
                measured = segmenter is not None and sample.target.any()
                writer.write(split, to_row(sample, clicks_to(segmenter, sample) if measured else (None, None)))
    return dict(writer.counts)


def to_row(sample: Sample, clicks: tuple[int | None, int | None] = (None, None)) -> dict[str, Any]:
    """The row of one sample."""
    buffer = io.BytesIO()
    Image.fromarray(sample.target.astype(np.uint8) * 255).save(buffer, "png", compress_level=6)
    return {
        "id": sample.id,
        "image": encode_image(sample),
        "mask": {"bytes": buffer.getvalue(), "path": None},
        "expression": sample.expression,
        **{key: sample.meta[key] for key in ("category", "level", "kind", "objects")},
        "complexity": complexity(sample.target),
        "clicks_80": clicks[0],
        "clicks_85": clicks[1],
    }


def complexity(mask: np.ndarray) -> float | None:
    """Isoperimetric quotient of a mask (H, W), perimeter² / (4π · area), as DIS5K states it: about 1 for a disc, tens for a net.

    Contours of holes count; None for an empty mask.
    """
    area = np.count_nonzero(mask)
    if not area:
        return None
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    # A contour runs through the centres of border pixels: half a pixel more on each side makes it the border's own length.
    perimeter = sum(cv2.arcLength(contour, True) for contour in contours) + np.pi * len(contours)
    return float(perimeter**2 / (4 * np.pi * area))


def push_hres_synth(
    folder: str | PathLike[str],
    repo: str,
    *,
    card: str | PathLike[str],
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> str:
    """Uploads what `build_hres_synth` wrote, with the card (data_cards/hres-synth.md); → the commit's address. Raises DataError."""
    (Path(folder) / "README.md").write_text(filled_card(card, repo), encoding="utf-8")
    message, replaced = "Upload HRES-Synth", ("data/*.parquet",)
    return push_folder(folder, repo, private=private, token=token, revision=revision, message=message, replace=replaced)
