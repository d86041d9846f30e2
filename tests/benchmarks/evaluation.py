"""What evaluation costs: one sample after another, in lock step, and on several processes: `python -m tests.benchmarks.evaluation`.

All on the embedded checkpoint with its segmenter on HRES-Synth test, 7 clicks, going on where the policy would stop; the runs must
be the same. Seconds of CPU are of this process and its children; loading is measured apart, with one sample.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

from segagent import players
from segagent.players import runs_of
from segagent.runs import Run, Setup
from segagent.segmenters.base import EmbeddingCache, Holding

SETUP = Setup(insist=True)


def measured(work: Callable[[], list[Run]]) -> tuple[list[Run], float, float]:
    """(runs, seconds of CPU, seconds)."""

    def cpu() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before, start = cpu(), time.perf_counter()
    runs = work()
    return runs, cpu() - before, time.perf_counter() - start


class Small(Holding):
    """Keeps eight embeddings, however many images run in lock step."""

    def __init__(self, segmenter, images: int) -> None:
        super().__init__(segmenter, images)
        self.encode = EmbeddingCache(segmenter.encode, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=32)
    count = parser.parse_args().count
    stages: dict[str, Callable[[], list[Run]]] = {
        "loading, and one sample": lambda: runs_of(SETUP, "hres-synth", count=1, batch=1),
        "one after another": lambda: runs_of(SETUP, "hres-synth", count=count, batch=1),
        "16 in lock step": lambda: runs_of(SETUP, "hres-synth", count=count, batch=16),
        "16 in lock step, 2 processes": lambda: runs_of(SETUP, "hres-synth", count=count, batch=16, workers=2),
    }
    print("| | CPU s | s | samples a second |\n|---|---|---|---|")
    found = {}
    for name, work in stages.items():
        found[name], cpu, seconds = measured(work)
        print(f"| {name} | {cpu:.1f} | {seconds:.1f} | {len(found[name]) / seconds:.2f} |", flush=True)
    players.Holding = Small
    _, cpu, seconds = measured(stages["16 in lock step"])
    print(f"| 16 in lock step, 8 embeddings kept | {cpu:.1f} | {seconds:.1f} | {count / seconds:.2f} |")
    masks = [[run.masks for run in found[name]] for name in list(stages)[1:]]
    same = [sum(a == b for a, b in zip(masks[0], other, strict=True)) for other in masks]
    print(f"\nThe same masks as one after another: {', '.join(f'{n} of {count}' for n in same[1:])}.")


if __name__ == "__main__":
    main()
