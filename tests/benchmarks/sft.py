"""Samples a second of train.sft's step against a bare PyTorch loop: `python -m tests.benchmarks.sft`.

Both train the embedded segagent-nano (or --model) as the paper does, vision encoder frozen, on the same batches. The bare loop finds
its batches ready in memory and does forward, backward and AdamW's step; ours is SFTTrainer as train.sft sets it up, which draws,
paints and processes its batches meanwhile. Wall clock between the ends of steps, without the first ones, by turns; and CPU
seconds of all processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import torch

from segagent._torchvision import mend
from segagent.agent import NANO
from segagent.grammar import Grammar
from train import generate, sft
from train.examples import alone, as_examples, load_trajectories
from train.tuning import prepare

WARM = 2  # steps that are not counted


def spent() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def setup(args, data: Path, out: Path):
    from trl import SFTTrainer

    from segagent.composite import size_seen
    from segagent.pretrained import load

    model, processor = load(args.model, dtype=torch.float32)
    model = prepare(model, "freeze-vision")
    argv = ["--model", str(args.model), "--data", str(data), "--out", str(out), "--steps", str(args.steps + WARM)]
    argv += ["--batch", str(args.batch), "--rate", "1e-4", "--workers", str(args.workers), "--save-steps", "100000"]
    argv += ["--bf16"] if args.bf16 else []
    config = sft.trainer_config(sft.parse(argv), model.config.model_type)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    examples = as_examples(
        load_trajectories([data]), Grammar(prompt="{expression}"), color="green", alpha=0.5,
        seen=size_seen(processor.image_processor),
    )  # fmt: skip
    return SFTTrainer(model=model, args=config, train_dataset=examples, processing_class=processor)


def ours(trainer, args) -> tuple[float, float]:
    """(seconds, CPU seconds) of `args.steps` steps."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            marks.append(time.perf_counter())

    marks: list[float] = []
    trainer.add_callback(Clock)
    before = spent()
    trainer.train()
    return marks[-1] - marks[WARM - 1], (spent() - before) * args.steps / (args.steps + WARM)


def bare(trainer, batches, args) -> tuple[float, float]:
    """The same on ready batches."""
    model = trainer.model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    for number, batch in enumerate(batches):
        if number == WARM:
            began, used = time.perf_counter(), spent()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began, spent() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(NANO))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=1, help="by turns; the best of each is taken")
    args = parser.parse_args()
    mend()
    count = args.batch * (args.steps + WARM)
    rates: dict[str, list[tuple[float, float]]] = {"bare loop": [], "train.sft": []}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        generate.main(
            ["--out", str(root / "data"), "--decisions", "--samples", str(count), "--size", "168", "--workers", "1"]
        )
        with alone():
            for repeat in range(args.repeats):
                trainer = setup(args, root / "data", root / f"out-{repeat}")
                batches = [b for b, _ in zip(trainer.get_train_dataloader(), range(args.steps + WARM), strict=False)]
                rates["bare loop"].append(bare(trainer, batches, args))
                del batches, trainer
                rates["train.sft"].append(ours(setup(args, root / "data", root / f"again-{repeat}"), args))
    examples = args.batch * args.steps
    best = {name: min(runs) for name, runs in rates.items()}
    for name, (wall, cpu) in best.items():
        print(f"{name:10} {examples / wall:6.1f} samples/s   {1000 * cpu / examples:6.1f} CPU ms a sample")
    (bare_wall, bare_cpu), (wall, cpu) = best["bare loop"], best["train.sft"]
    print(
        f"ratio {bare_wall / wall:.2f}, by CPU seconds {bare_cpu / cpu:.2f}; batches of {args.batch}, {torch.get_num_threads()} threads"
    )
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
