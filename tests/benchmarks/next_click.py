"""How long next_click takes against two exact full-frame distance transforms: `python -m tests.benchmarks.next_click`.

1024×1024 masks whose error regions cover a tenth of the frame, in several layouts. The denominator is the two calls of
cv2.distanceTransform alone, without the padding, the exclusion of clicked pixels and the search that the plain way also needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from segagent.annotator import next_click

SIDE, REPEATS = 1024, 15


def best_ms(calls: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Each call's quickest of several runs, taken in turns: what the code costs, without what else the machine does."""
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [min(taken) * 1e3 for taken in times]


def discs(rng: np.random.Generator, count: int, share: float = 0.1) -> np.ndarray:
    """Discs of equal size at random places, in all `share` of the frame (overlaps excepted)."""
    mask, radius = np.zeros((SIDE, SIDE), np.uint8), int(SIDE * np.sqrt(share / count / np.pi))
    for x, y in rng.integers(radius, SIDE - radius, (count, 2)):
        cv2.circle(mask, (int(x), int(y)), radius, 1, -1)
    return mask > 0


def layouts(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, mask, target)."""
    nothing = np.zeros((SIDE, SIDE), bool)
    for count in (1, 10, 300):
        yield f"{count} missed disc{'s' * (count > 1)}", nothing, discs(rng, count)
    target = discs(rng, 3, 0.15)
    yield "a shifted mask", np.roll(target, (25, 40), (0, 1)), target
    ring = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(ring, (SIDE // 2, SIDE // 2), 450, 1, 37)
    yield "a ring 37 px wide", nothing, ring > 0
    stripes = np.zeros((SIDE, SIDE), bool)
    stripes[:, np.arange(SIDE) % 30 < 3] = True
    yield "lines 3 px wide", nothing, stripes
    noise = rng.random((SIDE, SIDE)) < 0.1
    yield "scattered pixels, one map", nothing, noise
    half = rng.random((SIDE, SIDE)) < 0.5
    yield "scattered pixels, both maps", half, half ^ noise
    mixed = discs(rng, 30, 0.08) ^ (rng.random((SIDE, SIDE)) < 0.02)
    yield "30 discs and scattered pixels, both maps", half, half ^ mixed


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"OpenCV {cv2.__version__}, {cv2.getNumThreads()} threads, {SIDE}×{SIDE}, quickest of {REPEATS}\n")
    print("| layout | wrong pixels | next_click, ms | two transforms, ms | ratio |\n|---|---|---|---|---|")
    for name, mask, target in layouts(rng):
        regions = [np.pad(r, 1).astype(np.uint8) for r in (target & ~mask, mask & ~target)]
        ours, plain = best_ms(
            [
                lambda mask=mask, target=target: next_click(mask, target),
                lambda regions=regions: [cv2.distanceTransform(r, cv2.DIST_L2, 0) for r in regions],
            ]
        )
        print(f"| {name} | {(mask ^ target).mean():.1%} | {ours:.1f} | {plain:.1f} | {ours / plain:.2f} |")


if __name__ == "__main__":
    main()
