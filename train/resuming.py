"""Going on with a training: what `--out` holds of it, whether that is the same training, and from where it goes on."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from segagent.checkpoint import CONFIG, AgentConfig
from segagent.errors import DataError
from segagent.export import write_file


def train(trainer: Any, last: str | None) -> None:
    """Trains from the start or from a checkpoint; of one that has all its steps, only the weights are loaded."""
    if last is not None:
        done = json.loads((Path(last) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        if done >= updates(trainer):
            trainer._load_from_checkpoint(last)  # train() would go one step further
            return
    trainer.train(resume_from_checkpoint=last)


def updates(trainer: Any) -> int:
    """How many updates the whole training is of, as the trainer itself counts."""
    settings = trainer.args
    if settings.max_steps > 0:
        return settings.max_steps
    an_epoch = -(-len(trainer.get_train_dataloader()) // settings.gradient_accumulation_steps)
    return math.ceil(settings.num_train_epochs * max(an_epoch, 1))


def remember(args: argparse.Namespace, config: AgentConfig) -> None:
    """Notes what is trained in `--out`, on what and how. Raises DataError where that is something else already.

    More steps or epochs are a longer training of the same; devices, batches on each and logs are none of it.
    """
    record = args.out / "training.json"
    own = {"model": str(args.model), "tune": args.tune, "prompt": config.grammar.prompt, "color": config.color}
    own |= {"alpha": config.alpha} | ({"lora_rank": args.lora_rank} if args.tune == "lora" else {})
    own |= {name: getattr(args, name) for name in ("data", "rate", "weight_decay", "max_length", "seed")}
    try:
        held = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except ValueError as error:
        raise DataError(f"{record} cannot be read: {error}. Choose another --out, or remove it.") from error
    other = [key for key, value in own.items() if held.get(key, value) != value]
    if other and (last_checkpoint(args.out) is not None or (args.out / CONFIG).exists()):
        raise DataError(
            f"{args.out} holds a training of other settings ({', '.join(other)}; see training.json): choose another --out."
        )
    write_file(record, json.dumps(own, indent=1).encode())  # whole, since all processes read and write it


def last_checkpoint(out: Path) -> str | None:
    """The last checkpoint that was written to its end: the trainer's state is its last file."""
    found = []
    for folder in out.glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(folder.name.partition("-")[2]), str(folder)))
        except (OSError, ValueError):
            continue
    return max(found)[1] if found else None
