"""Records of long work, a JSON line each: a run that was killed goes on where it was, and ends with the same file.

Work is done in batches of one size, and only whole batches count, so that what shares a batch is the same after an
interruption: a model's floats may depend on it. The first line of the file holds the settings that the records depend on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from segagent.checkpoint import find_checkpoint
from segagent.errors import DataError, SegAgentError

_END = 1 << 20  # bytes


def fingerprint(checkpoint: str | None, revision: str | None = None) -> str:
    """What tells a checkpoint from another one, and from itself after more training: its name, and a hash of its files.

    Of each file its size and both its ends count: in safetensors, the names of the weights, and some of their values.
    Raises CheckpointError.
    """
    from segagent.agent import NANO

    folder = NANO if checkpoint is None else find_checkpoint(checkpoint, revision=revision)
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors", ".jinja", ".model")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(_END)
            stream.seek(max(size - _END, 0))
            digest.update(repr((str(file.relative_to(folder)), size)).encode() + head + stream.read())
    return f"{checkpoint or 'segagent-nano (embedded)'} {digest.hexdigest()}"


def identity(options: argparse.Namespace, *more: str) -> str:
    """What predicted IoUs on the command line depend on: cli.add_model's options and --iou-reading. Raises CheckpointError."""
    said = [fingerprint(options.checkpoint, options.revision), *more]
    if options.iou_reading:
        said.append(f"{options.iou_reading} IoU")
    if options.verifier:
        said.append(f"{options.combine} with {fingerprint(options.verifier)}")
    return ", ".join(said)


def code_of(*parts: str) -> str:
    """A hash of the Python files of parts of this package: what they did is not what they do after a change."""
    digest = hashlib.blake2b(digest_size=6)
    for part in parts:
        for file in sorted((Path(__file__).parent / part).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def machine() -> str:
    """What a report says of where it was made."""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}"


class Ledger:
    """A file of records, or, without a path, a list in memory. One writer at a time."""

    def __init__(self, path: Path | None, settings: dict[str, Any], batch: int) -> None:
        """Opens the file, or makes it. Raises DataError where its records were made with other settings."""
        if batch < 1:
            raise SegAgentError(f"A batch holds at least one sample; got {batch}.")
        self.path, self.batch, self._memory = path, batch, []
        if path is None:
            return
        header = (json.dumps({"settings": settings, "batch": batch}, sort_keys=True) + "\n").encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open("rb") as stream:
                first = stream.readline()
            if first.endswith(b"\n") and first != header:
                raise DataError(f"{str(path)!r} holds results of other settings: give another --out, or delete it.")
            if first == header:
                return
        path.write_bytes(header)

    def resume(self, total: int) -> int:
        """How many of `total` records are there; what an interruption left of a batch is cut off."""
        if self.path is None:
            return min(len(self._memory), total)
        with self.path.open("rb+") as stream:
            ends = [len(stream.readline())]
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                ends.append(ends[-1] + len(line))
            done = len(ends) - 1
            if done >= total:
                return total
            done -= done % self.batch
            stream.truncate(ends[done])
        return done

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Adds the records of one batch."""
        if self.path is None:
            self._memory += records
            return
        with self.path.open("ab") as stream:
            stream.write("".join(json.dumps(record) + "\n" for record in records).encode())

    def read(self, total: int) -> Iterator[dict[str, Any]]:
        """The first `total` records, one at a time. Raises DataError where the file is damaged."""
        if self.path is None:
            yield from self._memory[:total]
            return
        with self.path.open("rb") as stream:
            for number, line in enumerate(islice(stream, 1, total + 1), 2):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"Line {number} of {str(self.path)!r} is damaged: delete the file.") from error
