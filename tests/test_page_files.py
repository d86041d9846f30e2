"""Files that leave the page, and the session file that brings everything back."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from fakes import BrushSegmenter, disc_sample, scripted
from PIL import Image
from pycocotools.coco import COCO

from segagent.environment import Environment
from segagent.errors import DataError, ImageError, SegAgentError
from segagent.export import png, replay
from segagent.masks import from_polygons, from_rle
from segagent.page import files
from segagent.page.desk import Board
from segagent.page.files import file_of, restore
from segagent.page.session import act, play
from segagent.types import Box, Click

SCRIPT = scripted((0.1, Click(15, 15)), (0.6, Box(20, 8, 30, 20)), (0.8, None))


@pytest.fixture
def board() -> Board:
    """Two objects: an agent's finished run with one step undone, and a person's click."""
    environment = Environment(BrushSegmenter())
    first = Board.begin(disc_sample())
    *_, ran = play(first.session, environment, SCRIPT)
    two = first.put(ran.undo()).rename("my disc").add()
    return two.put(act(two.session.ask("a corner"), environment, Click(2, 2), SCRIPT))


def test_masks_of_one_and_of_several(board):
    name, data = file_of(board.remove(0), "PNG", "grabcut")
    assert name == "disc-mask.png"
    assert ((np.asarray(Image.open(io.BytesIO(data))) > 0) == board.session.state.mask).all()
    name, data = file_of(board, "PNG", "grabcut")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["1-my-disc.png", "2-a-corner.png"]
        mask = np.asarray(Image.open(io.BytesIO(archive.read("2-a-corner.png")))) > 0
    assert (mask == board.session.state.mask).all()


def test_coco_is_read_by_pycocotools(board, tmp_path):
    name, data = file_of(board, "COCO", "grabcut")
    (tmp_path / name).write_bytes(data)
    coco = COCO(tmp_path / name)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["my disc", "a corner"]
    for thing, annotation in zip(board.things, coco.loadAnns(coco.getAnnIds()), strict=True):
        assert (coco.annToMask(annotation) == thing.session.state.mask).all()
        x, y, width, height = annotation["bbox"]
        assert thing.session.state.mask[y : y + height, x : x + width].sum() == annotation["area"]
    assert coco.loadAnns(2)[0]["caption"] == "a corner"


def test_polygons_of_all_objects(board):
    value = json.loads(file_of(board, "Polygons", "grabcut")[1])
    assert [o["name"] for o in value["objects"]] == ["my disc", "a corner"]
    for thing, entry in zip(board.things, value["objects"], strict=True):
        assert (from_polygons(entry["segmentation"], (40, 50)) == thing.session.state.mask).all()


def test_the_animation_has_a_frame_a_step_and_stops_where_one_stands(board):
    movie = Image.open(io.BytesIO(file_of(board.select(0), "GIF", "grabcut")[1]))
    assert movie.n_frames == 2
    with pytest.raises(DataError, match="no run to show"):
        file_of(board.add(), "GIF", "grabcut")


def test_the_trajectory_replays_to_the_identical_mask(board):
    value = json.loads(file_of(board.select(0), "Trajectory", "fake:brush")[1])
    again = replay(value, board.session.sample.image, BrushSegmenter())
    assert (again.states[-1].mask == board.select(0).session.state.mask).all()


def test_a_session_comes_back_whole(board):
    back = restore(file_of(board.select(0), "Session", "fake:brush")[1])
    assert (back.active, [t.name for t in back.things]) == (0, ["my disc", ""])
    assert [t.color for t in back.things] == [t.color for t in board.things]
    for old, new in zip(board.things, back.things, strict=True):
        assert new.session.position == old.session.position
        assert new.session.sample.expression == old.session.sample.expression
        for a, b in zip(old.session.moments, new.session.moments, strict=True):
            assert (a.state.mask == b.state.mask).all()
            assert a.state.actions == b.state.actions
            assert (a.predicted_iou, a.iou) == (b.predicted_iou, b.iou)
    assert (back.session.redo().state.mask == board.select(0).session.redo().state.mask).all()
    assert back.session.redo().shown.closing.end == "stop"
    assert file_of(back, "Session", "fake:brush")[1][:4] == b"PK\x03\x04"
    gone_on = act(back.session, Environment(BrushSegmenter()), Click(40, 30))
    assert gone_on.trajectory().states[-1].actions[-1] == Click(40, 30)


def test_an_untouched_session_comes_back_too():
    sample = disc_sample()
    back = restore(file_of(Board.begin(sample, sample.target), "Session", "x")[1])
    assert (back.session.state.mask == sample.target).all()
    assert (back.session.sample.target == sample.target).all()
    assert len(back.session.moments) == 1


def packed(value: object, picture: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", picture or png(np.zeros((40, 50, 3), np.uint8)))
        archive.writestr("session.json", value if isinstance(value, str) else json.dumps(value))
    return buffer.getvalue()


def test_files_that_are_no_session_are_refused(board, monkeypatch):
    _, value = files._unpacked(file_of(board, "Session", "x")[1])
    entry = value["objects"][0]
    for bad in (
        b"nothing",
        packed("{"),
        packed("[]"),
        packed({"format": "other"}),
        packed({**value, "objects": []}),
        packed({**value, "objects": [{}]}),
        packed({**value, "active": 7}),
        packed({**value, "version": 9}),
        packed({**value, "objects": [{**entry, "color": "url(x)"}]}),
        packed({**value, "objects": [{**entry, "predicted": []}]}),
        packed({**value, "objects": [{**entry, "start": {"size": [1, 1], "counts": "1"}}]}),
    ):
        with pytest.raises(SegAgentError):
            restore(bad)
    with pytest.raises(ImageError):
        restore(packed(value, b"no picture"))
    monkeypatch.setattr(files, "_MOST_BYTES", 10)
    with pytest.raises(DataError, match="far too large"):
        restore(packed(value))


def test_names_of_files_are_harmless(board):
    evil = board.put(replace(board.session, sample=replace(board.session.sample, id="../../a b\n")))
    assert file_of(evil, "COCO", "x")[0] == "..-..-a-b--coco.json"
    assert from_rle(json.loads(file_of(evil, "COCO", "x")[1])["annotations"][0]["segmentation"]).any()
