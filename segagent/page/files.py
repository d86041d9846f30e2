"""What leaves the page as files, and the session file that brings everything back. No gradio here."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import replace
from typing import Any

from segagent import drawing
from segagent.errors import DataError, ImageError, SegAgentError
from segagent.export import png, trajectory_from_json, trajectory_to_json
from segagent.images import load_image
from segagent.masks import box_of, from_rle, to_polygons, to_rle
from segagent.page.desk import COLORS, MOST_OBJECTS, Board, Thing
from segagent.page.markup import done, number
from segagent.page.models import on_a_space
from segagent.page.session import Moment, Session
from segagent.types import Sample, State

EXPORTS = {
    "PNG": "mask.png",
    "COCO": "coco.json",
    "Polygons": "polygons.json",
    "GIF": "run.gif",
    "Trajectory": "trajectory.json",
    "Session": "session.zip",
}
MOST_PIXELS = 16_000_000  # of a picture: every session keeps a mask of its size for every click
MOST_SHARED = 4_000_000  # of one on a Space, whose memory is shared by many sessions
FORMAT, VERSION = "segagent-session", 1
_MOST_BYTES = 300_000_000  # of a session file, unpacked


def file_of(board: Board, kind: str, segmenter: str) -> tuple[str, bytes]:
    """(name, content) of a file of `kind` (see EXPORTS); `segmenter` is the reference of the one in use. Raises DataError."""
    if kind == "Trajectory":
        name, data = EXPORTS[kind], _json(trajectory_to_json(board.session.trajectory(), segmenter))
    elif kind == "Session":
        name, data = EXPORTS[kind], _session(board, segmenter)
    else:
        name, data = {"PNG": _masks, "COCO": _coco, "Polygons": _polygons, "GIF": _gif}[kind](board)
    return _file_name(f"{board.session.sample.id or 'picture'}-{name}"), data


def _file_name(words: str) -> str:
    return re.sub(r"[^\w.-]+", "-", words)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _masks(board: Board) -> tuple[str, bytes]:
    """The mask as PNG; of several objects one each, in a ZIP."""
    if len(board.things) == 1:
        return EXPORTS["PNG"], png(board.session.state.mask)
    files = {
        f"{i}-{_file_name(thing.title)[:60]}.png": png(thing.session.state.mask)
        for i, thing in enumerate(board.things, 1)
    }
    return "masks.zip", _zip(files)


def _coco(board: Board) -> tuple[str, bytes]:
    """A COCO file of one picture: a category for each name, an annotation with its mask as RLE for each object."""
    sample = board.session.sample
    names = list(dict.fromkeys(thing.title for thing in board.things))
    annotations = []
    for i, thing in enumerate(board.things, 1):
        mask, moment = thing.session.state.mask, thing.session.shown
        x0, y0, x1, y1 = box_of(mask) or (0, 0, -1, -1)
        annotations.append(
            {
                "id": i,
                "image_id": 1,
                "category_id": names.index(thing.title) + 1,
                "segmentation": to_rle(mask),
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
                "iscrowd": 0,
                "caption": thing.session.sample.expression,
                "score": moment.predicted_iou,
            }
        )
    image = {"id": 1, "file_name": f"{sample.id or 'picture'}.png", "height": sample.size[0], "width": sample.size[1]}
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return EXPORTS["COCO"], _json({"images": [image], "categories": categories, "annotations": annotations})


def _polygons(board: Board) -> tuple[str, bytes]:
    """COCO polygons of each object's outer contours."""
    objects = [{"name": t.title, "segmentation": to_polygons(t.session.state.mask)} for t in board.things]
    return EXPORTS["Polygons"], _json({"size": list(board.session.sample.size), "objects": objects})


