"""What a scene of HRES-Synth costs, and how many clicks it takes: `python -m tests.benchmarks.hres_synth [--samples N]`.

Complexity as in the paper's Figure 3: clicks of the simulated annotator, from the empty mask, until the mask's IoU with the
target reaches 0.80 and 0.85 (20 where it never does), with the embedded segmenter. Expressions that denote nothing are left out.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from segagent import load_segmenter
from segagent.data import hres_synth, make_scene
from segagent.data.hres import clicks_to
from segagent.data.synth import LEVELS, expressions


def make_all(seed: int, level: str) -> None:
    rng = np.random.default_rng(seed)
    expressions(make_scene(rng, level), rng)


def best_ms(call: Callable[..., object], *arguments: object, repeats: int = 5) -> float:
    """CPU time of the quickest of several runs: what the code costs, without what else the machine does."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call(*arguments)
        times.append(time.process_time() - start)
    return min(times) * 1e3


def scene_ms(level: str, scenes: int) -> tuple[float, float]:
    """Mean ms to make a 256×256 scene, and to make it with all of its expressions."""
    make_all(0, level)
    alone = [best_ms(lambda seed: make_scene(np.random.default_rng(seed), level), seed) for seed in range(scenes)]
    both = [best_ms(make_all, seed, level) for seed in range(scenes)]
    return float(np.mean(alone)), float(np.mean(both))


def complexity(level: str, samples: int, segmenter: str) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Clicks to 0.80 and 0.85, (samples, 2); and those to 0.85 by the target's shape."""
    model = load_segmenter(segmenter)
    clicks, by_shape = [], defaultdict(list)
    for sample in hres_synth("test", level):
        if len(clicks) == samples:
            break
        if sample.meta["kind"] != "absent":
            clicks.append(clicks_to(model, sample))
            by_shape[sample.meta["category"]].append(clicks[-1][1])
    return np.array(clicks), by_shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples", type=int, default=60, help="of each level, to measure the clicks (0: only the speed)"
    )
    parser.add_argument(
        "--scenes", type=int, default=60, help="of each level, to measure the speed (0: only the clicks)"
    )
    parser.add_argument("--segmenter", default="grabcut")
    parser.add_argument("--shapes", action="store_true", help="also the clicks to 0.85 by shape")
    options = parser.parse_args()
    for level in LEVELS:
        if options.scenes:
            alone, both = scene_ms(level, options.scenes)
            print(f"{level:7} scene {alone:5.2f} ms, with all its expressions {both:5.2f} ms", flush=True)
        if options.samples:
            clicks, by_shape = complexity(level, options.samples, options.segmenter)
            error = 1.96 * clicks.std(0) / np.sqrt(len(clicks))
            (to_80, to_85), (near_80, near_85) = clicks.mean(0), error
            print(
                f"{level:7} clicks to IoU 0.80: {to_80:5.2f} ± {near_80:.2f}, to 0.85: {to_85:5.2f} ± {near_85:.2f}"
                f" ({len(clicks)} samples, {options.segmenter}; never at 0.85: {(clicks[:, 1] >= 20).mean():.0%})",
                flush=True,
            )
            if options.shapes:
                rows = sorted((np.mean(values), len(values), shape) for shape, values in by_shape.items())
                print("        " + ", ".join(f"{shape} {mean:.1f} ({n})" for mean, n, shape in rows))


if __name__ == "__main__":
    main()
