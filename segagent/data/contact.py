"""Contact sheets: many samples, or trajectories step by step, on one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segagent.drawing import picture
from segagent.types import Box, Click, Sample, Trajectory

TILE = 260  # px, the longest side of a picture
_LINE, _LINES, _GAP = 17, 3, 10  # px a line of a caption, lines at most, px between tiles
_INK = (32, 36, 44)


def sheet(things: Sequence[Sample | Trajectory], columns: int = 4) -> np.ndarray:
    """(h, w, 3) uint8: samples `columns` in a row, the target painted on; a trajectory takes a row of its own, a tile a state."""
    runs = [thing for thing in things if isinstance(thing, Trajectory)]
    samples = [thing for thing in things if isinstance(thing, Sample)]
    rows = [[_state(run, i) for i in range(len(run.states))] for run in runs]
    tiles = [_sample(sample) for sample in samples]
    rows += [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    return grid(rows)


def _sample(sample: Sample) -> tuple[np.ndarray, str]:
    shown = picture(sample.image, sample.target, longest=TILE)
    height, width = sample.size
    share = "no target" if sample.target is None else f"{sample.target.mean():.1%}"
    return shown, f"{sample.expression}\n{width} x {height}, {share}"


def _state(run: Trajectory, index: int) -> tuple[np.ndarray, str]:
    """State `index`, its mask painted on, with the clicks that led to it."""
    state = run.states[index]
    shown = picture(run.sample.image, state.mask, state.actions, longest=TILE, target=run.sample.target)
    true, said = run.ious[index], run.predicted_ious[index]
    text = " ".join(
        [f"IoU {true:.2f}" if true is not None else "", f"said {said:.2f}" if said is not None else ""]
    ).strip()
    if index == 0:
        return shown, f"{run.sample.expression}\n{text}"
    return shown, f"{index}. {_words(run.steps[index - 1].action)}\n{text}" + (
        f", {run.end}" if run.end and index == len(run.steps) else ""
    )


def _words(action: object) -> str:
    if isinstance(action, Click):
        return f"{'+' if action.positive else '-'} ({action.x:.4g}, {action.y:.4g})"
    if isinstance(action, Box):
        return f"box ({action.x0:.4g}, {action.y0:.4g}, {action.x1:.4g}, {action.y1:.4g})"
    return "undo"


def grid(rows: Sequence[Sequence[tuple[np.ndarray, str]]]) -> np.ndarray:
    """(h, w, 3) uint8: rows of pictures, TILE px at most, each with its caption, whose last line is always shown."""
    font = ImageFont.load_default(13)
    cell = TILE + _GAP
    heights = [max(tile.shape[0] for tile, _ in row) + _LINES * _LINE + _GAP for row in rows]
    width = max((len(row) for row in rows), default=1) * cell + _GAP
    canvas = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        tallest = height - _LINES * _LINE - _GAP
        for i, (tile, caption) in enumerate(row):
            left = _GAP + i * cell
            canvas.paste(Image.fromarray(tile), (left + (TILE - tile.shape[1]) // 2, top + tallest - tile.shape[0]))
            draw.multiline_text((left, top + tallest + 3), _wrapped(caption), fill=_INK, font=font, spacing=3)
        top += height
    return np.asarray(canvas)


def _wrapped(caption: str) -> str:
    """At most _LINES lines; the last line, the figures, is always kept."""
    text, _, figures = caption.rpartition("\n")
    lines = textwrap.wrap(text, 36, max_lines=_LINES - 1, placeholder=" ...")
    return "\n".join([*lines, figures])
