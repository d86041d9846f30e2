"""The benchmark's table on a segmenter whose every IoU can be worked out, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import BrushSegmenter, disc_sample
from PIL import Image

from segagent import benchmark as module
from segagent.benchmark import benchmark, curves, table, worst
from segagent.cli import main as command_line
from segagent.errors import DataError, SegAgentError
from segagent.segmenters.base import Prediction
from segagent.types import Click, Sample


class Slow(BrushSegmenter):
    """Finds a further tenth of the picture's bright pixels with each click."""

    reference = "fake:slow"

    def encode(self, image):
        return image[..., 0] > 128

    def predict(self, embedding, states, actions):
        places = np.argwhere(embedding)
        predictions = []
        for state in states:
            mask = np.zeros(embedding.shape, bool)
            found = places[: int(np.ceil(len(places) * (len(state.actions) + 1) / 10))]
            mask[found[:, 0], found[:, 1]] = True
            predictions.append(Prediction(mask))
        return predictions


def square(name: str, side: int = 10) -> Sample:
    target = np.zeros((30, 40), bool)
    target[5 : 5 + side, 5 : 5 + side] = True
    return Sample(np.uint8(60 + 140 * target)[..., None].repeat(3, 2), "the square", target, name)


def test_the_numbers_by_hand():
    report = benchmark(Slow(), [square("a"), square("b")], name="squares")
    assert report.runs[0].ious == pytest.approx([k / 10 for k in range(1, 11)])  # then nothing is wrong
    row = report.summary()
    assert (row["noc80"], row["noc85"], row["noc90"]) == (8, 9, 9)
    assert (row["at_limit90"], row["nof90"]) == (0, 0)
    assert [row[f"iou{k}"] for k in (1, 5, 10, 20)] == pytest.approx([0.1, 0.5, 1, 1])
    short = benchmark(Slow(), [square("a")], limit=9).summary()
    assert (short["noc85"], short["at_limit85"], short["nof85"]) == (9, 1, 0)
    shorter = benchmark(Slow(), [square("a")], limit=5).summary()
    assert (shorter["noc85"], shorter["at_limit85"], shorter["nof85"]) == (5, 1, 1)
    assert "iou10" not in shorter


def test_samples_without_an_object_are_left_out_and_named():
    nothing = Sample(square("a").image, "nothing", np.zeros((30, 40), bool), "empty")
    unknown = Sample(square("a").image, "unknown", None, "unknown")
    hidden = Sample(square("a").image, "hidden", square("a").target, "hidden", square("a").target)
    report = benchmark(Slow(), [nothing, square("a"), unknown, hidden])
    assert report.skipped == ("empty", "unknown", "hidden")
    assert [run.index for run in report.runs] == [1]
    with pytest.raises(DataError, match="no object to click"):
        benchmark(Slow(), [nothing])


def test_the_table_and_the_json():
    reports = [
        benchmark(Slow(), [square("a")], name="squares"),
        benchmark(BrushSegmenter(), [disc_sample()], name="discs"),
    ]
    head, _, first, second = table(reports).splitlines()
    assert head.startswith("| segmenter | data | objects | NoC@80 | NoC@85 | NoC@90 | ≥20@85 | ≥20@90 |")
    assert first.startswith("| fake:slow | squares | 1 | 8.00 | 9.00 | 9.00 | 0 | 0 |")
    assert second.startswith("| fake:brush | discs | 1 |")
    assert len({line.count("|") for line in (head, first, second)}) == 1
    record = json.loads(json.dumps(reports[0].to_dict()))
    assert record["curve"][:3] == pytest.approx([0.1, 0.2, 0.3])
    assert record["runs"][0]["clicks"][0] == [9, 9, True]


def test_pictures():
    samples = [square("a"), square("b", 20), disc_sample()]
    report = benchmark(Slow(), samples, name="shapes")
    assert curves([report, report]).shape == (420, 760, 3)
    assert (curves([report]) != curves([benchmark(BrushSegmenter(), samples)])).any()
    shown = list(worst(report, samples, count=2))
    assert len(shown) == 2
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for _, picture in shown)
    harder = benchmark(BrushSegmenter(3), [square("a", 4), square("b", 20)], limit=4)
    assert [run.id for run, _ in worst(harder, [square("a", 4), square("b", 20)])] == ["b", "a"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in "abcd":
        sample = square(name)
        for kind, array in (("images", sample.image), ("masks", np.uint8(sample.target) * 255)):
            path = tmp_path / "shapes" / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    monkeypatch.setattr(module, "load_segmenter", lambda name, device=None: Slow())
    return tmp_path / "shapes"


def test_the_command(folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path):
    out = tmp_path / "out"
    assert command_line(["benchmark", "--data", str(folder), "--count", "2", "--out", str(out), "--worst", "1"]) == 0
    assert "| fake:slow | shapes | 2 | 8.00 |" in capsys.readouterr().out
    assert "| fake:slow | shapes | 2 |" in (out / "table.md").read_text(encoding="utf-8")
    assert [run["id"] for run in json.loads((out / "results.json").read_text())[0]["runs"]] == ["a", "c"]
    assert Image.open(out / "curves.png").size == (760, 420)
    assert [path.name for path in (out / "worst").iterdir()] == ["0-shapes-01.jpg"]


def test_the_command_prints_json_alone(folder: Path, capsys: pytest.CaptureFixture):
    assert command_line(["benchmark", "--data", str(folder), "--limit", "3", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["objects"] == 4
    assert report["limit"] == 3


def test_bad_arguments(folder: Path, capsys: pytest.CaptureFixture):
    assert command_line(["benchmark", "--data", str(folder / "absent")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    with pytest.raises(SegAgentError, match="--limit"):
        module.main(["--data", str(folder), "--limit", "0"])
    with pytest.raises(SegAgentError, match=r"cannot be written to .*a\.png: "):
        module.main(["--data", str(folder), "--limit", "1", "--out", str(folder / "masks" / "a.png")])
    with pytest.raises(SegAgentError, match="--count"):
        module.main(["--data", str(folder), "--count", "0"])
    with pytest.raises(SystemExit):
        module.main([])


def test_runs_hold_what_happened():
    report = benchmark(Slow(), [square("a")], limit=2)
    (run,) = report.runs
    assert len(run.clicks) == len(run.ious) == 2
    assert run.clicks[0] == Click(9, 9)
    assert run.seconds > 0
