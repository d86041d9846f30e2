"""Dense pre-training of nano: what is where, which of it the words mean, where F_sim would click, and the answer itself.

    python -m train.pretrain --model runs/nano/untrained --out runs/nano/vision --minutes 120

Scenes of HRES-Synth with a wrong mask painted on, and an expression. An answer teaches a dozen tokens; here each of the
hundred image tokens, which cover a cell of a tenth by a tenth of the picture, teaches too. From the projected features
linear heads read the token's own place, the colour and shape of the object under it, and, as if that object were the
target: whether F_sim's click falls into this cell, and the second digits of x and y of the point of this cell that lies
deepest in the error region. From the language model's hidden states before its last layer: whether the expression means
that object, the sign of the click (or "stop") and the IoU, the cell that is clicked, and its digits. So nothing has to be
told over a distance: the last layer only has to find the token that is clicked, and say its digits; the answer is trained
along. The heads are thrown away. Resumes from `--out` after an interruption.
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
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from segagent._torchvision import mend
from segagent.annotator import next_click
from segagent.data._expressions import expressions
from segagent.data._scenes import Scene, make_scene
from segagent.data.corruptions import corrupt
from segagent.errors import CheckpointError
from segagent.masks import iou, overlay
from train.command import as_command
from train.dense import GRID, IGNORE, MEANT, SEEN, STOP_IOU, describe
from train.nano import INPUT, grammar

LEVELS = ("easy", "medium", "easy", "hard", "medium")
EMPTY, ABSENT = 0.45, 0.06  # shares of samples that start from the empty mask, and of expressions that mean nothing
WEIGHTS = {"row": 0.6, "column": 0.6, "here": 2.0, "iou": 3.0, "meant": 2.0, "click": 2.0}
NANO = "fast_vlm"
ANSWER_WEIGHT = 16.0  # a mean over some fifteen tokens, of which four say where


class Scenes(IterableDataset):
    """Endless samples; each scene is seen with `views` pairs of an expression and a mask."""

    def __init__(self, seed: int, views: int = 3) -> None:
        self.seed, self.views = seed, views

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        cv2.setNumThreads(1)
        stream = 0
        while True:
            rng = np.random.default_rng([self.seed, worker.id if worker else 0, stream])
            # From the model's own resolution, which is fast, to that of the data, whose strokes get thinner as they are shrunk
            # to it; of any aspect ratio, for the input squeezes it away.
            size = tuple(int(side) for side in rng.integers(INPUT * 4 // 5, INPUT * 2, 2))
            scene = make_scene(rng, LEVELS[stream % len(LEVELS)], size)
            found = expressions(scene, rng, per_object=2)
            present, absent = [e for e in found if e[1]], [e for e in found if not e[1]]
            for _ in range(self.views):
                pool = absent if absent and (not present or rng.random() < ABSENT) else present
                if pool:
                    yield self.example(scene, pool[rng.integers(len(pool))], rng)
            stream += 1

    @staticmethod
    def example(
        scene: Scene, expression, rng: np.random.Generator
    ) -> tuple[np.ndarray, str, str, dict[str, np.ndarray]]:
        """(painted picture (INPUT, INPUT, 3) uint8, expression, answer, dense targets)."""
        text, targets, _ = expression
        meant = targets[0] if targets else None
        target = np.zeros(scene.size, bool) if meant is None else scene.objects[meant].mask
        others = [item.mask for i, item in enumerate(scene.objects) if i != meant]
        mask, _ = corrupt(target, rng, "empty" if rng.random() < EMPTY else None, others)
        value, click = iou(mask, target), None
        if value < STOP_IOU:
            click = next_click(mask, target)
        picture = cv2.resize(overlay(scene.image, mask), (INPUT, INPUT), interpolation=cv2.INTER_AREA)
        return picture, text, grammar().format(click, value, scene.size), describe(scene, mask, meant)


class Batches:
    """Samples → tensors: prompts as the checkpoint's chat template writes them, each with the answer that is taught."""

    def __init__(self, processor) -> None:
        self.processor = processor

    def __call__(self, samples) -> dict:
        tokenizer, image = self.processor.tokenizer, self.processor.image_token
        rows, starts = [], []
        for _, text, answer, _ in samples:
            messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": grammar().ask(text)}]}]
            prompt = self.processor.apply_chat_template(messages, tokenize=False).replace(image, image * GRID**2)
            whole = self.processor.apply_chat_template(
                [*messages, {"role": "assistant", "content": answer}], tokenize=False
            )
            rows.append(tokenizer(prompt)["input_ids"])
            starts.append(len(rows[-1]))
            rows[-1] += tokenizer(whole.replace(image, image * GRID**2)[len(prompt) :])["input_ids"]
        longest = max(map(len, rows))
        ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        labels = ids.clone()
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            labels[i, : longest - len(row) + start] = IGNORE
        dense = {name: torch.from_numpy(np.stack([s[3][name] for s in samples])) for name in samples[0][3]}
        images = torch.from_numpy(np.stack([s[0] for s in samples])).permute(0, 3, 1, 2)
        return {"images": images, "input_ids": ids, "attention_mask": mask, "labels": labels, "dense": dense}


