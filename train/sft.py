"""Supervised fine-tuning on trajectories, with TRL's SFTTrainer; the mask is painted on when a batch is made.

    python -m train.sft --model runs/nano/vision --data runs/nano/trajectories --out runs/nano/sft --tune freeze-vision
    accelerate launch --config_file train/configs/zero2.yaml -m train.sft --preset paper \\
        --model Qwen/Qwen2.5-VL-7B-Instruct --data runs/trajectories --out runs/sft --log tensorboard --push OWNER/NAME

Any AutoModelForImageTextToText can be trained. `--preset paper` is the paper's setting: vision encoder frozen, language model and
projector trained, AdamW, 1e-5, cosine, 2 epochs, 2048 tokens, batches of 16 (LLaVA) or 128 over all devices. After an interruption
the same command continues from the last whole checkpoint in `--out`.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segagent._torchvision import mend
from segagent.checkpoint import CONFIG, MODEL_SETTINGS, AgentConfig, find_checkpoint, load_its_segmenter, read_config
from segagent.errors import CheckpointError, DataError, MissingDependencyError
from segagent.settings import READINGS
from train.command import as_command
from train.examples import Fits, alone, as_examples, count_skipped, load_trajectories
from train.resuming import last_checkpoint, remember, train
from train.tuning import TUNES, freeze, prepare

__all__ = ["as_examples", "freeze", "load_trajectories", "main", "save"]

PAPER = {
    "tune": "freeze-vision", "epochs": 2.0, "rate": 1e-5, "weight_decay": 0.0, "max_length": 2048, "bf16": True,
    "gradient_checkpointing": True, "batch": 2,
}  # fmt: skip
PAPER_BATCH = {"llava": 16}  # over all devices, by model; SegAgent-Qwen's otherwise
LOGGERS = {"tensorboard": "tensorboard==2.21.0", "trackio": "trackio==0.43.0"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a repository of the Hub")
    parser.add_argument("--data", nargs="+", required=True, help="folders of trajectory shards, or repositories")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=("paper",), help="the paper's setting; what is given besides goes first")
    parser.add_argument("--tune", choices=TUNES, default="full", help="what is trained")
    parser.add_argument("--freeze-vision", dest="tune", action="store_const", const="freeze-vision")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--prompt", help="with {expression} and {color}; by default the model's own")
    parser.add_argument("--color", help="of the mask painted on; by default the model's own, or green")
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--segmenter", help="which one the checkpoint is to click with; by default the model's own")
    parser.add_argument(
        "--iou-reading", choices=READINGS["iou_reading"], help="of the checkpoint; its training is the same"
    )
    parser.add_argument("--click-reading", choices=READINGS["click_reading"], help="likewise")
    parser.add_argument(
        "--likeliest",
        action="store_true",
        default=None,
        help="the first of several candidates is not sampled; likewise",
    )
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--steps", type=int, default=-1, help="batches, instead of --epochs")
    parser.add_argument("--batch", type=int, default=16, help="examples of a device at a time")
    parser.add_argument("--total-batch", type=int, help="examples of an update, over all devices and passes")
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-length", type=int, help="tokens; longer examples are skipped and counted")
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw batches")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--log", choices=tuple(LOGGERS), help="where losses go besides the terminal")
    parser.add_argument("--push", metavar="OWNER/NAME", help="publish the model with a card")
    parser.add_argument("--private", action="store_true", default=None)
    parser.add_argument("--evaluate", metavar="DATA", help="measure the model, e.g. on hres-synth:split=validation")
    parser.add_argument("--count", type=int, default=300, help="samples of --evaluate")
    parser.add_argument("--seed", type=int, default=0)
    if parser.parse_known_args(argv)[0].preset:
        parser.set_defaults(**PAPER)
    args = parser.parse_args(argv)
    if args.log and find_spec(args.log) is None:
        raise MissingDependencyError(f"--log {args.log} needs a package: pip install {LOGGERS[args.log]}")
    numbers = (args.lora_rank, args.batch, args.save_steps, args.count, args.total_batch, args.max_length)
    if (
        min(n for n in numbers if n is not None) < 1
        or args.workers < 0
        or args.steps == 0
        or not (args.epochs > 0 and args.rate > 0)
    ):
        parser.error(
            "--steps, --epochs, --rate, --lora-rank, --batch, --total-batch, --max-length, --save-steps and --count are over 0, "
            "and --workers is at least 0."
        )
    return args


def check_what_follows(args: argparse.Namespace) -> None:
    """Raises DataError where measuring or pushing could only fail, hours later."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from segagent.data.sources import open_source

    if args.evaluate:
        open_source(args.evaluate)
    if args.push:
        try:
            validate_repo_id(args.push)
        except HFValidationError as error:
            raise DataError(f"--push {args.push}: a repository of the Hub is named OWNER/NAME.") from error


def configured(args: argparse.Namespace, folder: Path) -> AgentConfig:
    """How the model is to speak and see: as it did before, where it has a segagent.json, but for what was asked otherwise."""
    config = read_config(folder) if (folder / CONFIG).exists() else AgentConfig()
    grammar = config.grammar if args.prompt is None else replace(config.grammar, prompt=args.prompt)
    given = {name: getattr(args, name) for name in ("color", "alpha", "segmenter", "likeliest", *READINGS)}
    return replace(config, grammar=grammar, **{name: value for name, value in given.items() if value is not None})