def _gif(board: Board) -> tuple[str, bytes]:
    """The active object's run up to the shown state. Raises DataError where nothing has happened yet."""
    session = board.session
    moments = session.moments[: session.position + 1]
    if len(moments) < 2:
        raise DataError("There is no run to show yet: press Run, or click on the picture, first.")
    color = tuple(bytes.fromhex(board.thing.color[1:]))
    frames = [drawing.picture(m.state.image, m.state.mask, m.state.actions, longest=480, color=color) for m in moments]
    captions = [
        f"{i}  {done(m)}   predicted {number(m.predicted_iou)}   true {number(m.iou)}".replace("−", "-").replace(
            "–", "-"
        )
        for i, m in enumerate(moments)
    ]
    return EXPORTS["GIF"], drawing.animation(frames, captions)


def _session(board: Board, segmenter: str) -> bytes:
    objects = []
    for thing in board.things:
        session = thing.session
        steps = len(session.moments) > 1 or session.shown.closing is not None
        objects.append(
            {
                "name": thing.name,
                "color": thing.color,
                "expression": session.sample.expression,
                "target": None if session.sample.target is None else to_rle(session.sample.target),
                "start": to_rle(session.moments[0].state.mask),
                "run": trajectory_to_json(session.trajectory(whole=True), segmenter) if steps else None,
                "predicted": [m.predicted_iou for m in session.moments],
                "position": session.position,
            }
        )
    value = {
        "format": FORMAT,
        "version": VERSION,
        "id": board.session.sample.id,
        "active": board.active,
        "objects": objects,
    }
    return _zip({"picture.png": png(board.session.sample.image), "session.json": _json(value)})


def restore(data: bytes) -> Board:
    """The board that a session file holds, with all its histories. Raises DataError and the like."""
    image, value = _unpacked(data)
    objects = value.get("objects")
    if value.get("format") != FORMAT or not isinstance(objects, list) or not 0 < len(objects) <= MOST_OBJECTS:
        raise DataError("This is no session file of this page: save one with “Session” first.")
    if value.get("version") != VERSION:
        raise DataError(f"The session file is of version {value.get('version')!r}; this page reads version {VERSION}.")
    try:
        things = tuple(_thing(entry, image, str(value.get("id", ""))[:80]) for entry in objects)
        return Board(things).select(int(value["active"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, SegAgentError):
            raise
        raise DataError(f"The session file is damaged: {error!r}.") from error


def _thing(entry: dict[str, Any], image: Any, name: str) -> Thing:
    target = None if entry["target"] is None else from_rle(entry["target"])
    sample = Sample(image, str(entry["expression"])[:1000], target, id=name)
    session = Session.begin(sample, from_rle(entry["start"]))
    if entry["run"] is not None:
        transitions = trajectory_from_json(entry["run"], image).transitions
        first: State = transitions[0].state
        session = replace(session, moments=(Moment(first, iou=session.shown.iou),))
        for transition in transitions:
            session = session.after(transition)
    moments = [replace(m, predicted_iou=p) for m, p in zip(session.moments, entry["predicted"], strict=True)]
    session = replace(session, moments=tuple(moments)).go(int(entry["position"]))
    return Board((Thing(session, color=COLORS[0]),)).rename(str(entry["name"])).paint(str(entry["color"])).thing


def _unpacked(data: bytes) -> tuple[Any, dict[str, Any]]:
    """(the picture, what is said of it). Raises DataError, ImageError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
                raise DataError("The session file is far too large unpacked: it was not saved by this page.")
            picture, text = archive.read("picture.png"), archive.read("session.json")
        value = json.loads(text)
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RecursionError) as error:
        if isinstance(error, SegAgentError):
            raise
        raise DataError("This is no session file of this page: save one with “Session” first.") from error
    if not isinstance(value, dict):
        raise DataError("This is no session file of this page: save one with “Session” first.")
    return checked(load_image(picture)), value


def checked(image: Any) -> Any:
    """A picture (H, W, 3) that the page can work with. Raises ImageError."""
    most = MOST_SHARED if on_a_space() else MOST_PIXELS
    if image.shape[0] * image.shape[1] > most:
        raise ImageError(
            f"The picture is {image.shape[1]}×{image.shape[0]} px, over {most // 10**6} million: scale it down, "
            "or use the command line."
        )
    return image


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
