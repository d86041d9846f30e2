"""Memory and speed of going through a COCO file larger than it is ever held: `python -m tests.benchmarks.filtering [--annotations N]`.

A file of N annotations (polygons of 100 corners) is written, indexed, and every second annotation copied; for comparison it is
parsed whole by the json module. Each stage in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from segagent.data._coco_file import CocoFile


def write(path: Path, count: int) -> None:
    outline = [round(7.5 + 0.37 * i, 2) for i in range(200)]
    with path.open("w") as stream:
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640} for i in range(count // 7 + 1)]
        stream.write('{"images": ' + json.dumps(images) + ', "annotations": [')
        for i in range(count):
            one = {"id": i, "image_id": i * 31 % len(images), "category_id": 1, "segmentation": [outline], "iscrowd": 0}
            stream.write((", " if i else "") + json.dumps(one))
        stream.write('], "categories": [{"id": 1, "name": "thing"}]}')


def index(path: Path) -> None:
    CocoFile(path)


def index_and_copy(path: Path) -> None:
    CocoFile(path).write(path.with_name("copy.json"), lambda number: number % 2 == 0)


def whole(path: Path) -> None:
    json.loads(path.read_bytes())


def _stage(work: Callable[[Path], None], path: Path, sink: multiprocessing.Queue) -> None:
    start = time.process_time()
    work(path)
    sink.put((time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=100_000)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco.json"
        write(path, options.annotations)
        size = path.stat().st_size / 2**20
        print(f"{options.annotations} annotations, {size:.0f} MiB\n")
        print("| stage | CPU s | MiB/s | peak MiB of the process |\n|---|---|---|---|")
        for work in (index, index_and_copy, whole):
            sink = context.Queue()
            process = context.Process(target=_stage, args=(work, path, sink))
            process.start()
            seconds, peak = sink.get()
            process.join()
            print(f"| {work.__name__.replace('_', ' ')} | {seconds:.1f} | {size / seconds:.0f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
