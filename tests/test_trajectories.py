"""Trajectory rows: to parquet and back without loss, and what trainers are given of them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from segagent.data.chat import export_chat
from segagent.errors import ActionError, DataError
from segagent.grammar import Grammar
from segagent.masks import overlay
from segagent.trajectories import decode_image, features, from_row, sft_rows, to_row
from segagent.types import Box, Click, Sample, State, Trajectory, Transition, Undo

SIZE = (40, 50)


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)


def region(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


TARGET = region(5, 5, 30, 20)


def trajectory(target=TARGET, actions=None, end="stop", key="s1", image=None, ignore=None):
    """A run through masks that grow by five columns; an undo goes back."""
    sample = Sample(picture() if image is None else image, "the slab", target, key, ignore)
    state = State(sample.image, np.zeros(SIZE, bool))
    scores = (
        (lambda s: None) if target is None else (lambda s: float((s.mask & target).sum() / (s.mask | target).sum()))
    )
    transitions = []
    for action in (
        [Click(10.25, 8.0), Click(3.0, 4.0, False), Undo(), Box(5.0, 5.0, 29.0, 19.0)] if actions is None else actions
    ):
        if isinstance(action, Undo):
            after = state.previous
        else:
            after = State(
                sample.image, region(5, 5, 10 + 5 * len(state.actions), 20), (*state.actions, action), previous=state
            )
        transitions.append(Transition(state, action, after, 0.25, scores(state), scores(after), origin="simulated"))
        state = after
    if end is not None:
        transitions.append(Transition(state, None, state, 0.5, scores(state), scores(state), end=end))
    return Trajectory(sample, tuple(transitions))


def same(a, b):
    assert (a.sample.image == b.sample.image).all()
    assert (a.sample.expression, a.sample.id, a.end) == (b.sample.expression, b.sample.id, b.end)
    assert (a.ious, a.predicted_ious) == (b.ious, b.predicted_ious)
    assert [t.action for t in a] == [t.action for t in b]
    assert [t.origin for t in a.steps] == [t.origin for t in b.steps]
    assert len(a.states) == len(b.states)
    for s, t in zip(a.states, b.states, strict=True):
        assert (s.mask == t.mask).all()
        assert s.actions == t.actions
        assert (s.previous is None) == (t.previous is None)


@pytest.mark.parametrize("end", ["stop", "steps", "malformed", None])
def test_rows_lose_nothing(end):
    run = trajectory(end=end, ignore=region(45, 0, 50, 40))
    row = to_row(run, segmenter="grabcut", round=2, source="here", initial="box")
    back = from_row(row)
    same(run, back)
    assert (back.sample.target == TARGET).all()
    assert (back.sample.ignore == run.sample.ignore).all()
    assert dict(back.sample.meta) == {"segmenter": "grabcut", "round": 2, "source": "here", "initial": "box"}
    assert to_row(back, segmenter="grabcut", round=2, source="here", initial="box")["steps"] == row["steps"]


def test_parquet_plain_and_streamed(tmp_path):
    from datasets import Dataset, concatenate_datasets, load_dataset

    runs = [trajectory(key="a"), trajectory(None, key="b"), trajectory(key="c", actions=[])]
    rows = [to_row(run, segmenter="grabcut", round=n) for n, run in enumerate(runs)]
    Dataset.from_list(rows, features=features()).to_parquet(tmp_path / "train.parquet")
    options = {"data_files": str(tmp_path / "train.parquet"), "split": "train", "cache_dir": str(tmp_path / "cache")}
    stored = load_dataset("parquet", **options)
    assert stored.features == features()
    streamed = list(load_dataset("parquet", streaming=True, **options))
    for run, one, two in zip(runs, stored, streamed, strict=True):
        same(run, from_row(one))
        same(run, from_row(two))
    both = concatenate_datasets([stored, stored]).filter(lambda row: row["round"] == 1)
    assert both["id"][:] == ["b", "b"]
    assert both[0]["target"] is None


def test_pictures_keep_their_files_encoding(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    image = np.asarray(Image.open(tmp_path / "a.jpg"))
    meta = {"file": str(tmp_path / "a.jpg"), "source": "here"}
    run = trajectory(image=image)
    run = Trajectory(Sample(image, "x", TARGET, "a", meta=meta), run.transitions)
    row = to_row(run)
    assert row["image"]["bytes"] == (tmp_path / "a.jpg").read_bytes()
    assert row["source"] == "here"
    assert (decode_image(row["image"]) == image).all()
    # A turned file does not decode to the sample's picture, so that is stored instead.
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    assert to_row(run)["image"]["bytes"].startswith(b"\x89PNG")


def test_sft_rows_paint_and_say():
    run = trajectory()
    row = to_row(run)
    rows = list(sft_rows(row))
    assert len(rows) == 3  # the second click was taken back
    said = [r["completion"][0]["content"] for r in rows]
    grammar = Grammar()
    assert said[0] == grammar.format(Click(10.25, 8.0), 0.0, SIZE)
    assert said[1] == grammar.format(Box(5.0, 5.0, 29.0, 19.0), run.steps[3].iou, SIZE)
    assert said[2].startswith("Current mIoU:")
    assert "point" not in said[2]
    assert (np.asarray(rows[1]["images"][0]) == overlay(picture(), run.steps[3].state.mask)).all()
    assert rows[0]["prompt"][0]["content"] == grammar.ask("the slab")
    (only,) = sft_rows(row, only=1)
    assert only["completion"] == rows[1]["completion"]


@pytest.mark.parametrize(("end", "count"), [("stop", 2), ("steps", 1), ("malformed", 1), (None, 1)])
def test_only_decisions_teach(end, count):
    assert len(list(sft_rows(to_row(trajectory(actions=[Click(10, 8)], end=end))))) == count


def test_without_a_target_the_predicted_iou_is_said():
    (click, stop) = sft_rows(to_row(trajectory(None, actions=[Click(10, 8)])))
    assert click["completion"][0]["content"].startswith("Current mIoU: 0.25. Positive")
    assert stop["completion"][0]["content"] == "Current mIoU: 0.50."


@pytest.mark.parametrize("style", ["sharegpt", "llava", "lmms"])
def test_chat_files(tmp_path, style):
    rows = [to_row(trajectory(key="a")), to_row(trajectory(key="b"))]
    assert export_chat(rows, tmp_path, style) == 6
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    text = json.dumps(lines[0])
    if style == "lmms":
        asked, said = lines[0]["messages"]
        name = asked["content"][0]["image_url"]["url"]
        assert said["content"][0]["text"].startswith("Current mIoU: 0.00. Positive point")
    else:
        name = lines[0]["image"] if style == "llava" else lines[0]["images"][0]
        assert text.count("<image>") == 1
        assert lines[0]["conversations"][1]["value"].startswith("Current mIoU: 0.00. Positive point")
    first = next(iter(sft_rows(rows[0])))["images"][0]
    assert (np.asarray(Image.open(tmp_path / name)) == np.asarray(first)).all()
    if style == "sharegpt":
        info = json.loads((tmp_path / "dataset_info.json").read_text())["segagent"]
        assert (tmp_path / info["file_name"]).is_file()
        assert set(info["columns"].values()) <= set(lines[0])


def test_bad_rows_are_named():
    good = to_row(trajectory())
    with pytest.raises(DataError, match="has no transitions"):
        to_row(Trajectory(trajectory().sample, ()))
    with pytest.raises(DataError, match="row 's1' a column is missing"):
        from_row({key: value for key, value in good.items() if key != "steps"})
    with pytest.raises(DataError, match="do not end with the final mask"):
        from_row({**good, "steps": good["steps"][:-1]})
    with pytest.raises(DataError, match="kind is click, box or undo"):
        from_row({**good, "steps": [{**good["steps"][0], "kind": "drag"}, good["steps"][-1]]})
    with pytest.raises(DataError, match="In trajectory row 's1'"):
        from_row({**good, "target": {"size": [40, 50], "counts": "!!"}})
    with pytest.raises(DataError, match="undoes the first state"):
        from_row({**good, "steps": good["steps"][2:]})
    with pytest.raises(DataError, match="no readable picture"):
        from_row({**good, "image": {"bytes": b"nothing", "path": None}})
    for name in ("x", "positive"):
        for nothing in (None, float("nan")):
            with pytest.raises(DataError, match=f"A click has no {name}"):
                list(sft_rows({**good, "steps": [{**good["steps"][0], name: nothing}, good["steps"][-1]]}))
    with pytest.raises(ActionError, match="outside the image"):
        list(sft_rows({**good, "steps": [{**good["steps"][0], "x": 400.0}, good["steps"][-1]]}))
    with pytest.raises(DataError, match="style is one of"):
        export_chat([good], "unused", "alpaca")


def test_a_damaged_picture_is_one_sentence_whatever_the_decoder_says():
    """Pillow says SyntaxError for a broken chunk of a PNG, and DecompressionBombError for a false size."""
    whole = {}
    for kind in ("png", "bmp"):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(buffer, kind)
        whole[kind] = buffer.getvalue()
    chunk = whole["png"].rfind(b"IDAT")
    bad = [whole["png"][: chunk - 4] + b"\xff\x00\x00\x00\x88\xfa\x01" + whole["png"][chunk + 3 :]]
    bad += [whole["png"][:33] + b"\x00\x00\x00\x02a\x88\xfahxxyyyy" + whole["png"][33:]]
    bad += [whole["bmp"][:18] + (60_000).to_bytes(4, "little") * 2 + whole["bmp"][26:], b""]
    for data in bad:
        with pytest.raises(DataError, match="no readable picture"):
            decode_image({"bytes": data, "path": None})
