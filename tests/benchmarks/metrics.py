"""RESMetrics against plain NumPy on 1,000 pairs of 1024×1024 masks: `python -m tests.benchmarks.metrics`.

40 different pairs (80 MB of bool arrays, more than a cache holds) are gone through 25 times. "Plain" is the loop that evaluation
scripts have: logical_and(a, b).sum() and logical_or(a, b).sum() over the whole frame, and the sums of both; "plain, counted" uses
np.count_nonzero in its place. The rows of RESMetrics differ in what they are given: bool arrays as they are, bool arrays
that are packed first, masks that are packed already, and COCO RLEs. All give the same integers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np

from segagent.masks import to_rle
from segagent.metrics import RESMetrics, pack

SIDE, PAIRS, ROUNDS = 1024, 40, 25


def ellipse(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) bool: one object."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    (x, y), (w, h) = rng.integers(SIDE // 4, 3 * SIDE // 4, 2), rng.integers(SIDE // 20, SIDE // 4, 2)
    cv2.ellipse(mask, (int(x), int(y)), (int(w), int(h)), float(rng.integers(180)), 0, 360, 1, -1)
    return mask > 0


def regions(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) bool: many smooth regions with holes, about 40 % of the frame; thousands of runs."""
    noise = cv2.resize(rng.random((12, 12), dtype=np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return noise > 0.55


def plain(pairs: list, count: Callable[[np.ndarray], int]) -> tuple[int, int]:
    intersection = union = 0
    for a, b in pairs:
        intersection += int(count(np.logical_and(a, b)))
        union += int(count(np.logical_or(a, b)))
    return intersection, union


def ours(pairs: list, convert: Callable = lambda mask: mask) -> tuple[int, int]:
    metrics = RESMetrics()
    for a, b in pairs:
        metrics.update(convert(a), convert(b))
    return metrics.intersection, metrics.union


def table(name: str, shape: Callable[[np.random.Generator], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    arrays = [(mask, np.roll(mask, (7, -11), (0, 1))) for mask in (shape(rng) for _ in range(PAIRS))]
    packed = [(pack(a), pack(b)) for a, b in arrays]
    rles = [(to_rle(a), to_rle(b)) for a, b in arrays]
    ways = {
        "plain": lambda: plain(arrays, np.sum),
        "plain, counted": lambda: plain(arrays, np.count_nonzero),
        "RESMetrics, bool arrays": lambda: ours(arrays),
        "RESMetrics, bool arrays packed first": lambda: ours(arrays, pack),
        "RESMetrics, packed": lambda: ours(packed),
        "RESMetrics, COCO RLE": lambda: ours(rles),
    }
    seconds, results = dict.fromkeys(ways, 0.0), set()
    for _ in range(ROUNDS):  # in turns, so that what else the machine does weighs on all
        for way, run in ways.items():
            start = time.thread_time()
            results.add(run())
            seconds[way] += time.thread_time() - start
    if len(results) != 1:
        raise SystemExit(f"The ways disagree: {results}")
    print(f"{name}\n\n| way | CPU seconds | times faster than plain |\n|---|---|---|")
    for way, taken in seconds.items():
        print(f"| {way} | {taken:.2f} | {seconds['plain'] / taken:.1f} |")


def main() -> None:
    print(f"{PAIRS * ROUNDS} pairs of {SIDE}×{SIDE}\n")
    table("One object in a mask", ellipse)
    table("\nMany regions in a mask", regions)


if __name__ == "__main__":
    main()
