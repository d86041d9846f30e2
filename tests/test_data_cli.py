"""Data by one string, contact sheets, and the data command from build to push."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segagent.data.cli import main
from segagent.data.contact import TILE, sheet
from segagent.data.official import write_official_trajectories
from segagent.data.predictions import to_prediction, write_predictions
from segagent.data.sources import load_trajectories, open_source
from segagent.errors import DataError
from segagent.trajectories import features, to_row
from segagent.types import Click, Sample, State, Trajectory, Transition

CARD = Path(__file__).parents[1] / "data_cards" / "trajectories.md"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def run(key="s", seed=0):
    image = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), np.uint8)
    target = np.zeros((60, 80), bool)
    target[20:40, 30:60] = True
    sample = Sample(image, f"thing {key}", target, key)
    start = State(image, np.zeros((60, 80), bool))
    done = State(image, target, (Click(45, 30),), previous=start)
    return Trajectory(
        sample,
        (
            Transition(start, Click(45, 30), done, 0.1, 0.0, 1.0),
            Transition(done, None, done, 0.9, 1.0, 1.0, end="stop"),
        ),
    )


@pytest.fixture
def shards(tmp_path):
    from datasets import Dataset

    rows = [to_row(run(f"s{i}", i), segmenter="grabcut") for i in range(5)]
    folder = tmp_path / "trajectories"
    Dataset.from_list(rows, features=features()).to_parquet(folder / "train-00000.parquet")
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.fixture
def masks(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
    Image.fromarray(run().sample.image).save(tmp_path / "mine" / "images" / "a.png")
    Image.fromarray(run().sample.target).save(tmp_path / "mine" / "masks" / "a.png")
    return tmp_path / "mine"


def test_data_by_one_string(shards, masks):
    assert open_source("hres-synth:hard,split=train,count=3")[0].meta["level"] == "hard"
    assert len(open_source("hres-synth:,count=2")) == 2
    assert open_source(f"folder:{masks},expression=the thing")[0].expression == "the thing"
    runs = open_source(str(shards))
    assert [r.sample.id for r in runs] == [f"s{i}" for i in range(5)]
    assert [r.end for r in open_source(f"trajectories:{shards},streaming=true")] == ["stop"] * 5


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nothing", "is no data that is known"),
        ("a/b/c", "is no data that is known"),
        ("coco", "coco needs annotations: write coco:WHERE"),
        ("refer:x", "refer needs dataset, split_by, split: write refer:x,dataset=…,split_by=…,split=…"),
        ("hres-synth:easy,length=3", "hres-synth has no setting length: it has split, level"),
        ("hres-synth:easy,3", "'3' is not key=value"),
        ("hres-synth:medium,split=val", "has no split 'val'"),
    ],
)
def test_strings_that_name_nothing(spec, sentence):
    with pytest.raises(DataError, match=sentence):
        open_source(spec)


def test_shards_of_another_kind(shards, masks):
    with pytest.raises(DataError, match=r"has no columns image, mask and expression|has no split"):
        open_source(f"hres:{shards}")
    with pytest.raises(DataError, match="Cannot load"):
        load_trajectories(masks.parent / "nowhere")


def test_sheets():
    samples = [run(str(i), i).sample for i in range(5)]
    picture = sheet(samples, columns=3)
    assert picture.shape[1] == 3 * (TILE + 10) + 10
    assert picture.dtype == np.uint8
    assert (sheet([Sample(samples[0].image, "no target")]) != 255).any()
    both = sheet([run(), *samples], columns=3)
    assert both.shape[0] > picture.shape[0]
    # The trajectory's second tile has the mask painted on, its first has not.
    green = (both[:200, :, 1].astype(int) - both[:200, :, 0]).clip(0)
    assert green[:, TILE + 20 : 2 * TILE].mean() > 1.2 * green[:, :TILE].mean()


def test_inspect_says_and_draws(shards, tmp_path, capsys):
    main(["inspect", str(shards), "--count", "3", "--first", "--out", str(tmp_path / "sheet.png")])
    said = capsys.readouterr().out
    assert "5 trajectories" in said
    assert "0: s0 'thing s0': 1 steps, IoU 0.00 → 1.00, stop" in said
    assert Image.open(tmp_path / "sheet.png").size[0] == 2 * (TILE + 10) + 10
    main(["inspect", "hres-synth:easy,count=30", "--count", "2"])
    said = capsys.readouterr().out
    assert "30 samples" in said
    assert len(re.findall(r"target \d", said)) + said.count("no target") == 2


def test_build_and_push(tmp_path, hub, capsys):
    hub.tokens["write"] = ("lab", "write")
    main(["build", "hres-synth", "--out", str(tmp_path / "synth"), "--train", "3", "--test", "2", "--level", "easy"])
    assert "3 train, 2 test" in capsys.readouterr().out
    card = tmp_path / "synth-card.md"
    card.write_text("---\nlicense: cc0-1.0\n---\n# Scenes\n")
    main(["push", str(tmp_path / "synth"), "lab/scenes", "--card", str(card), "--private"])
    assert capsys.readouterr().out.startswith(f"{hub.url}/datasets/lab/scenes/commit/")
    assert hub.read("dataset", "lab/scenes", "README.md").startswith(b"---\nlicense: cc0-1.0")
    assert hub.repos["datasets", "lab/scenes"].private
    main(["inspect", "lab/scenes", "--count", "2"])
    assert "samples" in capsys.readouterr().out


def test_build_hres_reports_what_it_left_out(tmp_path, capsys):
    im, gt = (tmp_path / "DIS5K" / "DIS-TE1" / kind for kind in ("im", "gt"))
    for i in range(3):
        for folder, pixels in ((im, run(seed=i).sample.image), (gt, run().sample.target)):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"1#A#1#Bag#{i}.png")
    (gt / "1#A#1#Bag#1.png").unlink()
    options = ["build", "hres", "--source", str(tmp_path / "DIS5K"), "--out", str(tmp_path / "hres")]
    with pytest.raises(DataError, match="no mask of its name"):
        main(options)
    main([*options, "--skip"])
    said = capsys.readouterr().out
    assert "2 test" in said
    assert (
        "0 that were there again, 1 that cannot be used, were left out\n  The picture '1#A#1#Bag#1.png' has no mask"
        in said
    )


def test_export_and_score(shards, tmp_path, capsys):
    main(["export", str(shards), "--out", str(tmp_path / "llama")])
    assert "10 questions and answers" in capsys.readouterr().out
    assert len((tmp_path / "llama" / "train.jsonl").read_text().splitlines()) == 10
    main(["export", str(shards), "--style", "official", "--out", str(tmp_path / "official.json")])
    assert len(json.loads((tmp_path / "official.json").read_text())["data"]) == 5
    write_predictions([to_prediction(run())], tmp_path / "p.json")
    capsys.readouterr()
    main(["score", str(tmp_path / "p.json"), "--convention", "plain"])
    assert json.loads(capsys.readouterr().out)["giou"] == 1.0


def test_the_trajectories_card_is_published_and_its_code_runs(shards, hub, capsys):
    main(["push", str(shards), "ada/clicks", "--card", str(CARD)])
    readme = hub.read("dataset", "ada/clicks", "README.md").decode()
    assert "OWNER" not in readme
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 3
    capsys.readouterr()
    for block in blocks:
        exec(block, {})
    said = capsys.readouterr().out
    assert "5 thing s0 ['click', 'stop']" in said
    assert "Click(x=45.0, y=30.0, positive=True, frame=0)" in said
    assert "Current mIoU: 0.00. Positive point" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["build", "hres", "--out", "x"], "--source FOLDER"),
        (["build", "hres-synth", "--out", "x"], "Say how many"),
        (["export", "hres-synth:easy,count=1", "--out", "x"], "holds samples, not trajectories"),
        (["push", "x", "a/b"], "holds no parquet file"),
        (["push", "x", "a/b", "--card", "nothing.md"], "The card 'nothing.md' cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=sentence):
        main(arguments)
    assert not (tmp_path / "x").exists()


def test_official_files_are_a_source(tmp_path):
    write_official_trajectories([run()], tmp_path / "refcoco_val.json")
    Image.fromarray(run().sample.image).save(tmp_path / "s.jpg")
    (back,) = open_source(f"official:{tmp_path / 'refcoco_val.json'},images={tmp_path}")
    assert back.steps[0].action == Click(45, 30)
