"""Annotation filtering (paper, Table 3): a COCO file in, each annotation scored by the process reward model, the good ones out.

    python -m segagent filter annotations.json --images DIR --threshold 0.8 --out DIR

Into DIR: `filtered.json` (those that reach the threshold) and `removed.json` (all others, so that nothing is lost), each with
every other field of the file as it was written; `report.md`, `report.json` and `worst.png`; `scores.jsonl`, from which a
run that was killed goes on, and which a second run with another threshold only reads. An annotation that cannot be scored
is counted, named in the report and removed. The file may be larger than memory: what is held is the index (names and sizes of pictures; of
each annotation its id, four integers and its score) and one batch of pictures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segagent.data._coco_file import CocoFile
from segagent.data._coco_samples import CocoSamples, UnusableError
from segagent.data._samples import existing_folder
from segagent.errors import DataError, SegAgentError
from segagent.filter_report import Scores, write_report
from segagent.ledger import Ledger, machine
from segagent.policy import Observation, Policy
from segagent.runs import recolored, said
from segagent.settings import READINGS
from segagent.types import Sample, State


def filter_annotations(
    policy: Policy,
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threshold: float = 0.8,
    expression: str = "place",
    batch: int = 16,
    strict: bool = False,
    worst: int = 24,
    identity: str = "",
) -> dict[str, Any]:
    """Writes the files into `out`; → the report's counts. `identity` names the model, whose scores are not mixed with others'.

    `expression`: see CocoSamples. With `strict` the first annotation that cannot be scored raises DataError; without, none
    does. Raises SegAgentError.
    """
    if not 0 <= threshold <= 1:
        raise SegAgentError(f"threshold is an IoU from 0 to 1; got {threshold}.")
    coco, out = CocoFile(Path(annotations)), Path(out)
    samples = CocoSamples(coco, Path(images), expression)
    if strict and coco.faults:
        raise DataError(next(iter(coco.faults.values()))[0])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegAgentError(f"The folder {str(out)!r} cannot be made: {error.strerror}.") from error
    settings = {
        "file": coco.digest,
        "images": str(Path(images).resolve()),
        "expression": expression,
        "policy": identity,
    }
    ledger = Ledger(out / "scores.jsonl", settings, batch)
    score_annotations(policy, coco, samples, ledger, strict=strict)
    scores = collect_scores(coco, ledger)
    kept = scores.kept(threshold)
    coco.write(out / "filtered.json", lambda number: bool(kept[number]))
    coco.write(out / "removed.json", lambda number: not kept[number])
    facts = {
        "annotations": str(annotations),
        "images": str(images),
        "expression": expression,
        "threshold": threshold,
        "policy": identity,
        "machine": machine(),
        "date": date.today().isoformat(),
    }
    return write_report(out, facts, coco, samples, scores, kept, ledger, worst)


def score_annotations(policy: Policy, coco: CocoFile, samples: CocoSamples, ledger: Ledger, *, strict: bool) -> None:
    """Adds to the ledger a record for each annotation that it lacks, in the order of the pictures."""
    order = coco.order()
    done = ledger.resume(len(order))
    with tqdm(total=len(order), initial=done, unit="annotation", desc="scoring", disable=None) as progress:
        for first in range(done, len(order), ledger.batch):
            numbers = order[first : first + ledger.batch]
            ledger.append(_score_batch(policy, samples, numbers, strict))
            progress.update(len(numbers))


def _score_batch(policy: Policy, samples: CocoSamples, numbers: Sequence[int], strict: bool) -> list[dict[str, Any]]:
    read: dict[int, Sample] = {}
    records: dict[int, dict[str, Any]] = {}
    for number in numbers:
        try:
            read[number] = samples.read(number)
        except UnusableError as error:
            if strict:
                raise
            records[number] = _fault(samples.coco, number, error.kind, str(error))
    for number, score in predicted_ious(policy, read).items():
        sample = read[number]
        annotation = sample.meta["annotation"]
        if isinstance(score, str):
            if strict:
                raise DataError(score)
            records[number] = _fault(samples.coco, number, "no score", score)
            continue
        records[number] = {
            "number": number,
            "id": annotation.get("id"),
            "image": sample.meta["file_name"],
            "expression": sample.expression,
            "pixels": int(np.count_nonzero(sample.target)),
            "score": score,
        }
    return [records[number] for number in numbers]


def predicted_ious(policy: Policy, samples: dict[Any, Sample]) -> dict[Any, float | str]:
    """What the policy predicts for each sample's target, read in one batch; a sentence where it says no IoU.

    Where the batch cannot be read at all, each is read alone, so that one odd sample does not cost the others.
    """
    observations = {key: Observation(State(s.image, s.target), s.expression, s.id) for key, s in samples.items()}
    try:
        readings = policy.read(list(observations.values())) if observations else []
    except SegAgentError as error:
        if len(samples) == 1:
            return {key: f"{sample.id}: {error}" for key, sample in samples.items()}
        return {key: one for k, s in samples.items() for key, one in predicted_ious(policy, {k: s}).items()}
    found: dict[Any, float | str] = {}
    for key, reading in zip(observations, readings, strict=True):
        value = reading.predicted_iou
        if not said(value):
            found[key] = f"{samples[key].id}: the model said no IoU from 0 to 1 ({value})."
        else:
            found[key] = float(value)
    return found


def _fault(coco: CocoFile, number: int, kind: str, why: str) -> dict[str, Any]:
    return {"number": number, "id": coco.annotation(number).get("id"), "fault": kind, "why": why}


def collect_scores(coco: CocoFile, ledger: Ledger) -> Scores:
    """The ledger's records by annotation number."""
    scores = Scores(np.full(len(coco), np.nan), [None] * len(coco), {k: list(v) for k, v in coco.faults.items()})
    for record in ledger.read(len(coco)):
        scores.ids[record["number"]] = record["id"]
        if "fault" in record:
            scores.faults.setdefault(record["fault"], []).append(record["why"])
        else:
            scores.values[record["number"]] = record["score"]
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0. Raises SegAgentError."""
    from segagent.cli import Parser, add_model, load_agent
    from segagent.ledger import identity

    parser = Parser(
        prog="segagent filter", description="Scores the annotations of a COCO file and keeps the good ones."
    )
    parser.add_argument("annotations", help="a COCO instances file")
    parser.add_argument("--images", required=True, metavar="DIR", help="its pictures")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go; the same again resumes")
    parser.add_argument("--threshold", type=float, default=0.8, metavar="IOU", help="predicted IoU to be kept (0.8)")
    parser.add_argument(
        "--expression", default="place", metavar="FIELD",
        help="place (the category, told apart by place; default), category, or a field of the annotations, e.g. caption",
    )  # fmt: skip
    parser.add_argument(
        "--iou-reading", choices=READINGS["iou_reading"], help="of predicted IoUs, instead of the checkpoint's"
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="annotations read at once (16)")
    parser.add_argument("--strict", action="store_true", help="stop at the first annotation that cannot be scored")
    parser.add_argument("--worst", type=int, default=24, metavar="N", help="how many of the worst to draw (24)")
    add_model(parser)
    options = parser.parse_args(arguments)
    existing_folder(Path(options.images), "the annotations' pictures")  # before a model is loaded
    if not Path(options.annotations).is_file():
        raise DataError(f"There is no file {options.annotations!r}: give a COCO instances file.")
    agent = load_agent(options)
    counts = filter_annotations(
        recolored(agent.policy, iou_reading=options.iou_reading), options.annotations, options.images, options.out, threshold=options.threshold,
        expression=options.expression, batch=options.batch, strict=options.strict, worst=options.worst,
        identity=identity(options),
    )  # fmt: skip
    print(f"{options.out}: " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    return 0
