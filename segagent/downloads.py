"""Downloads from the Hub that are what the Hub says they are: each file's content is held against its hash.

huggingface_hub names a file in its cache after the hash that the Hub gave it (SHA-256 of a large file, git's SHA-1 of any
other), but looks at nothing except the size. What was checked once is noted beside the cached repository, in `.verified`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Failures = tuple[type[BaseException], ...]
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def snapshot(repo: str, **options: Any) -> Path:
    """huggingface_hub.snapshot_download, checked. Raises OSError where a file stays damaged, and what that function raises."""
    from huggingface_hub import snapshot_download

    tries = 1 if options.get("local_files_only") else 2
    return checked(lambda: Path(snapshot_download(repo, **options)), repo, tries=tries)


def checked(load: Callable[[], T], repo: str, repo_type: str = "model", failures: Failures = (), tries: int = 2) -> T:
    """What `load` returns, which gets files of a repository; it is called once more where some of them arrived damaged.

    `failures` are what it may raise on damaged files. Raises OSError where they stay damaged.
    """
    for _ in range(tries):
        failure = None
        try:
            loaded = load()
        except failures as error:
            failure = error
        damaged = drop_damaged(cached(repo, repo_type))
        if failure is None and not damaged:
            return loaded
        if not damaged:
            raise failure
    raise OSError(sentence(damaged))


def sentence(damaged: list[str]) -> str:
    """What to tell of these files."""
    return (
        f"{', '.join(damaged[:3])}{' and others' if len(damaged) > 3 else ''} came without the content whose hash the Hub "
        "gave, and nothing of it was kept: check the network and the disk, and try again."
    )


def cached(repo: str, repo_type: str = "model") -> list[Path]:
    """All files of a repository that are in the cache, whatever their revision."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{repo.replace('/', '--')}" / "snapshots"
    return [path for path in folder.rglob("*") if path.is_file()]


def drop_damaged(files: Iterable[str | PathLike[str]]) -> list[str]:
    """Removes cached files whose content has not the hash that they are named after; → the names of the removed."""
    damaged = []
    for path in map(Path, files):
        blob = path.resolve()
        if not path.is_symlink() or not _HASH.fullmatch(blob.name):
            continue  # a cache without links does not keep the hash
        mark = blob.parents[1] / ".verified" / blob.name
        stat = blob.stat()
        told = f"{stat.st_size} {stat.st_mtime_ns}"
        if mark.is_file() and mark.read_text() == told:
            continue
        if digest(blob) == blob.name:
            mark.parent.mkdir(exist_ok=True)
            mark.write_text(told)
        else:
            damaged.append(path.name)
            path.unlink()
            blob.unlink()
    return damaged


def digest(blob: Path) -> str:
    """The hash that the Hub gives such a file: SHA-256, or git's SHA-1 where its name has that length."""
    with blob.open("rb") as stream:
        if len(blob.name) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        head = b"blob %d\0" % blob.stat().st_size
        return hashlib.file_digest(stream, lambda: hashlib.sha1(head, usedforsecurity=False)).hexdigest()
