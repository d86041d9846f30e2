"""COCO instances: genuine ones where they are at hand, expressions, and files made to be wrong."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segagent.data._annotations import Annotation
from segagent.data.coco import describe, plural, read_coco
from segagent.errors import DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "coco128"


@pytest.fixture(scope="module")
def genuine():
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    return read_coco(SHARED)


def test_genuine_instances(genuine):
    raw = json.loads((SHARED / "annotations" / "instances_train2017.json").read_text())["annotations"]
    by_id = {a["id"]: a for a in raw}
    assert len(genuine) == len(raw) == 939
    assert len(read_coco(SHARED, crowd=False)) == 929
    for i in range(0, 939, 13):
        sample = genuine[i]
        outline = by_id[sample.meta["annotation_id"]]["segmentation"]
        rle = coco.frPyObjects(outline, *sample.size)
        expected = coco.decode(coco.merge(rle) if isinstance(rle, list) else rle).astype(bool)
        assert (sample.target == expected).all()
        assert sample.image.shape[:2] == expected.shape


def test_expressions_are_unique_in_their_picture(genuine):
    said = Counter((r.image_id, r.expression) for r in genuine._records)
    assert max(said.values()) == 1
    clear = read_coco(SHARED, ambiguous="skip")
    assert 400 < len(clear) < 939
    assert "the group of people" in {r.expression for r in clear._records}


def test_crowds_of_the_kind_are_ignored_pixels(genuine):
    crowds = {
        (r.image_id, genuine[i].meta["category"]) for i, r in enumerate(genuine._records) if "group of" in r.expression
    }
    image_id = next(iter(crowds))[0]
    samples = [genuine[i] for i, r in enumerate(genuine._records) if r.image_id == image_id]
    for sample in samples:
        beside = (image_id, sample.meta["category"]) in crowds and not sample.meta["crowd"]
        assert (sample.ignore is not None) == beside
        if beside:
            assert not (sample.ignore & sample.target).any()


def test_samples_are_a_sequence(genuine):
    assert [s.id for s in genuine[5:8]] == [genuine[5].id, genuine[6].id, genuine[7].id]
    assert genuine[-1].id == genuine[938].id
    again = pickle.loads(pickle.dumps(genuine[:3]))
    assert [s.id for s in again] == [s.id for s in genuine[:3]]
    with pytest.raises(IndexError):
        genuine[939]


def boxes(*columns, area=100.0):
    return [Annotation(i, 1, 1, False, area, (x, 0, 10, 10), 0, 0) for i, x in enumerate(columns)]


def test_places_and_sizes_in_words():
    assert describe("dog", boxes(5), 200) == {0: ("the dog", False)}
    two = describe("dog", boxes(150, 5), 200)
    assert two == {0: ("the dog on the right", False), 1: ("the dog on the left", False)}
    five = describe("dog", boxes(0, 40, 80, 120, 160), 200)
    assert [five[i][0] for i in range(5)] == [
        "the leftmost dog",
        "the second dog from the left",
        "the third dog from the left",
        "the second dog from the right",
        "the rightmost dog",
    ]
    close = [boxes(10)[0], boxes(0, 11)[1]._replace(area=500)]
    assert describe("dog", close, 200)[1] == ("the largest dog", False)
    assert describe("dog", close, 200)[0][1]
    assert [plural(word) for word in ("person", "bus", "couch", "teddy bear", "butterfly", "toy")] == [
        "people", "buses", "couches", "teddy bears", "butterflies", "toys",
    ]  # fmt: skip


def make(root, annotations=(), images=None, categories=({"id": 1, "name": "dog"},)):
    (root / "annotations").mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(root / "images" / "a.png")
    images = [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}] if images is None else images
    value = {"images": images, "annotations": list(annotations), "categories": list(categories)}
    (root / "annotations" / "instances.json").write_text(json.dumps(value))
    return root


def annotation(number=1, segmentation=((1, 1, 9, 1, 9, 9),), **more):
    return {"id": number, "image_id": 1, "category_id": 1, "segmentation": segmentation, "bbox": [1, 1, 8, 8], **more}


@pytest.mark.parametrize(
    ("annotations", "sentence"),
    [
        ([annotation(), annotation()], "Annotation 1 is there twice"),
        ([annotation(image_id=4)], "Annotation 1 of .* is on image 4, which is not listed"),
        ([annotation(category_id=4)], "Annotation 1 of .* is of category 4, which is not listed"),
        ([{"id": "x"}], "not a COCO instances file"),
    ],
)
def test_wrong_files_are_named(tmp_path, annotations, sentence):
    with pytest.raises(DataError, match=sentence):
        read_coco(make(tmp_path, annotations))


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ([], "mask of annotation 1 .* is empty"),
        ({"size": [30, 20], "counts": [0, 600]}, "RLE of 20×30 px on a picture of 30×20 px"),
        ({"size": [20, 30], "counts": [0, 7]}, "Annotation 1 of"),
        ({"size": [20, 30]}, "Annotation 1 of"),
    ],
)
def test_wrong_masks_are_named(tmp_path, segmentation, sentence):
    samples = read_coco(make(tmp_path, [annotation(segmentation=segmentation), annotation(2)]))
    with pytest.raises(DataError, match=sentence):
        samples[0]
    skipping = read_coco(tmp_path, errors="skip")
    assert [s.id for s in skipping] == ["coco-2"]
    assert list(skipping.skipped) == ["coco-1"]


def test_skip_counts_what_the_file_has_wrong(tmp_path):
    samples = read_coco(make(tmp_path, [annotation(), annotation(), annotation(3, image_id=4)]), errors="skip")
    assert len(list(samples)) == 1
    assert len(samples.skipped) == 2


def test_where_files_are(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path / "none.json", tmp_path)
    with pytest.raises(DataError, match="holds 0 instances files"):
        read_coco(tmp_path)
    make(tmp_path, [annotation()])
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="No pictures beside"):
        read_coco(tmp_path)
    assert read_coco(tmp_path, tmp_path / "elsewhere")[0].target.any()
    with pytest.raises(DataError, match="errors is"):
        read_coco(tmp_path, tmp_path / "elsewhere", errors="ignore")


def test_a_file_that_changes_is_noticed(tmp_path):
    samples = read_coco(make(tmp_path, [annotation()]))
    (tmp_path / "annotations" / "instances.json").write_text("{}")
    with pytest.raises(DataError, match="has changed since it was opened"):
        samples[0]
