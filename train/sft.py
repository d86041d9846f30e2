"""Supervised fine-tuning on trajectories, with TRL's SFTTrainer; the mask is painted on when a batch is made.

    python -m train.sft --model runs/nano/vision --data runs/nano/trajectories --out runs/nano/sft --freeze-vision

Any AutoModelForImageTextToText can be trained. Continues from the last checkpoint in `--out` after an interruption.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from segagent._torchvision import mend
from segagent.errors import DataError
from segagent.grammar import Grammar
from segagent.trajectories import sft_rows


def load_trajectories(folders: list[Path]):
    """One `datasets.Dataset` of the parquet shards in these folders. Raises DataError where there are none."""
    from datasets import Dataset

    files = [str(file) for folder in folders for file in sorted(folder.glob("*.parquet"))]
    if not files:
        raise DataError(
            f"No .parquet file in {', '.join(map(str, folders))}: make some with `python -m train.generate`."
        )
    return Dataset.from_parquet(files)


def as_examples(trajectories, grammar: Grammar, *, color: str, alpha: float):
    """One example for each decision of each trajectory: light rows (which trajectory, which decision), drawn when read."""
    from datasets import Dataset

    rows, decisions = [], []
    for index, steps in enumerate(trajectories.select_columns("steps")["steps"]):
        taught = [entry for entry in steps if entry["kind"] in ("click", "box", "stop")]
        if any(entry["kind"] == "undo" for entry in steps):
            raise DataError("Trajectories with an undo cannot be trained on: leave out what was taken back.")
        rows += [index] * len(taught)
        decisions += range(len(taught))

    def draw(batch: Mapping[str, list]) -> dict[str, list]:
        drawn = [
            next(sft_rows(trajectories[row], grammar, color=color, alpha=alpha, only=decision))
            for row, decision in zip(batch["row"], batch["decision"], strict=True)
        ]
        return {key: [example[key] for example in drawn] for key in ("images", "prompt", "completion")}

    return Dataset.from_dict({"row": rows, "decision": decisions}).with_transform(draw)


def freeze(module) -> None:
    """No gradients, and evaluation mode for good: BatchNorm keeps the statistics that it learnt."""
    module.requires_grad_(False)
    module.eval()
    module.train = lambda mode=True: module


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a repository of the Hub")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of trajectory shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--freeze-vision", action="store_true", help="train the projector and the language model only (the paper's)"
    )
    parser.add_argument("--prompt", default=None, help="with {expression} and {color}; for nano: '{expression}'")
    parser.add_argument("--color", default="green")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--segmenter", default="grabcut", help="which one the checkpoint is to click with")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--steps", type=int, default=-1, help="batches, instead of --epochs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw batches")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    mend()
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    grammar = Grammar() if args.prompt is None else Grammar(prompt=args.prompt)
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    if args.freeze_vision:
        freeze(getattr(model.model, "vision_tower", None) or model.model.visual)
    if not torch.cuda.is_available():
        model.to(memory_format=torch.channels_last)  # convolutions are twice as fast so on a CPU
    dataset = as_examples(load_trajectories(args.data), grammar, color=args.color, alpha=args.alpha)
    config = SFTConfig(
        output_dir=str(args.out),
        num_train_epochs=args.epochs,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=args.rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=args.weight_decay,
        max_length=None,
        bf16=args.bf16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        dataloader_num_workers=args.workers,
        dataloader_persistent_workers=args.workers > 0,
        remove_unused_columns=False,
        logging_steps=50,
        save_steps=args.save_steps,
        save_total_limit=1,
        report_to="none",
        seed=args.seed,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=processor)
    last = get_last_checkpoint(str(args.out)) if args.out.exists() else None
    trainer.train(resume_from_checkpoint=last)
    save(model, processor, grammar, args)


def save(model, processor, grammar: Grammar, args: argparse.Namespace) -> None:
    from segagent.agent import SegAgent
    from segagent.mllm import MLLMPolicy

    policy = MLLMPolicy(model.eval(), processor, grammar, color=args.color, alpha=args.alpha)
    SegAgent(policy, args.segmenter).save_pretrained(args.out)
    print(f"{args.out}: trained")


if __name__ == "__main__":
    main()
