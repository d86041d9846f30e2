"""Makes the embedded checkpoint of a trained one: nothing but what loads, every file under 10 MB.

    python -m train.release --model runs/nano/sft --out segagent/nano
    python -m train.release --best runs/nano/star+ --out segagent/nano

`--best` takes, of S_0 and the rounds of train.star, the one with the highest cIoU on the validation split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from segagent.agent import SegAgent
from segagent.errors import CheckpointError
from train.command import as_command

LIMIT = 10_000_000  # bytes, of one file


def best_round(folder: Path) -> Path:
    """The model whose report is best; of equals the earlier round. Raises CheckpointError where none was measured."""
    files = sorted(folder.glob("round-*/report/report.json"), key=lambda file: int(file.parts[-3].partition("-")[2]))
    if not files:
        raise CheckpointError(f"{folder} holds no round-N/report/report.json: run train.star with --count above 0.")
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    best = max(range(len(files)), key=lambda n: reports[n]["figures"]["all"]["best"]["ciou"])
    own = files[best].parents[1] / "model"  # of S_0, which lies elsewhere, only the report is here
    return own if own.exists() else Path(reports[best]["policy"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path)
    which.add_argument("--best", type=Path, metavar="STAR", help="what train.star made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="9MB", help="the most of one weights file")
    args = parser.parse_args(argv)
    model = args.model or best_round(args.best)
    agent = SegAgent.from_pretrained(model, device="cpu")
    agent.save_pretrained(args.out, max_shard_size=args.shard)
    large = [file.name for file in args.out.rglob("*") if file.stat().st_size >= LIMIT]
    if large:
        raise CheckpointError(f"{', '.join(large)} in {args.out}: over {LIMIT // 10**6} MB; choose a smaller --shard.")
    print(f"{args.out}: {model}, {sum(file.stat().st_size for file in args.out.rglob('*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    as_command(main)
