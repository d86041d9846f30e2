"""Vision pre-training: what is where, and where an annotator would click next, for the object under each image token.

    python -m train.pretrain --model runs/nano/untrained --out runs/nano/vision --minutes 30

Scenes of HRES-Synth with a wrong mask painted on. From the projected features of each token linear heads read the colour and
shape of the object under it and, as if that object were the target, F_sim's answer: the sign (or "stop"), the first two
digits of x and y, and the IoU. So the language model that comes after only has to find the object that the words mean.
The heads are thrown away. Resumes from `--out` after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from segagent._torchvision import mend
from segagent.annotator import next_click
from segagent.data import _paint, _shapes
from segagent.data._scenes import make_scene
from segagent.data.corruptions import corrupt
from segagent.masks import iou, overlay
from train.nano import INPUT, STRIDE

GRID = INPUT // STRIDE
LEVELS = ("easy", "medium", "easy", "hard")
COLORS, SHAPES = list(_paint.COLORS), list(_shapes.SHAPES)
IGNORE = -100
STOP_IOU = 0.9
# name → number of classes of each head; "iou" is a regression
HEADS = {"color": len(COLORS), "shape": len(SHAPES), "sign": 3, "x1": 10, "x2": 10, "y1": 10, "y2": 10, "iou": 1}


def token_targets(scene, mask: np.ndarray) -> dict[str, np.ndarray]:
    """name → (GRID, GRID) targets for the object that covers each cell most; IGNORE where none covers a tenth of it."""
    height, width = mask.shape
    cover = np.stack(
        [cv2.resize(o.mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA) for o in scene.objects]
    )
    rows = []
    for item in scene.objects:
        value, click = iou(mask, item.mask), next_click(mask, item.mask)
        if value >= STOP_IOU or click is None:
            rows.append((COLORS.index(item.color), SHAPES.index(item.shape), 2, *[IGNORE] * 4, value))
            continue
        x, y = int((click.x + 0.5) / width * 100), int((click.y + 0.5) / height * 100)
        rows.append(
            (
                COLORS.index(item.color),
                SHAPES.index(item.shape),
                int(click.positive),
                x // 10,
                x % 10,
                y // 10,
                y % 10,
                value,
            )
        )
    table = np.array(rows, np.float32)
    under = cover.argmax(axis=0)
    targets = table[under]
    targets[cover.max(axis=0) < 0.1] = IGNORE
    return {name: targets[..., i] for i, name in enumerate(HEADS)}


class Scenes(IterableDataset):
    """Endless (image (3, INPUT, INPUT) uint8, targets) pairs; each scene is seen with `views` masks."""

    def __init__(self, seed: int, views: int = 3) -> None:
        self.seed, self.views = seed, views

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        cv2.setNumThreads(1)
        stream = 0
        while True:
            sequence = [self.seed, worker.id if worker else 0, stream]
            rng = np.random.default_rng(np.random.SeedSequence(sequence))
            # About the model's own resolution, which is fast, and of any aspect ratio, for the input squeezes it away.
            size = tuple(int(side) for side in rng.integers(INPUT * 4 // 5, INPUT * 6 // 5, 2))
            scene = make_scene(rng, LEVELS[stream % len(LEVELS)], size)
            for view in range(self.views):
                yield self.example(scene, rng, "empty" if view == 0 else None)
            stream += 1

    @staticmethod
    def example(scene, rng: np.random.Generator, kind: str | None):
        masks = [item.mask for item in scene.objects]
        pick = int(rng.integers(len(masks)))
        mask, _ = corrupt(masks[pick], rng, kind, [m for i, m in enumerate(masks) if i != pick])
        painted = cv2.resize(overlay(scene.image, mask), (INPUT, INPUT), interpolation=cv2.INTER_AREA)
        targets = token_targets(scene, mask)
        return torch.from_numpy(painted).permute(2, 0, 1), {k: torch.from_numpy(v) for k, v in targets.items()}


class Probe(nn.Module):
    """The tower and projector of a model, and the heads that teach them."""

    def __init__(self, model) -> None:
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.heads = nn.Linear(model.config.text_config.hidden_size, sum(HEADS.values()))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """images (B, 3, INPUT, INPUT) uint8 → name → (B, GRID, GRID, classes) logits."""
        pixels = (images.float() / 255 - 0.5) / 0.25
        features = self.tower(pixels.contiguous(memory_format=torch.channels_last)).last_hidden_state
        logits = self.heads(self.projector(features.permute(0, 2, 3, 1)))
        return dict(zip(HEADS, logits.split(list(HEADS.values()), dim=-1), strict=True))


def losses(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for name, target in targets.items():
        if name == "iou":
            known = target != IGNORE
            result[name] = 5 * (logits[name][..., 0][known] - target[known]).abs().mean()
        else:
            result[name] = nn.functional.cross_entropy(
                logits[name].flatten(0, 2), target.flatten().long(), ignore_index=IGNORE
            )
    return result


def accuracies(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, float]:
    """Share of cells right, and the mean absolute error of the IoU."""
    result = {}
    for name, target in targets.items():
        known = target != IGNORE
        if name == "iou":
            result[name] = (logits[name][..., 0][known] - target[known]).abs().mean().item()
        else:
            result[name] = (logits[name].argmax(-1)[known] == target[known]).float().mean().item()
    return result


def train(model, out: Path, *, minutes: float, batch: int, rate: float, seed: int, workers: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    probe = Probe(model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=0.05)
    saved, seconds, steps = out / "pretrain.pt", 0.0, 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        probe.load_state_dict(state["probe"])
        optimizer.load_state_dict(state["optimizer"])
        seconds, steps = state["seconds"], state["steps"]
    # A resumed run goes on with scenes it has not seen.
    loader = DataLoader(Scenes(seed * 1_000_003 + steps), batch_size=batch, num_workers=workers)
    log = (out / "pretrain.jsonl").open("a")
    last = time.monotonic()
    last_saved = seconds
    progress = tqdm(loader, unit="batch", initial=steps, mininterval=10)
    for images, targets in progress:
        share = min(seconds / (60 * minutes), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (steps + 1) / 100) * (0.5 * (1 + math.cos(math.pi * share)) * 0.98 + 0.02)
        logits = probe(images)
        loss = sum(losses(logits, targets).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimizer.step()
        steps += 1
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if steps % 50 == 0:
            record = {
                "steps": steps,
                "samples": steps * batch,
                "seconds": round(seconds),
                "loss": round(loss.item(), 3),
            }
            record |= {k: round(v, 3) for k, v in accuracies(logits, targets).items()}
            log.write(json.dumps(record) + "\n")
            log.flush()
            progress.set_postfix(loss=record["loss"], x1=record["x1"])
        done = seconds >= 60 * minutes
        if done or seconds - last_saved > 180:
            last_saved = seconds
            state = {
                "probe": probe.state_dict(),
                "optimizer": optimizer.state_dict(),
                "seconds": seconds,
                "steps": steps,
            }
            torch.save(state, saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").rename(saved)
        if done:
            return


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="what train.nano made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30, help="of training, interruptions not counted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that make scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    mend()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(args.seed)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    train(model, args.out, minutes=args.minutes, batch=args.batch, rate=args.rate, seed=args.seed, workers=args.workers)
    model.save_pretrained(args.out)
    AutoProcessor.from_pretrained(args.model).save_pretrained(args.out)
    print(f"{args.out}: vision tower and projector trained")


if __name__ == "__main__":
    main()
