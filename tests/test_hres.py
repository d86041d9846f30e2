"""HRES: the layouts of its sources, what is left out and why, and the way to the Hub and back."""

import errno
import io
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segagent.data._hres_sources import category_of, words
from segagent.data.hres import build_hres, from_row, load_hres, push_hres
from segagent.errors import DataError, SegAgentError
from segagent.segmenters.base import Prediction

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "dis5k"
CARD = Path(__file__).parents[1] / "data_cards" / "hres.md"


def scene(seed, size=(60, 80)):
    """A picture and a mask that no other seed has."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(mask, (int(rng.integers(25, 55)), 30), (int(rng.integers(10, 20)), 12), 0, 0, 360, 255, -1)
    return image, mask


def pair(images, masks, stem, seed, ending="jpg", quality=95, size=(60, 80)):
    image, mask = scene(seed, size)
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    options = {"quality": quality} if ending == "jpg" else {}
    Image.fromarray(image).save(images / f"{stem}.{ending}", **options)
    Image.fromarray(mask).save(masks / f"{stem}.png")
    return image, mask > 0


def dis(root, part, name, seed, **options):
    return pair(root / part / "im", root / part / "gt", name, seed, **options)


def load(folder, split="test", **options):
    return load_hres(folder, split, cache_dir=Path(folder).parent / "cache", **options)


def test_all_layouts(tmp_path):
    root = tmp_path / "sam-hq"
    dis(root / "DIS5K", "DIS-TR", "1#Accessories#1#Bag#a", 1)
    dis(root / "DIS5K", "DIS-VD", "4#Architecture#10#Pavilion#b", 2)
    thin = root / "thin_object_detection"
    pair(thin / "ThinObject5K" / "images_train", thin / "ThinObject5K" / "masks_train", "bicycle_PNG5", 3)
    pair(thin / "ThinObject5K" / "images_test", thin / "ThinObject5K" / "masks_test", "electric_guitar_PNG2", 4)
    pair(thin / "COIFT" / "images", thin / "COIFT" / "masks", "bird", 5)  # of HQSeg-44K, not of HRES
    own = tmp_path / "own"
    for i in range(1, 5):
        dis(own / "DIS5K", f"DIS-TE{i}", f"9#Kitchen#{i}#TeaPot#t{i}", 5 + i)
    for stem, seed in (("ant_1", 10), ("bee_2", 11), ("unlisted_3", 12)):
        pair(own / "ThinObject5K" / "images", own / "ThinObject5K" / "masks", stem, seed)
    (own / "ThinObject5K" / "list").mkdir()
    (own / "ThinObject5K" / "list" / "val.txt").write_text("ant_1.jpg\n")
    (own / "ThinObject5K" / "list" / "test.txt").write_text("bee_2.jpg\n\n")
    built = build_hres([root, own], tmp_path / "hres")
    assert built.counts == {"test": 6, "validation": 2, "train": 2}
    assert (built.duplicates, built.skipped) == ({}, {})
    said = {s.id: (s.expression, s.meta["part"]) for split in built.counts for s in load(tmp_path / "hres", split)}
    assert said["dis5k-4#Architecture#10#Pavilion#b"] == ("the pavilion", "DIS-VD")
    assert said["dis5k-9#Kitchen#3#TeaPot#t3"] == ("the tea pot", "DIS-TE3")
    assert said["thinobject5k-electric_guitar_PNG2"] == ("the electric guitar", "test")
    assert said["thinobject5k-ant_1"] == ("the ant", "val")


def test_rows_hold_the_files_own_picture_and_load_plainly(tmp_path):
    from datasets import load_dataset

    _, mask = dis(tmp_path / "DIS5K", "DIS-TE1", "1#A#1#TVStand#a", 1)
    build_hres(tmp_path / "DIS5K", tmp_path / "hres")
    (row,) = load_dataset(str(tmp_path / "hres"), split="test", cache_dir=str(tmp_path / "cache"))
    original = np.asarray(Image.open(tmp_path / "DIS5K" / "DIS-TE1" / "im" / "1#A#1#TVStand#a.jpg"))
    assert (np.asarray(row["image"]) == original).all()
    assert row["image"].format == "JPEG"
    assert ((np.asarray(row["mask"]) == 255) == mask).all()
    assert (row["expression"], row["width"], row["height"], row["clicks_80"]) == ("the TV stand", 80, 60, None)
    for samples in (load(tmp_path / "hres"), load(tmp_path / "hres", streaming=True)):
        (sample,) = samples
        assert (sample.image == original).all()
        assert (sample.target == mask).all()
        assert sample.meta["category"] == "TV stand"


@pytest.mark.parametrize(
    ("stem", "source", "expected"),
    [
        ("4#Architecture#10#Pavilion#5795028920_08884db993_o", "DIS5K", ("architecture", "pavilion")),
        ("2#Aircraft#1#Airplane#x#y", "DIS5K", ("aircraft", "airplane")),
        ("holiday", "DIS5K", ("", "")),
        ("electric_guitar_PNG24", "ThinObject5K", ("", "electric guitar")),
        ("fishing-rod12", "ThinObject5K", ("", "fishing rod")),
        ("0001", "ThinObject5K", ("", "")),
    ],
)
def test_categories_from_names(stem, source, expected):
    assert category_of(stem, source) == expected


def test_words():
    assert [words(name) for name in ("BicycleRack", "TV", "ATMachine", "traffic_light")] == [
        "bicycle rack", "TV", "AT machine", "traffic light",
    ]  # fmt: skip


def test_a_picture_that_is_there_again_is_left_out(tmp_path):
    dis(tmp_path, "DIS-TR", "1#A#1#Bag#same", 1)
    dis(tmp_path, "DIS-TE1", "1#A#1#Bag#same", 1)
    dis(tmp_path, "DIS-TR", "1#A#1#Bag#recoded", 1, quality=60)
    dis(tmp_path, "DIS-VD", "1#A#1#Bag#other", 2)
    image, mask = scene(1)
    half = tmp_path / "DIS-TR"
    Image.fromarray(image).resize((40, 30), Image.Resampling.BOX).save(half / "im" / "1#A#1#Bag#small.png")
    Image.fromarray(mask).resize((40, 30), Image.Resampling.NEAREST).save(half / "gt" / "1#A#1#Bag#small.png")
    built = build_hres(tmp_path, tmp_path / "hres")
    assert built.counts == {"test": 1, "validation": 1}
    assert sorted(built.duplicates) == [f"dis5k-1#A#1#Bag#{name}" for name in ("recoded", "same", "small")]
    assert set(built.duplicates.values()) == {"dis5k-1#A#1#Bag#same"}


def test_faults_stop_the_build_and_leave_nothing(tmp_path):
    dis(tmp_path / "DIS5K", "DIS-TE1", "1#A#1#Bag#a", 1)
    dis(tmp_path / "DIS5K", "DIS-TE1", "1#A#1#Bag#b", 2)
    gt = tmp_path / "DIS5K" / "DIS-TE1" / "gt" / "1#A#1#Bag#b.png"
    Image.fromarray(scene(2)[1].T).save(gt)
    with pytest.raises(DataError, match=r"Bag#b.png' is 60×80 px, but its picture .* says 80×60 px: .* swapped"):
        build_hres(tmp_path / "DIS5K", tmp_path / "hres")
    assert not list((tmp_path / "hres").rglob("*"))


def test_skipping_counts(tmp_path):
    root = tmp_path / "DIS5K"
    for i, name in enumerate("abcdef"):
        dis(root, "DIS-TE1", f"1#A#1#Bag#{name}", i)
    gt, im = root / "DIS-TE1" / "gt", root / "DIS-TE1" / "im"
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(gt / "1#A#1#Bag#b.png")
    Image.fromarray(np.ones((50, 80), np.uint8)).save(gt / "1#A#1#Bag#c.png")
    (gt / "1#A#1#Bag#d.png").unlink()
    (im / "1#A#1#Bag#e.jpg").write_bytes((im / "1#A#1#Bag#e.jpg").read_bytes()[:200])
    soft = cv2.GaussianBlur(scene(5)[1], (9, 9), 0)
    Image.fromarray(soft).save(gt / "1#A#1#Bag#f.png")
    built = build_hres(root, tmp_path / "hres", errors="skip")
    assert built.counts == {"test": 2}
    wrong = {key[-1]: sentence for key, sentence in built.skipped.items()}
    assert sorted(wrong) == ["b", "c", "d", "e"]
    assert "is empty" in wrong["b"]
    assert "must be equal" in wrong["c"]
    assert "no mask" in wrong["d"]
    assert "damaged" in wrong["e"]
    assert (load(tmp_path / "hres")[1].target == (soft >= 128)).all()


def test_names_that_collide_and_folders_without_data(tmp_path):
    dis(tmp_path / "a", "DIS-TE1", "1#A#1#Bag#a", 1)
    dis(tmp_path / "a", "DIS-TE1", "1#A#1#Bag#a", 1, ending="png")
    with pytest.raises(DataError, match="differ only in their ending"):
        build_hres(tmp_path / "a", tmp_path / "hres")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Neither DIS5K nor ThinObject5K was found in"):
        build_hres(tmp_path / "empty", tmp_path / "hres")
    with pytest.raises(DataError, match="no folder"):
        build_hres(tmp_path / "nowhere", tmp_path / "hres")


@pytest.mark.parametrize("kind", ["0 and 1", "1 bit", "palette", "RGBA"])
def test_masks_of_other_makers(tmp_path, kind):
    """Data sets of the same columns may encode their masks otherwise."""
    import datasets

    image, mask = scene(1)
    picture = Image.fromarray((mask > 0).astype(np.uint8) if kind == "0 and 1" else mask)
    if kind == "1 bit":
        picture = picture.convert("1")
    elif kind == "palette":
        picture = Image.fromarray((mask > 0).astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 255, 0, 0])
    elif kind == "RGBA":
        picture.putalpha(Image.fromarray(mask))
    text, pixels = datasets.Value("string"), datasets.Image()
    columns = {"id": text, "image": pixels, "mask": pixels, "expression": text}
    row = {"id": "a", "image": Image.fromarray(image), "mask": picture, "expression": "it"}
    (tmp_path / "other" / "data").mkdir(parents=True)
    datasets.Dataset.from_list([row], features=datasets.Features(columns)).to_parquet(
        tmp_path / "other" / "data" / "test-0.parquet"
    )
    (sample,) = load(tmp_path / "other")
    assert (sample.target == (mask > 0)).all()


def test_limit_and_shards_and_no_overwriting(tmp_path):
    for i in range(6):
        dis(tmp_path / "DIS5K", "DIS-TE1", f"1#A#1#Bag#{i}", i)
    built = build_hres(tmp_path / "DIS5K", tmp_path / "hres", limit=5, shard_bytes=8000)
    assert built.counts == {"test": 5}
    names = sorted(path.name for path in (tmp_path / "hres" / "data").iterdir())
    assert 1 < len(names) <= 5
    assert names[0] == f"test-00000-of-{len(names):05d}.parquet"
    assert [s.id[-1] for s in load(tmp_path / "hres")] == list("01234")
    assert [s.id[-1] for s in load(tmp_path / "hres")[3:]] == ["3", "4"]
    with pytest.raises(DataError, match="already holds a data set"):
        build_hres(tmp_path / "DIS5K", tmp_path / "hres")
    with pytest.raises(DataError, match="has no split 'train'; it has test"):
        load(tmp_path / "hres", "train")


def test_a_full_disk(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    dis(tmp_path / "DIS5K", "DIS-TE1", "1#A#1#Bag#a", 1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"The disk of .* is full"):
        build_hres(tmp_path / "DIS5K", tmp_path / "hres")
    assert not list((tmp_path / "hres").rglob("*"))


class Grower:
    """A segmenter whose mask is a growing share of a known target, so that clicks can be counted."""

    reference = "grower"

    def __init__(self, target, steps):
        self.target, self.steps = target, steps

    def encode(self, image):
        return None

    def predict(self, embedding, states, actions):
        rows = np.flatnonzero(self.target.any(1))
        masks = []
        for state in states:
            share = min(1, (len(state.actions) + 1) / self.steps)
            mask = self.target.copy()
            mask[rows[0] + round(len(rows) * share) :] = False
            masks.append(Prediction(mask))
        return masks


def test_complexity_counts_the_annotators_clicks(tmp_path):
    _, mask = dis(tmp_path / "DIS5K", "DIS-TE1", "1#A#1#Bag#a", 1)
    build_hres(tmp_path / "DIS5K", tmp_path / "ten", segmenter=Grower(mask, 10))
    meta = load(tmp_path / "ten")[0].meta
    assert 6 <= meta["clicks_80"] <= meta["clicks_85"] <= 9
    build_hres(tmp_path / "DIS5K", tmp_path / "hundred", segmenter=Grower(mask, 100))
    assert load(tmp_path / "hundred")[0].meta["clicks_80"] == 20


def test_genuine_pictures(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    built = build_hres(SHARED, tmp_path / "hres")
    bag, pavilion = load(tmp_path / "hres", streaming=True)
    assert built.counts == {"test": 2}
    assert (bag.expression, pavilion.expression) == ("the bag", "the pavilion")
    gt = np.asarray(Image.open(SHARED / "gt" / f"{pavilion.id.removeprefix('dis5k-')}.png"))
    assert (pavilion.target == (gt == 255)).all()
    assert pavilion.size == (2658, 2748)


@pytest.mark.filterwarnings("ignore")
def test_the_card_is_published_and_its_code_runs(tmp_path, hub, capsys):
    hub.tokens["write"] = ("lab", "write")
    dis(tmp_path / "DIS5K", "DIS-TE1", "1#A#1#Bag#a", 1)
    build_hres(tmp_path / "DIS5K", tmp_path / "hres")
    address = push_hres(tmp_path / "hres", "lab/HRES", card=CARD, private=True)
    assert address.startswith(f"{hub.url}/datasets/lab/HRES/commit/")
    assert hub.files("dataset", "lab/HRES") >= {"README.md", "data/test-00000-of-00001.parquet"}
    readme = hub.read("dataset", "lab/HRES", "README.md").decode()
    assert "OWNER" not in readme
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert capsys.readouterr().out.count("the bag") == 2


def test_a_repository_that_is_not_hres_or_not_there(hub, tmp_path):
    from datasets import Dataset

    with pytest.raises(DataError, match="Cannot load ada/nothing: "):
        load_hres("ada/nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Dataset.from_dict({"a": [1]}).push_to_hub("ada/other", split="test")
    with pytest.raises(DataError, match="has no columns image, mask and expression"):
        load_hres("ada/other", "test")
    with pytest.raises(DataError, match=r"Cannot load ada/other: .*train"):
        load_hres("ada/other", "train")


def test_a_row_whose_picture_or_mask_is_absent_or_damaged_is_one_sentence():
    files = {}
    for kind, values in (("png", np.zeros((20, 30, 3), np.uint8)), ("bmp", np.zeros((20, 30), np.uint8))):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, kind)
        files[kind] = buffer.getvalue()
    good = {"id": "a", "expression": "the bag", "image": {"bytes": files["png"], "path": None}}
    good["mask"] = {"bytes": files["bmp"], "path": None}
    assert from_row(good).target.shape == (20, 30)
    for key in ("image", "mask"):
        with pytest.raises(DataError, match=f"has no {key}"):
            from_row({**good, key: None})
        huge = files["bmp"][:18] + (60_000).to_bytes(4, "little") * 2 + files["bmp"][26:]
        for data in (b"", huge, files["png"][:50]):
            with pytest.raises(SegAgentError):
                from_row({**good, key: {"bytes": data, "path": None}})
