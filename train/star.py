"""StaR+ and StaR: a policy learns from its own runs on the training images (paper, Algorithms 1 and 4).

    python -m train.star --model runs/nano/sft --data runs/nano/trajectories --out runs/nano/star --rounds 1 \\
        --samples 2000 -- --prompt "{expression}" --batch 32 --rate 3e-4 --steps 600

S_0 is `--model`, the SFT policy, and D_0 `--data`, what it was trained on. Round n rolls out S_n-1, makes D_n of it and trains
S_n from S_0. StaR+ (`--method star+`) keeps each action that raises the true IoU, puts F_sim's for that state in the place of
each other one, and trains on D_0 ∪ D_n; StaR (`--method star`) keeps whole runs whose last mask is good, and trains on D_n
alone. What follows `--` goes to train.sft. Each round keeps its data, model and report under `--out`/round-N; after an
interruption the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from segagent import evaluate
from segagent.annotator import SimulatedAnnotator
from segagent.checkpoint import CONFIG
from segagent.environment import Environment
from segagent.errors import DataError
from segagent.policy import Observation
from segagent.rollout import rollout_many
from segagent.segmenters.base import Holding
from segagent.trajectories import to_row
from segagent.types import Sample, Trajectory, Transition
from train import sft
from train.generate import open_source
from train.shards import write_shard

METHODS = ("star+", "star")


def improve(trajectory: Trajectory, stop: float) -> Trajectory:
    """StaR+'s refinement of one run: every decision that does not raise the true IoU becomes F_sim's for that state.

    The states stay those that the policy met, so a corrected action's own reward is not known: it is None, and the mask after
    it is that of the action which it replaced. A stop is kept where the IoU has reached `stop` (τ_stop). The run ends where
    F_sim stops.
    """
    annotator = SimulatedAnnotator(trajectory.sample.target, trajectory.sample.ignore, stop_iou=stop)
    kept: list[Transition] = []
    for step in trajectory.transitions:
        if step.end == "steps" or _is_good(step, stop):
            kept.append(step)
            continue
        observation = Observation(step.state, trajectory.sample.expression, trajectory.sample.id)
        action = annotator.read([observation])[0].propose()[0].action
        if action is None:
            kept.append(
                replace(step, action=None, next_state=step.state, reward=step.iou, origin="corrected", end="stop")
            )
            break
        # The record goes on with the mask that the policy's own action led to.
        kept.append(replace(step, action=action, reward=None, origin="corrected", end=None))
    return Trajectory(trajectory.sample, tuple(kept))


def _is_good(step: Transition, stop: float) -> bool:
    if step.action is None:
        return step.end == "stop" and step.iou >= stop
    return step.reward > step.iou


def select(trajectory: Trajectory, stop: float) -> Trajectory | None:
    """StaR's choice: the whole run where its last mask has reached `stop`, and nothing otherwise."""
    return trajectory if trajectory.ious[-1] >= stop else None


def roll_shard(
    number: int, *, samples: Sequence[Sample], out: Path, size: int, model: str, method: str, round: int,
    steps: int, stop: float, temperature: float, seed: int, batch: int, source: str, threads: int,
) -> dict[str, int]:  # fmt: skip
    """Rolls out the samples of shard `number` in lock step, `batch` at a time, and writes what is kept of them."""
    import cv2
    import torch

    if threads:
        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
    agent = _agent(model)
    counts = {"runs": 0, "kept": 0, "actions": 0, "corrected": 0, "unreadable": 0}
    rows, part = [], []
    for index in range(number * size, min((number + 1) * size, len(samples))):
        try:
            part.append(samples[index])
        except (DataError, OSError):
            counts["unreadable"] += 1
    for first in range(0, len(part), batch):
        group = part[first : first + batch]
        runs: list[list[Transition]] = [[] for _ in group]
        environment = Environment(Holding(agent.segmenter, len(group)))
        # A seed of the round, so that the same sample is sampled anew in the next one.
        for i, transition in rollout_many(
            environment, agent.policy, group, steps=steps, temperature=temperature, seed=seed + 1000 * round
        ):
            runs[i].append(transition)
        for sample, run in zip(group, runs, strict=True):
            whole = Trajectory(sample, tuple(run))
            kept = improve(whole, stop) if method == "star+" else select(whole, stop)
            counts["runs"] += 1
            if kept is None:
                continue
            counts["kept"] += 1
            counts["actions"] += len(kept.steps)
            counts["corrected"] += sum(step.origin == "corrected" for step in kept.transitions)
            rows.append(to_row(kept, segmenter=agent.segmenter.reference, round=round, source=source, initial="empty"))
    write_shard(rows, out / f"train-{number:05d}.parquet")
    return counts


@functools.cache
def _agent(model: str):
    from segagent.agent import SegAgent

    return SegAgent.from_pretrained(model)


