"""Mask refinement over a folder of pictures and masks, or over a COCO file: any masks in, better ones out.

    python -m segagent refine --images DIR --masks DIR --expression "the swan" --out DIR [--targets DIR]
    python -m segagent refine --images DIR --coco annotations.json --out DIR

The given mask is a candidate of every run, and is returned unless another one is predicted to be better: never a worse one,
when the process reward model can tell. Into DIR: `masks/` (PNG, named as the given ones) or `refined.json` (the COCO file, the outlines that were bettered
replaced by RLEs with their area and bbox, all else as it was written), `report.md`, `report.json`, `most.png` (what changed
most), and `refined.jsonl`, from which a run that was killed goes on. What cannot be used is counted, named, and left as it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from segagent.data._coco_samples import UnusableError
from segagent.data.mask_sources import CocoSource, FolderSource
from segagent.environment import Environment
from segagent.errors import SegAgentError
from segagent.export import png, write_file
from segagent.ledger import Ledger, machine
from segagent.masks import from_rle, iou, to_rle
from segagent.policy import Policy
from segagent.rollout import rollout_many
from segagent.runs import recolored, said
from segagent.segmenters.base import Holding
from segagent.settings import READINGS
from segagent.types import Sample, Trajectory

_NAMED = 20  # faults that report.md names; report.json names all


def chosen(predicted: Sequence[float | None], gain: float = 0.0) -> int:
    """The state to return: the given mask, 0, unless another is predicted to be better by more than `gain`."""
    scored = [(p, i) for i, p in enumerate(predicted) if said(p)]
    if not scored or not said(predicted[0]):
        return 0
    best, index = max(scored)
    return index if best > predicted[0] + gain else 0


class Source(Protocol):
    """Masks to refine, by number."""

    key: dict[str, Any]  # what the results depend on
    faults: dict[str, list[str]]  # {kind: sentences} of what is wrong with the source itself

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[Sample, np.ndarray]:
        """(a sample, its target None where it is not known; the mask (H, W) given). Raises SegAgentError."""
        ...

    def name(self, number: int) -> str: ...

    def write(self, out: Path, records: Iterator[dict[str, Any]]) -> None:
        """Puts the results together, record by record in the order of numbers."""
        ...


@dataclass(frozen=True)
class Settings:
    """How the runs go."""

    steps: int = 7
    gain: float = 0.0  # of predicted IoU, that a mask must have over the given one to replace it
    temperature: float = 0.0
    seed: int = 0
    batch: int = 8
    strict: bool = False  # stop at the first mask that cannot be used


def refine_all(
    policy: Policy,
    environment: Environment,
    source: Source,
    out: Path,
    settings: Settings | None = None,
    identity: str = "",
) -> dict[str, Any]:
    """Refines every mask of a source and writes the files into `out`; → the report. `identity` names the model and segmenter.

    Raises SegAgentError; with `strict` also for the first mask that cannot be used.
    """
    settings = settings or Settings()
    if not 0 <= settings.gain <= 1:
        raise SegAgentError(f"gain is a difference of predicted IoUs, from 0 to 1; got {settings.gain}.")
    out.mkdir(parents=True, exist_ok=True)
    how = {"steps": settings.steps, "gain": settings.gain, "temperature": settings.temperature, "seed": settings.seed}
    ledger = Ledger(out / "refined.jsonl", {**source.key, **how, "policy": identity}, settings.batch)
    done = ledger.resume(len(source))
    with tqdm(total=len(source), initial=done, unit="mask", desc="refining", disable=None) as progress:
        for first in range(done, len(source), settings.batch):
            numbers = range(first, min(first + settings.batch, len(source)))
            ledger.append(_refine(policy, environment, source, numbers, settings))
            progress.update(len(numbers))
    source.write(out, ledger.read(len(source)))
    facts = {**source.key, **how, "policy": identity, "machine": machine(), "date": date.today().isoformat()}
    return _report(out, facts, source, ledger)


def _refine(
    policy: Policy, environment: Environment, source: Source, numbers: Sequence[int], settings: Settings
) -> list[dict[str, Any]]:
    """Records of these numbers; one that cannot be used costs no other."""
    records: dict[int, dict[str, Any]] = {}
    given: dict[int, tuple[Sample, np.ndarray]] = {}
    for number in numbers:
        try:
            given[number] = source.read(number)
        except SegAgentError as error:
            if settings.strict:
                raise
            kind = error.kind if isinstance(error, UnusableError) else "unusable"
            records[number] = {"number": number, "name": source.name(number), "fault": kind, "why": str(error)}
    samples = [sample for sample, _ in given.values()]
    runs: list[list] = [[] for _ in samples]
    held = Environment(Holding(environment.segmenter, max(1, len(samples))))
    try:
        for i, transition in rollout_many(
            held, policy, samples, steps=settings.steps, starts=[mask for _, mask in given.values()],
            temperature=settings.temperature, seed=settings.seed,
        ):  # fmt: skip
            runs[i].append(transition)
    except SegAgentError as error:
        if settings.strict:
            raise
        if len(given) > 1:  # one odd sample must not cost the others: each is refined alone
            records |= {n: _refine(policy, environment, source, [n], settings)[0] for n in given}
        else:
            records |= {n: {"number": n, "name": source.name(n), "fault": "no run", "why": str(error)} for n in given}
        return [records[number] for number in numbers]
    for (number, (sample, _)), run in zip(given.items(), runs, strict=True):
        records[number] = {"number": number, **_record(Trajectory(sample, tuple(run)), settings.gain)}
    return [records[number] for number in numbers]


def _record(run: Trajectory, gain: float) -> dict[str, Any]:
    index = chosen(run.predicted_ious, gain)
    given, mask = run.states[0].mask, run.states[index].mask
    known = run.sample.target is not None
    return {
        "name": run.sample.id,
        "expression": run.sample.expression,
        "state": index,  # 0: the given mask
        "predicted": [run.predicted_ious[0], run.predicted_ious[index]],
        "iou": [run.ious[0], run.ious[index], max(run.ious)] if known else None,  # given, returned, best of the run
        "agreement": iou(given, mask),
        "mask": to_rle(mask),
    }


def _report(out: Path, facts: dict[str, Any], source: Source, ledger: Ledger) -> dict[str, Any]:
    """Writes report.json, report.md and most.png; → the report."""
    faults = {kind: list(sentences) for kind, sentences in source.faults.items()}
    lines: list[dict[str, Any]] = []
    for record in ledger.read(len(source)):
        if "fault" in record:
            faults.setdefault(record["fault"], []).append(record["why"])
        else:
            lines.append({key: record[key] for key in record if key != "mask"})
    ious = np.array([line["iou"] for line in lines if line["iou"]]).reshape(-1, 3)
    counts = {
        "masks": len(source),
        "refined": sum(line["state"] > 0 for line in lines),
        "kept as given": sum(line["state"] == 0 for line in lines),
        "unusable": len(source) - len(lines),
    }
    gains = None
    if len(ious):
        gains = {
            "targets": len(ious),
            "IoU given": float(ious[:, 0].mean()),
            "IoU returned": float(ious[:, 1].mean()),
            "gain": float((ious[:, 1] - ious[:, 0]).mean()),
            "gain with a perfect PRM": float((ious[:, 2] - ious[:, 0]).mean()),
            "over 0.01 worse": int((ious[:, 1] < ious[:, 0] - 0.01).sum()),
        }
    report = {**facts, "counts": counts, "gains": gains, "unusable": faults, "masks": lines}
    write_file(out / "report.json", (json.dumps(report, ensure_ascii=False) + "\n").encode())
    write_file(out / "report.md", _markdown(facts, counts, gains, faults).encode())
    most = sorted((line for line in lines if line["state"]), key=lambda line: line["agreement"])[:12]
    if most:
        masks = {line["number"]: None for line in most}
        masks |= {r["number"]: r["mask"] for r in ledger.read(len(source)) if r["number"] in masks}
        write_file(out / "most.png", png(_sheet(source, most, masks)))
    return report


def _sheet(source: Source, lines: Sequence[dict[str, Any]], masks: dict[int, Any]) -> np.ndarray:
    """(h, w, 3) uint8: given and returned masks side by side."""
    from segagent.data.contact import TILE, grid
    from segagent.drawing import picture

    tiles = []
    for line in lines:
        sample, given = source.read(line["number"])
        for place, (words, mask) in enumerate((("given", given), ("refined", from_rle(masks[line["number"]])))):
            predicted, true = line["predicted"][place], line["iou"]
            text = f"{words}, predicted {predicted:.2f}" + (f", IoU {true[place]:.2f}" if true else "")
            shown = picture(sample.image, mask, longest=TILE, target=sample.target)
            tiles.append((shown, f"{sample.id}: {sample.expression}\n{text}"))
    return grid([tiles[i : i + 4] for i in range(0, len(tiles), 4)])


def _markdown(
    facts: dict[str, Any], counts: dict[str, int], gains: dict[str, float] | None, faults: dict[str, list[str]]
) -> str:
    lines = ["# Mask refinement", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    for table in (counts, gains):
        if table:
            cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in table.values()]
            lines += [f"| {' | '.join(table)} |", "|---" * len(table) + "|", f"| {' | '.join(cells)} |", ""]
    for kind, sentences in faults.items():
        lines += [f"{kind}: {len(sentences)}", "", *(f"- {one}" for one in sentences[:_NAMED]), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0. Raises SegAgentError."""
    from segagent.cli import Parser, add_model, load_agent
    from segagent.ledger import identity

    parser = Parser(prog="segagent refine", description="Improves the masks of a folder or of a COCO file.")
    parser.add_argument("--images", required=True, metavar="DIR", help="the pictures")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--masks", metavar="DIR", help="masks named as the pictures, in the same subfolders")
    given.add_argument("--coco", metavar="FILE", help="a COCO instances file")
    parser.add_argument(
        "--expression", metavar="TEXT",
        help='with --masks, what they show, "{name}" in it for their folder\'s name; with --coco, place (default), category or a field',
    )  # fmt: skip
    parser.add_argument("--targets", metavar="DIR", help="right masks, to measure the gain of IoU, with --masks")
    parser.add_argument(
        "--threshold", type=float, metavar="VALUE", help="for masks of grey values: what reaches this is in it"
    )
    parser.add_argument("--one-object", action="store_true", help="all objects of a mask with a palette are one")
    parser.add_argument(
        "--iou-reading", choices=READINGS["iou_reading"], help="of predicted IoUs, instead of the checkpoint's"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go; the same again resumes")
    for name, kind, default, text in (
        ("steps", int, 7, "clicks at most"),
        ("gain", float, 0.0, "of predicted IoU that a mask must have over the given one"),
        ("temperature", float, 0.0, "of sampled clicks; 0 takes the likeliest"),
        ("seed", int, 0, "of sampled clicks"),
        ("batch", int, 8, "masks refined in lock step"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} ({default})")
    parser.add_argument("--strict", action="store_true", help="stop at the first mask that cannot be used")
    add_model(parser)
    options = parser.parse_args(arguments)
    source = _source(options)
    agent = load_agent(options)
    names = Settings.__dataclass_fields__
    report = refine_all(
        recolored(agent.policy, iou_reading=options.iou_reading), agent.environment, source, Path(options.out), Settings(**{n: getattr(options, n) for n in names}),
        identity=identity(options, agent.segmenter.reference),
    )  # fmt: skip
    print(f"{options.out}: " + ", ".join(f"{value} {key}" for key, value in report["counts"].items()))
    if report["gains"]:
        print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in report["gains"].items()))
    return 0


def _source(options: argparse.Namespace) -> Source:
    images = Path(options.images)
    if options.coco:
        if options.targets or options.threshold is not None:
            raise SegAgentError("--targets and --threshold go with --masks, not with --coco.")
        return CocoSource(Path(options.coco), images, options.expression or "place")
    if not options.expression:
        raise SegAgentError('--masks needs --expression: what the masks show, e.g. --expression "the {name}".')
    targets = Path(options.targets) if options.targets else None
    return FolderSource(
        images, Path(options.masks), options.expression, targets, options.threshold, not options.one_object
    )
