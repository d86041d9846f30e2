"""The embedded segmenter against plain GrabCut, and against others: `python -m tests.benchmarks.grabcut`.

    python -m tests.benchmarks.grabcut --scenes 0 --also clicknet:runs/clicknet --out report

Simulated clicks, at most 20, on the photographs of ../shared/data (folders may be named as arguments, others are skipped
where absent) and on 40 scenes of HRES-Synth. ≥20 is how many objects took the limit or more. Milliseconds are of the
processor and of the segmenter alone, the encoding of a picture told apart. `--out` gets what segagent.benchmark
writes: its table, curves and worst cases.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent.benchmark import AFTER, THRESHOLDS, Report, benchmark, write
from segagent.data import hres_synth
from segagent.data.objects import read_objects
from segagent.segmenters import load_segmenter
from segagent.segmenters.base import EmbeddingCache, Prediction
from segagent.types import Box, Click, State

DATA = Path(__file__).parents[2].parent / "shared" / "data"


class PlainGrabCut:
    """cv2.grabCut at 256 px: the last mask as probable foreground, discs of 4 px for clicks, 2 iterations; clicks only.

    Around the first click, of which alone nothing can be learned, a disc of a sixth of the longest side is probable.
    """

    reference = "plain GrabCut"
    longest, radius, iterations = 256, 4, 2

    def __init__(self) -> None:
        self.encode = EmbeddingCache(self._encode)

    def predict(self, embedding: np.ndarray, states: Sequence[State], actions: Sequence[Click | Box]):
        return [Prediction(self._one(embedding, s, a)) for s, a in zip(states, actions, strict=True)]

    def _encode(self, image: np.ndarray) -> np.ndarray:
        scale = min(1.0, self.longest / max(image.shape[:2]))
        size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def _one(self, image: np.ndarray, state: State, action: Click) -> np.ndarray:
        (height, width), (h, w) = state.size, image.shape[:2]
        last = cv2.resize(state.mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_AREA)
        labels = np.where(last > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        clicks = [((int((c.x + 0.5) * w / width), int((c.y + 0.5) * h / height)), c) for c in (*state.clicks, action)]
        if not last.any() and action.positive:
            cv2.circle(labels, clicks[-1][0], max(h, w) // 6, cv2.GC_PR_FGD, -1)
        for place, click in clicks:
            cv2.circle(labels, place, self.radius, cv2.GC_FGD if click.positive else cv2.GC_BGD, -1)
        if (labels & 1).any() and not (labels & 1).all():
            cv2.setRNGSeed(0)
            models = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.grabCut(image, labels, None, *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        mask = cv2.resize(labels & 1, (width, height), interpolation=cv2.INTER_LINEAR) > 0
        for _, click in clicks:
            mask[int(click.y + 0.5), int(click.x + 0.5)] = click.positive
        return mask


class Timed:
    """A segmenter whose processor time is added up."""

    def __init__(self, segmenter: Any) -> None:
        self.reference, self._segmenter = segmenter.reference, segmenter
        self.clicks = self.pictures = 0
        self.click_seconds = self.picture_seconds = 0.0
        self._held: tuple[Any, Any] = (None, None)

    def encode(self, image: np.ndarray) -> Any:
        if self._held[0] is not image:
            start = time.process_time()
            self._held = image, self._segmenter.encode(image)
            self.picture_seconds += time.process_time() - start
            self.pictures += 1
        return self._held[1]

    def predict(self, embedding: Any, states: Sequence[State], actions: Sequence[Click | Box]) -> list[Prediction]:
        start = time.process_time()
        predictions = self._segmenter.predict(embedding, states, actions)
        self.click_seconds += time.process_time() - start
        self.clicks += len(states)
        return predictions


def row(timed: Timed, report: Report) -> str:
    summary = report.summary()
    noc = " / ".join(f"{summary[f'noc{t * 100:.0f}']:.2f}" for t in THRESHOLDS)
    failed = " / ".join(str(summary[f"at_limit{t * 100:.0f}"]) for t in THRESHOLDS)
    after = " / ".join(f"{summary[f'iou{k}']:.3f}" for k in AFTER)
    click, picture = timed.click_seconds / timed.clicks * 1e3, timed.picture_seconds / timed.pictures * 1e3
    start = f"| {report.segmenter} | {report.data} | {summary['objects']} | {noc} | {failed} | {after}"
    return f"{start} | {click:.1f} | {picture:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", default=["grabcut", "davis_stills"], help="of ../shared/data")
    parser.add_argument("--every", type=int, default=1, help="take every n-th picture of a folder")
    parser.add_argument("--scenes", type=int, default=40, help="of HRES-Synth")
    parser.add_argument(
        "--also", nargs="*", default=[], metavar="SEGMENTER", help="others, as load_segmenter takes them"
    )
    parser.add_argument("--no-plain", action="store_true", help="leave plain GrabCut out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write tables, curves and worst cases")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    sets = {name: read_objects(DATA / name)[:: options.every] for name in options.folders if (DATA / name).is_dir()}
    if options.scenes:
        sets["HRES-Synth"] = hres_synth("test", count=options.scenes)
    segmenters = [] if options.no_plain else [PlainGrabCut()]
    segmenters += [load_segmenter(name) for name in ("grabcut", *options.also)]
    print(
        "| segmenter | data | objects | NoC@80 / 85 / 90 | ≥20@80 / 85 / 90 | IoU@1 / 5 / 10 / 20 | ms a click | ms a picture |"
    )
    print("|---" * 8 + "|")
    reports = []
    for name, samples in sets.items():
        for segmenter in segmenters:
            timed = Timed(segmenter)
            reports.append(benchmark(timed, samples, name=name))
            print(row(timed, reports[-1]), flush=True)
    if options.out:
        write(options.out, reports, sets)


if __name__ == "__main__":
    main()
