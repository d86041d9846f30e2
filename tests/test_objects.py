"""The folder layouts of the interactive segmentation benchmarks, made small, and the real ones where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from segagent.data.objects import read_objects
from segagent.errors import DataError

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:20] = 255
    return mask


@pytest.mark.parametrize("folders", [("images", "masks"), ("data_GT", "boundary_GT"), ("im", "gt"), ("img", "gt")])
def test_pairs_of_one_name(tmp_path: Path, photo, mask, folders):
    for name in ("a", "b#2"):
        save(tmp_path / folders[0] / f"{name}.jpg", photo)
        save(tmp_path / folders[1] / f"{name}.png", mask)
    samples = read_objects(tmp_path)
    assert [s.id for s in samples] == ["a", "b#2"]
    assert (samples[1].target == (mask > 0)).all()
    assert samples[1].ignore is None
    (tmp_path / folders[1] / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.jpg' has no mask"):
        read_objects(tmp_path)


def test_grey_masks(tmp_path: Path, photo, mask):
    save(tmp_path / "images" / "a.png", photo)
    mask[5] = 128
    save(tmp_path / "masks" / "a.png", mask)  # the border of GrabCut's boundary_GT
    sample = read_objects(tmp_path)[0]
    assert (sample.ignore == (mask == 128)).all()
    assert (sample.target == (mask == 255)).all()
    mask[6] = 130
    save(tmp_path / "masks" / "a.png", mask)  # soft edges
    sample = read_objects(tmp_path)[0]
    assert sample.ignore is None
    assert (sample.target == (mask > 127)).all()
    for values in (mask > 0, np.uint8(mask > 0)):
        save(tmp_path / "masks" / "a.png", values)
        assert (read_objects(tmp_path)[0].target == (mask > 0)).all()
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[mask > 0], colours[12:, 15:] = (128, 0, 0), (0, 0, 64)
    labels = (colours.any(axis=2) * (1 + (np.arange(30) > 12))).astype(np.uint8)
    for values in (colours, labels):
        save(tmp_path / "masks" / "a.png", values)
        assert (read_objects(tmp_path)[0].target == colours.any(axis=2)).all()
    save(tmp_path / "masks" / "a.png", mask[:, :-1])
    with pytest.raises(DataError, match=r"29×20 px, but its picture 'a\.png' says 30×20 px"):
        read_objects(tmp_path)[0]
    (tmp_path / "masks" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="cannot be read"):
        read_objects(tmp_path)[0]


@pytest.mark.parametrize("level", ["", "480p/"])
def test_davis(tmp_path: Path, photo, mask, level: str):
    for sequence in ("dog", "camel"):
        for frame in ("00000", "00010"):
            save(tmp_path / f"JPEGImages/{level}{sequence}/{frame}.jpg", photo)
            save(tmp_path / f"Annotations/{level}{sequence}/{frame}.png", mask)
    palette = Image.fromarray(np.uint8(mask > 0) * 2)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / f"Annotations/{level}dog/00010.png")
    samples = read_objects(tmp_path)
    assert [s.id for s in samples] == ["camel/00000", "camel/00010", "dog/00000", "dog/00010"]
    assert all((s.target == (mask > 0)).all() for s in samples)


def test_sstem_has_one_object_a_component(tmp_path: Path, photo):
    cells = np.zeros((20, 30), np.uint8)
    cells[2:6, 2:6] = cells[6:9, 6:9] = 255  # they touch at a corner only: two
    cells[15, 20] = 255
    save(tmp_path / "raw/00.tif", photo)
    save(tmp_path / "mitochondria/00.png", cells)
    samples = read_objects(tmp_path)
    assert [(s.id, int(s.target.sum())) for s in samples] == [("00/1", 16), ("00/2", 9), ("00/3", 1)]


def test_sbd_has_one_object_an_instance(tmp_path: Path, photo, mask):
    numbers = np.uint8(mask > 0)
    numbers[10:, :] *= 2
    numbers[0] = 255
    (tmp_path / "inst").mkdir()
    for stem in ("2008_1", "2008_2"):
        save(tmp_path / f"img/{stem}.jpg", photo)
        record = np.zeros((1, 1), [("Segmentation", object), ("Categories", object)])
        record["Segmentation"][0, 0] = numbers
        savemat(tmp_path / f"inst/{stem}.mat", {"GTinst": record})
    assert [s.id for s in read_objects(tmp_path)] == ["2008_1/1", "2008_1/2", "2008_2/1", "2008_2/2"]
    (tmp_path / "val.txt").write_text("2008_2\n")
    samples = read_objects(tmp_path)
    assert [s.id for s in samples] == ["2008_2/1", "2008_2/2"]
    assert (samples[1].target == (numbers == 2)).all()
    savemat(tmp_path / "inst/2008_2.mat", {"other": numbers})
    with pytest.raises(DataError, match="no instances of SBD"):
        read_objects(tmp_path)


def test_coco_has_one_object_an_annotation(tmp_path: Path, photo):
    save(tmp_path / "images/1.jpg", photo)
    box = {"image_id": 1, "category_id": 3, "bbox": [2, 2, 5, 5], "area": 25}
    annotations = [
        {**box, "id": 1, "iscrowd": 0, "segmentation": [[2, 2, 2, 7, 7, 7, 7, 2]]},
        {**box, "id": 2, "iscrowd": 1, "segmentation": {"size": [20, 30], "counts": [300, 300]}},
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 3, "name": "cup", "supercategory": "kitchen"}],
        "annotations": annotations,
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances.json").write_text(json.dumps(content))
    samples = read_objects(tmp_path)
    assert [int(s.target.sum()) for s in samples] == [25]


def test_what_is_no_layout(tmp_path: Path):
    with pytest.raises(DataError, match="no known layout"):
        read_objects(tmp_path)
    with pytest.raises(DataError, match="no layout 'pascal'"):
        read_objects(tmp_path, "pascal")
    with pytest.raises(DataError, match="There is no folder"):
        read_objects(tmp_path / "absent")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        read_objects(tmp_path)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("grabcut", 8),
        ("berkeley", 1),
        ("davis", 220),
        ("davis_stills", 58),
        ("dis5k", 2),
        ("crackforest", 20),
        ("coco128", 929),
    ],
)
def test_the_real_folders(name: str, count: int):
    if not (DATA / name).is_dir():
        pytest.skip("../shared/data is absent")
    samples = read_objects(DATA / name)
    assert len(samples) == count
    if name != "dis5k":  # large
        assert 0 < samples[0].target.mean() < 0.7
