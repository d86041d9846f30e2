"""Filtering of a COCO file: what is kept, what is counted, what the report names, and that a killed run ends the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from fakes import FunctionPolicy, disc
from PIL import Image

from segagent import cli
from segagent.data import _coco_file
from segagent.data._coco_file import CocoFile
from segagent.data._coco_samples import CocoSamples, UnusableError
from segagent.errors import DataError, ExpressionError, SegAgentError
from segagent.filter_report import around
from segagent.filtering import filter_annotations
from segagent.masks import to_polygons, to_rle

SIZE = (40, 60)
COCO128 = Path(__file__).parents[1].parent / "shared" / "data" / "coco128"


def uncompressed(mask: np.ndarray) -> dict:
    """COCO's RLE of plain numbers, as its crowds have it."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]])))
    ends = np.concatenate([edges if not flat[-1] else edges[:-1], [flat.size]])
    return {"size": list(SIZE), "counts": np.diff(np.concatenate([[0], ends])).tolist()}


def annotation(number: int, mask: np.ndarray, form=to_polygons, image: int = 1, **fields) -> dict:
    return {
        "id": number, "image_id": image, "category_id": 1, "bbox": [20 * (number % 3 + 1) % 60, 0, 5, 5], "area": float(mask.sum()),
        "iscrowd": 0, "segmentation": form(mask), "note": "é \\ \" | 1e3", **fields,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two grey pictures, a file of six good annotations in three encodings on them, empty and full masks among them."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(tmp_path / "images" / name)
    discs = [disc(SIZE, 10 + 9 * i, 20, 3 + i) for i in range(3)]
    value = {
        "info": {"year": 2014, "description": "brackets ]} in [strings"},
        "licenses": [],
        "images": [
            {"id": 1, "file_name": "a.png", "height": 40, "width": 60, "extra": 1.50},
            {"id": 2, "file_name": "b.png", "height": 40, "width": 60},
        ],
        "annotations": [
            annotation(11, discs[0]),
            annotation(12, discs[1], to_rle),
            annotation(13, discs[2], uncompressed, iscrowd=1),
            annotation(14, np.zeros(SIZE, bool), lambda mask: [], image=2, category_id=2),
            annotation(15, np.ones(SIZE, bool), to_rle, image=2),
            annotation(16, disc(SIZE, 30, 20, 9), image=1, category_id=2),
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    save(tmp_path, value)
    return tmp_path


def save(folder: Path, value: dict) -> None:
    (folder / "coco.json").write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def by_share() -> FunctionPolicy:
    """Says as IoU the share of the picture that the mask covers."""
    return FunctionPolicy(lambda observation: (float(observation.mask.mean()), []))


def work(folder: Path, policy=None, out: str = "out", **options) -> dict:
    return filter_annotations(policy or by_share(), folder / "coco.json", folder / "images", folder / out, **options)


def test_every_encoding_is_scored_and_the_rest_of_the_file_stays_as_it_was(folder):
    counts = work(folder, threshold=0.02)
    assert counts == {"pictures": 2, "annotations": 6, "kept": 4, "removed": 2, "scored": 6, "not scored": 0}
    given, kept, removed = (
        load(p) for p in (folder / "coco.json", folder / "out/filtered.json", folder / "out/removed.json")
    )
    assert [a["id"] for a in kept["annotations"]] == [12, 13, 15, 16]
    assert [a["id"] for a in removed["annotations"]] == [11, 14]
    assert {k: v for k, v in kept.items() if k != "annotations"} == {
        k: v for k, v in given.items() if k != "annotations"
    }
    assert kept["annotations"] == [a for a in given["annotations"] if a["id"] in (12, 13, 15, 16)]
    assert b'"extra": 1.5\n' in (folder / "out/filtered.json").read_bytes()
    report = load(folder / "out/report.json")
    shares = {11: 29, 12: 49, 13: 81, 14: 0, 15: 2400, 16: 253}  # pixels
    assert [number for number, _ in report["ranked"]] == sorted(shares, key=shares.get)
    assert {r["id"]: r["pixels"] for r in report["worst"]} == shares
    assert report["ranked"][-1] == [15, 1.0]
    with Image.open(folder / "out/worst.png") as sheet:
        assert min(sheet.size) > 200


def test_a_small_mask_is_shown_with_what_is_around_it():
    for mask in (
        disc((90, 120), 5, 80, 2),
        disc((90, 120), 60, 40, 60),
        np.zeros((90, 120), bool),
        np.ones((2, 3), bool),
    ):
        rows, columns = around(mask)
        assert mask[rows, columns].sum() == mask.sum()
        assert 0 <= rows.start < rows.stop <= mask.shape[0]
        assert 0 <= columns.start < columns.stop <= mask.shape[1]
    rows, columns = around(disc((90, 120), 5, 80, 2))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (30, 40)


def test_pycocotools_reads_what_is_written(folder):
    from pycocotools.coco import COCO

    work(folder, threshold=0.02)
    coco = COCO(folder / "out/filtered.json")
    assert {a: int(coco.annToMask(coco.anns[a]).sum()) for a in coco.anns} == {12: 49, 13: 81, 15: 2400, 16: 253}


def test_expressions_name_the_category_its_place_or_a_field(folder):
    def said(expression):
        samples = CocoSamples(CocoFile(folder / "coco.json"), folder / "images", expression)
        return [samples.read(number).expression for number in range(6)]

    assert said("category") == ["the dog", "the dog", "the dog", "the cat", "the dog", "the cat"]
    assert said("place") == [
        "the dog on the left",
        "the dog on the right",
        "the group of dogs",
        "the cat",
        "the dog",
        "the cat",
    ]
    assert said("note")[0] == 'é \\ " | 1e3'
    value = load(folder / "coco.json")
    value["annotations"][0]["caption"] = ["a small dog", "the first one"]
    save(folder, value)
    samples = CocoSamples(CocoFile(folder / "coco.json"), folder / "images", "caption")
    assert samples.read(0).expression == "a small dog"
    with pytest.raises(UnusableError, match="no text in its field 'caption'"):
        samples.read(1)


def broken(folder: Path) -> dict:
    """The file with one of every fault; → {kind: ids of the annotations that have it}."""
    value, mask = load(folder / "coco.json"), disc(SIZE, 30, 20, 9)
    value["images"] += [
        {"id": 1, "file_name": "again.png", "height": 40, "width": 60},
        {"id": 3, "file_name": "gone.png", "height": 40, "width": 60},
        {"id": 4, "file_name": "b.png", "height": 41, "width": 60},
        {"id": 5, "file_name": "text.png", "height": 40, "width": 60},
        {"id": 6, "file_name": "no size.png"},
    ]
    (folder / "images" / "text.png").write_text("no picture")
    value["annotations"] += [
        annotation(12, mask),
        annotation(20, mask, image=3),
        annotation(21, mask, image=4),
        annotation(22, mask, image=5),
        annotation(23, mask, image=99),
        annotation(24, mask, image=6),
        annotation(25, mask, lambda m: {"size": [40, 60], "counts": "52203"}),
        annotation(26, mask, lambda m: {"size": [60, 40], "counts": to_rle(m)["counts"]}),
        annotation(27, mask, lambda m: {"size": [100_000, 100_000], "counts": [10_000_000_000]}),
        annotation(28, mask, lambda m: [[1, 1, 5, "x", 9, 9]]),
        annotation(29, mask, lambda m: [[1, 1, 5, 1e9, 9, 9]]),
        annotation(30, mask, lambda m: None),
        annotation(31, mask, lambda m: [[1, 2, 3]]),
        annotation(32, mask, category_id=9),
        7,
    ]  # fmt: skip
    save(folder, value)
    return {
        "duplicate image ids": None,
        "broken image entries": None,
        "duplicate ids": [12],
        "missing pictures": [20],
        "wrong sizes": [21, 26, 27],
        "unreadable pictures": [22],
        "unlisted images": [23, 24, None],
        "broken outlines": [25, 28, 29, 30, 31],
        "no expression": [32],
    }


def test_faults_are_counted_named_and_cost_nothing_else(folder):
    good = work(folder, threshold=0.02)
    kinds = broken(folder)
    counts = work(folder, out="faulty", threshold=0.02)
    assert counts["scored"] == good["scored"]
    assert counts["kept"] == good["kept"]
    assert counts["not scored"] == 15
    report = load(folder / "faulty/report.json")
    assert report["not_scored"].keys() == kinds.keys()
    for kind, ids in kinds.items():
        sentences = report["not_scored"][kind]["which"]
        assert report["not_scored"][kind]["count"] == len(sentences) == len(ids or [1])
        for number in ids or ["mage"]:
            assert any(f"{number}" in sentence for sentence in sentences)
        text = (folder / "faulty/report.md").read_text(encoding="utf-8")
        assert f"{kind}: {len(sentences)}" in text
        assert sentences[0] in text
    both = load(folder / "faulty/filtered.json")["annotations"] + load(folder / "faulty/removed.json")["annotations"]
    assert len(both) == len(load(folder / "coco.json")["annotations"])  # nothing is lost
    with pytest.raises(DataError, match="Image 1 is listed twice"):
        work(folder, out="strict", strict=True)


@pytest.mark.parametrize(("number", "words"), [(20, "'gone.png'"), (25, "RLE"), (32, "category 9")])
def test_strict_stops_at_the_first_fault(folder, number, words):
    broken(folder)
    value = load(folder / "coco.json")
    value["images"] = [i for n, i in enumerate(value["images"]) if n not in (2, 6)]
    value["annotations"] = [a for a in value["annotations"] if a != 7 and a["id"] in (11, number)]
    save(folder, value)
    with pytest.raises(DataError, match=f"Annotation {number}.*{words}"):
        work(folder, strict=True)


def test_a_model_that_says_no_iou_is_counted(folder):
    said = iter([0.5, None, math.nan, 1.5, 0.9, 0.1])
    counts = work(folder, FunctionPolicy(lambda observation: (next(said), [])), batch=1)
    assert (counts["scored"], counts["kept"], counts["not scored"]) == (3, 1, 3)
    assert load(folder / "out/report.json")["not_scored"]["no score"]["count"] == 3


def test_one_that_cannot_be_read_does_not_cost_its_batch(folder):
    class Short:
        def read(self, observations):
            if any(o.id == "coco-15" for o in observations):
                raise ExpressionError("Prompt and answer need too many tokens.")
            return by_share().read(observations)

    counts = work(folder, Short())
    assert (counts["scored"], counts["not scored"]) == (5, 1)
    assert "coco-15" in load(folder / "out/report.json")["not_scored"]["no score"]["which"][0]


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_the_same(folder):
    broken(folder)
    work(folder, out="whole", batch=4)
    policy = by_share()
    read, policy.read = policy.read, None

    def dying(observations):
        if len(policy.batches) == 1:
            raise KilledError
        return read(observations)

    policy.read = dying
    with pytest.raises(KilledError):
        work(folder, policy, batch=4)
    ledger = folder / "out/scores.jsonl"
    complete = ledger.read_bytes()
    ledger.write_bytes(complete + b'{"number": 3, "id": 14, "sc')  # a line cut off in the middle
    resumed = by_share()
    work(folder, resumed, batch=4)
    assert len(resumed.batches) == 1
    for name in ("scores.jsonl", "filtered.json", "removed.json", "worst.png"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    again = by_share()
    counts = work(folder, again, batch=4, threshold=0.5)  # only reads what is there
    assert again.batches == []
    assert counts["kept"] == 1


def test_results_of_other_settings_are_not_mixed(folder):
    work(folder)
    with pytest.raises(DataError, match="other settings"):
        work(folder, expression="category")
    with pytest.raises(DataError, match="other settings"):
        work(folder, identity="another model")


def test_what_is_no_coco_file_is_said_so(folder):
    with pytest.raises(DataError, match="no folder"):
        filter_annotations(by_share(), folder / "coco.json", folder / "none", folder / "out")
    for text, words in (
        ('{"images": [1,', "cut off"),
        ("[1, 2]", "not a JSON object"),
        ('{"a": 1}', "not a COCO file"),
        ('{"images": []} more', "not a JSON object"),
        ("", "not a JSON object"),
    ):
        (folder / "coco.json").write_text(text)
        with pytest.raises(DataError, match=words):
            work(folder)
    with pytest.raises(DataError, match="cannot be read"):
        filter_annotations(by_share(), folder / "none.json", folder / "images", folder / "out")
    with pytest.raises(SegAgentError, match="from 0 to 1"):
        work(folder, threshold=1.5)


def test_a_file_without_annotations_is_no_fault(folder):
    save(folder, {"images": [], "annotations": [], "categories": []})
    assert work(folder)["annotations"] == 0
    assert load(folder / "out/filtered.json") == load(folder / "coco.json")


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_the_file_is_read_in_pieces_of_any_size(folder, piece, monkeypatch):
    whole = CocoFile(folder / "coco.json")
    monkeypatch.setattr(_coco_file, "PIECE", piece)
    coco = CocoFile(folder / "coco.json")
    assert (coco.offsets, coco.lengths, coco.images, coco.digest) == (
        whole.offsets,
        whole.lengths,
        whole.images,
        whole.digest,
    )
    given = load(folder / "coco.json")
    assert [coco.annotation(n) for n in range(6)] == given["annotations"]
    assert coco.numbers_of(1) == [0, 1, 2, 5]
    for kept in (set(), {0}, {5}, {1, 3}, set(range(6))):
        coco.write(folder / "copy.json", kept.__contains__)
        copied = load(folder / "copy.json")
        assert copied["annotations"] == [a for n, a in enumerate(given["annotations"]) if n in kept]
        assert {**copied, "annotations": 0} == {**given, "annotations": 0}
    assert (folder / "copy.json").read_bytes() == (folder / "coco.json").read_bytes()


def test_the_window_on_a_large_file_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(_coco_file, "PIECE", 4096)
    value = {"images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}], "annotations": []}
    value["annotations"] = [{"id": i, "image_id": 1, "segmentation": [[i] * 40]} for i in range(3000)]
    (tmp_path / "coco.json").write_text(json.dumps(value))
    sizes = []
    plain = _coco_file._Text.more
    monkeypatch.setattr(_coco_file._Text, "more", lambda self: (plain(self), sizes.append(len(self.text)))[0])
    assert len(CocoFile(tmp_path / "coco.json")) == 3000
    assert (tmp_path / "coco.json").stat().st_size > 40 * max(sizes)


def test_the_command(folder, monkeypatch, capsys):
    from segagent import SegAgent
    from segagent.segmenters.grabcut import GrabCutSegmenter

    agent = SegAgent(by_share(), GrabCutSegmenter())
    monkeypatch.setattr(SegAgent, "from_pretrained", lambda *args, **options: agent)
    arguments = ["filter", str(folder / "coco.json"), "--images", str(folder / "images"), "--out", str(folder / "out")]
    assert cli.main([*arguments, "--threshold", "0.02"]) == 0
    assert "4 kept, 2 removed" in capsys.readouterr().out
    assert "segagent-nano" in load(folder / "out/report.json")["policy"]
    assert cli.main([*arguments, "--threshold", "7"]) == 2
    assert cli.main(["filter", "none.json", *arguments[2:]]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if "segagent: There is no file 'none.json'" in line]


def test_real_annotations_are_copied_byte_by_byte(tmp_path):
    if not COCO128.is_dir():
        pytest.skip("../shared/data is absent")
    path = COCO128 / "annotations/instances_train2017.json"
    coco = CocoFile(path)
    coco.write(tmp_path / "copy.json", lambda number: True)
    assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()
    samples = CocoSamples(coco, COCO128 / "images")
    for number in (0, 1, 2):
        sample = samples.read(number)
        area = coco.annotation(number)["area"]
        assert abs(sample.target.sum() - area) <= 0.1 * area + 10
