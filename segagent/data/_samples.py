"""What all readers share: a lazy sequence of samples, pictures and JSON read with one sentence for each fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from segagent.errors import DataError, ImageError, SegAgentError
from segagent.images import load_image
from segagent.types import Sample

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class SampleStream(Iterable[Sample]):
    """Samples that can only be gone through, again and again. `make(record)` reads one and raises SegAgentError.

    `errors` "raise" stops at the first sample that cannot be read; "skip" goes on and notes it in `skipped`
    ({sample id: what is wrong}, which the reader may have begun).
    """

    def __init__(
        self,
        records: Iterable[Any],
        make: Callable[[Any], Sample],
        *,
        name: str,
        errors: str = "raise",
        skipped: dict[str, str] | None = None,
    ) -> None:
        self.name, self.errors = name, check_errors(errors)
        self.skipped = {} if skipped is None else skipped
        self._records, self._make = records, make

    def __iter__(self) -> Iterator[Sample]:
        for record in self._records:
            try:
                sample = self._read(record)
            except SegAgentError as error:
                if self.errors == "raise":
                    raise
                self.skipped[sample_id(record)] = str(error)
                continue
            yield sample

    def _read(self, record: Any) -> Sample:
        try:
            return self._make(record)
        except DataError:
            raise
        except SegAgentError as error:
            raise DataError(f"Sample {sample_id(record)} of {self.name}: {error}") from error

    def __repr__(self) -> str:
        return f"<{self.name}: a stream of samples, {len(self.skipped)} skipped>"


class Samples(SampleStream, Sequence[Sample]):
    """Samples that are read when asked for. Indexing raises for one that cannot be read, whatever `errors` says."""

    _records: Sequence[Any]

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return Samples(
                self._records[index], self._make, name=self.name, errors=self.errors, skipped=dict(self.skipped)
            )
        return self._read(self._records[index])

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} samples, {len(self.skipped)} skipped>"


def sample_id(record: Any) -> str:
    return record["id"] if isinstance(record, dict) else record.id


def check_errors(errors: str) -> str:
    if errors not in ("raise", "skip"):
        raise DataError(f'errors is "raise" or "skip"; got {errors!r}.')
    return errors


class Faults:
    """Raises the first fault, or collects them all, as the user asked."""

    def __init__(self, errors: str) -> None:
        self.errors, self.skipped = check_errors(errors), {}

    def add(self, key: str, sentence: str, cause: Exception | None = None) -> None:
        if self.errors == "raise":
            raise DataError(sentence) from cause
        self.skipped[key] = sentence


def unique(records: list[Any], faults: Faults, name: str) -> list[Any]:
    """The records without those whose id was there before."""
    seen: set[str] = set()
    kept = []
    for record in records:
        key = sample_id(record)
        if key in seen:
            faults.add(f"{key} (again)", f"The id {key} is there twice in {name}: ids must be unique.")
            continue
        seen.add(key)
        kept.append(record)
    return kept


def existing_folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise DataError(f"There is no folder {str(path)!r} ({what}): give the folder that holds it.")
    return path


def read_json(path: Path, encodings: Sequence[str] = ("utf-8",)) -> Any:
    """The parsed file, in the first encoding that fits. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    for encoding in encodings:
        try:
            return json.loads(data.decode(encoding))
        except UnicodeDecodeError as error:
            fault: Exception = error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{str(path)!r} is not JSON: {error}.") from error
    raise DataError(f"{str(path)!r} is not text in {' or '.join(encodings)}: {fault}.")


def read_image(path: Path, size: tuple[int, int] | None = None, what: str = "its annotation") -> np.ndarray:
    """(H, W, 3) uint8, of the given (height, width). The last few are kept: expressions of one picture share it. Raises DataError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"The picture {str(path)!r} cannot be read: {error.strerror}.") from error
    try:
        image = _decoded(str(path), stat.st_mtime_ns, stat.st_size)
    except ImageError as error:
        raise DataError(str(error)) from error
    if size is not None and image.shape[:2] != tuple(size):
        raise DataError(size_fault(f"The picture {str(path)!r}", image.shape[:2], what, size))
    return image


@lru_cache(maxsize=2)
def _decoded(path: str, modified: int, length: int) -> np.ndarray:
    return load_image(path)


def size_fault(one: str, size: tuple[int, int], other: str, expected: tuple[int, int]) -> str:
    """The sentence for two things that should have one (height, width)."""
    sentence = f"{one} is {size[1]}×{size[0]} px, but {other} says {expected[1]}×{expected[0]} px"
    if size == tuple(expected)[::-1]:
        return f"{sentence}: width and height are swapped, so one of them was turned by 90 degrees."
    return f"{sentence}: they must be equal."


def pictures_in(folder: Path) -> dict[str, Path]:
    """{stem: path} of the pictures in a folder. Two of one stem (a.jpg, a.png) raise DataError."""
    found: dict[str, Path] = {}
    for path in sorted(existing_folder(folder, "pictures").iterdir()):
        if path.suffix.lower() not in PICTURES:
            continue
        if path.stem in found:
            raise DataError(
                f"{found[path.stem].name!r} and {path.name!r} in {str(folder)!r} differ only in their ending, so that a "
                "mask cannot tell which is meant: rename or remove one."
            )
        found[path.stem] = path
    return found


def some(names: Any, count: int = 5) -> str:
    """A few of many names, for an error's sentence."""
    names = sorted(str(name) for name in names)
    return ", ".join(islice(names, count)) + (f" and {len(names) - count} more" if len(names) > count else "")
