"""Refinement of many masks: what is returned, what a folder and a COCO file give, what is counted, and that a killed run ends the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from fakes import BrushSegmenter, FunctionPolicy, disc
from PIL import Image

from segagent import Click, Environment, SegAgent, cli, load_mask
from segagent.data.mask_sources import CocoSource, FolderSource
from segagent.errors import DataError, ExpressionError, SegAgentError
from segagent.export import png
from segagent.masks import from_rle, iou, to_polygons, to_rle
from segagent.refinement import Settings, chosen, refine_all

SIZE = (40, 60)
TARGET = disc(SIZE, 30, 20, 8)
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def expert(bias: float = 0.0) -> FunctionPolicy:
    """Knows the true IoU with TARGET (less `bias`, once it has clicked), and clicks in its middle, then beside it, then stops."""

    def decide(observation):
        clicks = len(observation.state.actions)
        predicted = iou(observation.mask, TARGET) - (bias if clicks else 0)
        return max(0.0, predicted), [(Click(30, 20), Click(50, 5), None)[min(clicks, 2)]]

    return FunctionPolicy(decide)


@pytest.fixture
def folder(tmp_path):
    """Pictures in two subfolders with an empty, a good, a full and a two-object palette mask; targets for all."""
    for name in ("one/a", "one/b", "two/c"):
        for kind in ("images", "masks", "targets"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "targets" / f"{name}.png").write_bytes(png(TARGET))
    (tmp_path / "masks/one/a.png").write_bytes(png(np.zeros(SIZE, bool)))
    (tmp_path / "masks/one/b.png").write_bytes(png(TARGET))
    (tmp_path / "masks/two/c.png").write_bytes(png(np.ones(SIZE, bool)))
    return tmp_path


def refine(folder: Path, policy=None, out: str = "out", targets: bool = True, **settings) -> dict:
    source = FolderSource(folder / "images", folder / "masks", "the {name}", folder / "targets" if targets else None)
    environment = Environment(BrushSegmenter(7))
    return refine_all(policy or expert(), environment, source, folder / out, Settings(**settings))


def test_the_given_mask_stays_unless_another_is_predicted_to_be_better():
    assert chosen([0.5, 0.7, 0.6]) == 1
    assert chosen([0.5, 0.7, 0.7]) == 2
    assert chosen([0.5, 0.5, 0.2]) == 0
    assert chosen([0.5, 0.55], gain=0.1) == 0
    assert chosen([None, 0.9]) == 0
    assert chosen([math.nan, 0.9]) == 0
    assert chosen([0.5, math.nan, 0.6, None, 1.5]) == 2
    assert chosen([]) == 0


def test_a_folder_is_refined_and_no_mask_gets_worse(folder):
    report = refine(folder)
    assert report["counts"] == {"masks": 3, "refined": 1, "kept as given": 2, "unusable": 0}
    a, b, c = (load_mask(folder / f"out/masks/{name}.png") for name in ("one/a", "one/b", "two/c"))
    assert iou(a, TARGET) > 0.7
    assert (b == TARGET).all()
    assert c.all()  # a click adds nothing to a full mask
    lines = {line["name"]: line for line in report["masks"]}
    assert lines["one/a.png"]["expression"] == "the one"
    assert lines["two/c.png"]["expression"] == "the two"
    gains = report["gains"]
    assert gains["targets"] == 3
    assert gains["gain"] == pytest.approx(iou(a, TARGET) / 3)
    assert gains["over 0.01 worse"] == 0
    assert gains["gain with a perfect PRM"] >= gains["gain"]
    assert (folder / "out/most.png").is_file()
    assert "| 3 | 1 | 2 | 0 |" in (folder / "out/report.md").read_text()
    assert refine(folder, targets=False, out="blind")["gains"] is None


def test_gain_asks_for_more(folder):
    assert refine(folder, gain=0.99)["counts"]["refined"] == 0
    with pytest.raises(SegAgentError, match="from 0 to 1"):
        refine(folder, gain=2)


def test_each_value_of_a_palette_is_an_object_of_its_own(folder):
    values = np.zeros(SIZE, np.uint8)
    values[:10, :10], values[30:, 50:], values[0, 30] = 1, 2, 255
    picture = Image.fromarray(values, "P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(folder / "masks/one/a.png")
    report = refine(folder, targets=False)
    assert [line["name"] for line in report["masks"][:2]] == ["one/a.png, object 1", "one/a.png, object 2"]
    assert {p.name for p in (folder / "out/masks/one").iterdir()} == {"a-1.png", "a-2.png", "b.png"}


def test_objects_of_a_palette_may_be_one(folder):
    values = np.zeros(SIZE, np.uint8)
    values[TARGET], values[0, 0] = 1, 2
    picture = Image.fromarray(values, "P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(folder / "masks/one/a.png")
    source = FolderSource(folder / "images", folder / "masks", "x", folder / "targets", each=False)
    assert len(source) == 3
    assert source.read(0)[1].sum() == TARGET.sum() + 1
    told = FolderSource(folder / "images", folder / "masks", "x", folder / "targets")
    with pytest.raises(DataError, match="does not tell objects apart"):
        told.read(0)
    assert FolderSource(folder / "images", folder / "masks", "x").read(1)[1].sum() == 1


def test_what_cannot_be_used_is_counted_and_costs_nothing_else(folder):
    whole = refine(folder, out="whole")
    (folder / "masks/one/lost.png").write_bytes(png(TARGET))  # no picture
    (folder / "masks/one/text.png").write_text("no picture")
    Image.new("RGB", SIZE[::-1]).save(folder / "images/one/text.png")
    Image.new("RGB", (9, 9)).save(folder / "images/one/small.png")
    (folder / "masks/one/small.png").write_bytes(png(TARGET))
    Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(SIZE)).save(folder / "masks/two/grey.png")
    Image.new("RGB", SIZE[::-1]).save(folder / "images/two/grey.png")
    report = refine(folder)
    assert report["counts"] == {"masks": 7, "refined": 1, "kept as given": 2, "unusable": 4}
    assert report["gains"] == whole["gains"]
    said = " ".join(report["unusable"]["unusable"])
    for words in ("lost", "text.png", "9×9", "grey values"):
        assert words in said
    with pytest.raises(SegAgentError):
        refine(folder, out="strict", strict=True)


def test_one_run_that_fails_does_not_cost_its_batch(folder):
    class Short(FunctionPolicy):
        def read(self, observations):
            if any(o.mask.all() for o in observations):
                raise ExpressionError("too long")
            return super().read(observations)

    report = refine(folder, Short(expert().decide))
    assert report["counts"] == {"masks": 3, "refined": 1, "kept as given": 1, "unusable": 1}
    assert report["unusable"]["no run"] == ["too long"]


def test_a_policy_that_never_gives_a_valid_action_keeps_every_mask(folder):
    report = refine(folder, FunctionPolicy(lambda observation: (0.3, [])))
    assert report["counts"]["kept as given"] == 3


def test_a_killed_run_goes_on_and_ends_the_same(folder):
    refine(folder, out="whole", batch=1)
    policy = expert()
    read, calls = policy.read, []

    def dying(observations):
        calls.append(len(observations))
        if len(calls) > 4:
            raise KeyboardInterrupt
        return read(observations)

    policy.read = dying
    with pytest.raises(KeyboardInterrupt):
        refine(folder, policy, batch=1)
    with (folder / "out/refined.jsonl").open("a") as stream:
        stream.write('{"number": 1, "na')
    resumed = expert()
    refine(folder, resumed, batch=1)
    assert 0 < len(resumed.batches) <= 6
    assert (folder / "out/refined.jsonl").read_bytes() == (folder / "whole/refined.jsonl").read_bytes()
    for name in ("one/a", "one/b", "two/c"):
        assert (folder / f"out/masks/{name}.png").read_bytes() == (folder / f"whole/masks/{name}.png").read_bytes()
    with pytest.raises(DataError, match="other settings"):
        refine(folder, steps=2, batch=1)


def coco(folder: Path, *annotations: dict) -> Path:
    value = {
        "info": {"note": "kept"},
        "images": [{"id": 1, "file_name": "one/a.png", "height": 40, "width": 60}],
        "annotations": list(annotations),
        "categories": [{"id": 1, "name": "disc"}],
    }
    (folder / "coco.json").write_text(json.dumps(value, indent=1))
    return folder / "coco.json"


def annotation(number: int, mask: np.ndarray, **fields) -> dict:
    return {
        "id": number, "image_id": 1, "category_id": 1, "segmentation": to_polygons(mask), "iscrowd": 0,
        "area": float(mask.sum()), "bbox": [number, 0, 1, 1], "note": "é", **fields,
    }  # fmt: skip


def test_a_coco_file_keeps_all_but_what_was_bettered(folder):
    given = [
        annotation(1, disc(SIZE, 30, 20, 3)),
        annotation(2, TARGET),
        annotation(3, np.zeros(SIZE, bool), iscrowd=1),
    ]
    given.append(annotation(4, TARGET, image_id=9))
    file = coco(folder, *given)
    report = refine_all(expert(), Environment(BrushSegmenter(7)), CocoSource(file, folder / "images"), folder / "out")
    assert report["counts"] == {"masks": 4, "refined": 2, "kept as given": 1, "unusable": 1}
    refined = json.loads((folder / "out/refined.json").read_text(encoding="utf-8"))
    before = json.loads(file.read_text())
    assert {**refined, "annotations": 0} == {**before, "annotations": 0}
    assert refined["annotations"][1] == before["annotations"][1]
    assert refined["annotations"][3] == before["annotations"][3]
    for number in (0, 2):
        after = refined["annotations"][number]
        mask = from_rle(after["segmentation"])
        assert iou(mask, TARGET) > iou(disc(SIZE, 30, 20, 3), TARGET)
        assert after["area"] == mask.sum()
        x, y, width, height = after["bbox"]
        assert mask[int(y) : int(y + height), int(x) : int(x + width)].sum() == mask.sum()
        kept = {"segmentation": 0, "area": 0, "bbox": 0}
        assert after | kept == before["annotations"][number] | kept


def test_faults_of_the_folders_are_said(folder, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        FolderSource(folder / "images", folder / "none", "x")
    with pytest.raises(ExpressionError):
        FolderSource(folder / "images", folder / "masks", " ")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="no masks"):
        FolderSource(folder / "images", tmp_path / "bare", "x")


def test_the_command(folder, monkeypatch, capsys):
    agent = SegAgent(expert(), BrushSegmenter(7))
    monkeypatch.setattr(SegAgent, "from_pretrained", lambda *args, **options: agent)
    base = ["refine", "--images", str(folder / "images"), "--out", str(folder / "out")]
    masks = ["--masks", str(folder / "masks"), "--expression", "the {name}"]
    assert cli.main([*base, *masks, "--targets", str(folder / "targets")]) == 0
    printed = capsys.readouterr().out
    assert "3 masks, 1 refined, 2 kept as given" in printed
    assert "IoU given" in printed
    coco(folder, annotation(1, disc(SIZE, 30, 20, 3)))
    assert cli.main([*base[:-1], str(folder / "coco"), "--coco", str(folder / "coco.json")]) == 0
    assert cli.main([*base, "--masks", str(folder / "masks")]) == 2
    assert cli.main([*base, "--coco", str(folder / "coco.json"), "--targets", "x"]) == 2
    errors = capsys.readouterr().err
    assert "needs --expression" in errors
    assert "go with --masks" in errors
    with pytest.raises(SystemExit):
        cli.main(base)


def test_predictions_of_another_model_on_video_frames(tmp_path):
    """OSVOS' masks of DAVIS 2016, against a policy that never clicks: each comes back as it was."""
    if not (SHARED / "davis_osvos_pred").is_dir():
        pytest.skip("../shared/data is absent")
    masks, images, targets = (tmp_path / name for name in ("masks", "images", "targets"))
    for root, name in ((masks, "davis_osvos_pred"), (images, "davis/JPEGImages"), (targets, "davis/Annotations")):
        (root / "blackswan").mkdir(parents=True)
        for file in sorted((SHARED / name / "blackswan").iterdir())[:2]:
            (root / "blackswan" / file.name).symlink_to(file)
    source = FolderSource(images, masks, "the {name}", targets)
    report = refine_all(
        FunctionPolicy(lambda o: (0.5, [None])), Environment(BrushSegmenter()), source, tmp_path / "out"
    )
    assert report["counts"] == {"masks": 2, "refined": 0, "kept as given": 2, "unusable": 0}
    assert report["gains"]["IoU given"] > 0.9
    given = source.read(0)[1]
    assert (load_mask(tmp_path / "out/masks/blackswan/00000.png") == given).all()
    assert to_rle(given) == to_rle(source.read(0)[1])
