"""Data by one string, for command lines: "NAME:WHERE,key=value,…".

hres-synth                                 hres-synth:hard,split=train,count=500, hres-synth:split=validation
hres:OWNER/HRES,split=validation           refer:data/refer,dataset=refcoco,split_by=unc,split=val
coco:data/coco128                          reasonseg:data/ReasonSeg,split=val
folder:data/mine,expression=the crack      official:refcoco_val.json,images=data/train2014
trajectories:runs/nano/trajectories        or only a folder of parquet shards, or OWNER/NAME
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from segagent.data._hub import explained, load_rows
from segagent.data._samples import Samples, SampleStream
from segagent.data.coco import read_coco
from segagent.data.folder import read_folder
from segagent.data.hres import Rows, load_hres
from segagent.data.official import read_official_trajectories
from segagent.data.reasonseg import read_reasonseg
from segagent.data.refer import read_refer
from segagent.data.synth import hres_synth
from segagent.errors import DataError
from segagent.trajectories import from_row
from segagent.types import Sample, Trajectory


def load_trajectories(
    path_or_repo: str | PathLike[str],
    split: str = "train",
    *,
    streaming: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    errors: str = "raise",
) -> Samples | SampleStream:
    """Trajectories from a folder of parquet shards or a repository of the Hub, read when asked for. Raises DataError."""
    name = f"trajectories of {path_or_repo}"
    rows = load_rows(path_or_repo, split, streaming=streaming, revision=revision, token=token, cache_dir=cache_dir)
    if rows.features is not None and not {"image", "expression", "steps"} <= set(rows.features):
        raise DataError(f"{path_or_repo} has no columns image, expression and steps: it holds no trajectories.")
    if streaming:
        return SampleStream(rows, from_row, name=name, errors=errors)
    return Samples(Rows(rows), from_row, name=name, errors=errors)


READERS: dict[str, Callable[..., Sequence[Any]]] = {
    "hres-synth": hres_synth,
    "hres": load_hres,
    "refer": read_refer,
    "coco": read_coco,
    "reasonseg": read_reasonseg,
    "folder": read_folder,
    "official": read_official_trajectories,
    "trajectories": load_trajectories,
}


def open_source(spec: str) -> Sequence[Sample] | Sequence[Trajectory]:
    """The samples or trajectories that a string names; see the module's text. Raises DataError."""
    name, _, rest = spec.partition(":")
    if name not in READERS:
        return _open_bare(spec)
    reader = READERS[name]
    known = list(inspect.signature(reader).parameters)
    where, *pairs = rest.split(",")
    if where.partition("=")[0].strip() in known:  # "hres-synth:split=test" names no place
        where, pairs = "", [where, *pairs]
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise DataError(f"In {spec!r}, {pair!r} is not key=value.")
        options[key.strip()] = _value(value.strip())
    first = "level" if name == "hres-synth" else known[0]
    if where:
        options[first] = where
    unknown = set(options) - set(known)
    if unknown:
        raise DataError(f"{name} has no setting {', '.join(sorted(unknown))}: it has {', '.join(known)}.")
    missing = [
        p.name for p in inspect.signature(reader).parameters.values() if p.default is p.empty and p.name not in options
    ]
    if missing:
        rest = "".join(f",{key}=…" for key in missing if key != first)
        raise DataError(f"{name} needs {', '.join(missing)}: write {name}:{where or 'WHERE'}{rest}.")
    return reader(**options)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return text


def _open_bare(spec: str) -> Sequence[Any]:
    """A folder of shards or a repository, of either kind."""
    folder = Path(spec)
    shards = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not shards and (folder.exists() or spec.count("/") != 1):
        raise DataError(
            f"{spec!r} is no data that is known: give a folder of parquet shards, OWNER/NAME, or one of "
            f"{', '.join(f'{name}:…' for name in READERS)}."
        )
    if not shards:
        return _of_the_hub(spec)
    import pyarrow.parquet as pq

    columns = pq.read_schema(shards[0]).names
    split = shards[0].name.split("-")[0]
    return (load_trajectories if "steps" in columns else load_hres)(spec, split)


def _of_the_hub(repo: str) -> Sequence[Any]:
    from datasets import load_dataset_builder

    with explained(repo, "load"):
        info = load_dataset_builder(repo).info
    split = next(iter(info.splits or {"train": None}))
    return (load_trajectories if "steps" in (info.features or {}) else load_hres)(repo, split)
