"""Trains ClickNet from nothing on procedural scenes, by clicks that go where it errs.

    python -m train.clicknet --out runs/clicknet --minutes 600

Of each example the image's part is computed once; then come rounds of a click and a forward pass, whose mask the next round
gets as previous mask and the next click corrects. Every round teaches. Some examples begin with a wrong mask instead of the
empty one. Scenes are made by all cores before the first step and kept in `--out`/scenes; each is seen in ever other crops
and colours. Resumes from `--out` after an interruption; `clicknet.jsonl` there is the log, with the mean IoU after each
click on scenes that are not trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from segagent.annotator import next_click
from segagent.data.corruptions import corrupt
from segagent.masks import iou
from segagent.segmenters.clicknet_model import ClickNetConfig, ClickNetModel
from segagent.segmenters.simpleclick import THRESHOLD
from segagent.types import Click
from train.clicknet_scenes import example, make_cache

ROUNDS = 3  # clicks an example is trained on
REFINED = 0.25  # share of examples that begin with a wrong mask
STRAY = 0.2  # share of clicks anywhere in the error region instead of its centre, as people's are
HELD_OUT, HELD_OUT_SEED, HELD_OUT_ROUNDS = 192, 1, 5  # examples of scenes that are not trained on, and clicks on them
SAVE_EVERY = 180  # seconds


class Examples(IterableDataset):
    """Endless (image (S, S, 3) uint8, target (S, S) bool, first mask (S, S) bool)."""

    def __init__(self, shards: list[np.ndarray], size: int, seed: int) -> None:
        self.shards, self.size, self.seed = shards, size, seed

    def __iter__(self):
        worker = get_worker_info()
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            shard = self.shards[rng.integers(len(self.shards))]
            found = example(rng, np.asarray(shard[rng.integers(len(shard))]), self.size)
            if found is not None:
                image, target = found
                begun = corrupt(target, rng)[0] if rng.random() < REFINED else np.zeros_like(target)
                yield image, target, begun


def batch_of(examples) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """(images (B, 3, S, S) uint8, targets (B, S, S) bool, first masks (B, S, S) bool)."""
    images, targets, begun = (np.stack(column) for column in zip(*examples, strict=True))
    return torch.from_numpy(images).permute(0, 3, 1, 2), targets, begun


class Clicks:
    """The clicks on a batch, as the model takes them."""

    def __init__(self, targets: np.ndarray, limit: int, rng: np.random.Generator | None) -> None:
        """Without `rng` all clicks are the simulated annotator's."""
        self.targets, self.limit, self.rng = targets, limit, rng
        self.points = np.full((len(targets), 2 * limit, 3), -1, np.float32)
        self.clicks: list[list[Click]] = [[] for _ in targets]

    def add(self, masks: np.ndarray) -> None:
        """One more click on each mask (B, S, S) bool that is not right yet."""
        for row, (mask, target) in enumerate(zip(masks, self.targets, strict=True)):
            click = next_click(mask, target, clicked=self.clicks[row])
            if click is None:
                continue
            if self.rng is not None and self.rng.random() < STRAY:
                ys, xs = np.nonzero(target & ~mask if click.positive else mask & ~target)
                at = self.rng.integers(len(xs))
                click = Click(int(xs[at]), int(ys[at]), click.positive)
            place = sum(c.positive == click.positive for c in self.clicks[row]) + (not click.positive) * self.limit
            self.points[row, place] = click.y, click.x, len(self.clicks[row])
            self.clicks[row].append(click)


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy, plus one minus a soft IoU; both (B, 1, S, S)."""
    probability = logits.sigmoid()
    shared = (probability * target).flatten(1).sum(1)
    union = (probability + target - probability * target).flatten(1).sum(1)
    return functional.binary_cross_entropy_with_logits(logits, target) + (1 - (shared + 1) / (union + 1)).mean()


def rounds(model, images: torch.Tensor, targets: np.ndarray, begun: np.ndarray, count: int, rng=None):
    """Yields the logits (B, 1, S, S) after each of `count` clicks, gradients on, and the masks (B, S, S) bool they make."""
    device = next(model.parameters()).device
    pixels = (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
    clicks, masks = Clicks(targets, count, rng), begun
    previous = torch.from_numpy(begun)[:, None].float().to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        embedded = model.embed_image(pixels)
    for _ in range(count):
        clicks.add(masks)
        points = torch.from_numpy(clicks.points).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(points=points, previous=previous, image_embeddings=embedded).float()
        previous = logits.detach().sigmoid()
        masks = (previous[:, 0] > THRESHOLD).cpu().numpy()
        yield logits, masks


@torch.no_grad()
def held_out_ious(model, batch) -> list[float]:
    """Mean IoU after each click."""
    model.eval()
    images, targets, begun = batch
    ious = [
        float(np.mean(iou(masks, targets)))
        for _, masks in rounds(model, images, targets, np.zeros_like(begun), HELD_OUT_ROUNDS)
    ]
    model.train()
    return ious


def train(model, shards, held_out, out: Path, *, minutes: float, batch: int, rate: float, workers: int) -> None:
    saved, seconds, steps = out / "clicknet.pt", 0.0, 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location=model.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        seconds, steps = state["seconds"], state["steps"]
    examples = Examples(shards, model.config.image_size, seed=1000 + steps)  # a resumed run goes on with other crops
    loader = DataLoader(examples, batch_size=batch, num_workers=workers, collate_fn=batch_of)
    rng, last, last_saved, losses = np.random.default_rng(2000 + steps), time.monotonic(), seconds, []
    model.train()
    with (out / "clicknet.jsonl").open("a") as log:
        for images, targets, begun in tqdm(loader, unit="batch", initial=steps, mininterval=10):
            share = min(seconds / (60 * minutes), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (steps + 1) / 100) * (0.5 * (1 + math.cos(math.pi * share)) * 0.98 + 0.02)
            wanted = torch.from_numpy(targets)[:, None].float().to(model.device)
            logits = [values for values, _ in rounds(model, images, targets, begun, ROUNDS, rng)]
            loss = sum(loss_of(values, wanted) for values in logits) / ROUNDS
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            now, steps = time.monotonic(), steps + 1
            seconds, last = seconds + now - last, now
            done = seconds >= 60 * minutes
            if done or seconds - last_saved > SAVE_EVERY:
                last_saved = seconds
                record = {"steps": steps, "samples": steps * batch, "seconds": round(seconds), "loss": np.mean(losses)}
                record["ious"] = [round(value, 3) for value in held_out_ious(model, held_out)]
                log.write(json.dumps(record) + "\n")
                log.flush()
                losses = []
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "seconds": seconds, "steps": steps}, saved.with_suffix(".tmp"))
                saved.with_suffix(".tmp").rename(saved)
            if done:
                return


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=600, help="of training, interruptions not counted")
    parser.add_argument("--scenes", type=int, default=20_000, help="that are made before")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that make scenes and examples")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    shards = make_cache(args.out / "scenes", args.scenes, 0, args.workers)
    unseen = make_cache(args.out / "scenes", HELD_OUT, HELD_OUT_SEED, args.workers)
    model = ClickNetModel(ClickNetConfig()).to(memory_format=torch.channels_last)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    examples = iter(Examples(unseen, model.config.image_size, seed=0))
    held_out = batch_of([next(examples) for _ in range(HELD_OUT)])
    options = {"minutes": args.minutes, "batch": args.batch, "rate": args.rate, "workers": args.workers}
    train(model, shards, held_out, args.out, **options)
    model.eval().save_pretrained(args.out)
    print(f"{args.out}: trained")


if __name__ == "__main__":
    main()
