"""Interactive segmenters against the simulated annotator: the field's table, curves, and the worst cases.

    python -m segagent.benchmark --segmenter grabcut --data ~/GrabCut ~/DAVIS --out results

NoC@85 is the mean number of clicks to an IoU ≥ 0.85, misses counted as the limit (20); ≥20@85 how many objects took the limit or
more, NoF@85 how many never got there; IoU@5 the mean IoU after 5 clicks; SPC the seconds per click, the encoding of the
picture and the finding of the clicks included. Runs begin with the empty mask and end at the limit, or when nothing is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from segagent.annotator import SimulatedAnnotator
from segagent.data.objects import read_objects
from segagent.environment import Environment
from segagent.errors import DataError, SegAgentError
from segagent.masks import from_rle, to_rle
from segagent.metrics import ClickMetrics, iou_after, noc
from segagent.rollout import collect, rollout
from segagent.segmenters import Segmenter, load_segmenter
from segagent.types import Click, Sample

THRESHOLDS, AFTER, LIMIT = (0.8, 0.85, 0.9), (1, 5, 10, 20), 20
_COLORS = ((16, 150, 105), (37, 99, 235), (217, 119, 6), (190, 18, 60), (126, 34, 206), (71, 85, 105))


@dataclass(frozen=True)
class Run:
    """One object's clicks."""

    id: str
    index: int  # in the samples
    ious: tuple[float, ...]  # after the 1st, 2nd, … click
    clicks: tuple[Click, ...]
    mask: dict[str, Any]  # the last one, COCO RLE
    seconds: float


