"""Folders of pictures and masks: tables, kinds of masks, and everything that people get wrong with them."""

import json

import numpy as np
import pytest
from PIL import Image

from segagent.data.folder import read_folder
from segagent.errors import DataError
from segagent.masks import to_rle

SIZE = (20, 30)


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(path)


def disc(size=SIZE, value=255):
    mask = np.zeros(size, np.uint8)
    mask[4:12, 5:15] = value
    return mask


@pytest.fixture
def root(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(disc()).save(tmp_path / "masks" / "a.png")
    return tmp_path


def test_pairs_by_name(root):
    (sample,) = read_folder(root, expression="the square")
    assert (sample.target == (disc() > 0)).all()
    assert (sample.id, sample.expression) == ("a", "the square")


def test_csv(root):
    (root / "metadata.csv").write_text(
        "image,mask,expression,id,colour\na.png,a.png,the square,s1,red\na.png,,all,s2,\n"
    )
    first, second = read_folder(root)
    assert (first.id, first.meta["colour"], second.target) == ("s1", "red", None)


def test_jsonl_with_rle_polygons_and_the_hubs_names(root):
    rows = [
        {"file_name": "images/a.png", "segmentation": to_rle(disc() > 0), "text": "the square"},
        {"image": "a.png", "mask": [[5, 4, 15, 4, 15, 12, 5, 12]], "expression": "the square"},
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    rle, polygons = read_folder(root)
    assert (rle.target == (disc() > 0)).all()
    assert (polygons.target == (disc() > 0)).all()
    assert rle.id != polygons.id


def test_palette_masks_hold_several_objects(root):
    mask = disc(value=1)
    mask[15:, 20:] = 2
    palette = Image.fromarray(mask, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(root / "masks" / "a.png")
    (root / "metadata.csv").write_text(
        "image,mask,expression,value\na.png,a.png,red,1\na.png,a.png,green,2\na.png,a.png,?,\n"
    )
    samples = read_folder(root)
    assert (samples[0].target == (mask == 1)).all()
    assert (samples[1].target == (mask == 2)).all()
    with pytest.raises(DataError, match="several colours"):
        samples[2]


def test_soft_alpha_needs_a_threshold(root):
    soft = disc().astype(np.float32)
    soft[4, 5:15] = 100
    Image.fromarray(soft.astype(np.uint8)).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match="grey values"):
        read_folder(root, expression="x")[0]
    assert read_folder(root, expression="x", threshold=128)[0].target.sum() == 70


def test_sizes(root):
    Image.fromarray(disc().T).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match=r"masks/a.png' is 20×30 px, but its picture 'a.png' says 30×20 px: .* swapped"):
        read_folder(root, expression="x")[0]
    Image.fromarray(disc((20, 29))).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match="must be equal"):
        read_folder(root, expression="x")[0]


def test_empty_masks(root):
    Image.fromarray(disc(value=0)).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match=r"masks/a.png' is empty"):
        read_folder(root, expression="x")[0]
    assert not read_folder(root, expression="x", empty=True)[0].target.any()


def test_names_that_collide_and_pairs_that_are_missing(root):
    picture(root / "images" / "b.png")
    with pytest.raises(DataError, match=r"picture 'b.png' has no mask"):
        read_folder(root, expression="x")
    Image.fromarray(disc()).save(root / "masks" / "c.png")
    samples = read_folder(root, expression="x", errors="skip")
    assert ([s.id for s in samples], sorted(samples.skipped)) == (["a"], ["b", "c"])
    picture(root / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"'a.jpg' and 'a.png' .* differ only in their ending"):
        read_folder(root, expression="x")


@pytest.mark.parametrize(
    ("table", "text", "sentence"),
    [
        ("metadata.csv", "image,mask,expression\nz.png,a.png,x\n", "metadata.csv, line 2: there is no image 'z.png'"),
        ("metadata.csv", "image,mask,expression\na.png,z.png,x\n", "line 2: there is no mask 'z.png'"),
        ("metadata.csv", "image,mask\na.png,a.png\n", "line 2: it has no expression"),
        ("metadata.csv", "mask,expression\na.png,x\n", "line 2: it has no column image"),
        ("metadata.csv", "image,mask,expression,value\na.png,a.png,x,red\n", "line 2: invalid literal"),
        ("metadata.csv", "image,mask,expression,id\na.png,a.png,x,1\na.png,a.png,y,1\n", "id 1 is there twice"),
        ("metadata.jsonl", '{"image": "a.png"', "line 1 is not JSON"),
        ("metadata.jsonl", "[1]", "line 1 is no JSON object"),
    ],
)
def test_wrong_tables(root, table, text, sentence):
    (root / table).write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_folder(root)
    samples = read_folder(root, errors="skip")
    assert len(samples.skipped) == 1


def test_tables_that_are_not_there(root):
    with pytest.raises(DataError, match="says what its masks are"):
        read_folder(root)
    with pytest.raises(DataError, match="no table"):
        read_folder(root, "table.csv")
    (root / "metadata.csv").write_bytes(b"image,mask,expression\na.png,a.png,\xff\xfe\n")
    with pytest.raises(DataError, match="no table in UTF-8"):
        read_folder(root)
    (root / "metadata.jsonl").write_text("{}")
    with pytest.raises(DataError, match="several tables"):
        read_folder(root)


def test_masks_that_are_no_masks(root):
    (root / "masks" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"masks/a.png"):
        read_folder(root, expression="x")[0]
    (root / "metadata.jsonl").write_text(json.dumps({"image": "a.png", "mask": {"size": [3]}, "expression": "x"}))
    with pytest.raises(DataError, match="mask of 'a-1'"):
        read_folder(root)[0]
