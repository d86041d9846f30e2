"""What ClickNet is trained on: what it sees of the corrections in roll-outs on procedural scenes, with the truth beside it.

The clicks go where the segmenter in the loop errs: first the classical one, then the one with the network trained so far
(after DAgger, Ross et al., 2011), so that the network meets its own mistakes. States are packed as bytes, in files that are
mapped into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segagent.annotator import next_click
from segagent.data.corruptions import corrupt
from segagent.masks import box_of, iou
from segagent.segmenters.classical.evidence import Evidence
from segagent.segmenters.classical.views import Embedding, encode
from segagent.segmenters.clicknet import ClickNetSegmenter
from segagent.segmenters.clicknet_maps import MAPS, maps_of
from segagent.segmenters.grabcut import predict_one
from segagent.types import Box, Click
from train.clicknet_scenes import example

SIZE = 256  # px of an example: the coarser view then shows less than all, as on photographs
CLICKS = 10  # of a roll-out at most
GOOD = 0.96  # IoU at which it ends
REFINED = 0.25  # share of roll-outs that begin with a wrong mask
BOXED = 0.1  # share of the others that begin with a box
STRAY = 0.2  # share of clicks anywhere in the error region instead of its centre, as people's are
SHARD = 32  # roll-outs a file
LAYERS = len(MAPS) + 1  # bytes a pixel: the maps and the target


def pack(maps: np.ndarray, target: np.ndarray) -> np.ndarray:
    """maps (len(MAPS), h, w) in [-1, 1], target (h, w) bool → (LAYERS, h, w) int8."""
    return np.concatenate([np.rint(maps * 127), target[None]]).astype(np.int8)


def unpack(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`, both float32."""
    values = state.astype(np.float32)
    return values[:-1] / 127, values[-1]


class Recorder:
    """Stands in for the segmenter's `adjust`; `segmenter` None is the classical one."""

    def __init__(self, segmenter: ClickNetSegmenter | None, target: np.ndarray) -> None:
        self.segmenter, self.target, self.states = segmenter, target, []

    def __call__(
        self, embedding: Embedding, evidence: Evidence, mask: np.ndarray, actions: Sequence[Click | Box]
    ) -> Evidence:
        if evidence.keep is None:  # a beginning, which is left as it is
            return evidence
        maps = maps_of(embedding, evidence, mask, actions)
        self.states.append(pack(maps, evidence.view.down(self.target)))
        return evidence if self.segmenter is None else self.segmenter.corrected(evidence, maps)


def first_action(target: np.ndarray, rng: np.random.Generator) -> Box | None:
    """Now and then a box about the target, somewhat off."""
    if rng.random() >= BOXED:
        return None
    x0, y0, x1, y1 = box_of(target)
    off = rng.normal(0, 0.04, 4) * (x1 - x0 + 1, y1 - y0 + 1, x1 - x0 + 1, y1 - y0 + 1)
    height, width = target.shape
    left, right = np.clip(sorted((x0 + off[0], x1 + off[2])), 0, width - 1)
    top, bottom = np.clip(sorted((y0 + off[1], y1 + off[3])), 0, height - 1)
    return Box(float(left), float(top), float(right), float(bottom))


def strayed(click: Click, mask: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> Click:
    """Now and then another pixel of the error."""
    if rng.random() >= STRAY:
        return click
    ys, xs = np.nonzero(target & ~mask if click.positive else mask & ~target)
    at = rng.integers(len(xs))
    return Click(int(xs[at]), int(ys[at]), click.positive)


def roll_out(
    segmenter: ClickNetSegmenter | None, image: np.ndarray, target: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """The packed states of the corrections of an image (H, W, 3) towards a target (H, W) bool."""
    embedding, recorder, actions = encode(image), Recorder(segmenter, target), []
    mask = corrupt(target, rng)[0] if rng.random() < REFINED else np.zeros_like(target)
    for _ in range(CLICKS):
        action = None if actions or mask.any() else first_action(target, rng)
        if action is None:
            action = next_click(mask, target, clicked=[a for a in actions if isinstance(a, Click)])
            if action is None:
                break
            action = strayed(action, mask, target, rng)
        actions.append(action)
        mask = predict_one(embedding, mask, actions, recorder)
        if iou(mask, target) >= GOOD:
            break
    return recorder.states


def examples(shards: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (image (SIZE, SIZE, 3) uint8, target (SIZE, SIZE) bool)."""
    while True:
        shard = shards[rng.integers(len(shards))]
        found = example(rng, np.asarray(shard[rng.integers(len(shard))]), SIZE)
        if found is not None:
            yield found


def make_states(
    folder: Path, number: int, count: int, shards: Sequence[np.ndarray], segmenter: ClickNetSegmenter | None
) -> list[np.ndarray]:
    """The states of at least `count` roll-outs of round `number`, (LAYERS, h, w) int8 each, mapped; files there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for n in tqdm(range(-(-count // SHARD)), desc=f"roll-outs, round {number}", mininterval=10):
        path, sizes = folder / f"states-{number}-{n:04d}.npy", folder / f"sizes-{number}-{n:04d}.npy"
        if not path.exists():
            rng = np.random.default_rng([number, n])
            pairs = examples(shards, rng)
            states = [state for _ in range(SHARD) for state in roll_out(segmenter, *next(pairs), rng)]
            np.save(sizes, np.array([state.shape[1:] for state in states]))
            part = path.with_suffix(".tmp.npy")
            np.save(part, np.concatenate([state.ravel() for state in states]))
            part.rename(path)
        found += _split(np.load(path, mmap_mode="r"), np.load(sizes))
    return found


def _split(flat: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(LAYERS * sizes.prod(axis=1))
    parts = np.split(flat, ends[:-1])
    return [part.reshape(LAYERS, *size) for part, size in zip(parts, sizes, strict=True)]
