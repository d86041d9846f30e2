"""Memory and speed of building, reading and streaming data; each stage in a process of its own, so that its peak is its own.

    python -m tests.benchmarks.data                 10,000 made pictures, and a few of 4,000 px
    python -m tests.benchmarks.data --count 2000

Prints peak resident memory (limit 1.5 GB) and samples a second of CPU time; and reading through load_hres against plain iteration of
`datasets` that decodes the same two pictures a row (ratio, at least 0.9).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

LIMIT = 1.5e9  # bytes
PARTS = (("DIS-TR", 0.8), ("DIS-VD", 0.1), ("DIS-TE1", 0.1))


def make_sources(root: Path, count: int, size: tuple[int, int]) -> int:
    """`count` different JPEGs with masks in DIS5K's layout."""
    rng = np.random.default_rng(0)
    number = 0
    for part, share in PARTS:
        for kind in ("im", "gt"):
            (root / part / kind).mkdir(parents=True)
        for _ in range(round(count * share)):
            image = cv2.resize(rng.integers(0, 255, (15, 20, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
            mask = np.zeros(size, np.uint8)
            centre, axes = (
                (size[1] // 2, size[0] // 2),
                (int(rng.integers(9, size[1] // 3)), int(rng.integers(9, size[0] // 3))),
            )
            cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 255, -1)
            name = f"4#Architecture#10#Pavilion#{number}"
            cv2.imwrite(str(root / part / "im" / f"{name}.jpg"), image)
            cv2.imwrite(str(root / part / "gt" / f"{name}.png"), mask)
            number += 1
    return number


def make_instances(root: Path, count: int) -> int:
    """An instances file of `count` annotations, of about COCO's outlines; → its bytes."""
    root.mkdir()
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(count // 7 + 1)]
    with (root / "instances.json").open("w") as stream:
        stream.write(f'{{"images": {json.dumps(images)}, "categories": [{{"id": 1, "name": "dog"}}], "annotations": [')
        for i in range(count):
            outline = np.round(rng.uniform(0, 480, 60), 2).tolist()
            row = {
                "id": i,
                "image_id": i // 7,
                "category_id": 1,
                "iscrowd": 0,
                "area": 500.5,
                "bbox": [1.5, 2.5, 30, 40],
            }
            stream.write((", " if i else "") + json.dumps({"segmentation": [outline], **row}))
        stream.write("]}")
    return (root / "instances.json").stat().st_size


class Clock:
    """CPU seconds since it was made: what the code costs, without imports and without what else the machine does."""

    def __init__(self) -> None:
        self.start = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self.start


def build(source: str, out: str) -> tuple[int, float]:
    from segagent.data import build_hres

    clock = Clock()
    return sum(build_hres(source, out, shard_bytes=20_000_000).counts.values()), clock()


def prepare(out: str, cache: str) -> tuple[int, float]:
    """What `datasets` does once: its own copy of the shards."""
    from segagent.data import load_hres

    clock = Clock()
    return len(load_hres(out, "train", cache_dir=cache)), clock()


def read(out: str, cache: str) -> tuple[int, float]:
    return _go_through(out, cache, streaming=False)


def stream(out: str, cache: str) -> tuple[int, float]:
    return _go_through(out, cache, streaming=True)


def _go_through(out: str, cache: str, streaming: bool) -> tuple[int, float]:
    from segagent.data import load_hres

    samples = load_hres(out, "train", cache_dir=cache, streaming=streaming)
    clock = Clock()
    return sum(sample.target is not None for sample in samples), clock()


def read_plain(out: str, cache: str) -> tuple[int, float]:
    """Plain iteration, with the pictures decoded and as arrays, as any use needs them."""
    from datasets import load_dataset

    rows = load_dataset(out, split="train", cache_dir=cache)
    clock = Clock()
    return sum(np.asarray(row["image"]).size > 0 and np.asarray(row["mask"]).size > 0 for row in rows), clock()


def index_instances(root: str) -> tuple[int, float]:
    from segagent.data._annotations import Annotations

    clock = Clock()
    index = Annotations(Path(root) / "instances.json")
    for number in range(0, len(index.annotations), 1000):
        index.mask(index.annotations[number])
    return len(index.annotations), clock()


def parse_instances(root: str) -> tuple[int, float]:
    """For comparison: the whole file as Python objects."""
    clock = Clock()
    return len(json.loads((Path(root) / "instances.json").read_text())["annotations"]), clock()


STAGES = {f.__name__: f for f in (build, prepare, read, stream, read_plain, index_instances, parse_instances)}


def run_stage(name: str, arguments: list[str]) -> None:
    """In the stage's own process: prints what it returns and its peak."""
    import datasets

    datasets.disable_progress_bars()
    count, seconds = STAGES[name](*arguments)
    print(json.dumps([int(count), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def report(name: str, stage: Callable, *arguments: Path) -> float:
    """Runs a stage and prints a line; → samples a second."""
    command = [sys.executable, "-m", "tests.benchmarks.data", "--stage", stage.__name__, *map(str, arguments)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    count, seconds, peak = json.loads(answer.splitlines()[-1])
    over = "" if peak <= LIMIT else "  OVER THE LIMIT"
    print(f"{name:44} {count:8,} {count / seconds:10,.1f} /s {peak / 1e6:8,.0f} MB{over}", flush=True)
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=30, help="pictures of 4,000 × 3,000 px")
    parser.add_argument("--annotations", type=int, default=200_000)
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage[0], options.stage[1:])
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        cache = root / "cache"
        make_sources(root / "small", options.count, (240, 320))
        make_sources(root / "large", options.large, (3000, 4000))
        report("build, 320 × 240 px", build, root / "small", root / "hres")
        report("build, 4,000 × 3,000 px", build, root / "large", root / "hres-large")
        report("prepare (datasets' own copy, once)", prepare, root / "hres", cache)
        rates = {"load_hres": [], "plain": []}
        for _ in range(3):
            rates["plain"].append(report("read rows, plain datasets", read_plain, root / "hres", cache))
            rates["load_hres"].append(report("read samples, load_hres", read, root / "hres", cache))
        report("stream samples, load_hres", stream, root / "hres", cache)
        report("stream samples, 4,000 × 3,000 px", stream, root / "hres-large", cache)
        megabytes = make_instances(root / "coco", options.annotations) / 1e6
        report(f"index instances.json of {megabytes:,.0f} MB", index_instances, root / "coco")
        report("the same, parsed whole", parse_instances, root / "coco")
        ratio = max(rates["load_hres"]) / max(rates["plain"])
        print(f"load_hres against plain datasets iteration: {ratio:.2f} (best of 3 each)")


if __name__ == "__main__":
    main()
