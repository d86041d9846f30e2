"""The stages of the nano recipe, end to end on tiny settings: untrained → pretrain → generate → sft → an agent that segments."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segagent.agent import SegAgent
from segagent.data import hres_synth
from segagent.data.corruptions import KINDS, corrupt
from segagent.errors import DataError
from segagent.masks import iou
from train import generate, nano, pretrain, sft


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
    assert again == {}  # nothing is made twice
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


def test_token_targets_name_the_object_under_each_cell():
    scene, _ = hres_synth("train", "easy", 1).scene(0)
    height, width = scene.size
    targets = pretrain.token_targets(scene, np.zeros(scene.size, bool))
    for item in scene.objects:
        x, y = item.center
        cell = int(y / height * pretrain.GRID), int(x / width * pretrain.GRID)
        if not item.mask[round(y), round(x)]:
            continue  # a hollow object has nothing at its centre
        assert pretrain.COLORS[int(targets["color"][cell])] == item.color
        assert pretrain.SHAPES[int(targets["shape"][cell])] == item.shape
        assert targets["sign"][cell] == 1
        assert targets["iou"][cell] == 0
        assert abs(targets["x1"][cell] * 10 + targets["x2"][cell] - 100 * x / width) < 35


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
