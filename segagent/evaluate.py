"""Measures a policy with a segmenter on a data set: metrics over rollouts, by group, against floor and ceiling; the paper's tables.

    python -m segagent.evaluate --policy runs/nano/sft --count 500 --steps 7 --out runs/report
    python -m segagent.evaluate --policy simulated --count 500 --steps 7
    python -m segagent.evaluate --table 2 --count 500 --workers 2 --out runs/report      (1 to 6; see segagent/tables)
    python -m segagent.evaluate --figure 4 --policy SFT=runs/sft StaR=runs/star --out runs/report      (3 and 4)
    python -m segagent.evaluate --calibration | --refinement

Convention, data, count, checkpoint, machine and date are part of every report. With --out, runs are kept in its folder runs/, shared by all
tables that need them, and an interrupted command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segagent.clickers import BlindPolicy
from segagent.data.sources import open_source
from segagent.environment import Environment
from segagent.errors import DataError, SegAgentError
from segagent.export import png, write_file
from segagent.judges import COMBINE
from segagent.metrics import RESMetrics, calibration, noc
from segagent.players import play
from segagent.policy import Policy
from segagent.runs import BASELINES, Run, Setup, first_click_hits, said
from segagent.search import STRATEGIES
from segagent.settings import READINGS
from segagent.types import Sample, Trajectory

__all__ = ["BASELINES", "BlindPolicy", "First", "Report", "evaluate", "first_click_hits", "markdown", "trajectories"]


def trajectories(
    environment: Environment,
    policy: Policy | str,
    samples: Sequence[Sample],
    *,
    steps: int = 7,
    batch: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Trajectory]:
    """One trajectory for each sample, in order, `batch` of them rolled out in lock step; memory holds one batch."""
    setup = Setup(steps=steps, temperature=temperature, seed=seed)
    with tqdm(total=len(samples), unit="sample", disable=None) as progress:
        for first in range(0, len(samples), batch):
            part = [samples[i] for i in range(first, min(first + batch, len(samples)))]
            yield from play(environment, policy, part, setup)
            progress.update(len(part))


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


class Report:
    """Streams runs of samples with a known target (which may be empty) into the figures of one group."""

    def __init__(self, convention: str = "plain") -> None:
        self.masks = {"best": RESMetrics(convention=convention), "last": RESMetrics(convention=convention)}
        self.hits: list[bool] = []
        self.runs: list[tuple[float, ...]] = []
        self.read: list[tuple[float, float]] = []
        self.ends: dict[str, int] = {}

    def update(self, run: Run) -> None:
        self.masks["best"].update(run.masks[run.best()], run.target, run.ignore)
        self.masks["last"].update(run.masks[-1], run.target, run.ignore)
        if run.has_target:
            self.hits.append(run.hit)
            self.runs.append(run.ious[1:])
        self.read += [(p, true) for p, true in zip(run.predicted, run.ious, strict=True) if said(p)]
        self.ends[run.end] = self.ends.get(run.end, 0) + 1

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
    policy: Policy | str,
    samples: Sequence[Sample],
    *,
    steps: int = 7,
    batch: int = 16,
    convention: str = "plain",
    temperature: float = 0.0,
    seed: int = 0,
    group: str = "level",
) -> dict[str, dict[str, Any]]:
    """Figures of all samples ("all") and of each value of `sample.meta[group]`. Raises DataError for one without a target."""
    found = trajectories(environment, policy, samples, steps=steps, batch=batch, temperature=temperature, seed=seed)
    return figures_of((Run.of(trajectory, group) for trajectory in found), steps, convention)


def figures_of(runs: Iterator[Run] | Sequence[Run], steps: int, convention: str = "plain") -> dict[str, dict[str, Any]]:
    """Figures of all runs ("all") and of each group's; those that hold an error are left out."""
    reports = {"all": Report(convention)}
    for run in runs:
        if not run.error:
            for key in {"all", run.group} - {""}:
                reports.setdefault(key, Report(convention)).update(run)
    return {name: report.compute(steps) for name, report in reports.items()}


