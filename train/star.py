"""StaR+ and StaR: a policy learns from its own runs on the training images (paper, Algorithms 1 and 4).

    python -m train.star --model runs/nano/sft --data runs/nano/trajectories --out runs/nano/star --rounds 1 \\
        --samples 2000 -- --prompt "{expression}" --batch 32 --rate 3e-4 --steps 600

S_0 is `--model`, the SFT policy, and D_0 `--data`, what it was trained on. Round n rolls out S_n-1, makes D_n of it and trains
S_n from S_0. StaR+ (`--method star+`) keeps each action that raises the true IoU, puts F_sim's for that state in the place of
each other one, and trains on D_0 ∪ D_n; StaR (`--method star`) keeps whole runs whose last mask is good, and trains on D_n
alone. What follows `--` goes to train.sft; with `--steps` among it both methods have the same budget, while epochs of D_n alone
are shorter. Each round keeps its data, model and report under `--out`/round-N; after an interruption the same command goes on
where it stopped.
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
from segagent.checkpoint import CONFIG, find_checkpoint
from segagent.environment import Environment
from segagent.errors import DataError
from segagent.export import write_file
from segagent.policy import Observation
from segagent.rollout import rollout_many
from segagent.segmenters.base import Holding
from segagent.trajectories import to_row
from segagent.types import Sample, Trajectory, Transition
from train import sft
from train.command import as_command
from train.generate import open_source, readable
from train.shards import counted, write_shard

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
    counts = dict.fromkeys(("runs", "kept", "actions", "corrected", "unreadable", "without target"), 0)
    rows = []
    part = list(readable(samples, number * size, (number + 1) * size, counts))
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
    write_shard(rows, out / f"train-{number:05d}.parquet", counts)
    return counts


@functools.cache
def _agent(model: str):
    from segagent.agent import SegAgent

    return SegAgent.from_pretrained(model)


def roll_out(folder: Path, samples: Sequence[Sample], *, size: int, workers: int, **settings) -> dict[str, int]:
    """D_n: makes all shards that are not there yet; → the counts of all of them."""
    _make(folder)
    numbers = [n for n in range(-(-len(samples) // size)) if not (folder / f"train-{n:05d}.parquet").exists()]
    # As many processes as cores, each on one thread, beat one on all: a segmenter and a decoder have little to share out.
    work = functools.partial(roll_shard, samples=samples, out=folder, size=size, threads=int(workers > 1), **settings)
    if numbers:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(numbers))) as pool:
            for _ in tqdm(pool.imap_unordered(work, numbers), total=len(numbers), unit="shard", desc="roll-out"):
                pass
    for half in folder.glob(".train-*.tmp"):  # of processes that were killed
        half.unlink(missing_ok=True)
    return counted(folder)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror or error}. Choose another --out.") from error


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
        told = ", ".join(f"{value} {key}" for key, value in counts.items())
        if not counts.get("runs", 1):
            raise DataError(f"Not one sample of {args.source} could be rolled out ({told}): see the warnings above.")
        if not counts.get("kept", 1):
            raise DataError(
                f"Round {number} kept none of {counts['runs']} runs: lower --stop, or begin with a better --model."
            )
        print(f"round {number}: {told}", flush=True)
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
        shares = (f["first_click_hit"], f["best"]["ciou"], f["best"]["giou"], f["last"]["ciou"])
        cells = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
        read = f["calibration"]
        cells += ["–" if f["noc85"] is None else f"{f['noc85']:.2f}", "–" if read is None else f"{read['mae']:.1f}"]
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
    args, training = parser.parse_args(words[:cut]), words[cut + 1 :]
    if min(args.rounds, args.samples, args.each, args.horizon, args.rollouts, args.shard, args.workers) < 1:
        parser.error("--rounds, --samples, --each, --horizon, --rollouts, --shard and --workers count from 1.")
    if min(args.count, args.seed, args.temperature) < 0 or not (0 <= args.stop <= 1 and 0 <= args.absent <= 1):
        parser.error("--count, --seed and --temperature are at least 0; --stop and --absent lie in [0, 1].")
    taken = sft.parse(
        ["--model", "", "--data", "", "--out", "", *training]
    )  # a wrong word is told before the roll-outs
    if (taken.model, taken.data, str(taken.out)) != ("", [""], "."):
        parser.error("--model, --data and --out are given before --, and each round's to train.sft by this command.")
    return args, training


def remember(args: argparse.Namespace, training: list[str]) -> None:
    """Notes in `--out` what the rounds are of. Raises DataError where there are rounds of something else."""
    own = {key: str(value) for key, value in vars(args).items() if key not in ("rounds", "workers", "rollouts", "out")}
    own["training"], record = training, args.out / "settings.json"
    try:
        held = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{record} cannot be read: {error}. Choose another --out, or remove it.") from error
    other = [key for key, value in own.items() if held.get(key, value) != value]
    if other and any(args.out.glob("round-*")):
        raise DataError(f"{args.out} holds rounds of other settings ({', '.join(other)}): choose another --out.")
    write_file(record, json.dumps(own, indent=1).encode())


def main(argv: list[str] | None = None) -> None:
    args, training = parse(argv)
    if not (find_checkpoint(args.model) / CONFIG).exists():
        raise DataError(f"{args.model} holds no checkpoint of train.sft ({CONFIG}): StaR starts from an SFT policy.")
    sft.load_trajectories(args.data)  # D_0 must be there before hours of roll-outs
    samples = open_source(args.source, args.samples, args.size, args.each, args.absent)
    _make(args.out)
    remember(args, training)
    if args.count and not (args.out / "round-0" / "report" / "report.json").exists():
        measure(args.model, args.out / "round-0" / "report", args)
    for number in range(1, args.rounds + 1):
        play_round(number, args, samples, training)
    table = summary(args)
    write_file(args.out / "star.md", f"{table}\n".encode())
    print(table)


if __name__ == "__main__":
    as_command(main)
