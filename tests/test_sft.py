"""Fine-tuning: every kind of model and of tuning on tiny ones, resuming, cards, configurations, and what is told of bad input."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models
import torch
from datasets import Dataset
from fakes import BrushSegmenter, disc_sample
from huggingface_hub import ModelCard
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from segagent import Grammar, SegAgent
from segagent.adapters import ADAPTER
from segagent.annotator import SimulatedAnnotator
from segagent.checkpoint import AgentConfig
from segagent.environment import Environment
from segagent.errors import CheckpointError, DataError, MissingDependencyError
from segagent.rollout import collect, rollout
from segagent.trajectories import sft_rows, to_row
from train import sft, tuning
from train.examples import Fits, alone, as_examples, count_skipped, load_trajectories
from train.shards import write_shard

CONFIGS = Path(__file__).parents[1] / "train" / "configs"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def rows(count=6):
    environment = Environment(BrushSegmenter(radius=5))
    made = []
    for i in range(count):
        sample = disc_sample(f"disc {i}", size=(48, 64), x=12 + 6 * i, y=20)
        annotator = SimulatedAnnotator(sample.target, stop_iou=0.7)
        made.append(to_row(collect(sample, rollout(environment, annotator, sample, steps=3))))
    return made


def shard(folder, rows):
    folder.mkdir(exist_ok=True)
    write_shard(rows, folder / "train-00000.parquet")
    return folder


@pytest.fixture
def data(tmp_path):
    return shard(tmp_path / "data", rows())


def checkpoint(folder, name="fastvlm"):
    return tiny_models.save(*getattr(tiny_models, name)(), folder / name)


def tune(model, data, out, *more, steps=2):
    """Runs a tiny training; → where it wrote to."""
    common = ["--steps", str(steps), "--batch", "2", "--workers", "0", "--rate", "1e-2"]
    sft.main(["--model", str(model), "--data", str(data), "--out", str(out), *common, *more])
    return out


def weights(folder):
    from segagent.pretrained import load

    return load(folder)[0].state_dict()


# Models and ways of tuning


@pytest.mark.parametrize("name", ["fastvlm", "llava", "qwen2_5_vl", "qwen3_vl"])
def test_the_papers_way_trains_all_but_the_vision_encoder(name, data, tmp_path):
    base = checkpoint(tmp_path, name)
    out = tune(base, data, tmp_path / "out", "--tune", "freeze-vision")
    before, after = weights(base), weights(out)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    projector = ("projector", "merger")
    assert any(any(part in key for part in projector) for key in changed)
    assert any("language_model" in key for key in changed)
    assert not [k for k in changed if ("vision_tower" in k or "visual" in k) and not any(p in k for p in projector)]
    agent = SegAgent.from_pretrained(out)
    assert agent.segment(tiny_models.picture(), "the disc", steps=1).mask.shape == (48, 64)


def test_full_tuning_trains_the_vision_encoder_too(data, tmp_path):
    base = checkpoint(tmp_path)
    before, after = weights(base), weights(tune(base, data, tmp_path / "out", "--tune", "full"))
    assert any("vision_tower" in key and not torch.equal(before[key], after[key]) for key in before)


def test_lora_saves_an_adapter_is_tuned_on_and_merged(data, tmp_path):
    base = checkpoint(tmp_path, "llava")
    out = tune(base, data, tmp_path / "lora", "--tune", "lora", "--lora-rank", "2")
    assert (out / ADAPTER).exists()
    assert not (out / "model.safetensors").exists()
    agent = SegAgent.from_pretrained(out)
    assert agent.segment(tiny_models.picture(), "the disc", steps=1).mask.shape == (48, 64)
    named = {name for name, _ in agent.policy.model.named_parameters() if "lora" in name}
    assert any("multi_modal_projector" in name for name in named)
    assert not any("vision_tower" in name for name in named)
    again = SegAgent.from_pretrained(tune(out, data, tmp_path / "again", "--tune", "lora", "--lora-rank", "2"))
    first, second = (a.policy.model.state_dict() for a in (agent, again))
    assert any("lora_B" in key and not torch.equal(first[key], second[key]) for key in first)
    whole = tune(out, data, tmp_path / "whole", "--tune", "full", steps=1)
    assert not (whole / ADAPTER).exists()
    assert (whole / "model.safetensors").exists()


def test_the_models_own_way_of_speaking_is_kept(data, tmp_path):
    base = checkpoint(tmp_path)
    how = (
        "--prompt",
        "Segment {expression}",
        "--alpha",
        "0.3",
        "--color",
        "red",
        "--click-reading",
        "consensus",
        "--likeliest",
    )
    out = tune(base, data, tmp_path / "one", *how)
    then = SegAgent.from_pretrained(tune(out, data, tmp_path / "two", steps=1)).policy
    assert (then.grammar.prompt, then.settings.color, then.settings.alpha) == ("Segment {expression}", "red", 0.3)
    assert (then.settings.click_reading, then.settings.iou_reading, then.settings.likeliest) == (
        "consensus",
        "greedy",
        True,
    )


def test_the_papers_preset():
    args = sft.parse(["--model", "m", "--data", "d", "--out", "o", "--preset", "paper"])
    assert (args.tune, args.rate, args.epochs, args.max_length) == ("freeze-vision", 1e-5, 2, 2048)
    for model_type, total in (("llava", 16), ("qwen2_5_vl", 128)):
        args.bf16 = False
        config = sft.trainer_config(args, model_type)
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == total
        assert (config.optim.value.startswith("adamw"), config.lr_scheduler_type.value) == (True, "cosine")
    mine = sft.parse(
        ["--model", "m", "--data", "d", "--out", "o", "--preset", "paper", "--rate", "1e-4", "--batch", "3"]
    )
    assert mine.rate == 1e-4
    with pytest.raises(DataError, match="no multiple of 3"):
        sft.trainer_config(mine, "qwen2_5_vl")
    assert sft.parse(["--model", "m", "--data", "d", "--out", "o", "--freeze-vision"]).tune == "freeze-vision"


@pytest.mark.parametrize("name", ["zero2", "fsdp"])
def test_accelerate_takes_the_configurations(name, monkeypatch):
    from accelerate.commands import launch
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = str(CONFIGS / f"{name}.yaml")
    config = load_config_from_file(path)
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    launched = []
    monkeypatch.setattr(launch, "is_deepspeed_available", lambda: True)
    monkeypatch.setattr(launch, "deepspeed_launcher", launched.append)
    monkeypatch.setattr(launch, "multi_gpu_launcher", launched.append)
    launch.launch_command(
        launch.launch_command_parser().parse_args(["--config_file", path, "-m", "train.sft", "--preset", "paper"])
    )
    (args,) = launched
    assert (args.num_processes, args.training_script, args.module) == (8, "train.sft", True)
    environment = prepare_deepspeed_cmd_env(args)[1] if name == "zero2" else prepare_multi_gpu_env(args)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    if name == "zero2":
        assert args.use_deepspeed
        plugin = DeepSpeedPlugin()
        assert (plugin.zero_stage, plugin.gradient_clipping) == (2, 1.0)
    else:
        assert args.use_fsdp
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.state_dict_type.name) == (2, "FULL_STATE_DICT")


# Going on, logging, publishing


def test_goes_on_from_the_last_whole_checkpoint(data, tmp_path, capsys):
    base, out = checkpoint(tmp_path), tmp_path / "out"
    whole = weights(tune(base, data, tmp_path / "whole", "--save-steps", "2", steps=4))
    tune(base, data, out, "--save-steps", "2", steps=4)
    assert sft.last_checkpoint(out) == str(out / "checkpoint-4")
    half = out / "checkpoint-6"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")  # killed while it was written
    assert sft.last_checkpoint(out) == str(out / "checkpoint-4")
    tune(base, data, out, "--save-steps", "2", steps=4)  # there is nothing left to do
    again = weights(out)
    assert all(torch.allclose(whole[key], again[key], atol=1e-6) for key in whole)
    with pytest.raises(DataError, match=r"holds a training of other settings \(alpha; see"):
        tune(base, data, out, "--alpha", "0.1")
    other = shard(tmp_path / "other", rows(2))
    with pytest.raises(
        DataError, match=r"other settings \(data; see"
    ):  # it would be the old one under the new one's name
        tune(base, other, out)
    (out / "training.json").write_text('{"mod')
    with pytest.raises(DataError, match=r"training\.json cannot be read"):
        tune(base, data, out)


def test_a_part_of_an_epoch_that_is_over_is_not_gone_on_with(data, tmp_path):
    base, out = checkpoint(tmp_path), tmp_path / "out"
    common = ["--epochs", "0.5", "--workers", "0"]
    tune(base, data, out, *common, steps=-1)
    whole, last = weights(out), sft.last_checkpoint(out)
    (out / "segagent.json").unlink()  # killed before the end
    tune(base, data, out, *common, steps=-1)
    assert sft.last_checkpoint(out) == last
    assert all(torch.equal(value, whole[key]) for key, value in weights(out).items())


def test_processes_that_start_at_once_agree_on_what_is_trained(tmp_path):
    args = sft.parse(["--model", "m", "--data", "d", "--out", str(tmp_path)])
    (tmp_path / "segagent.json").touch()

    def remember(_):
        for _ in range(30):
            sft.remember(args, AgentConfig())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(remember, range(4))) == [None] * 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["segagent.json", "training.json"]


def test_tensorboard_gets_the_losses(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tune(checkpoint(tmp_path), data, tmp_path / "out", "--log", "tensorboard")
    (events,) = out.rglob("events.out.*")
    log = EventAccumulator(str(events)).Reload()
    assert "train/loss" in log.Tags()["scalars"]


def test_a_logger_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(sft, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install trackio"):
        sft.parse(["--model", "m", "--data", "d", "--out", "o", "--log", "trackio"])


def test_pushed_with_what_was_counted_and_measured(hub, data, tmp_path):
    base = checkpoint(tmp_path)
    more = ["--push", "ada/tuned", "--evaluate", "hres-synth:easy,split=validation,size=96", "--count", "2"]
    out = tune(base, data, tmp_path / "out", *more)
    card = ModelCard(hub.read("model", "ada/tuned", "README.md").decode())
    report = json.loads((out / "report" / "report.json").read_text())
    measured = {r.metric_name: r.metric_value for r in card.data.eval_results if r.dataset_name.endswith("2 samples")}
    assert measured["cIoU, %"] == round(100 * report["figures"]["all"]["best"]["ciou"], 2)
    examples = sum(len(list(sft_rows(row))) for row in load_trajectories([data]))
    assert f"| decisions | {examples} |" in card.text
    assert "| updates | 2 |" in card.text
    assert card.data.base_model is None  # a folder of this machine is no base that others could find
    assert SegAgent.from_pretrained("ada/tuned").policy.grammar == Grammar()


# Bad input


def refused(words, *arguments, error=DataError):
    with pytest.raises(error, match=words) as told:
        tune(*arguments)
    assert "\n" not in str(told.value)


def test_data_that_cannot_be_trained_on(data, tmp_path):
    from datasets import Dataset

    base = checkpoint(tmp_path)
    refused("No .parquet file in .*nowhere", base, tmp_path / "nowhere", tmp_path / "out")
    refused("No trajectory in", base, shard(tmp_path / "none", []), tmp_path / "out")
    (tmp_path / "other").mkdir()
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "other" / "train-0.parquet")
    refused("has no column image, expression, steps, but text", base, tmp_path / "other", tmp_path / "out")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train-0.parquet").write_bytes(b"PAR1 and no more")
    refused("Cannot read .*broken", base, tmp_path / "broken", tmp_path / "out")
    wrong = rows(3)
    wrong[1]["steps"][0]["mask"] = {"size": [10, 20], "counts": "h6"}
    refused("the picture is 64×48 px and a mask 20×10 px", base, shard(tmp_path / "wrong", wrong), tmp_path / "out")
    undecided = rows(1)
    undecided[0]["steps"] = [{**undecided[0]["steps"][-1], "kind": "steps"}]
    refused("no decision to learn from", base, shard(tmp_path / "undecided", undecided), tmp_path / "out")
    dark = [{**row, "image": {"bytes": b"no picture", "path": None}} for row in rows(2)]
    refused("None of .* can be drawn", base, shard(tmp_path / "dark", dark), tmp_path / "out")


def test_a_broken_picture_in_the_middle_is_skipped_noted_and_counted(tmp_path, caplog):
    made = rows(30)
    made[17]["image"] = {"bytes": b"no picture", "path": None}
    trajectories, noted = load_trajectories([shard(tmp_path / "data", made)]), tmp_path / "skipped.jsonl"
    with caplog.at_level(logging.WARNING):
        examples = as_examples(trajectories, Grammar(), color="green", alpha=0.5, skipped=noted)
        drawn = [examples[i] for i in range(len(examples))]
    taught = [sum(step["kind"] in ("click", "stop") for step in row["steps"]) for row in made]
    lost = taught[17]
    assert len(drawn) == len(examples) == sum(taught)
    assert all(example["images"][0].size == (64, 48) for example in drawn)
    assert count_skipped(noted) == lost
    assert "of trajectory disc 17, is skipped" in caplog.text


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_an_example_that_is_too_long_is_skipped_and_never_cut(name, tmp_path):
    made = rows(4)
    made[2]["expression"] = "the disc that is " + "very " * 60 + "dark"
    trajectories, noted = load_trajectories([shard(tmp_path / "data", made)]), tmp_path / "skipped.jsonl"
    _, processor = getattr(tiny_models, name)()
    plain = as_examples(trajectories, Grammar(), color="green", alpha=0.5)
    collate = DataCollatorForVisionLanguageModeling(processor)
    lengths = [collate([copy.deepcopy(plain[i])])["input_ids"].shape[1] for i in range(len(plain))]
    limit = min(lengths) + 40
    long = sum(length > limit for length in lengths)
    assert 0 < long < len(lengths)
    examples = as_examples(
        trajectories, Grammar(), color="green", alpha=0.5, skipped=noted, fits=Fits(processor, limit)
    )
    drawn = [examples[i] for i in range(len(examples))]
    assert count_skipped(noted) == long
    assert all(collate([copy.deepcopy(example)])["input_ids"].shape[1] <= limit for example in drawn)
    assert f"over --max-length {limit}" in noted.read_text()
    with pytest.raises(DataError, match=r"None of .* over --max-length 3: give more"):
        as_examples(trajectories, Grammar(), color="green", alpha=0.5, fits=Fits(processor, 3))


def test_steps_that_are_none(data, tmp_path):
    from datasets import load_dataset

    trajectories = load_trajectories([data])
    whole = trajectories.to_list()
    bare = [
        {**row, "steps": [{k: v for k, v in s.items() if k != "predicted_iou"} for s in row["steps"]]} for row in whole
    ]

    def examples(made):
        folder = tmp_path / "made"
        Dataset.from_list(made).to_parquet(folder / "train-0.parquet")
        return as_examples(load_trajectories([folder]), Grammar(), color="green", alpha=0.5)

    assert load_dataset(str(data), split="train").num_rows == len(whole)
    for made, told in (
        (bare, "steps has no predicted_iou"),
        ([{**row, "steps": "none"} for row in whole], "steps has no mask, kind"),
        ([*whole[:3], {**whole[3], "steps": None}, *whole[4:]], "number 3 has no steps"),
        ([*whole[:3], {**whole[3], "steps": []}, *whole[4:]], "number 3 has no steps"),
        ([{**whole[0], "steps": [{**whole[0]["steps"][0], "kind": "drag"}]}], "got 'drag' in trajectory number 0"),
    ):
        with pytest.raises(DataError, match=told):
            examples(made)
    first, *_, last = whole[0]["steps"]
    with pytest.raises(DataError, match=r"None of .* A click has no x"):
        examples([{**whole[0], "steps": [{**first, "x": None}, {**last, "kind": "steps"}]}])


def test_what_could_only_fail_after_the_training_is_told_before_it(data, tmp_path):
    base = checkpoint(tmp_path)
    common = (base, data, tmp_path / "out")
    refused("HRES-Synth has no split 'val'", *common, "--evaluate", "hres-synth:split=val")
    refused("is named OWNER/NAME", *common, "--push", "ada/tuned/twice")
    assert not (tmp_path / "out").exists()
    for words in (["--steps", "0"], ["--batch", "0"], ["--epochs", "0"], ["--max-length", "0"], ["--rate", "0"]):
        with pytest.raises(SystemExit):
            sft.parse(["--model", "m", "--data", "d", "--out", "o", *words])


def test_processes_that_draw_start_after_opencv_had_threads(data):
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)  # its pool is there now
    examples = as_examples(load_trajectories([data]), Grammar(), color="green", alpha=0.5)
    threads = cv2.getNumThreads()
    with alone():
        loader = torch.utils.data.DataLoader(examples, 4, num_workers=1, collate_fn=list, timeout=60)
        assert sum(len(batch) for batch in loader) == len(examples)
    assert cv2.getNumThreads() == threads


def test_shards_without_a_row_are_passed_over(data, tmp_path):
    assert len(load_trajectories([shard(tmp_path / "none", []), data])) == 6


def test_examples_equal_the_rows_of_their_trajectories(data):
    trajectories = load_trajectories([data])
    examples = as_examples(trajectories, Grammar(), color="green", alpha=0.5, seen=(64, 64))
    wanted = [example for row in trajectories for example in sft_rows(row)]
    assert len(examples) == len(wanted)
    for one, two in zip(examples, wanted, strict=True):
        assert one["prompt"] == two["prompt"]
        assert one["completion"] == two["completion"]
        np.testing.assert_array_equal(one["images"][0], two["images"][0])


def test_a_model_of_another_architecture(data, tmp_path):
    import transformers

    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "gpt"
    )
    refused("no model that transformers can load", tmp_path / "gpt", data, tmp_path / "out", error=CheckpointError)
    refused("no folder", tmp_path / "nowhere", data, tmp_path / "out", error=CheckpointError)
    with pytest.raises(CheckpointError, match="use --tune full"):
        tuning.prepare(torch.nn.Linear(1, 1), "freeze-vision")


def test_a_full_disk(data, tmp_path):
    base, out = checkpoint(tmp_path), tmp_path / "out"
    tune(base, data, out, "--save-steps", "1", steps=1)
    kept = sft.last_checkpoint(out)
    limits, former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file grows beyond this
    try:
        refused("fault of the disk", base, data, out, "--save-steps", "1", error=CheckpointError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert sft.last_checkpoint(out) == kept
    tune(base, data, out, "--save-steps", "1", steps=2)
    assert SegAgent.from_pretrained(out)


def test_arguments():
    with pytest.raises(SystemExit):
        sft.parse(["--model", "m"])
    assert isinstance(sft.parse(["--model", "m", "--data", "d", "--out", "o"]), argparse.Namespace)
