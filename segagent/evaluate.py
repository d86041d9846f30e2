"""Measures a policy with a segmenter on a data set: metrics over rollouts, by group, against floor and ceiling.

    python -m segagent.evaluate --policy runs/nano/sft --count 500 --steps 7 --out runs/report
    python -m segagent.evaluate --policy simulated --count 500 --steps 7

Convention, split, count, checkpoint and date are part of every report; the pictures of the worst cases can be asked for.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segagent.annotator import SimulatedAnnotator
from segagent.data.sources import open_source
from segagent.environment import Environment
from segagent.errors import DataError
from segagent.metrics import RESMetrics, calibration, noc
from segagent.policy import FixedReading, Observation, Policy, Proposal, Reading, seed_for
from segagent.rollout import rollout_many
from segagent.types import Click, Sample, Trajectory

BASELINES = ("simulated", "random", "center")


class BlindPolicy:
    """The floor: one positive click at a random pixel or at the image's centre, then no more."""

    def __init__(self, where: str, seed: int = 0) -> None:
        self.where, self.seed = where, seed

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        return [FixedReading((Proposal(self._action(o)),)) for o in observations]

    def _action(self, observation: Observation) -> Click | None:
        if observation.state.actions:
            return None
        height, width = observation.state.size
        if self.where == "center":
            return Click(width // 2, height // 2)
        rng = np.random.default_rng(seed_for(self.seed, observation.id, 0))
        return Click(int(rng.integers(width)), int(rng.integers(height)))


def trajectories(
    environment: Environment,
    policy: Policy,
    samples: Sequence[Sample],
    *,
    steps: int = 7,
    batch: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Trajectory]:
    """One trajectory for each sample, in order, `batch` of them rolled out in lock step; memory holds one batch."""
    progress = tqdm(total=len(samples), unit="sample")
    for first in range(0, len(samples), batch):
        part = [samples[i] for i in range(first, min(first + batch, len(samples)))]
        runs: list[list] = [[] for _ in part]
        clicker = SimulatedAnnotator.for_samples(part) if policy == "simulated" else policy
        for i, transition in rollout_many(environment, clicker, part, steps=steps, temperature=temperature, seed=seed):
            runs[i].append(transition)
        yield from (Trajectory(sample, tuple(run)) for sample, run in zip(part, runs, strict=True))
        progress.update(len(part))
    progress.close()


class First(Sequence):
    """The first `count` samples of a lazy sequence, as lazy."""

    def __init__(self, samples: Sequence[Sample], count: int) -> None:
        self.samples, self.count = samples, min(count, len(samples))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.samples[index]


def first_click_hits(trajectory: Trajectory) -> bool:
    """Whether the first action is a positive click on the target's own pixels."""
    steps = trajectory.steps
    if not steps or not isinstance(steps[0].action, Click) or not steps[0].action.positive:
        return False
    click, (height, width) = steps[0].action, trajectory.sample.size
    x, y = min(int(click.x + 0.5), width - 1), min(int(click.y + 0.5), height - 1)
    return bool(trajectory.sample.target[y, x])


class Report:
    """Streams trajectories of samples with a target into the figures of one group."""

    def __init__(self, convention: str = "plain") -> None:
        self.masks = {"best": RESMetrics(convention=convention), "last": RESMetrics(convention=convention)}
        self.hits: list[bool] = []
        self.runs: list[tuple[float, ...]] = []
        self.read: list[tuple[float, float]] = []
        self.ends: dict[str, int] = {}

    def update(self, trajectory: Trajectory) -> None:
        sample, states = trajectory.sample, trajectory.states
        self.masks["best"].update(states[trajectory.best()].mask, sample.target)
        self.masks["last"].update(states[-1].mask, sample.target)
        if sample.target.any():
            self.hits.append(first_click_hits(trajectory))
            self.runs.append(trajectory.ious[1:])
        for predicted, true in zip(trajectory.predicted_ious, trajectory.ious, strict=True):
            if predicted is not None:
                self.read.append((predicted, true))
        self.ends[trajectory.end] = self.ends.get(trajectory.end, 0) + 1

    def compute(self, limit: int) -> dict[str, Any]:
        figures: dict[str, Any] = {name: metrics.compute() for name, metrics in self.masks.items()}
        figures["first_click_hit"] = float(np.mean(self.hits)) if self.hits else None
        figures["actions"] = float(np.mean([len(run) for run in self.runs])) if self.runs else None
        for threshold in (0.8, 0.85, 0.9):
            counts = [noc(run, threshold, limit) for run in self.runs]
            figures[f"noc{threshold * 100:.0f}"] = float(np.mean(counts)) if counts else None
        figures["calibration"] = calibration(*zip(*self.read, strict=True)) if self.read else None
        figures["ends"] = self.ends
        return figures


def evaluate(
    environment: Environment,
    policy: Policy,
    samples: Sequence[Sample],
    *,
    steps: int = 7,
    batch: int = 16,
    convention: str = "plain",
    temperature: float = 0.0,
    seed: int = 0,
    group: str = "level",
) -> dict[str, dict[str, Any]]:
    """Figures of all samples ("all") and of each value of `sample.meta[group]`."""
    reports = {"all": Report(convention)}
    for trajectory in trajectories(
        environment, policy, samples, steps=steps, batch=batch, temperature=temperature, seed=seed
    ):
        if trajectory.sample.target is None:
            raise DataError(f"Sample {trajectory.sample.id!r} has no target mask: nothing to measure against.")
        name = str(trajectory.sample.meta.get(group, ""))
        for key in {"all", name} - {""}:
            reports.setdefault(key, Report(convention)).update(trajectory)
    return {name: report.compute(steps) for name, report in reports.items()}


def markdown(figures: dict[str, dict[str, Any]]) -> str:
    """One table, a row a group; percent but for clicks and the MAE, which is in points of IoU."""
    lines = [
        "| group | count | first click hits | cIoU | gIoU | cIoU of last mask | NoC@80 | NoC@85 | actions | PRM MAE | Pearson |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in figures.items():
        read = f["calibration"]
        cells = [
            name,
            str(f["best"]["count"]),
            _percent(f["first_click_hit"]),
            _percent(f["best"]["ciou"]),
            _percent(f["best"]["giou"]),
            _percent(f["last"]["ciou"]),
            *("–" if f[key] is None else f"{f[key]:.2f}" for key in ("noc80", "noc85", "actions")),
            "–" if read is None else f"{read['mae']:.1f}",
            "–" if read is None or read["pearson"] is None else f"{read['pearson']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m segagent.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--policy", default=None, help=f"a checkpoint, or one of {', '.join(BASELINES)}; by default the embedded nano"
    )
    parser.add_argument("--segmenter", default=None, help="instead of the checkpoint's")
    parser.add_argument(
        "--data", default="hres-synth", help="see segagent/data/sources.py, e.g. hres-synth:easy,split=test"
    )
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16, help="samples rolled out in lock step")
    parser.add_argument("--convention", default="plain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for report.json and report.md")
    args = parser.parse_args(argv)

    samples = First(open_source(args.data), args.count)
    policy, environment = _policy(args.policy, args.segmenter, args.seed)
    began = time.perf_counter()
    figures = evaluate(
        environment, policy, samples, steps=args.steps, batch=args.batch, convention=args.convention, seed=args.seed
    )
    facts = {
        "policy": args.policy or "segagent-nano (embedded)",
        "segmenter": environment.segmenter.reference,
        "data": args.data,
        "count": len(samples),
        "steps": args.steps,
        "convention": args.convention,
        "seed": args.seed,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "seconds": round(time.perf_counter() - began),
    }
    text = ", ".join(f"{key} {value}" for key, value in facts.items()) + "\n\n" + markdown(figures)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.md").write_text(text + "\n", encoding="utf-8")
        (args.out / "report.json").write_text(
            json.dumps({**facts, "figures": figures}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


def _policy(name: str | None, segmenter: str | None, seed: int) -> tuple[Any, Environment]:
    """("simulated" or a policy, the environment it acts in)."""
    if name in BASELINES:
        from segagent.segmenters import load_segmenter

        return ("simulated" if name == "simulated" else BlindPolicy(name, seed)), Environment(
            load_segmenter(segmenter or "grabcut")
        )
    from segagent.agent import SegAgent

    agent = SegAgent.from_pretrained(name, segmenter=segmenter)
    return agent.policy, agent.environment


if __name__ == "__main__":
    raise SystemExit(main())