@dataclass(frozen=True)
class Report:
    """All runs of one segmenter on one set of samples."""

    segmenter: str
    data: str
    runs: tuple[Run, ...]
    limit: int = LIMIT
    skipped: tuple[str, ...] = field(default=())  # ids of samples without an object

    def metrics(self) -> ClickMetrics:
        metrics = ClickMetrics(self.limit, THRESHOLDS)
        for run in self.runs:
            metrics.update(run.ious, run.seconds)
        return metrics

    def summary(self) -> dict[str, Any]:
        """The table's row; IoUs in [0, 1], `spc` in seconds."""
        figures = self.metrics().compute()
        curve, spc = figures.pop("curve"), figures.pop("spc")
        after = {f"iou{k}": curve[k - 1] for k in AFTER if k <= self.limit}
        return {
            "segmenter": self.segmenter,
            "data": self.data,
            "objects": figures.pop("count"),
            **figures,
            **after,
            "spc": spc,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        runs = [
            {
                "id": run.id,
                "ious": [round(value, 6) for value in run.ious],
                "clicks": [[c.x, c.y, c.positive] for c in run.clicks],
                "mask": run.mask,
                "seconds": round(run.seconds, 4),
            }
            for run in self.runs
        ]
        curve = iou_after([run.ious for run in self.runs], self.limit)
        return {**self.summary(), "limit": self.limit, "curve": curve, "skipped": list(self.skipped), "runs": runs}


def benchmark(
    segmenter: Segmenter, samples: Sequence[Sample], *, name: str = "", limit: int = LIMIT, progress: bool = False
) -> Report:
    """Clicks every sample of a sequence with a target. Raises DataError where none has one."""
    environment, runs, skipped = Environment(segmenter), [], []
    for index in tqdm(range(len(samples)), desc=name, unit="object", disable=None if progress else True):
        sample = samples[index]
        if not _clickable(sample):
            skipped.append(sample.id)
            continue
        runs.append(_run(environment, sample, index, limit))
    if not runs:
        raise DataError(f"There is no object to click in {name or 'these samples'}: every mask is empty.")
    return Report(segmenter.reference, name, tuple(runs), limit, tuple(skipped))


def _clickable(sample: Sample) -> bool:
    """Whether there is an object, and not all of it under the pixels to ignore."""
    if sample.target is None:
        return False
    return bool((sample.target if sample.ignore is None else sample.target & ~sample.ignore).any())


def _run(environment: Environment, sample: Sample, index: int, limit: int) -> Run:
    annotator, start = SimulatedAnnotator(sample.target, sample.ignore), time.perf_counter()
    trajectory = collect(sample, rollout(environment, annotator, sample, steps=limit))
    seconds = time.perf_counter() - start
    clicks = tuple(t.action for t in trajectory.steps)
    return Run(sample.id, index, trajectory.ious[1:], clicks, to_rle(trajectory.states[-1].mask), seconds)


def table(reports: Iterable[Report]) -> str:
    """The reports' summaries as a Markdown table."""
    rows = [report.summary() for report in reports]
    limit = max(report.limit for report in reports)
    heads = {"segmenter": "segmenter", "data": "data", "objects": "objects"}
    heads |= {f"noc{t * 100:.0f}": f"NoC@{t * 100:.0f}" for t in THRESHOLDS}
    heads |= {f"at_limit{t * 100:.0f}": f"≥{limit}@{t * 100:.0f}" for t in THRESHOLDS[1:]}
    heads |= {f"nof{t * 100:.0f}": f"NoF@{t * 100:.0f}" for t in THRESHOLDS[1:]}
    heads |= {f"iou{k}": f"IoU@{k}" for k in AFTER if f"iou{k}" in rows[0]} | {"spc": "SPC, s"}
    lines = [f"| {' | '.join(heads.values())} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(_cell(key, row[key]) for key in heads)} |" for row in rows]
    return "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    digits = 2 if key.startswith("noc") else 3
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def curves(reports: Sequence[Report], size: tuple[int, int] = (420, 760)) -> np.ndarray:
    """(h, w, 3) uint8: mean IoU after each click, one line a report, with its name."""
    (height, width), font = size, ImageFont.load_default(15)
    left, right, top, bottom = 52, width - 20, 16, height - 46
    canvas = Image.new("RGB", (width, height), "white")
    draw, last = ImageDraw.Draw(canvas), max(2, *(report.limit for report in reports))
    for level in np.linspace(0, 1, 6):
        y = bottom - level * (bottom - top)
        draw.line([(left, y), (right, y)], fill=(222, 226, 232))
        draw.text((left - 8, y), f"{level:.1f}", fill=(71, 85, 105), font=font, anchor="rm")
    for click in range(1, last + 1, max(1, last // 10)):
        x = left + (right - left) * (click - 1) / (last - 1)
        draw.text((x, bottom + 14), str(click), fill=(71, 85, 105), font=font, anchor="mm")
    draw.text(((left + right) / 2, height - 12), "clicks", fill=(71, 85, 105), font=font, anchor="mm")
    for i, report in enumerate(reports):
        color, values = _COLORS[i % len(_COLORS)], iou_after([run.ious for run in report.runs], report.limit)
        points = [(left + (right - left) * k / (last - 1), bottom - v * (bottom - top)) for k, v in enumerate(values)]
        draw.line(points, fill=color, width=3)
        for x, y in points:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=color)
        place = (right, bottom - 12 - 20 * (len(reports) - 1 - i))
        draw.text(place, f"{report.segmenter}, {report.data}", fill=color, font=font, anchor="rm")
    return np.asarray(canvas)


def worst(report: Report, samples: Sequence[Sample], count: int = 8) -> Iterator[tuple[Run, np.ndarray]]:
    """(run, (h, w, 3) uint8) of the objects with the most clicks to IoU 0.9, then the lowest mean IoU: target left, result right."""
    from segagent.drawing import picture, strip

    order = sorted(report.runs, key=lambda run: (-noc(run.ious, 0.9, report.limit), sum(run.ious) / len(run.ious)))
    for run in order[:count]:
        sample = samples[run.index]
        pair = [
            picture(sample.image, sample.target, longest=480, color="blue"),
            picture(sample.image, from_rle(run.mask), run.clicks, longest=480, target=sample.target),
        ]
        yield run, strip(pair, [f"{run.id}: target", f"IoU {run.ious[-1]:.2f} after {len(run.ious)}"], height=360)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0. Raises SegAgentError."""
    options = _parser().parse_args(arguments)
    if options.limit < 1:
        raise SegAgentError(f"--limit is a number of clicks from 1, not {options.limit}.")
    if options.count is not None and options.count < 1:
        raise SegAgentError(f"--count is a number of objects from 1, not {options.count}.")
    sets: dict[str, Sequence[Sample]] = {}
    for data in options.data:
        samples, name = read_objects(data, options.layout), Path(data).resolve().name
        if options.count is not None:
            samples = samples[:: max(1, len(samples) // options.count)][: options.count]
        sets[data if name in sets else name] = samples
    reports = []
    for reference in options.segmenter:
        segmenter = load_segmenter(reference, device=options.device)
        for name, samples in sets.items():
            reports.append(benchmark(segmenter, samples, name=name, limit=options.limit, progress=True))
    if options.json:
        print(json.dumps([report.to_dict() for report in reports]))
    else:
        print(table(reports))
    if options.out:
        write(Path(options.out), reports, sets, options.worst)
    return 0


def write(folder: Path, reports: Sequence[Report], sets: dict[str, Sequence[Sample]], count: int = 8) -> None:
    """table.md, results.json, curves.png and the `count` worst cases of each report as worst/*.jpg; `sets` are the
    samples of each report's data. Raises SegAgentError where the folder cannot be written to."""
    try:
        _write(folder, reports, sets, count)
    except OSError as error:
        raise SegAgentError(f"The results cannot be written to {folder}: {error.strerror or error}.") from error


def _write(folder: Path, reports: Sequence[Report], sets: dict[str, Sequence[Sample]], count: int) -> None:
    (folder / "worst").mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table(reports) + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps([r.to_dict() for r in reports]), encoding="utf-8")
    Image.fromarray(curves(reports)).save(folder / "curves.png")
    for number, report in enumerate(reports):
        for place, (_, shown) in enumerate(worst(report, sets[report.data], count), 1):
            name = f"{number}-{report.data}-{place:02d}.jpg"
            Image.fromarray(shown).save(folder / "worst" / name, quality=90)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segagent benchmark",
        description="Measures interactive segmenters with simulated clicks; prints a Markdown table.",
    )
    parser.add_argument("--segmenter", nargs="+", default=["grabcut"], help="as load_segmenter takes them (grabcut)")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders of pictures and masks")
    parser.add_argument("--layout", help="grabcut, davis, sbd, sstem or coco, where the folders do not tell")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"clicks at most for an object ({LIMIT})")
    parser.add_argument("--count", type=int, help="only so many objects of each folder, evenly spread")
    parser.add_argument("--device", help="where segmenters with weights run")
    parser.add_argument("--out", metavar="DIR", help="also write table.md, results.json, curves.png, worst/*.jpg")
    parser.add_argument("--worst", type=int, default=8, help="how many worst cases to draw for each table row (8)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of the table")
    return parser


if __name__ == "__main__":
    from segagent.cli import main as command_line

    sys.exit(command_line(["benchmark", *sys.argv[1:]]))