def trainer_config(args: argparse.Namespace, model_type: str):
    import torch
    from accelerate import PartialState
    from trl import SFTConfig

    cpu, total = not torch.cuda.is_available(), args.total_batch
    if args.preset and not total:
        total = next((size for kind, size in PAPER_BATCH.items() if kind in model_type), 128)
    together = args.batch * PartialState().num_processes
    if total and total % together:
        raise DataError(
            f"A batch of {total} is no multiple of {together}, what all devices take at a time: set --batch."
        )
    return SFTConfig(
        output_dir=str(args.out),
        num_train_epochs=args.epochs,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=total // together if total else 1,
        learning_rate=args.rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=args.weight_decay,
        max_length=args.max_length,
        bf16=args.bf16,
        use_cpu=cpu,
        gradient_checkpointing=args.gradient_checkpointing and not cpu,
        dataloader_num_workers=args.workers,
        dataloader_persistent_workers=args.workers > 0,
        remove_unused_columns=False,
        logging_steps=50 if args.steps < 0 or args.steps > 50 else max(1, args.steps // 5),
        save_steps=args.save_steps,
        save_total_limit=1,
        report_to=args.log or "none",
        seed=args.seed,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_what_follows(args)
    mend()
    import torch
    from trl import SFTTrainer

    from segagent.composite import size_seen
    from segagent.pretrained import load

    trajectories = load_trajectories(args.data)
    folder = find_checkpoint(args.model)
    config = configured(args, folder)
    model, processor = load(args.model, dtype=torch.float32)
    model = prepare(model, args.tune, args.lora_rank, args.seed)
    settings = trainer_config(args, model.config.model_type)
    if settings.use_cpu:
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    with _told(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        remember(args, config)
    noted = args.out / "skipped.jsonl"
    dataset = as_examples(
        trajectories, config.grammar, color=config.color, alpha=config.alpha, skipped=noted,
        seen=size_seen(processor.image_processor), fits=args.max_length and Fits(processor, args.max_length),
    )  # fmt: skip
    began = time.monotonic()
    trainer = SFTTrainer(model=model, args=settings, train_dataset=dataset, processing_class=processor)
    with _told(args.out), alone():
        train(trainer, last_checkpoint(args.out))
    skipped = count_skipped(noted)
    if skipped:
        print(f"{skipped} of {len(dataset)} examples could not be drawn and were skipped: see {noted}")
    model = whole(trainer, args.out)
    if trainer.is_world_process_zero():
        agent = save(model, processor, config, load_its_segmenter(folder, config), args.out)
        facts = facts_of(args, trainer, len(trajectories), len(dataset), skipped, time.monotonic() - began)
        publish(agent, args, facts)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """What a full disk or another fault of files does to training becomes one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):  # what torch.save says
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(
            f"Training into {out} stopped at a fault of the disk: {reason}. Free some space; the same command then goes on "
            "from the last whole checkpoint."
        ) from error


def whole(trainer: Any, out: Path) -> Any:
    """The trained model with all of its weights on this process, gathered where they were shared out."""
    from segagent.pretrained import load

    if not trainer.is_fsdp_enabled:
        return trainer.accelerator.unwrap_model(trainer.model)
    gathered = out / "gathered"
    trainer.save_model(str(gathered))
    if not trainer.is_world_process_zero():
        return None
    model, _ = load(gathered)
    shutil.rmtree(gathered)
    return model


def save(model: Any, processor: Any, config: AgentConfig, segmenter: Any, out: Path):
    """The finished agent, written to `out`."""
    from segagent.agent import SegAgent
    from segagent.mllm import MLLMPolicy

    settings = {name: getattr(config, name) for name in MODEL_SETTINGS}
    policy = MLLMPolicy(model.eval(), processor, config.grammar, **settings)
    agent = SegAgent(policy, segmenter, config)
    agent.save_pretrained(out)
    print(f"{out}: trained")
    return agent


def facts_of(
    args: argparse.Namespace, trainer: Any, trajectories: int, examples: int, skipped: int, seconds: float
) -> dict[str, Any]:
    """What the card says of the training, all of it counted or given."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    accuracies = [entry["mean_token_accuracy"] for entry in trainer.state.log_history if "mean_token_accuracy" in entry]
    settings = trainer.args
    return {
        "base": args.model, "tuned": args.tune, "data": ", ".join(args.data), "trajectories": trajectories,
        "decisions": examples, "skipped": skipped, "updates": trainer.state.global_step,
        "examples an update": settings.train_batch_size * settings.gradient_accumulation_steps * settings.world_size,
        "epochs": round(trainer.state.epoch or 0, 2), "rate": f"{args.rate:g}, cosine, AdamW", "seed": args.seed,
        "last loss": round(losses[-1], 4) if losses else "not logged",
        "last token accuracy": round(accuracies[-1], 4) if accuracies else "not logged",
        "seconds of this run": round(seconds), "machine": f"{settings.world_size} × {settings.device.type}, {platform.machine()}",
        "date": date.today().isoformat(),
    }  # fmt: skip


def publish(agent: Any, args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Measures and pushes, where that was asked for; the card holds what was counted and measured, nothing else."""
    from segagent import evaluate
    from segagent.cards import new_card

    report = None
    if args.evaluate:
        folder = args.out / "report"
        evaluate.main(
            ["--policy", str(args.out), "--data", args.evaluate, "--count", str(args.count), "--out", str(folder)]
        )
        report = folder / "report.json"
    if args.push:
        base = args.model if not Path(args.model).exists() else None
        card = args.out / "README.md"
        card.write_text(new_card(args.push, report, base=base, training=facts), encoding="utf-8")
        print(agent.push_to_hub(args.push, private=args.private, card=card))


if __name__ == "__main__":
    as_command(main)
