"""ReasonSeg: drawing order, ignore regions, questions, encodings, and files made to be wrong."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from segagent.data.reasonseg import read_reasonseg
from segagent.errors import DataError


def square(label, x0, y0, x1, y1):
    return {"label": label, "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}


def make(root, shapes, text=("Which one flies?", "the bird"), split="val", name="a", encoding="utf-8", **more):
    folder = root / split
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), 7, np.uint8)).save(folder / f"{name}.jpg")
    value = {"text": list(text), "is_sentence": True, "shapes": shapes, **more}
    (folder / f"{name}.json").write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))
    return root


def test_smaller_shapes_lie_on_larger_ones(tmp_path):
    # A hole to ignore inside the target, listed first: by the order of the file the target would cover it.
    shapes = [square("ignore", 10, 10, 15, 15), square("target", 5, 5, 30, 30), square("flag", 0, 0, 49, 39)]
    (sample,) = read_reasonseg(make(tmp_path, shapes), "val")
    expected = np.zeros((40, 50), np.uint8)
    cv2.rectangle(expected, (5, 5), (30, 30), 1, -1)
    cv2.rectangle(expected, (10, 10), (15, 15), 255, -1)
    assert (sample.target == (expected == 1)).all()
    assert (sample.ignore == (expected == 255)).all()
    assert sample.meta["sentence"]


def test_questions_as_lisa_asks_them(tmp_path):
    shapes = [square("target", 5, 5, 30, 30)]
    make(tmp_path, shapes)
    make(tmp_path, shapes, split="train")
    assert [s.expression for s in read_reasonseg(tmp_path, "val")] == ["Which one flies?"]
    assert [s.expression for s in read_reasonseg(tmp_path, "train")] == ["Which one flies?", "the bird"]
    assert len(read_reasonseg(tmp_path, "val", sentences="all")) == 2
    assert read_reasonseg(tmp_path, "val")[0].ignore is None


def test_files_saved_on_windows(tmp_path):
    make(tmp_path, [square("target", 5, 5, 9, 9)], text=["the café’s door"], encoding="cp1252")
    assert read_reasonseg(tmp_path)[0].expression == "the café’s door"


@pytest.mark.parametrize(
    ("shapes", "more", "sentence"),
    [
        ([{"label": "target"}], {}, "A shape of .*a.json' has no label or points"),
        ([{"label": "target", "points": [1, 2, 3]}], {}, "is no polygon"),
        ([square("target", 1, 1, 5, 5)], {"imageHeight": 50, "imageWidth": 40}, "swapped"),
        ([square("target", 1, 1, 5, 5)], {"imageHeight": 40, "imageWidth": 51}, "must be equal"),
    ],
)
def test_wrong_shapes(tmp_path, shapes, more, sentence):
    samples = read_reasonseg(make(tmp_path, shapes, **more))
    with pytest.raises(DataError, match=sentence):
        samples[0]


def test_wrong_files(tmp_path):
    good = [square("target", 5, 5, 30, 30)]
    make(tmp_path, good)
    make(tmp_path, good, name="empty", text=[" "])
    make(tmp_path, good, name="lonely")
    (tmp_path / "val" / "lonely.json").unlink()
    make(tmp_path, good, name="broken")
    (tmp_path / "val" / "broken.json").write_text("{")
    make(tmp_path, good, name="other")
    (tmp_path / "val" / "other.json").write_text('{"version": 1}')
    make(tmp_path, good, name="pictureless")
    (tmp_path / "val" / "pictureless.jpg").unlink()
    with pytest.raises(DataError, match=r"broken.json' is not JSON"):
        read_reasonseg(tmp_path)
    samples = read_reasonseg(tmp_path, errors="skip")
    assert [s.id for s in samples] == ["reasonseg-val-a-0"]
    assert sorted(samples.skipped) == ["broken", "empty", "lonely", "other", "pictureless"]
    with pytest.raises(DataError, match="no split 'test'; it has val"):
        read_reasonseg(tmp_path, "test")