def markdown(figures: dict[str, dict[str, Any]]) -> str:
    """One table, a row a group; percent but for clicks and the MAE, which is in points of IoU.

    N-acc and T-acc (gRefCOCO) are shown where there are samples without a target.
    """
    absent = any("n_acc" in f["best"] for f in figures.values())
    heads = ["group", "count", "first click hits", "cIoU", "gIoU", "cIoU of last mask", "NoC@80", "NoC@85", "actions"]
    heads += ["PRM MAE", "Pearson", *(["N-acc", "T-acc"] if absent else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
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
            "–" if read is None or math.isnan(read["pearson"]) else f"{read['pearson']:.2f}",
            *([_percent(f["best"].get(key)) for key in ("n_acc", "t_acc")] if absent else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def main(argv: list[str] | None = None) -> int:
    """The command; 0. Raises SegAgentError."""
    args = _parser().parse_args(argv)
    if min(args.count, args.batch, args.workers, args.candidates) < 1 or min(args.steps, args.worst) < 0:
        raise SegAgentError(
            "--count, --batch, --workers and --candidates are numbers from 1, --steps and --worst from 0."
        )
    from segagent.tables import Study, make

    study = Study(
        policies=dict(_labelled(policy) for policy in args.policy or [None]),
        data=args.data or ["hres-synth"],
        **{
            name: getattr(args, name)
            for name in ("segmenter", "count", "steps", "batch", "workers", "convention", "seed")
        },
        candidates=args.candidates,
        strategy=args.strategy,
        judge=args.judge,
        iou_reading=args.iou_reading,
        click_reading=args.click_reading,
        verifier=args.verifier,
        combine=args.combine,
        out=args.out,
    )
    asked = [f"table {n}" for n in args.table] + [f"figure {n}" for n in args.figure]
    asked += ["table 3"] * args.calibration + ["refinement"] * args.refinement
    for name in dict.fromkeys(asked):
        table = make(name, study)
        print(table.markdown(), end="\n\n")
        if args.out:
            table.write(args.out)
    if not asked:
        _report(study, args.worst)
    return 0


def _report(study: Any, worst: int) -> None:
    """The plain report of each policy on each data set, and with study.out its files, pictures of the worst runs among them."""
    from segagent.tables.pictures import worst as worst_runs

    out, reports, texts = study.out, [], []
    for label, policy in study.policies.items():
        for data in study.data:
            runs = study.runs(study.search(policy, study.candidates), data)
            errors = {run.id: run.error for run in runs if run.error}
            if len(errors) == len(runs):
                raise DataError(
                    f"None of {len(runs)} samples of {data} can be used, e.g.: {next(iter(errors.values()), '')}"
                )
            figures = figures_of(runs, study.steps, study.convention)
            facts = {
                "policy": label,
                **study.facts(data, len(runs) - len(errors)),
                "candidates": study.candidates,
                "strategy": study.strategy,
                "judge": study.judge,
                "skipped": len(errors),
            }
            texts.append(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n\n" + markdown(figures))
            reports.append({**facts, "figures": figures, "which_skipped": errors})
            print(texts[-1], end="\n\n" if len(study.policies) * len(study.data) > 1 else "\n")
            if out:
                out.mkdir(parents=True, exist_ok=True)
                shown = worst_runs(runs, open_source(data), worst)
                number = f"-{len(reports)}" if len(reports) > 1 else ""
                if shown is not None:
                    write_file(out / f"worst{number}.png", png(shown))
    if out:
        (out / "report.md").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        text = json.dumps(reports[0] if len(reports) == 1 else reports)
        text = json.dumps(json.loads(text, parse_constant=lambda word: None), indent=1)  # JSON has no NaN
        (out / "report.json").write_text(text + "\n", encoding="utf-8")


def _labelled(text: str | None) -> tuple[str, str | None]:
    """LABEL=CHECKPOINT, or only a checkpoint, which is its own label."""
    if text is None:
        return "segagent-nano (embedded)", None
    label, equals, name = text.partition("=")
    return (label, name) if equals and not Path(text).exists() else (text, text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m segagent.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--policy", nargs="+", metavar="[LABEL=]CHECKPOINT",
        help=f"checkpoints, or one of {', '.join(BASELINES)}; by default the embedded nano",
    )  # fmt: skip
    parser.add_argument("--segmenter", default=None, help="instead of the checkpoint's")
    parser.add_argument(
        "--data", nargs="+", help="see segagent/data/sources.py, e.g. hres-synth:easy,split=test (hres-synth)"
    )
    parser.add_argument("--table", nargs="+", type=int, choices=range(1, 7), default=[], help="of the paper")
    parser.add_argument("--figure", nargs="+", type=int, choices=(3, 4), default=[], help="of the paper")
    parser.add_argument("--calibration", action="store_true", help="the predicted IoUs against the true ones: table 3")
    parser.add_argument("--refinement", action="store_true", help="the gain of IoU over masks that were made wrong")
    parser.add_argument("--count", type=int, default=500, help="samples of each data set (500)")
    parser.add_argument("--steps", type=int, default=7, help="clicks at most (7)")
    parser.add_argument(
        "--candidates", type=int, default=1, metavar="K", help="of a search at each step (1; figure 4: 3)"
    )
    parser.add_argument("--strategy", default="greedy", choices=sorted(STRATEGIES), help="of the search (greedy)")
    parser.add_argument(
        "--judge",
        default="own",
        choices=("own", "truth"),
        help="truth: the true IoU in place of the predicted one, a perfect PRM",
    )
    for name, choices in READINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", choices=choices, help="instead of the checkpoint's")
    parser.add_argument("--verifier", help="a vision-language model for a second opinion on each mask")
    parser.add_argument("--combine", default="mean", choices=sorted(COMBINE), help="the two opinions (mean)")
    parser.add_argument("--batch", type=int, default=16, help="samples rolled out in lock step (16)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the model and one thread (1)")
    parser.add_argument("--convention", default="plain", help="of cIoU and gIoU; see metrics.RESMetrics")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worst", type=int, default=12, help="how many of the worst runs to draw (12)")
    parser.add_argument("--out", type=Path, help="folder for the reports, and for the runs that they share")
    return parser


if __name__ == "__main__":
    from segagent.cli import main as command_line

    raise SystemExit(command_line(["evaluate", *sys.argv[1:]]))
