"""Rows to parquet shards, one at a time: what is in memory is a few rows, and a folder is complete or not there."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections import defaultdict
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segagent.errors import DataError

if TYPE_CHECKING:
    from datasets import Features

SHARD_BYTES = 500_000_000  # what `datasets` aims at too
GROUP_BYTES = 32_000_000  # a reader holds a row group whole


class ShardWriter:
    """Writes <folder>/data/<split>-00000-of-00003.parquet when it ends without an error; otherwise leaves nothing.

    with ShardWriter(folder, features) as writer:
        writer.write("train", row)

    Raises DataError where the folder already has data, or the disk is full.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        features: Features,
        *,
        shard_bytes: int = SHARD_BYTES,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self.folder, self.features = Path(folder), features
        self.shard_bytes, self.group_bytes = shard_bytes, group_bytes
        self.counts: dict[str, int] = defaultdict(int)
        self._splits: dict[str, _Split] = {}
        self._partial = self.folder / ".partial"

    def __enter__(self) -> ShardWriter:
        if any(self.folder.glob("data/*.parquet")):
            raise DataError(f"{str(self.folder)!r} already holds a data set: give another folder, or remove its data/.")
        self._do(lambda: shutil.rmtree(self._partial, ignore_errors=True))
        self._do(lambda: self._partial.mkdir(parents=True))
        return self

    def write(self, split: str, row: dict[str, Any]) -> None:
        if split not in self._splits:
            self._splits[split] = _Split(self._partial, split, self)
        self._do(lambda: self._splits[split].add(self.features.encode_example(row)))
        self.counts[split] += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._do(self._finish)
        finally:
            for split in self._splits.values():
                with contextlib.suppress(OSError):  # its footer does not fit on a full disk either
                    split.abandon()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _finish(self) -> None:
        for name, split in self._splits.items():
            split.close_shard()
            for i, path in enumerate(split.shards):
                path.rename(path.with_name(f"{name}-{i:05d}-of-{len(split.shards):05d}.parquet"))
        self._partial.rename(self.folder / "data")  # an empty data/ may be there

    def _do(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DataError(
                    f"The disk of {str(self.folder)!r} is full: free some space and build again."
                ) from error
            raise DataError(f"{str(self.folder)!r} cannot be written: {error.strerror or error}.") from error


class _Split:
    """The open shard of one split, and its rows that are not written yet."""

    def __init__(self, folder: Path, name: str, writer: ShardWriter) -> None:
        self.folder, self.name, self.writer = folder, name, writer
        self.shards: list[Path] = []
        self._file: Any = None
        self._rows: list[dict[str, Any]] = []
        self._pending = self._written = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._pending += _bytes(row)
        if self._pending >= min(self.writer.group_bytes, self.writer.shard_bytes):
            self._write_group()
        if self._written >= self.writer.shard_bytes:
            self.close_shard()

    def _write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return
        schema = self.writer.features.arrow_schema
        if self._file is None:
            self.shards.append(self.folder / f"{self.name}-{len(self.shards)}.parquet")
            self._file = pq.ParquetWriter(self.shards[-1], schema, write_page_index=True)
        table = pa.Table.from_pylist(self._rows, schema=schema)
        self._rows.clear()
        self._file.write_table(table, row_group_size=max(len(table), 1))
        self._written += self._pending
        self._pending = 0

    def close_shard(self) -> None:
        self._write_group()
        self.abandon()
        self._written = 0

    def abandon(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _bytes(value: Any) -> int:
    """Roughly what a row takes."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return 8
