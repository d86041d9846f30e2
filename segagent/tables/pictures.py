"""The worst runs on one picture: what was to be found, and what was returned with the clicks that led there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segagent.data.contact import TILE, grid
from segagent.drawing import picture
from segagent.masks import from_rle
from segagent.runs import Run
from segagent.types import Box, Click, Sample


def worst(runs: Sequence[Run], samples: Sequence[Sample], count: int) -> np.ndarray | None:
    """(h, w, 3) uint8: the `count` runs of the lowest IoU returned, two a row; None where there is none. Run i is of sample i."""
    good = [number for number, run in enumerate(runs) if not run.error]
    chosen = sorted(good, key=lambda number: runs[number].ious[runs[number].best()])[:count]
    tiles = [tile for number in chosen for tile in _pair(runs[number], samples[number])]
    return grid([tiles[i : i + 4] for i in range(0, len(tiles), 4)]) if tiles else None


def _pair(run: Run, sample: Sample) -> list[tuple[np.ndarray, str]]:
    best = run.best()
    clicks = [a for a in map(_action, run.actions[:best]) if a is not None]
    predicted = "" if run.predicted[best] is None else f", predicted {run.predicted[best]:.2f}"
    said = f"IoU {run.ious[best]:.2f}{predicted}, best {max(run.ious):.2f}"
    shown = picture(sample.image, from_rle(run.masks[best]), clicks, longest=TILE, target=sample.target)
    target = picture(sample.image, sample.target, longest=TILE, color="blue")
    return [
        (target, f"{sample.expression}\n{run.id.rpartition('/')[2]}: target"),
        (shown, f"after {best} of {len(run.actions)} clicks\n{said}"),
    ]


def _action(action: Sequence) -> Click | Box | None:
    kind, *values = action
    return Click(*values) if kind == "click" else Box(*values) if kind == "box" else None
