"""Data from the command line.

    python -m segagent data build hres --source data/DIS5K --source data/ThinObject5K --out data/HRES
    python -m segagent data build hres-synth --out data/synth --train 1000 --test 100
    python -m segagent data inspect refer:data/refer,dataset=refcoco,split_by=unc,split=val --out sheet.png
    python -m segagent data push data/HRES owner/HRES --card data_cards/hres.md --private
    python -m segagent data export runs/nano/trajectories --style sharegpt --out data/llama
    python -m segagent data score refcoco_val_predictions.json --convention official

What names data is explained in segagent/data/sources.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segagent.errors import DataError
from segagent.types import Sample, Trajectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; → 0. Raises SegAgentError, whose sentence says what is wrong."""
    options = _parser().parse_args(arguments)
    options.run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segagent data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    build = commands.add_parser("build", help="make a data set of parquet shards")
    build.set_defaults(run=_build)
    build.add_argument("kind", choices=("hres", "hres-synth"))
    build.add_argument(
        "--source", action="append", default=[], type=Path, metavar="FOLDER", help="with DIS5K or ThinObject5K (hres)"
    )
    build.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    build.add_argument(
        "--complexity", metavar="SEGMENTER", help="measure clicks to IoU 0.80 and 0.85 with it, e.g. grabcut; slow"
    )
    build.add_argument("--limit", type=int, metavar="N", help="at most so many of each split (hres)")
    build.add_argument("--skip", action="store_true", help="leave out and count what cannot be used (hres)")
    for split in ("train", "validation", "test"):
        build.add_argument(
            f"--{split}", type=int, default=0, metavar="N", help=f"samples of the {split} split (hres-synth)"
        )
    build.add_argument("--level", choices=("easy", "medium", "hard"), help="(hres-synth)")
    build.add_argument("--seed", type=int, default=0, help="(hres-synth)")

    inspect = commands.add_parser("inspect", help="say what is in a data set, and draw a contact sheet")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("data", help="a folder of shards, OWNER/NAME, or NAME:WHERE,key=value,…")
    inspect.add_argument("--count", type=int, default=12, metavar="N", help="how many to look at (12)")
    inspect.add_argument("--first", action="store_true", help="the first ones, not some from everywhere")
    inspect.add_argument("--seed", type=int, default=0)
    inspect.add_argument("--out", type=Path, metavar="PICTURE", help="draw them there")

    push = commands.add_parser("push", help="upload a folder of shards to the Hub in one commit")
    push.set_defaults(run=_push)
    push.add_argument("folder", type=Path)
    push.add_argument("repo", metavar="OWNER/NAME")
    push.add_argument("--card", type=Path, metavar="FILE", help="becomes the README; one of data_cards/")
    push.add_argument("--private", action="store_true", default=None)
    push.add_argument("--revision", metavar="BRANCH")

    export = commands.add_parser("export", help="trajectories as pictures and JSON lines for other trainers")
    export.set_defaults(run=_export)
    export.add_argument("data", help="trajectories, as for inspect")
    export.add_argument("--style", choices=("sharegpt", "llava", "lmms", "official"), default="sharegpt")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="(official: the JSON file)")

    score = commands.add_parser("score", help="cIoU and gIoU of a prediction file of the released code")
    score.set_defaults(run=_score)
    score.add_argument("predictions", type=Path)
    score.add_argument("--convention", choices=("official", "plain"), default="official")
    score.add_argument("--limit", type=int, metavar="N", help="of the first N samples only")
    score.add_argument("--click", type=int, metavar="N", help="the mask after click N, from 0")
    return parser


def _build(options: argparse.Namespace) -> None:
    from segagent.data import hres, synth_shards
    from segagent.segmenters import load_segmenter

    segmenter = load_segmenter(options.complexity) if options.complexity else None
    if options.kind == "hres-synth":
        counts = {
            split: getattr(options, split) for split in ("train", "validation", "test") if getattr(options, split)
        }
        if not counts:
            raise DataError("Say how many: --train N, --validation N or --test N.")
        made = synth_shards.build_hres_synth(
            options.out, counts, level=options.level, seed=options.seed, segmenter=segmenter
        )
        print(f"{options.out}: " + ", ".join(f"{count} {split}" for split, count in made.items()))
        return
    if not options.source:
        raise DataError("Say where DIS5K and ThinObject5K are: --source FOLDER, once or more.")
    errors = "skip" if options.skip else "raise"
    built = hres.build_hres(options.source, options.out, segmenter=segmenter, limit=options.limit, errors=errors)
    print(f"{options.out}: " + ", ".join(f"{count} {split}" for split, count in built.counts.items()))
    print(f"{len(built.duplicates)} that were there again, {len(built.skipped)} that cannot be used, were left out")
    for sentence in built.skipped.values():
        print(f"  {sentence}")


def _inspect(options: argparse.Namespace) -> None:
    from segagent.data.contact import sheet
    from segagent.data.sources import open_source
    from segagent.export import png, write_file

    data = open_source(options.data)
    print(
        f"{options.data}: {len(data)} {'samples' if not len(data) or isinstance(data[0], Sample) else 'trajectories'}"
    )
    numbers = np.arange(len(data))
    if not options.first and len(data) > options.count:
        numbers = np.sort(np.random.default_rng(options.seed).choice(len(data), options.count, replace=False))
    shown = []
    for number in numbers[: options.count]:
        thing = data[int(number)]
        shown.append(thing)
        print(f"  {number}: {_line(thing)}")
    for fault in getattr(data, "skipped", {}).values():
        print(f"  left out: {fault}")
    if options.out is not None:
        write_file(options.out, png(sheet(shown)))
        print(f"{options.out}: {len(shown)} of them")


def _line(thing: Sample | Trajectory) -> str:
    if isinstance(thing, Trajectory):
        ious = " → ".join("?" if iou is None else f"{iou:.2f}" for iou in thing.ious)
        return f"{thing.sample.id} {thing.sample.expression!r}: {len(thing.steps)} steps, IoU {ious}, {thing.end or 'open'}"
    share = "no target" if thing.target is None else f"target {thing.target.mean():.2%}"
    return f"{thing.id} {thing.expression!r}: {thing.size[1]}×{thing.size[0]} px, {share}"


def _push(options: argparse.Namespace) -> None:
    from segagent.data._hub import filled_card, push_folder
    from segagent.export import write_file

    if options.card is not None:
        write_file(options.folder / "README.md", filled_card(options.card, options.repo).encode())
    address = push_folder(
        options.folder,
        options.repo,
        private=options.private,
        revision=options.revision,
        replace=("data/*.parquet", "*.parquet"),
    )
    print(address)


def _export(options: argparse.Namespace) -> None:
    from segagent.data.chat import export_chat
    from segagent.data.official import write_official_trajectories
    from segagent.data.sources import open_source
    from segagent.trajectories import to_row

    data = open_source(options.data)
    if len(data) and not isinstance(data[0], Trajectory):
        raise DataError(f"{options.data} holds samples, not trajectories: make some with `python -m train.generate`.")
    if options.style == "official":
        count = write_official_trajectories(data, options.out)
    else:
        count = export_chat((to_row(run) for run in data), options.out, options.style)
    print(f"{options.out}: {count} {'objects' if options.style == 'official' else 'questions and answers'}")


def _score(options: argparse.Namespace) -> None:
    from segagent.data.predictions import evaluate_predictions

    result = evaluate_predictions(options.predictions, options.convention, limit=options.limit, click=options.click)
    print(json.dumps(result, indent=2))