class Probe(nn.Module):
    """A model, and the linear heads that teach its image tokens."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model
        width = model.config.text_config.hidden_size
        self.seen, self.meant = nn.Linear(width, sum(SEEN.values())), nn.Linear(width, sum(MEANT.values()))
        self.norm = nn.LayerNorm(width)
        self._projected: torch.Tensor | None = None
        model.model.multi_modal_projector.register_forward_hook(self._keep)

    def _keep(self, module, inputs, output) -> None:
        self._projected = output

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """→ (the answer's loss, name → (B, GRID, GRID, classes) logits)."""
        pixels = ((batch["images"].float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        text = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        output = self.model(**text, pixel_values=pixels, output_hidden_states=True)
        states = output.hidden_states[-2][batch["input_ids"] == self.model.config.image_token_index]
        shape = (len(pixels), GRID, GRID, -1)
        logits = {}
        for sizes, values in ((SEEN, self.seen(self._projected)), (MEANT, self.meant(self.norm(states)))):
            logits |= dict(zip(sizes, values.reshape(shape).split(list(sizes.values()), dim=-1), strict=True))
        return output.loss, logits


def losses(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for name, target in targets.items():
        if (target == IGNORE).all():
            continue
        if name == "click":
            some = target.flatten(1).amax(1) == 1
            value = functional.cross_entropy(logits[name][some].flatten(1), target[some].flatten(1).argmax(1))
        elif logits[name].shape[-1] == 1:
            known = target != IGNORE
            value = functional.smooth_l1_loss(logits[name][..., 0][known], target[known], beta=0.02)
        else:
            value = functional.cross_entropy(logits[name].flatten(0, 2), target.flatten().long(), ignore_index=IGNORE)
        result[name] = WEIGHTS.get(name, 1.0) * value
    return result


@torch.no_grad()
def accuracies(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, float]:
    """Share of cells right (of those meant or clicked: recall), and the mean absolute error of the IoU."""
    result = {}
    for name, target in targets.items():
        known = target == 1 if name in ("meant", "here") else target != IGNORE
        if name == "click":
            some = target.flatten(1).amax(1) == 1
            right = logits[name][some].flatten(1).argmax(1) == target[some].flatten(1).argmax(1)
            result[name] = right.float().mean().item()
        elif logits[name].shape[-1] == 1:
            result[name] = (logits[name][..., 0][known] - target[known]).abs().mean().item()
        else:
            result[name] = (logits[name].argmax(-1)[known] == target[known]).float().mean().item()
    return result


def train(model, processor, out: Path, *, minutes: float, batch: int, rate: float, seed: int, workers: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    probe = Probe(model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=0.05)
    saved, seconds, steps = out / "pretrain.pt", 0.0, 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        try:
            probe.load_state_dict(state["probe"])
        except RuntimeError:
            raise CheckpointError(f"{saved} is of another network: choose another --out, or remove it.") from None
        optimizer.load_state_dict(state["optimizer"])
        seconds, steps = state["seconds"], state["steps"]
    # A resumed run goes on with scenes it has not seen.
    scenes = Scenes(seed * 1_000_003 + steps)
    loader = DataLoader(scenes, batch_size=batch, num_workers=workers, collate_fn=Batches(processor))
    last, last_saved, sums, counted = time.monotonic(), seconds, {}, 0
    progress = tqdm(loader, unit="batch", initial=steps, mininterval=10)
    with (out / "pretrain.jsonl").open("a") as log:
        for items in progress:
            share = min(seconds / (60 * minutes), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (steps + 1) / 100) * (0.5 * (1 + math.cos(math.pi * share)) * 0.98 + 0.02)
            answer, logits = probe(items)
            loss = ANSWER_WEIGHT * answer + sum(losses(logits, items["dense"]).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimizer.step()
            steps += 1
            now = time.monotonic()
            seconds, last = seconds + now - last, now
            if steps % 10 == 0:
                for name, value in {
                    "loss": loss.item(),
                    "answer": answer.item(),
                    **accuracies(logits, items["dense"]),
                }.items():
                    sums[name] = sums.get(name, 0.0) + value
                counted += 1
            if steps % 100 == 0:
                record = {"steps": steps, "samples": steps * batch, "seconds": round(seconds)}
                record |= {name: round(value / counted, 3) for name, value in sums.items()}
                log.write(json.dumps(record) + "\n")
                log.flush()
                progress.set_postfix(loss=record["loss"], click=record["click"])
                sums, counted = {}, 0
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
    parser.add_argument("--model", type=Path, required=True, help="what train.nano made, or a nano to train on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30, help="of training, interruptions not counted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that make scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not (args.model / "config.json").exists():
        raise CheckpointError(
            f"{args.model} holds no model (config.json): python -m train.nano --out {args.model} makes one."
        )
    mend()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(args.seed)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    if model.config.model_type != NANO or model.config.image_seq_length != GRID**2:
        raise CheckpointError(
            f"{args.model} is no segagent-nano, whose tower and {GRID}×{GRID} image tokens this trains."
        )
    processor = AutoProcessor.from_pretrained(args.model)
    train(
        model,
        processor,
        args.out,
        minutes=args.minutes,
        batch=args.batch,
        rate=args.rate,
        seed=args.seed,
        workers=args.workers,
    )
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"{args.out}: pre-trained")


if __name__ == "__main__":
    as_command(main)
