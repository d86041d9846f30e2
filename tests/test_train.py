"""The stages of the nano recipe, end to end on tiny settings: untrained → pretrain → generate → sft → an agent that segments."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segagent._torchvision import mend
from segagent.agent import SegAgent
from segagent.annotator import next_click
from segagent.data import hres_synth
from segagent.data.corruptions import KINDS, corrupt
from segagent.errors import CheckpointError, DataError
from segagent.masks import from_rle, iou
from train import dense, generate, nano, pretrain, sft

mend()
from transformers import AutoProcessor  # noqa: E402


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("nano") / "untrained"
    nano.main(["--out", str(out), "--scenes", "4", "--width", "64", "--layers", "1"])
    return out


def test_the_recipe_gives_an_agent(untrained, tmp_path):
    vision, data, out = tmp_path / "vision", tmp_path / "data", tmp_path / "sft"
    pretrain.main(
        ["--model", str(untrained), "--out", str(vision), "--minutes", "0.02", "--batch", "4", "--workers", "0"]
    )
    common = ["--out", str(data), "--size", "96", "--workers", "1", "--shard", "4"]
    generate.main([*common, "--samples", "8", "--decisions"])
    assert sorted(file.name for file in data.glob("*.parquet")) == ["train-00000.parquet", "train-00001.parquet"]
    tune = ["--model", str(vision), "--data", str(data), "--out", str(out), "--prompt", "{expression}"]
    sft.main([*tune, "--freeze-vision", "--steps", "2", "--batch", "2", "--workers", "0", "--rate", "1e-3"])
    agent = SegAgent.from_pretrained(out)
    assert agent.policy.grammar.prompt == "{expression}"
    sample = hres_synth("test", count=1)[0]
    result = agent.segment(sample.image, sample.expression, steps=1)
    assert result.mask.shape == sample.size
    assert max(file.stat().st_size for file in out.glob("*.safetensors")) < 10_000_000


def test_a_trajectory_keeps_the_three_rules(tmp_path):
    samples = generate.open_source("hres-synth:easy", 6, 96, 2)
    settings = {
        "segmenter": "grabcut", "source": "hres-synth:easy", "seed": 0, "steps": 2, "stop": 0.9, "gain": 0.0,
        "shares": [0.4, 0.2, 0.2, 0.2], "scenes": [96, 2], "decisions": False,
    }  # fmt: skip
    counts = generate.generate(tmp_path, samples, workers=1, size=6, settings=settings)
    trajectories = sft.load_trajectories([tmp_path])
    assert counts["trajectories"] == len(trajectories) > 0
    for row in trajectories.select_columns("steps")["steps"]:
        actions = [entry for entry in row if entry["kind"] == "click"]
        assert len(actions) <= 2
        assert all(entry["iou_after"] >= entry["iou_before"] for entry in actions)
        if row[-1]["kind"] == "stop":
            assert row[-1]["iou_before"] >= 0.9
    again = generate.generate(tmp_path, samples, workers=1, size=6, settings=settings)
    assert again == counts  # of all shards, those of former runs too
    with pytest.raises(DataError, match="other settings"):
        generate.generate(tmp_path, samples, workers=1, size=6, settings={**settings, "steps": 3})


def test_an_interrupted_generation_resumes_to_the_same_rows(tmp_path):
    samples = generate.open_source("hres-synth:easy", 6, 96, 2)
    settings = {
        "segmenter": "grabcut", "source": "hres-synth:easy", "seed": 0, "steps": 1, "stop": 0.9, "gain": 0.0,
        "shares": [0.5, 0.2, 0.2, 0.1], "scenes": [96, 2], "decisions": True,
    }  # fmt: skip
    generate.generate(tmp_path, samples, workers=1, size=3, settings=settings)
    whole = [json.dumps(row["steps"]) for row in sft.load_trajectories([tmp_path]).select_columns("steps")]
    (tmp_path / "train-00001.parquet").unlink()
    (tmp_path / ".00001.tmp").write_bytes(b"half a shard")
    generate.generate(tmp_path, samples, workers=1, size=3, settings=settings)
    assert [json.dumps(row["steps"]) for row in sft.load_trajectories([tmp_path]).select_columns("steps")] == whole


def test_expressions_that_denote_nothing_teach_to_stop_on_the_empty_mask(tmp_path):
    common = ["--out", str(tmp_path), "--samples", "12", "--size", "96", "--workers", "1", "--decisions"]
    generate.main([*common, "--absent", "0.9", "--initial", "1", "0", "0", "0"])
    rows = [row for row in sft.load_trajectories([tmp_path]) if not from_rle(row["target"]).any()]
    assert 6 <= len(rows) < 12
    for row in rows:
        assert [(step["kind"], step["iou_before"]) for step in row["steps"]] == [("stop", 1.0)]
    with pytest.raises(DataError, match="other settings"):
        generate.main([*common, "--absent", "0.1", "--initial", "1", "0", "0", "0"])


def test_dense_targets_tell_of_the_object_under_each_cell():
    scene, _ = hres_synth("train", "easy", 1).scene(0)
    height, width = scene.size
    grid, empty = dense.GRID, np.zeros(scene.size, bool)
    targets = dense.describe(scene, empty, meant=0)
    for number, item in enumerate(scene.objects):
        y, x = np.argwhere(item.mask)[np.count_nonzero(item.mask) // 2]
        row, column = int(y / height * grid), int(x / width * grid)
        if targets["color"][row, column] == dense.IGNORE:
            continue  # too thin here to cover a tenth of the cell
        seen = {name: float(values[row, column]) for name, values in targets.items()}
        assert dense.COLORS[int(seen["color"])] == item.color
        assert dense.SHAPES[int(seen["shape"])] == item.shape
        assert seen["meant"] == (number == 0)
        assert (seen["sign"], seen["iou"]) == (1, 0)
        click = next_click(empty, item.mask)
        x, y = int((click.x + 0.5) / width * 100), int((click.y + 0.5) / height * 100)
        at = {name: float(values[y // 10, x // 10]) for name, values in targets.items()}
        assert at["click"] == (number == 0)
        if at["color"] == seen["color"] and at["shape"] == seen["shape"]:  # it covers the cell of its click most
            assert (at["here"], at["x2"], at["y2"]) == (1, x % 10, y % 10)
        if number == 0:
            assert (at["clicked_x2"], at["clicked_y2"]) == (x % 10, y % 10)
    assert (targets["click"] == 1).sum() == 1
    bare = targets["color"] == dense.IGNORE
    assert bare.any()
    assert not targets["meant"][bare].any()
    right = dense.describe(scene, scene.objects[0].mask, meant=0)
    cells = right["meant"] == 1
    assert cells.any()
    assert (right["sign"][cells] == 2).all()  # nothing is left to click
    assert (right["here"][cells] == dense.IGNORE).all()
    assert (right["click"] == dense.IGNORE).all()


def test_dense_targets_of_a_negative_click_lie_on_what_is_too_much():
    scene, _ = hres_synth("train", "easy", 1).scene(0)
    mask = scene.objects[0].mask | scene.objects[1].mask
    targets = dense.describe(scene, mask, meant=0)
    click = next_click(mask, scene.objects[0].mask)
    assert not click.positive
    height, width = scene.size
    y, x = np.argwhere(targets["click"] == 1)[0]
    found = x * 10 + targets["clicked_x2"][y, x], y * 10 + targets["clicked_y2"][y, x]
    assert found == (int((click.x + 0.5) / width * 100), int((click.y + 0.5) / height * 100))
    known = targets["clicked_x2"] != dense.IGNORE
    assert known.sum() > 1  # every cell of it tells where it is deepest there
    for row, column in np.argwhere(known):
        px = int((column + (targets["clicked_x2"][row, column] + 0.5) / 10) / dense.GRID * width)
        py = int((row + (targets["clicked_y2"][row, column] + 0.5) / 10) / dense.GRID * height)
        assert scene.objects[1].mask[max(py - 2, 0) : py + 3, max(px - 2, 0) : px + 3].any()


def test_a_batch_teaches_the_answer_alone(untrained):
    processor = AutoProcessor.from_pretrained(untrained)
    samples = [sample for sample, _ in zip(pretrain.Scenes(3), range(4), strict=False)]
    batch = pretrain.Batches(processor)(samples)
    image = batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert (image.sum(dim=1) == dense.GRID**2).all()
    for (_, text, answer, _), ids, labels in zip(samples, batch["input_ids"], batch["labels"], strict=True):
        assert processor.tokenizer.decode(labels[labels != dense.IGNORE]) == f"{answer}<eos>"
        assert text in processor.tokenizer.decode(ids)


def test_pretraining_refuses_what_it_cannot_train(untrained, tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        pretrain.main(["--model", str(tmp_path), "--out", str(tmp_path / "out")])
    small = tmp_path / "small"
    nano.main(["--out", str(small), "--scenes", "2", "--width", "32", "--layers", "1"])
    run = ["--out", str(tmp_path / "out"), "--minutes", "0.001", "--batch", "4", "--workers", "0"]
    pretrain.main(["--model", str(small), *run])
    with pytest.raises(CheckpointError, match="another network"):
        pretrain.main(["--model", str(untrained), *run])


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions(kind):
    rng = np.random.default_rng(0)
    target = np.zeros((60, 80), bool)
    target[20:40, 30:60] = True
    other = np.zeros_like(target)
    other[50:58, 5:15] = True
    mask, made = corrupt(target, rng, kind, [other])
    assert made == kind
    assert mask.shape == target.shape
    assert mask.dtype == bool
    expected = {"empty": 0.0, "wrong": 0.0, "exact": 1.0, "box": 1.0}
    if kind in expected:
        assert iou(mask, target) == expected[kind]
    else:
        assert 0 <= iou(mask, target) < 1
    assert corrupt(np.zeros_like(target), rng, kind)[1] in ("empty", "wrong")
