"""Makes the embedded checkpoint of a trained one: nothing but what loads, every file under 10 MB.

python -m train.release --model runs/nano/sft --out segagent/nano
"""

from __future__ import annotations

import argparse
from pathlib import Path

from segagent.agent import SegAgent
from segagent.errors import CheckpointError

LIMIT = 10_000_000  # bytes, of one file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="9MB", help="the most of one weights file")
    args = parser.parse_args(argv)
    agent = SegAgent.from_pretrained(args.model, device="cpu")
    agent.save_pretrained(args.out, max_shard_size=args.shard)
    large = [file.name for file in args.out.rglob("*") if file.stat().st_size >= LIMIT]
    if large:
        raise CheckpointError(f"{', '.join(large)} in {args.out}: over {LIMIT // 10**6} MB; choose a smaller --shard.")
    print(f"{args.out}: {sum(file.stat().st_size for file in args.out.rglob('*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
