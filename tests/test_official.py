"""The released code's files: byte for byte through, as trajectories, and scored as its evaluator scores."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segagent.data import predictions
from segagent.data.official import image_file, read_official_trajectories, write_official_trajectories
from segagent.data.predictions import (
    evaluate_predictions,
    from_prediction,
    read_predictions,
    said_ious,
    to_prediction,
    write_predictions,
)
from segagent.errors import DataError
from segagent.types import Box, Click, Undo

SIZE = (20, 30)


def mask(x0, y0, x1, y1):
    array = np.zeros(SIZE, bool)
    array[y0:y1, x0:x1] = True
    return array


def rle(array):
    value = coco.encode(np.asfortranarray(array.astype(np.uint8)))
    return {"counts": value["counts"].decode(), "size": [int(n) for n in value["size"]]}


TARGET = mask(5, 4, 15, 12)


def iou(array):
    return float((array & TARGET).sum() / (array | TARGET).sum())


def click(index, y, x, array, positive=True):
    value = rle(array)
    return {
        "idx": index,
        "coor": [y, x],
        "is_positive": positive,
        "mask": value,
        "box": coco.toBbox(value).tolist(),
        "area": int(coco.area(value)),
        "iou": iou(array),
    }


def record(name=9, captions=("the red one", "left"), clicks=None, object_id=(0, 1)):
    steps = [(8, 9, mask(5, 4, 25, 12), True), (6, 20, mask(5, 4, 15, 11), False)] if clicks is None else clicks
    about = {
        "object_id": list(object_id) if isinstance(object_id, tuple) else object_id,
        "caption": list(captions) if isinstance(captions, tuple) else captions,
        "segmentation": rle(TARGET),
        "bbox": coco.toBbox(rle(TARGET)).tolist(),
        "area": int(TARGET.sum()),
    }
    rows = [click(i, y, x, array, positive) for i, (y, x, array, positive) in enumerate(steps)]
    return {"image_name": name, "height": 20, "width": 30, "gt_ann": about, "clicks_list": rows}


@pytest.fixture
def file(tmp_path):
    data = [record(), record("a/b", "one caption", object_id=3), record("c.png", ("empty",), clicks=[])]
    (tmp_path / "refcoco_val.json").write_text(json.dumps({"data": data}))
    for name in ("COCO_train2014_000000000009.jpg", "a/b.jpg", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (*SIZE, 3), np.uint8)).save(tmp_path / name)
    return tmp_path / "refcoco_val.json"


def test_trajectories_byte_for_byte(file, tmp_path):
    runs = read_official_trajectories(file, tmp_path)
    assert len(runs) == 4
    assert write_official_trajectories(runs, tmp_path / "out.json") == 3
    assert (tmp_path / "out.json").read_bytes() == file.read_bytes()


def test_trajectories_as_this_package_has_them(file, tmp_path):
    first, second, third, fourth = read_official_trajectories(file, tmp_path, stop=0.8)
    assert (first.sample.expression, second.sample.expression, third.sample.expression) == (
        "the red one",
        "left",
        "one caption",
    )
    assert [t.action for t in first.steps] == [Click(9, 8), Click(20, 6, False)]
    assert first.ious == (0.0, 0.5, 0.875)
    assert first.end == "stop"
    assert (first.states[1].mask == mask(5, 4, 25, 12)).all()
    assert (first.sample.target == TARGET).all()
    assert first.sample.image.any()
    assert len(fourth) == 0
    assert read_official_trajectories(file, tmp_path)[0].end is None


def test_own_runs_in_their_format(file, tmp_path):
    from segagent.trajectories import from_row, to_row

    with pytest.warns(UserWarning, match="No pictures for refcoco_val.json"):
        run = read_official_trajectories(file)[0]
    assert run.sample.meta["blank"]
    own = from_row(to_row(run))  # nothing of the official file is left in its meta
    assert write_official_trajectories([own], tmp_path / "own.json") == 1
    (written,) = json.loads((tmp_path / "own.json").read_text())["data"]
    assert written["clicks_list"] == record()["clicks_list"]
    assert written["gt_ann"] == {**record()["gt_ann"], "object_id": 1, "caption": ["the red one"]}


def test_what_the_format_cannot_hold(file, tmp_path):
    run = read_official_trajectories(file, tmp_path)[0]
    step = run.transitions[0]
    for action in (Box(1, 1, 5, 5), Undo()):
        changed = type(run)(run.sample, (type(step)(step.state, action, step.next_state),))
        with pytest.raises(DataError, match="the format holds clicks only"):
            write_official_trajectories([changed], tmp_path / "no.json")
    with pytest.raises(DataError, match="does not start empty"):
        write_official_trajectories([type(run)(run.sample, run.transitions[1:])], tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ('{"data": []}', "not of the released code's format"),
        ("[]", "not of the released code's format"),
        ('{"data": [{"image_name": 3}]}', "Record 0 of .* is no trajectory"),
    ],
)
def test_files_that_are_no_trajectories(tmp_path, text, sentence):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_official_trajectories(tmp_path / "x.json", tmp_path)


def test_broken_records_are_named_and_skipped(tmp_path):
    good = record("a")
    bad = [
        {**good, "clicks_list": [{"coor": [1]}]},
        {**good, "gt_ann": {**good["gt_ann"], "segmentation": {"size": [1]}}},
    ]
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.jpg")
    (tmp_path / "x.json").write_text(json.dumps({"data": [good, *bad, {"image_name": "b"}]}, ensure_ascii=False))
    runs = read_official_trajectories(tmp_path / "x.json", tmp_path, errors="skip")
    assert len(list(runs)) == 2
    assert len(runs.skipped) == 5  # two captions of each, and the one without anything


def test_image_files():
    assert image_file(9) == "COCO_train2014_000000000009.jpg"
    assert image_file("a/b") == "a/b.jpg"
    assert image_file("val2017/000000000139.jpg") == "val2017/000000000139.jpg"


# Predictions


def prediction(masks, texts, target=TARGET, path="images/a.jpg", caption="the café"):
    rows = [
        {
            "click_id": i,
            "clicks": {"is_positive": True, "coords": [8, 9 + i]},
            "used_box": None,
            "mask": rle(array),
            "outputs": text,
        }
        for i, (array, text) in enumerate(zip(masks, texts, strict=True))
    ]
    about = {"img_path": path, "masks": None, "height": 20, "width": 30, "qas": [{"from": "human", "value": "?"}]}
    about |= {"caption": [caption], "coor": None, "click_id": 0, "gt_mask": rle(target), "outputs": "last"}
    return {**about, "pred_list": rows}


def says(value, sign="Positive"):
    return f"Current IOU: {value}, {sign} point: (175, 483)"


MASKS = [mask(5, 4, 25, 12), mask(5, 4, 15, 11), mask(0, 0, 30, 20)]


def write(path, samples):
    path.write_text(json.dumps(samples))
    return path


def test_predictions_round_trip(tmp_path):
    samples = [prediction(MASKS, [says(0), says(0.5), says(0.9)]), prediction([], [])]
    for text in (json.dumps(samples), json.dumps(samples, ensure_ascii=False)):
        (tmp_path / "in.json").write_text(text, encoding="utf-8")
        assert list(read_predictions(tmp_path / "in.json")) == samples
        assert [to_prediction(from_prediction(s)) for s in read_predictions(tmp_path / "in.json")] == samples
    assert write_predictions(read_predictions(tmp_path / "in.json"), tmp_path / "out.json") == 2
    assert (tmp_path / "out.json").read_text() == json.dumps(samples)


def test_a_prediction_as_a_trajectory():
    value = prediction(MASKS, [says(0), says(0.5, "Negative"), None])
    value["pred_list"][0] |= {"clicks": [], "used_box": [1.0, 2.0, 9.0, 8.0], "outputs": None}
    value["pred_list"][1]["used_box"] = [1, 2, 9, 8]
    run = from_prediction(value)
    assert [t.action for t in run] == [Box(1, 2, 9, 8), Click(10, 8), Click(11, 8)]
    assert [t.predicted_iou for t in run] == [None, 0.5, None]
    assert run.ious == (0.0, 0.5, 0.875, 80 / 600)
    assert to_prediction(run) == value


def test_the_official_choice_is_the_mask_before_the_most_confident_step(tmp_path):
    # The last text says 0.9 of the mask before it, the second, whose true IoU is 0.875.
    path = write(tmp_path / "p.json", [prediction(MASKS, [says(0), says(0.5), says(0.9)])])
    union, inter = (MASKS[1] | TARGET).sum(), (MASKS[1] & TARGET).sum()
    result = evaluate_predictions(path)
    assert result["giou"] == pytest.approx(inter / (union + 1e-5), abs=1e-12)
    assert result["ciou"] == pytest.approx(inter / (union + 1e-10), abs=1e-12)
    plain = evaluate_predictions(path, "plain")
    assert plain["giou"] == 80 / 600
    assert evaluate_predictions(path, "plain", click=0)["giou"] == 0.5
    # Where the first text is the most confident there is no mask before it, and the first counts.
    path = write(tmp_path / "p.json", [prediction(MASKS, [says(0.9), says(0.5), says(0.1)])])
    assert evaluate_predictions(path)["giou"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Current IOU: 0.5, Positive point: (1, 2)", "Current IOU: 0.75,Negative point: (1, 2)"], [0.5, 0.75]),
        (["Current IOU: 0.5 Positive point: (1, 2)", "Current IOU: 0.75Negative point: (1, 2)"], [0.5, 0.75]),
        (["Current IOU: 0.5, Positive point", None], [0.5, 0.0]),
        (["Current IOU: 0.5, Positive point", "Positive point: (1, 2)"], [0.0, 0.0]),
        ([], []),
    ],
)
def test_texts_as_the_released_evaluator_reads_them(texts, expected):
    assert said_ious(texts) == expected


def test_the_official_evaluator_stops_at_5000_and_leaves_out_the_unpredicted(tmp_path, monkeypatch):
    assert predictions.FIRST == 5000
    monkeypatch.setattr(predictions, "FIRST", 50)
    good, bad = prediction(MASKS[1:2], [says(0)]), prediction(MASKS[2:], [says(0)])
    path = write(tmp_path / "p.json", [good] * 49 + [prediction([], [])] + [bad] * 10)
    official = evaluate_predictions(path)
    assert (official["count"], official["unpredicted"]) == (49, 1)
    assert official["giou"] == pytest.approx(0.875, abs=1e-6)
    plain = evaluate_predictions(path, "plain")
    assert plain["count"] == 60
    assert plain["giou"] == pytest.approx((49 * 0.875 + 10 * 80 / 600) / 60, abs=1e-12)
    assert evaluate_predictions(path, limit=20)["count"] == 20


def test_empty_targets(tmp_path):
    nothing = np.zeros(SIZE, bool)
    path = write(
        tmp_path / "p.json", [prediction([nothing], [says(0)], nothing), prediction([TARGET], [says(0)], nothing)]
    )
    assert evaluate_predictions(path)["giou"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([{"img_path": "a"}], "Sample 0 of .* lacks caption, gt_mask, height, pred_list, width"),
        ([prediction([], []) | {"pred_list": None}], "lacks a list pred_list"),
        ([prediction([], []) | {"gt_mask": {"size": [2, 2]}}], "Sample 0 of .*: Not a COCO RLE"),
        ([prediction([mask(0, 0, 5, 5)[:10]], [says(0)])], "Sample 0 of"),
        ({"data": []}, "not a list of samples"),
    ],
)
def test_files_that_are_no_predictions(tmp_path, samples, sentence):
    path = write(tmp_path / "p.json", samples)
    with pytest.raises(DataError, match=sentence):
        evaluate_predictions(path)


def test_conventions_are_named(tmp_path):
    with pytest.raises(DataError, match='convention is "official" or "plain"'):
        evaluate_predictions(tmp_path / "p.json", "paper")
    with pytest.raises(DataError, match="cannot be read"):
        evaluate_predictions(tmp_path / "p.json")
