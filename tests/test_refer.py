"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: genuine refs where they are at hand, and files made to be wrong."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segagent.data.refer import read_refer
from segagent.errors import DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "refcoco_sample"
PARTS = [
    ("refcoco", "unc", ("train", "val", "testA", "testB"), 23),
    ("refcoco", "google", ("train", "val", "test"), 17),
    ("refcoco+", "unc", ("train", "val", "testA", "testB"), 25),
    ("refcocog", "google", ("train", "val"), 8),
    ("refcocog", "umd", ("train", "val", "test"), 12),
]
SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


def make(root, dataset="refcoco", refs=None, name="refs(unc).p", size=(20, 30), segmentation=SQUARE, picture=True):
    """A data set of one picture, two annotations (the second a crowd) and the given refs."""
    height, width = size
    crowd = {"size": [height, width], "counts": [0, 5, height * width - 5]}
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    instances = {
        "info": {"a list that is no annotation": [1, 2]},
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "jalape\u00f1o"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 36, "bbox": [2, 2, 6, 6], "segmentation": segmentation},
            {"id": 2, "image_id": 7, "category_id": 2, "iscrowd": 1, "area": 5, "bbox": [0, 0, 1, 5], "segmentation": crowd},
        ],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(instances, ensure_ascii=False, indent=1), encoding="utf-8")
    refs = [ref()] if refs is None else refs
    data = pickle.dumps(refs, 2) if name.endswith(".p") else json.dumps(refs).encode()
    (folder / name).write_bytes(data)
    if picture:
        (root / "train2014").mkdir(exist_ok=True)
        rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(rgb).save(root / "train2014" / "COCO_train2014_000000000007.jpg")
    return root


def ref(number=1, ann=1, split="val", sent=11, **more):
    sentences = [{"sent_id": sent, "sent": "the dog", "raw": "The dog", "tokens": ["the", "dog"]}]
    return {"ref_id": number, "ann_id": ann, "image_id": 7, "split": split, "sentences": sentences, **more}


@pytest.mark.filterwarnings("ignore:No pictures")
def test_genuine_refs():
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    ids, refs = set(), set()
    for dataset, split_by, splits, sentences in PARTS:
        raw = {a["id"]: a for a in json.loads((SHARED / dataset / "instances.json").read_text())["annotations"]}
        by_ref = {r["ref_id"]: r for r in json.loads((SHARED / dataset / f"refs({split_by}).json").read_text())}
        total = 0
        for split in splits:
            for sample in read_refer(SHARED, dataset, split_by, split):
                total += 1
                ids.add(sample.id)
                refs.add((dataset, split_by, sample.meta["ref_id"]))
                reference = by_ref[sample.meta["ref_id"]]
                assert sample.expression in [s["sent"] for s in reference["sentences"]]
                outline = raw[reference["ann_id"]]["segmentation"]
                expected = coco.decode(coco.merge(coco.frPyObjects(outline, *sample.size))).astype(bool)
                assert (sample.target == expected).all()
                assert expected.any()
        assert total == sentences
    assert len(ids) == 85
    assert len(refs) == 32


def test_pickle_and_json_agree_and_blank_pictures_are_announced():
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    with pytest.warns(UserWarning, match="No pictures for refcoco"):
        sample = read_refer(SHARED, "refcoco", "unc", "val")[0]
    assert sample.meta["blank"]
    assert not sample.image.any()


def test_reads_pictures_lazily_and_by_any_name(tmp_path):
    make(tmp_path)
    samples = read_refer(tmp_path, "refcoco", "unc", "val")
    sample = samples[0]
    assert (sample.id, sample.expression, sample.meta["category"]) == ("refcoco-unc-1-11", "the dog", "dog")
    assert sample.size == (20, 30)
    assert sample.image.any()
    assert sample.target.sum() == 36
    os.rename(tmp_path / "train2014" / "COCO_train2014_000000000007.jpg", tmp_path / "000000000007.jpg")
    assert (read_refer(tmp_path, "refcoco", "unc", "val", tmp_path)[0].image == sample.image).all()


def test_crowd_rle_and_names_in_utf8(tmp_path):
    make(tmp_path, refs=[ref(ann=2)])
    sample = read_refer(tmp_path, "refcoco", "unc", "val")[0]
    assert sample.target.sum() == 5
    assert sample.target[:5, 0].all()
    assert sample.meta["category"] == "jalape\u00f1o"


def test_grefcoco_several_targets_and_none(tmp_path):
    refs = [ref(1, [1, 2], sent=1), ref(2, [-1], sent=2, no_target=True), ref(3, [], sent=3)]
    make(tmp_path, "grefcoco", refs, "grefs(unc).json")
    several, nothing, empty = read_refer(tmp_path, "grefcoco", "unc", "val")
    assert several.target.sum() == 36 + 5
    assert not nothing.target.any()
    assert not empty.target.any()


