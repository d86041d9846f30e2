"""Shards of trajectories on disk: written under another name and then renamed, so that each is whole or not there.

What was counted while a shard was made is in its file: it is there whenever the shard is, whoever made that, and when.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segagent.errors import DataError
from segagent.trajectories import features

_KEY = b"segagent"  # of the file's metadata


def write_shard(rows: list[dict[str, Any]], file: Path, counts: Mapping[str, int] | None = None) -> None:
    """Writes the rows of `trajectories.to_row`, perhaps none, as parquet. Raises DataError where the disk refuses."""
    import pyarrow.parquet as parquet
    from datasets import Dataset

    columns = features()
    table = Dataset.from_list(rows, features=columns).data.table if rows else columns.arrow_schema.empty_table()
    if counts is not None:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(dict(counts))})
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp")  # two processes may make one shard
    try:
        parquet.write_table(table, temporary)
        temporary.rename(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{file} cannot be written: {error.strerror or error}. The shards before it are kept."
        ) from error


def counted(folder: Path) -> dict[str, int]:
    """The sums of what `write_shard` noted in the shards of this folder. Raises DataError where one cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    total: Counter[str] = Counter()
    for file in sorted(folder.glob("train-*.parquet")):
        try:
            noted = (parquet.read_schema(file).metadata or {}).get(_KEY, b"{}")
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{file} cannot be read ({error}): remove it, and the same command makes it again."
            ) from error
        total.update(json.loads(noted))  # adds
    return dict(total)
