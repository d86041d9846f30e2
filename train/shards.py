"""One shard of trajectories to disk: written under another name and then renamed, so that it is whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segagent.errors import DataError
from segagent.trajectories import features


def write_shard(rows: list[dict[str, Any]], file: Path) -> None:
    """Writes the rows of `trajectories.to_row`, perhaps none, as parquet. Raises DataError where the disk refuses."""
    import pyarrow.parquet as parquet
    from datasets import Dataset

    columns = features()
    table = Dataset.from_list(rows, features=columns).data.table if rows else columns.arrow_schema.empty_table()
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp")  # two processes may make one shard
    try:
        parquet.write_table(table, temporary)
        temporary.rename(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{file} cannot be written: {error.strerror or error}. The shards before it are kept."
        ) from error