def test_test_splits_follow_refer(tmp_path):
    refs = [
        ref(1, split="testA", sent=1),
        ref(2, split="testAB", sent=2),
        ref(3, split="testB", sent=3),
        ref(4, sent=4),
    ]
    make(tmp_path, refs=refs)
    count = {split: len(read_refer(tmp_path, "refcoco", "unc", split)) for split in ("test", "testA", "testB", "val")}
    assert count == {"test": 3, "testA": 2, "testB": 2, "val": 1}


class _Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps([_Evil()]),
        pickle.dumps([{"ref_id": np.int64(3)}]),
        pickle.dumps(refs := [ref()])[: len(pickle.dumps(refs)) // 2],
        b"",
        b"<html>Not found</html>",
        b"\x80\x02\x8c\x03abcP1\n.",
    ],
)
def test_pickles_that_are_no_plain_data(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(data)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p' is no pickle of plain data"):
        read_refer(tmp_path, "refcoco", "unc", "val")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("refs", "sentence"),
    [
        ([ref(ann=9)], "Ref 1 of refcoco-unc names annotation 9"),
        ([ref() | {"image_id": 8}], "names image 8"),
        ([{"split": "val", "ref_id": 5}], "Ref 5 of refcoco-unc is malformed"),
        ([ref(), ref()], "refcoco-unc-1-11 is there twice"),
        ({"refs": []}, "not a list of refs"),
        ([ref(split="train")], "no split 'val'; it has train"),
    ],
)
def test_wrong_refs_are_named(tmp_path, refs, sentence):
    make(tmp_path, refs=refs)
    with pytest.raises(DataError, match=sentence):
        read_refer(tmp_path, "refcoco", "unc", "val")


def test_skip_goes_on_and_counts(tmp_path):
    make(tmp_path, refs=[ref(ann=9), ref(2), ref(2)])
    samples = read_refer(tmp_path, "refcoco", "unc", "val", errors="skip")
    assert [s.id for s in samples] == ["refcoco-unc-2-11"]
    assert len(samples.skipped) == 2
    (tmp_path / "train2014" / "COCO_train2014_000000000007.jpg").write_bytes(b"\xff\xd8 cut off")
    assert list(samples) == []
    assert "no picture that can be read" in samples.skipped["refcoco-unc-2-11"]
    with pytest.raises(DataError, match="no picture that can be read"):
        samples[0]


def test_pictures_of_another_size(tmp_path):
    make(tmp_path)
    file = tmp_path / "train2014" / "COCO_train2014_000000000007.jpg"
    Image.new("RGB", (20, 30)).save(file)
    with pytest.raises(
        DataError, match=r"20×30 px, but instances.json \(image 7\) says 30×20 px: width and height are swapped"
    ):
        read_refer(tmp_path, "refcoco", "unc", "val")[0]
    Image.new("RGB", (31, 20)).save(file)
    with pytest.raises(DataError, match="they must be equal"):
        read_refer(tmp_path, "refcoco", "unc", "val")[0]
    file.unlink()
    with pytest.raises(DataError, match=r"There is no picture 'COCO_train2014_000000000007.jpg'"):
        read_refer(tmp_path, "refcoco", "unc", "val")[0]


def test_empty_and_malformed_outlines(tmp_path):
    make(tmp_path, segmentation=[])
    with pytest.raises(DataError, match=r"mask of annotation \(1,\) is empty"):
        read_refer(tmp_path, "refcoco", "unc", "val")[0]
    make(tmp_path, segmentation=[["a", "b", "c", "d", "e", "f"]])
    with pytest.raises(DataError, match="Annotation 1 of"):
        read_refer(tmp_path, "refcoco", "unc", "val")[0]


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        read_refer(tmp_path / "nowhere", "refcoco", "unc", "val")
    make(tmp_path)
    with pytest.raises(DataError, match="no data set 'refcoco\\+'; it holds refcoco"):
        read_refer(tmp_path, "refcoco+", "unc", "val")
    with pytest.raises(DataError, match=r"has no refs\(google\)\.p; split_by is one of unc"):
        read_refer(tmp_path, "refcoco", "google", "val")
    with pytest.raises(DataError, match="COCO's pictures"):
        read_refer(tmp_path, "refcoco", "unc", "val", tmp_path / "elsewhere")
    instances = tmp_path / "refcoco" / "instances.json"
    for text in ("", "[]", '{"images": [', '{"images": [{"id": 1}]}', "{}"):
        instances.write_text(text)
        with pytest.raises(DataError, match=r"instances.json"):
            read_refer(tmp_path, "refcoco", "unc", "val")
    instances.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_refer(tmp_path, "refcoco", "unc", "val")
