"""Annotation filtering (paper, Table 3): a COCO file in, each annotation scored by the process reward model, the good ones out.

    python -m segagent filter annotations.json --images DIR --threshold 0.8 --out DIR

Into DIR: `filtered.json` (those that reach the threshold) and `removed.json` (all others, so that nothing is lost), each with
every other field of the file as it was written; `report.md`, `report.json` and `worst.png`; `scores.jsonl`, from which a
run that was killed goes on, and which a second run with another threshold only reads. An annotation that cannot be scored
is counted, named in the report and removed. The file may be larger than memory: what is held is the index (names and sizes of pictures; of
each annotation its id, four integers and its score) and one batch of pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segagent.data._coco_file import CocoFile
from segagent.data._coco_samples import CocoSamples, UnusableError
from segagent.data._samples import existing_folder
from segagent.errors import DataError, SegAgentError
from segagent.export import png, write_file
from segagent.ledger import Ledger, machine
from segagent.masks import box_of
from segagent.policy import Observation, Policy
from segagent.runs import recolored, said
from segagent.types import Sample, State

_NAMED = 20  # sentences of a kind that report.md names; report.json names all


@dataclass
class Scores:
    """What was found, by annotation number; nan where an annotation could not be scored."""

    values: np.ndarray  # (annotations,) float64
    ids: list[Any] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def kept(self, threshold: float) -> np.ndarray:
        """(annotations,) bool."""
        return self.values >= threshold  # nan never is

    def ranked(self) -> np.ndarray:
        """Numbers of the scored annotations, the worst first; of equals the first in the file."""
        order = np.argsort(self.values, kind="stable")
        return order[: np.count_nonzero(~np.isnan(self.values))]


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
    return _report(out, facts, coco, samples, scores, kept, ledger, worst)


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


def _report(
    out: Path,
    facts: dict[str, Any],
    coco: CocoFile,
    samples: CocoSamples,
    scores: Scores,
    kept: np.ndarray,
    ledger: Ledger,
    worst: int,
) -> dict[str, Any]:
    """Writes report.json, report.md and worst.png; → the counts."""
    ranked = scores.ranked()
    counts = {
        "pictures": len(coco.images),
        "annotations": len(coco),
        "kept": int(kept.sum()),
        "removed": int(len(coco) - kept.sum()),
        "scored": len(ranked),
        "not scored": len(coco) - len(ranked),
    }
    bins = np.histogram(scores.values[ranked], bins=10, range=(0, 1))[0].tolist()
    wanted = set(ranked[:worst].tolist())
    details = {r["number"]: r for r in ledger.read(len(coco)) if r["number"] in wanted}
    listed = [details[number] for number in ranked[:worst].tolist()]
    report = {
        **facts,
        "counts": counts,
        "histogram": bins,
        "not_scored": {kind: {"count": len(why), "which": why} for kind, why in scores.faults.items()},
        "worst": listed,
        "ranked": [[scores.ids[n], float(scores.values[n])] for n in ranked.tolist()],
    }
    write_file(out / "report.json", (json.dumps(report, ensure_ascii=False) + "\n").encode())
    write_file(out / "report.md", _markdown(facts, counts, bins, scores.faults, listed).encode())
    if listed:
        write_file(out / "worst.png", png(_sheet(samples, listed)))
    else:
        (out / "worst.png").unlink(missing_ok=True)
    return counts


def _sheet(samples: CocoSamples, listed: Sequence[dict[str, Any]]) -> np.ndarray:
    """(h, w, 3) uint8: the worst annotations, each with its expression and score."""
    from segagent.data.contact import TILE, grid
    from segagent.drawing import picture

    tiles = []
    for place, record in enumerate(listed, 1):
        sample = samples.read(record["number"])
        rows, columns = around(sample.target)
        shown = picture(sample.image[rows, columns], sample.target[rows, columns], longest=TILE)
        tiles.append((shown, f"{place}. {sample.expression}\n{record['score']:.2f}, annotation {record['id']}"))
    return grid([tiles[i : i + 4] for i in range(0, len(tiles), 4)])


def around(mask: np.ndarray) -> tuple[slice, slice]:
    """(rows, columns) of what to show of a picture: a mask with as much beside it as it is large, at least a third of the picture."""
    x0, y0, x1, y1 = box_of(mask) or (0, 0, mask.shape[1] - 1, mask.shape[0] - 1)
    parts = []
    for low, high, whole in ((y0, y1, mask.shape[0]), (x0, x1, mask.shape[1])):
        length = min(whole, max(3 * (high - low + 1), -(-whole // 3)))
        start = min(max(0, (low + high + 1 - length) // 2), whole - length)
        parts.append(slice(start, start + length))
    return parts[0], parts[1]


def _markdown(
    facts: dict[str, Any],
    counts: dict[str, int],
    bins: Sequence[int],
    faults: dict[str, list[str]],
    listed: Sequence[dict[str, Any]],
) -> str:
    lines = ["# Annotation filtering", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += [f"| {' | '.join(counts)} |", "|---" * len(counts) + "|", f"| {' | '.join(map(str, counts.values()))} |"]
    lines += ["", "## Predicted IoU", "", "| from | to | annotations |", "|---|---|---|"]
    lines += [f"| {i / 10:.1f} | {(i + 1) / 10:.1f} | {count} |" for i, count in enumerate(bins)]
    if faults:
        lines += ["", "## Not scored", ""]
    for kind, sentences in faults.items():
        lines += [f"{kind}: {len(sentences)}", "", *(f"- {one}" for one in islice(sentences, _NAMED))]
        rest = len(sentences) - _NAMED
        lines += [f"- and {rest} more, in report.json"] * (rest > 0) + [""]
    if listed:
        lines += ["", f"## The worst {len(listed)}", "", "![the worst](worst.png)", ""]
        lines += ["| place | annotation | picture | expression | predicted IoU | px |", "|---|---|---|---|---|---|"]
    for place, record in enumerate(listed, 1):
        words = [str(record[key]).replace("|", "\\|") for key in ("id", "image", "expression")]
        lines.append(f"| {place} | {' | '.join(words)} | {record['score']:.3f} | {record['pixels']} |")
    return "\n".join(lines) + "\n"


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
        "--iou-reading", choices=("greedy", "expected"), help="of predicted IoUs, instead of the checkpoint's"
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