def roll_out(folder: Path, samples: Sequence[Sample], *, size: int, workers: int, **settings) -> dict[str, int]:
    """D_n: all shards that are not there yet; the counts of all of them are kept beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    total_file = folder / "counts.json"
    total = json.loads(total_file.read_text()) if total_file.exists() else {}
    numbers = [n for n in range(-(-len(samples) // size)) if not (folder / f"train-{n:05d}.parquet").exists()]
    # As many processes as cores, each on one thread, beat one on all: a segmenter and a decoder have little to share out.
    work = functools.partial(roll_shard, samples=samples, out=folder, size=size, threads=int(workers > 1), **settings)
    with multiprocessing.get_context("spawn").Pool(min(workers, len(numbers)) or 1) as pool:
        for counts in tqdm(pool.imap_unordered(work, numbers), total=len(numbers), unit="shard", desc="roll-out"):
            total = {key: total.get(key, 0) + value for key, value in counts.items()}
            total_file.write_text(json.dumps(total))
    return total


def play_round(number: int, args: argparse.Namespace, samples: Sequence[Sample], training: list[str]) -> Path:
    """Round `number`, or what is left of it → the folder of its model."""
    folder = args.out / f"round-{number}"
    before = args.model if number == 1 else args.out / f"round-{number - 1}" / "model"
    model = folder / "model"
    if not (model / CONFIG).exists():
        counts = roll_out(
            folder / "data", samples, size=args.shard, workers=args.workers, model=str(before), method=args.method,
            round=number, steps=args.horizon, stop=args.stop, temperature=args.temperature, seed=args.seed,
            batch=args.rollouts, source=args.source,
        )  # fmt: skip
        if not counts.get("kept", 1):
            raise DataError(
                f"Round {number} kept none of {counts['runs']} runs: lower --stop, or begin with a better --model."
            )
        print(f"round {number}: " + ", ".join(f"{value} {key}" for key, value in counts.items()), flush=True)
        data = [folder / "data"] if args.method == "star" else [*args.data, folder / "data"]
        sft.main(["--model", str(args.model), "--out", str(model), "--data", *map(str, data), *training])
    if args.count and not (folder / "report" / "report.json").exists():
        measure(model, folder / "report", args)
    return model


def measure(model: Path | str, out: Path, args: argparse.Namespace) -> None:
    """The model's figures on `--validation`; models are chosen by these, never by a test split."""
    evaluate.main(
        ["--policy", str(model), "--data", args.validation, "--count", str(args.count), "--steps", str(args.horizon),
         "--out", str(out)]
    )  # fmt: skip


def summary(args: argparse.Namespace) -> str:
    """A table of S_0 and of all rounds that have a report."""
    lines = [
        "| model | first click hits | cIoU | gIoU | cIoU of last mask | NoC@85 | PRM MAE |",
        "|---|---|---|---|---|---|---|",
    ]
    for number in range(args.rounds + 1):
        folder = args.out / f"round-{number}" / "report" / "report.json"
        if not folder.exists():
            continue
        f = json.loads(folder.read_text())["figures"]["all"]
        values = [100 * v for v in (f["first_click_hit"], f["best"]["ciou"], f["best"]["giou"], f["last"]["ciou"])]
        read = f["calibration"]
        cells = [f"{v:.1f}" for v in values] + [f"{f['noc85']:.2f}", "–" if read is None else f"{read['mae']:.1f}"]
        lines.append(f"| {'S_0' if number == 0 else f'{args.method}, round {number}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(this command's options, those for train.sft)."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="What follows -- goes to train.sft: --batch, --rate, --steps, --prompt …",
    )
    parser.add_argument("--model", type=Path, required=True, help="S_0, the checkpoint that SFT made")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="D_0, folders of trajectory shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1, help="N")
    parser.add_argument("--method", choices=METHODS, default="star+")
    parser.add_argument("--source", default="hres-synth", help="training images, as for train.generate")
    parser.add_argument("--samples", type=int, default=1000, help="runs a round")
    parser.add_argument("--size", type=int, default=None, help="px, longest side of HRES-Synth's scenes")
    parser.add_argument("--each", type=int, default=1, help="expressions for each scene of HRES-Synth")
    parser.add_argument(
        "--absent", type=float, default=0.0, help="share of expressions of HRES-Synth that denote nothing"
    )
    parser.add_argument("--horizon", type=int, default=7, help="T, the most actions of a run")
    parser.add_argument("--stop", type=float, default=0.9, help="tau_stop, an IoU; for StaR, when a run ends well")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the roll-outs; 0 is greedy")
    parser.add_argument("--rollouts", type=int, default=32, help="runs in lock step")
    parser.add_argument("--shard", type=int, default=250, help="runs a file")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; 1 on a GPU")
    parser.add_argument("--validation", default="hres-synth:split=validation", help="what each round's report measures")
    parser.add_argument("--count", type=int, default=300, help="samples of the report; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    if args.rounds < 1 or args.samples < 1:
        parser.error("--rounds and --samples count from 1.")
    return args, words[cut + 1 :]


def main(argv: list[str] | None = None) -> None:
    args, training = parse(argv)
    if not (args.model / CONFIG).exists():
        raise DataError(f"{args.model} holds no checkpoint of train.sft ({CONFIG}): StaR starts from an SFT policy.")
    sft.load_trajectories(args.data)  # D_0 must be there before hours of roll-outs
    args.out.mkdir(parents=True, exist_ok=True)
    own = {key: str(value) for key, value in vars(args).items() if key not in ("rounds", "workers", "rollouts", "out")}
    text, record = json.dumps({**own, "training": training}, indent=1), args.out / "settings.json"
    if record.exists() and record.read_text() != text:
        raise DataError(f"{args.out} holds rounds of other settings (settings.json): choose another --out.")
    record.write_text(text)
    samples = open_source(args.source, args.samples, args.size, args.each, args.absent)
    if args.count and not (args.out / "round-0" / "report" / "report.json").exists():
        measure(args.model, args.out / "round-0" / "report", args)
    for number in range(1, args.rounds + 1):
        play_round(number, args, samples, training)
    table = summary(args)
    (args.out / "star.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
