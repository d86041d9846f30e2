"""What annotation filtering found, and its report: report.json, report.md and a picture of the worst."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from segagent.data._coco_file import CocoFile
from segagent.data._coco_samples import CocoSamples
from segagent.export import png, write_file
from segagent.ledger import Ledger
from segagent.masks import box_of

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


def write_report(
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
