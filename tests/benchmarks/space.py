"""Thirty people at once on the page: `python -m tests.benchmarks.space [--sessions 30] [--rounds 2] [--steps 3]`.

The page runs in a process of its own on the embedded models, as `python app.py` starts it. Each session is a gradio_client of
its own: it uploads a picture that no other has, lets the agent run, and saves its mask, by the very handlers that the browser
calls; the mask is held against that of the same run in this process. Then each asks the named endpoint `segment` the same.
Printed: right masks, seconds to the first click and to the end, and the server's memory after each round of new sessions.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

from segagent.agent import SegAgent
from segagent.data import hres_synth
from segagent.export import png
from segagent.masks import from_rle
from segagent.types import Sample

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # s after which a session counts as waiting for ever


@dataclass(frozen=True)
class Visit:
    """What one session got."""

    right: bool
    api_right: bool
    first: float  # s from Run to the first click's picture
    run: float  # s from Run to the end
    api: float  # s of the named endpoint


@contextmanager
def served() -> Iterator[tuple[str, int, float]]:
    """(address, process id, seconds from the start until the page answered)."""
    began, port = time.perf_counter(), 7990
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=60).read()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(f"The page did not start: is port {port} taken?") from None
                time.sleep(0.1)
        yield address, server.pid, time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()


def handlers(client: Client) -> dict[str, int]:
    """The page's own handlers by the ids of the buttons that call them."""
    names = {c["id"]: c["props"].get("elem_id") for c in client.config["components"]}
    found: dict[str, int] = {}
    for number, endpoint in client.endpoints.items():
        for component, _ in endpoint.dependency["targets"]:
            if endpoint.dependency.get("backend_fn") and names.get(component):
                found.setdefault(names[component], number)
                endpoint.is_valid = True  # private ones are the browser's alone otherwise
    return found


def visit(address: str, sample: Sample, file: Path, expected: np.ndarray, best: np.ndarray, steps: int) -> Visit:
    client = Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE})
    known = handlers(client)
    client.predict(handle_file(file), fn_index=known["upload"])
    began = time.perf_counter()
    job = client.submit(sample.expression, "agent", "none", 1, steps, 0.0, fn_index=known["run"])
    first = None
    for count, _ in enumerate(job, 1):
        if count == 2 and first is None:  # the first output says that it is looking
            first = time.perf_counter() - began
    job.result(timeout=PATIENCE)
    run = time.perf_counter() - began
    saved: Any = client.predict(sample.expression, fn_index=known["export-mask"])
    saved = json.loads(saved) if isinstance(saved, str) else saved
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(saved["base64"])))) > 0
    began = time.perf_counter()
    answer = client.submit(handle_file(file), sample.expression, steps, 1, api_name="/segment").result(timeout=PATIENCE)
    api = time.perf_counter() - began
    client.close()
    return Visit(
        mask.shape == expected.shape and bool((mask == expected).all()),
        bool((from_rle(answer["mask"]) == best).all()),
        run if first is None else first,
        run,
        api,
    )


def memory(process: int) -> int:
    """MB of resident memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise SystemExit("The page is gone.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    agent, data = SegAgent.from_pretrained(), hres_synth("test", level="easy")
    samples = [replace(data[i], id=f"session-{i}") for i in range(arguments.sessions)]
    results = [agent.segment(s.image, s.expression, steps=arguments.steps) for s in samples]
    with tempfile.TemporaryDirectory() as folder, served() as (address, process, start):
        files = [Path(folder) / f"{s.id}.png" for s in samples]
        for file, sample in zip(files, samples, strict=True):
            file.write_bytes(png(sample.image))
        visit(address, samples[0], files[0], results[0].mask, results[0].mask, 1)  # the models are loaded from here on
        before = os.getloadavg()[0]
        print(
            f"page up after {start:.1f} s, {memory(process)} MB; load of the machine before: {before:.1f}", flush=True
        )
        for number in range(1, arguments.rounds + 1):
            began = time.perf_counter()
            with ThreadPoolExecutor(arguments.sessions) as crowd:
                visits = list(
                    crowd.map(
                        lambda s, f, r: visit(address, s, f, r.trajectory.states[-1].mask, r.mask, arguments.steps),
                        samples,
                        files,
                        results,
                    )
                )
            print(
                f"round {number}: {sum(v.right for v in visits)} of {len(visits)} right masks on the page, "
                f"{sum(v.api_right for v in visits)} by the endpoint; all done after {time.perf_counter() - began:.0f} s; "
                + "; ".join(
                    f"{name} {statistics.median(values):.1f} s median, {max(values):.1f} s at most"
                    for name, values in (
                        ("first click", [v.first for v in visits]),
                        ("run", [v.run for v in visits]),
                        ("endpoint", [v.api for v in visits]),
                    )
                )
                + f"; {memory(process)} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
