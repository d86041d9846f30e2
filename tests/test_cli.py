"""The command line: what it writes and prints, exit codes, and one sentence on standard error for each bad input."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_agent import Columns, Sweep

from segagent import Click, SegAgent, cli, load_image, load_mask
from segagent.agent import NANO
from segagent.errors import DataError
from segagent.export import png, replay
from segagent.masks import from_polygons

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
MASK = np.eye(40, 50, dtype=bool)
LEFT = np.broadcast_to(np.arange(50) <= 10, (40, 50))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in with a picture and a mask, and a scripted agent instead of a model."""
    (tmp_path / "photo.png").write_bytes(png(IMAGE))
    (tmp_path / "start.png").write_bytes(png(MASK))
    monkeypatch.chdir(tmp_path)
    agent = SegAgent(Sweep(0.1, 0.5, 0.9, 0.4), Columns())
    asked = []
    monkeypatch.setattr(SegAgent, "from_pretrained", lambda *args, **options: asked.append((args, options)) or agent)
    agent.asked = asked
    return agent


def run(*arguments):
    """The exit code, however it is given."""
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


def refused(capsys, words, *arguments):
    """Runs a command that must fail with exit code 2 and one sentence that holds `words`."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("segagent")
    assert "Traceback" not in captured.err
    assert len(captured.err) < 500
    assert words in captured.err
    return captured.err


def test_segment_writes_the_mask_and_says_each_step(folder, capsys):
    assert run("segment", "photo.png", "the left", "--out", "mask.png") == 0
    assert (load_mask("mask.png") == LEFT).all()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1. positive click at (0, 5)   (predicted IoU before: 0.10)"
    assert lines[3] == "4. the mask is right   (predicted IoU before: 0.40)"
    assert lines[4] == "mask.png: 22.0% of the picture, predicted IoU 0.90"
    assert sorted(os.listdir()) == ["mask.png", "photo.png", "start.png"]


def test_json_is_one_object_and_nothing_else(folder, capsys):
    assert run("segment", "photo.png", "the left", "--json", "--steps", 2) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    value = json.loads(captured.out)
    assert (load_mask(value["mask"]) == LEFT).all()
    assert value["predicted_iou"] == 0.9
    assert value["end"] == "steps"
    assert [(s["kind"], s.get("x"), s.get("predicted_iou")) for s in value["steps"]] == [
        ("click", 0, 0.1),
        ("click", 10, 0.5),
        ("steps", None, 0.9),
    ]
    assert (from_polygons(value["polygons"], (40, 50)) == LEFT).all()
    assert value["segmenter"] == "columns"


def test_every_output(folder):
    arguments = ["--out", "mask.json", "--overlay", "seen.png", "--trajectory", "run.json"]
    assert run("segment", "photo.png", "the left", *arguments) == 0
    assert (load_mask("mask.json") == LEFT).all()
    seen = load_image("seen.png")
    assert (seen[~LEFT] == IMAGE[~LEFT]).all()
    assert (seen[LEFT] != IMAGE[LEFT]).any()
    again = replay(Path("run.json").read_text(), "photo.png", Columns())
    assert (again.states[again.best()].mask == LEFT).all()


def test_a_search_and_its_tree(folder, capsys):
    for strategy in ("greedy", "beam", "best-first", "mcts"):
        options = ["--strategy", strategy, "--candidates", 2, "--width", 2, "--patience", 3, "--gain", 0.05]
        assert run("segment", "photo.png", "the left", *options, "--out", "mask.png", "--tree", "tree.json") == 0
        tree = json.loads(Path("tree.json").read_text())
        assert tree["strategy"] == strategy
        assert (load_mask(tree["nodes"][tree["best"]]["mask"]) == load_mask("mask.png")).all()
        assert [n["predicted_iou"] for n in tree["nodes"] if n["chosen"]] == [0.1, 0.5, 0.9]
    assert "the mask is right" in capsys.readouterr().out


def test_refine_begins_with_the_mask(folder):
    for arguments in (
        ["refine", "photo.png", "the left", "start.png"],
        ["segment", "photo.png", "x", "--mask", "start.png"],
    ):
        assert run(*arguments, "--steps", 0, "--out", "mask.png") == 0
        assert (load_mask("mask.png") == MASK).all()


def test_score(folder, capsys):
    assert run("score", "photo.png", "the left", "start.png") == 0
    assert capsys.readouterr().out == "0.1000\n"
    assert run("score", "photo.png", "the left", "start.png", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"predicted_iou": 0.1}


def test_a_second_opinion(folder, capsys, tmp_path):
    import tiny_models

    vlm = tiny_models.save(*tiny_models.fastvlm(size=32), tmp_path / "vlm")
    scores = {}
    for how in ("mean", "other"):
        assert run("score", "photo.png", "the left", "start.png", "--verifier", vlm, "--combine", how, "--json") == 0
        scores[how] = json.loads(capsys.readouterr().out)["predicted_iou"]
    assert scores["mean"] == pytest.approx((0.1 + scores["other"]) / 2)
    options = ["score", "photo.png", "the left", "start.png", "--verifier"]
    assert "folder" in refused(capsys, "nowhere", *options, "./nowhere")
    refused(capsys, "mean, min, product, other", *options, vlm, "--combine", "most")


def test_own_clicks(folder, capsys):
    arguments = ["--positive", "20,1", "--negative", "30.5,2", "--steps", 2, "--json"]
    assert run("segment", "photo.png", "the left", *arguments) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [(s.get("x"), s.get("positive"), s["origin"]) for s in steps[:2]] == [
        (20, True, "person"),
        (30.5, False, "person"),
    ]


def test_standard_input(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(png(IMAGE))))
    assert run("segment", "-", "the left", "--out", "mask.png") == 0
    assert (load_mask("mask.png") == LEFT).all()


def test_options_reach_the_model(folder):
    arguments = (
        "--checkpoint ada/agent --revision v1 --segmenter grabcut --device cpu --dtype bfloat16 --local-files-only"
    )
    assert run("segment", "photo.png", "the left", "--json", *arguments.split()) == 0
    assert folder.asked == [
        (
            ("ada/agent",),
            {
                "segmenter": "grabcut",
                "device": "cpu",
                "dtype": "bfloat16",
                "revision": "v1",
                "local_files_only": True,
            },
        )
    ]


@pytest.mark.parametrize("name", sorted(cli.MODULES))
def test_commands_of_their_own(name, monkeypatch, capsys):
    module = importlib.import_module(cli.MODULES[name][0])
    given = []
    monkeypatch.setattr(module, "main", given.append)
    assert run(name, "--data", "x", "--help") == 0
    assert given == [["--data", "x", "--help"]]

    def fails(_):
        raise DataError("There is no such data set.")

    monkeypatch.setattr(module, "main", fails)
    refused(capsys, "no such data set", name)


# Bad input


def of_size(width, height):
    data = bytearray(png(np.zeros((1, 1), bool)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no picture"),
        (b"hello", "no picture"),
        (png(IMAGE)[:900], "cut off"),
        (of_size(12_000, 8_000), "scale it down"),
        (of_size(100_000, 100_000), "scale it down"),
    ],
)
def test_bad_pictures(folder, capsys, data, words):
    Path("bad.png").write_bytes(data)
    refused(capsys, words, "segment", "bad.png", "the left", "--json")
    assert not folder.asked  # before any model is loaded


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_unusual_pictures_are_fine(folder, capsys, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new(mode, (20_000, 8)).save(name)
    assert run("segment", name, "the left", "--json") == 0
    Image.new(mode, (1, 1)).save(name)
    assert run("segment", name, "the left", "--json", "--steps", 0) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "none.png", "x", "--json"], "No such file"),
        (["segment", ".", "x", "--json"], "Is a directory"),
        (["segment", "photo.png", "", "--json"], "expression is empty"),
        (["segment", "photo.png", "very " * 2000, "--json"], "9999 characters"),
        (["segment", "photo.png", "x", "--json", "--mask", "none.png"], "No such file"),
        (["refine", "photo.png", "x", "small.png", "--json"], "3×2 px"),
        (["refine", "photo.png", "x", "grey.png", "--json"], "threshold"),
        (["score", "photo.png", "x", "photo.png"], "several colours"),
        (
            ["segment", "photo.png", "x", "--json", "--positive", "50,3"],
            "(50, 3) lies outside the image, which is 50×40 px",
        ),
        (["segment", "photo.png", "x", "--json", "--negative=-1,3"], "outside"),
        (["segment", "photo.png", "x", "--json", "--positive", "nan,3"], "outside"),
        (["segment", "photo.png", "x", "--json", "--positive", "3"], "X,Y"),
        (["segment", "photo.png", "x", "--json", "--positive", "a,b"], "X,Y"),
        (["segment", "photo.png", "x", "--json", "--steps", "-1"], "steps"),
        (["segment", "photo.png", "x", "--json", "--steps", "many"], "--steps"),
        (["segment", "photo.png", "x", "--json", "--candidates", "0"], "candidates"),
        (["segment", "photo.png", "x", "--json", "--candidates", "1000"], "from 1 to 100"),
        (["segment", "photo.png", "x", "--json", "--strategy", "dfs"], "greedy, beam, best-first, mcts"),
        (["segment", "photo.png", "x", "--json", "--strategy", "beam", "--width", "0"], "width"),
        (["segment", "photo.png", "x", "--json", "--patience", "-2"], "patience"),
        (["segment", "photo.png", "x", "--json", "--gain", "nan"], "gain"),
        (["segment", "photo.png", "x", "--json", "--temperature", "-1"], "temperature"),
        (["segment", "photo.png", "x", "--json", "--seed", "-1"], "seed"),
        (["segment", "photo.png", "x"], "--out"),
        (["segment", "photo.png", "x", "--out", "mask.jpg"], ".png or .json"),
        (["segment", "photo.png", "x", "--overlay", "a.json"], ".png"),
        (["segment", "photo.png", "x", "--out", "none/mask.png"], "no folder"),
        (["segment", "photo.png", "x", "--out", "folder.png"], "is a folder"),
        (["segment", "photo.png", "x", "--out", "photo.png"], "also an input"),
        (["segment", "photo.png", "x", "--overlay", "link.png"], "also an input"),
        (["refine", "photo.png", "x", "start.png", "--out", "./start.png"], "also an input"),
        (["segment", "photo.png", "x", "--out", "a.png", "--overlay", "a.png"], "also --out"),
        (["segment", "photo.png"], "expression"),
        (["segment", "photo.png", "x", "--what"], "--what"),
        (["paint"], "paint"),
        ([], "COMMAND"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, words):
    Path("small.png").write_bytes(png(np.zeros((2, 3), bool)))
    Image.fromarray(np.arange(2000, dtype=np.uint8).reshape(40, 50) % 200).save("grey.png")
    os.mkdir("folder.png")
    os.symlink("photo.png", "link.png")
    refused(capsys, words, *arguments)
    assert (load_image("photo.png") == IMAGE).all()
    assert (load_mask("start.png") == MASK).all()


def test_a_full_disk(folder, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run("segment", "photo.png", "the left", "--out", "mask.png") == 2
    assert capsys.readouterr().err == "segagent: 'mask.png' cannot be written: No space left on device.\n"
    assert sorted(os.listdir()) == ["photo.png", "start.png"]


def test_an_interrupt_is_130_and_leaves_nothing(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.policy, "read", interrupt, raising=False)
    assert run("segment", "photo.png", "the left", "--out", "mask.png") == 130
    assert capsys.readouterr().err == "segagent: interrupted.\n"
    assert not Path("mask.png").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has no segagent.json"),
        ({"version": 99, "segagent": "9.0"}, "upgrade segagent"),
        ({"version": 1, "segmenter": "clicknet-9"}, "clicknet-9"),
        ({"version": 1, "segmenter": "segmenter"}, "lacks the folder segmenter/"),
        ({"version": 1}, "no model"),
    ],
)
def test_bad_checkpoints(tmp_path, capsys, monkeypatch, config, words):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(png(IMAGE))
    Path("agent").mkdir()
    if config is not None:
        Path("agent/segagent.json").write_text(json.dumps(config))
    refused(capsys, words, "segment", "photo.png", "x", "--json", "--checkpoint", "agent")


def test_no_checkpoint(tmp_path, capsys, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(png(IMAGE))
    refused(capsys, "There is no folder nowhere", "segment", "photo.png", "x", "--json", "--checkpoint", "nowhere")
    refused(capsys, "named ada/none", "segment", "photo.png", "x", "--json", "--checkpoint", "ada/none")


def test_no_hub(tmp_path, capsys, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(png(IMAGE))
    hub.__exit__()
    refused(capsys, "cannot be reached", "segment", "photo.png", "x", "--json", "--checkpoint", "ada/none")


def test_a_malicious_pth(tmp_path, capsys, monkeypatch):
    import torch

    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(png(IMAGE))
    Path("agent").mkdir()
    Path("agent/segagent.json").write_text('{"version": 1}')
    torch.save({"model": Malice()}, "sam_vit_b.pth")
    arguments = ["--checkpoint", "agent", "--segmenter", "sam_vit_b.pth"]
    refused(capsys, "could run code", "segment", "photo.png", "x", "--json", *arguments)
    assert not Path("harm").exists()


# The process itself


def test_help_is_light():
    code = (
        "import sys; from segagent.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'transformers', 'numpy', 'gradio', 'datasets', 'cv2'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--help"], ["segment", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert "usage: segagent" in done.stdout
        assert done.stderr == "\n"


def test_the_module_runs_and_exits_with_the_code():
    done = subprocess.run(
        [sys.executable, "-m", "segagent", "segment", "none.png", "x", "--json"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "segagent: The picture 'none.png' cannot be read: No such file or directory.\n"


def test_a_whole_process_with_a_model(tmp_path):
    from tiny_models import speaker

    from segagent import MLLMPolicy

    SegAgent(MLLMPolicy(*speaker())).save_pretrained(tmp_path / "agent")
    done = subprocess.run(
        [sys.executable, "-m", "segagent", "segment", "-", "the cup", "--checkpoint", tmp_path / "agent", "--json"],
        input=png(IMAGE),
        capture_output=True,
    )
    assert done.stderr == b""
    assert done.returncode == 0
    assert load_mask(json.loads(done.stdout)["mask"]).shape == (40, 50)


def test_the_embedded_model_on_a_photograph():
    photos = Path(__file__).parents[1].parent / "shared" / "data" / "davis_stills" / "JPEGImages"
    if not photos.is_dir():
        pytest.skip("../shared/data is absent")
    if not NANO.is_dir():
        pytest.skip("this tree has no embedded model yet")
    photo = min(photos.rglob("*.jpg"))
    done = subprocess.run(
        [sys.executable, "-m", "segagent", "segment", photo, "the red cup", "--steps", "2", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    value = json.loads(done.stdout)
    assert load_mask(value["mask"]).shape == load_image(photo).shape[:2]
    assert len(value["steps"]) <= 3
    assert done.stderr == ""


def test_clicks_are_typed():
    options = cli._parser().parse_args(["segment", "a", "b", "--negative", "1,2", "--positive", "3.5,4"])
    assert options.clicks == [Click(1, 2, False), Click(3.5, 4)]
