"""Trains ClickNet from nothing, on what the classical segmenter and it itself get wrong on procedural scenes.

    python -m train.clicknet --out runs/clicknet --minutes 60

The network is for corrections: beginnings stay the classical segmenter's, for a network trained on pixels makes them too small.

Round by round: roll-outs of clicks on scenes are written to `--out`/states, the first by the classical segmenter, each other
by the network trained so far; then the network is trained on all of them, in ever other flips and colours, by the cross
entropy of the unary costs that the cut gets from it. Resumes from `--out` after an interruption; `clicknet.jsonl` there is
the log, with the mean IoU after each click on scenes that are not trained on, of the classical segmenter first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from segagent.annotator import next_click
from segagent.masks import iou
from segagent.segmenters.classical.views import encode
from segagent.segmenters.clicknet import ClickNetSegmenter
from segagent.segmenters.clicknet_maps import MAPS
from segagent.segmenters.clicknet_model import ClickNetConfig, ClickNetModel
from segagent.segmenters.grabcut import GrabCutSegmenter, predict_one
from train.clicknet_scenes import make_cache
from train.clicknet_states import examples, make_states, unpack
from train.command import as_command

HELD_OUT, HELD_OUT_SEED, HELD_OUT_CLICKS = 64, 1, 10  # examples of scenes that are not trained on, and clicks on them
SCALE = 1.5  # what the nats of the cut are divided by to be log odds: the classical evidence fits the truth best so
FAR = 0.2  # weight of pixels far from the last click
SAVE_EVERY = 300  # seconds
LOG_EVERY = 60


def augmented(state: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(maps (1, len(MAPS), h, w), target (1, h, w)) float32 of a packed state, flipped, turned, of other light and hue."""
    if rng.random() < 0.5:
        state = state.transpose(0, 2, 1)
    maps, target = unpack(state[:, :: rng.choice((1, -1)), :: rng.choice((1, -1))])
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    maps[1:3] = np.einsum("ij,jhw->ihw", turn * rng.uniform(0.7, 1.3), maps[1:3])
    maps[0] = maps[0] * rng.uniform(0.7, 1.2) * rng.choice((1, -1)) + rng.uniform(-0.2, 0.2)
    maps[:3].clip(-1, 1, out=maps[:3])
    return tuple(torch.from_numpy(np.ascontiguousarray(a))[None] for a in (maps, target))


def loss_of(model: ClickNetModel, maps: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy, nats, of the pixels that no click fixes; those about the last one count for more.

    No weight may depend on the target: the network would learn to believe in what weighs more.
    """
    near, fixed = (maps[:, MAPS.index(name)] for name in ("last wide", "fixed"))
    weight = (FAR + (1 - FAR) * near.abs()) * (fixed == 0)
    losses = functional.binary_cross_entropy_with_logits(model.unary(maps) / SCALE, target, reduction="none")
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def held_out_ious(segmenter: GrabCutSegmenter, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Mean IoU after each of the simulated annotator's clicks."""
    ious = np.zeros((len(pairs), HELD_OUT_CLICKS))
    for row, (image, target) in zip(ious, pairs, strict=True):
        embedding, mask, clicks = encode(image), np.zeros_like(target), []
        for k in range(HELD_OUT_CLICKS):
            click = next_click(mask, target, clicked=clicks)
            if click is not None:
                clicks.append(click)
                mask = predict_one(embedding, mask, clicks, segmenter.adjust)
            row[k] = iou(mask, target)
    return [round(float(value), 3) for value in ious.mean(axis=0)]


class Run:
    """The training so far, in a file of `out` that is replaced every now and then."""

    def __init__(self, out: Path, *, minutes: float, batch: int, rate: float) -> None:
        self.out, self.whole, self.batch, self.rate = out, 60 * minutes, batch, rate
        self.model = ClickNetModel(ClickNetConfig())
        self.model = self.model.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.01)
        self.seconds, self.steps, self._saved = 0.0, 0, out / "clicknet.pt"
        if self._saved.exists():
            state = torch.load(self._saved, weights_only=True, map_location=self.model.device)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seconds, self.steps = state["seconds"], state["steps"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "seconds": self.seconds, "steps": self.steps}, self._saved.with_suffix(".tmp"))
        self._saved.with_suffix(".tmp").rename(self._saved)

    def log(self, **record) -> None:
        with (self.out / "clicknet.jsonl").open("a") as file:
            file.write(json.dumps({"steps": self.steps, "seconds": round(self.seconds), **record}) + "\n")

    def train(self, states: Sequence[np.ndarray], until: float) -> None:
        """On random ones of the packed states until `until` seconds of training are over."""
        rng, last, losses = np.random.default_rng([2000, self.steps]), time.monotonic(), []
        logged = saved = self.seconds
        self.model.train()
        progress = tqdm(unit="step", initial=self.steps, mininterval=30)
        while self.seconds < until:
            share = min(self.seconds / self.whole, 1.0)
            for group in self.optimizer.param_groups:
                warm = min(1.0, (self.steps + 1) / 100)
                group["lr"] = self.rate * warm * (0.5 * (1 + math.cos(math.pi * share)) * 0.98 + 0.02)
            losses.append(self._step(states, rng))
            now, self.steps = time.monotonic(), self.steps + 1
            self.seconds, last = self.seconds + now - last, now
            progress.update()
            if self.seconds - logged > LOG_EVERY:
                self.log(loss=round(float(np.mean(losses)), 4))
                logged, losses = self.seconds, []
            if self.seconds - saved > SAVE_EVERY:
                self.save()
                saved = self.seconds
        self.save()

    def _step(self, states: Sequence[np.ndarray], rng: np.random.Generator) -> float:
        """One step on `batch` states, one after the other: views are of many sizes. Returns their mean loss."""
        self.optimizer.zero_grad()
        total = 0.0
        for index in rng.integers(len(states), size=self.batch):
            maps, target = (t.to(self.model.device) for t in augmented(states[index], rng))
            loss = loss_of(self.model, maps.contiguous(memory_format=torch.channels_last), target) / self.batch
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="of training, without roll-outs and interruptions")
    parser.add_argument("--rounds", type=int, default=2, help="of roll-outs and training")
    parser.add_argument("--rollouts", type=int, default=1500, help="a round")
    parser.add_argument("--scenes", type=int, default=6000, help="that are made before")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that make scenes")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    shards = make_cache(args.out / "scenes", args.scenes, 0, args.workers)
    unseen = examples(make_cache(args.out / "scenes", HELD_OUT, HELD_OUT_SEED, 0), np.random.default_rng(0))
    held_out = [next(unseen) for _ in range(HELD_OUT)]
    run = Run(args.out, minutes=args.minutes, batch=args.batch, rate=args.rate)
    if not run.steps:
        run.log(ious=held_out_ious(GrabCutSegmenter(), held_out))
    segmenter, states = ClickNetSegmenter(run.model), []
    for number in range(args.rounds):
        until = run.whole * (number + 1) / args.rounds
        run.model.eval()
        states += make_states(args.out / "states", number, args.rollouts, shards, segmenter if number else None)
        if run.seconds < until:
            run.train(states, until)
            run.model.eval().save_pretrained(args.out)
            run.log(states=len(states), ious=held_out_ious(segmenter, held_out))
    print(f"{args.out}: trained")


if __name__ == "__main__":
    as_command(main)
