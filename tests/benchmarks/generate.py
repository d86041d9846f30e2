"""Samples a second of train.generate against a plain loop: `python -m tests.benchmarks.generate`.

The loop is what one writes first: one process, one sample after the other, the same samples, segmenter, simulated annotator and
rules, one parquet file at the end. Both make the same trajectories, which is checked. Wall clock, starting of processes included,
and CPU seconds of all processes, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from segagent.annotator import next_click
from segagent.environment import Environment
from segagent.masks import iou
from segagent.segmenters import load_segmenter
from segagent.trajectories import to_row
from segagent.types import State, Trajectory, Transition
from train import generate
from train.shards import write_shard

STEPS, STOP, GAIN = 7, 0.9, 0.0


def plain(samples, out: Path) -> None:
    environment, rows = Environment(load_segmenter("grabcut")), []
    for i in range(len(samples)):
        sample = samples[i]
        state, steps, done = environment.reset(sample), [], False
        for _ in range(STEPS):
            before = iou(state.mask, sample.target)
            if before >= STOP:
                steps.append(closing(state, before, "stop"))
                done = True
                break
            click = next_click(state.mask, sample.target, None, state.clicks)
            after = environment.step(state, click)
            value = iou(after.mask, sample.target)
            if value - before < GAIN:
                done = True
                break
            steps.append(Transition(state, click, after, iou=before, reward=value, origin="simulated"))
            state = after
        if not done:
            steps.append(closing(state, iou(state.mask, sample.target), "steps"))
        if steps:
            rows.append(to_row(Trajectory(sample, tuple(steps)), segmenter="grabcut", source="hres-synth"))
    out.mkdir()
    write_shard(rows, out / "train-00000.parquet")


def closing(state: State, value: float, end: str) -> Transition:
    return Transition(state, None, state, iou=value, reward=value, origin="simulated", end=end)


def ours(samples, out: Path, workers: int) -> None:
    settings = {
        "segmenter": "grabcut", "source": "hres-synth", "seed": 0, "steps": STEPS, "stop": STOP, "gain": GAIN,
        "shares": [1.0, 0.0, 0.0, 0.0], "scenes": [None, 3], "decisions": False,
    }  # fmt: skip
    size = 3 * -(-len(samples) // (3 * 4 * workers))  # whole scenes
    generate.generate(out, samples, workers=workers, size=size, settings=settings)


def measure(run: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process and its children)."""

    def spent() -> float:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    began, used = time.perf_counter(), spent()
    run(*arguments)
    return time.perf_counter() - began, spent() - used


def clicks(folder: Path) -> list:
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]
    return [(row["id"], [(s["kind"], s["x"], s["y"], s["iou_before"]) for s in row["steps"]]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many is taken")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        best: dict[str, tuple[float, float]] = {}
        for repeat in range(args.repeats):
            for name in ("plain loop", "train.generate"):
                samples, out = generate.open_source("hres-synth", args.samples, None, 3), root / f"{name}-{repeat}"
                made = (
                    measure(plain, samples, out) if name == "plain loop" else measure(ours, samples, out, args.workers)
                )
                best[name] = min(best.get(name, (1e9, 1e9)), made)
        same = clicks(root / "plain loop-0") == clicks(root / "train.generate-0")
    for name, (wall, cpu) in best.items():
        print(f"{name:16} {args.samples / wall:7.1f} samples/s   {1000 * cpu / args.samples:6.1f} CPU ms a sample")
    (plain_wall, plain_cpu), (wall, cpu) = best["plain loop"], best["train.generate"]
    print(f"throughput ratio {plain_wall / wall:.2f} with {args.workers} processes; CPU ratio {plain_cpu / cpu:.2f}")
    print(f"the same trajectories: {same}; load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
