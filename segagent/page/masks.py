"""The tabs for masks that are there already: one is scored and repaired, or a whole COCO file is ranked."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
import numpy as np

from segagent import drawing
from segagent.data._coco_file import CocoFile
from segagent.data._coco_samples import CocoSamples
from segagent.errors import DataError, SegAgentError
from segagent.export import png
from segagent.images import load_image, load_mask
from segagent.masks import box_of
from segagent.page import film, scripts
from segagent.page.events import PRIVATE, read, saved, told
from segagent.page.files import checked
from segagent.page.runs import Runs

SLOW: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "api", **PRIVATE}
MOST_ANNOTATIONS = 300  # on the page; the command line takes files larger than memory
MOST_BYTES = 500_000_000  # of a ZIP, unpacked
SHOWN = 48  # of the ranked annotations
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class RefineTab:
    """A picture, words and a mask in; the score of the mask and a better mask out."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def fail(self, _: Any, sentence: str) -> dict:
        return {self.note: film.note(sentence, "bad")}

    def _given(self, image: str | None, expression: str, mask: str | None) -> tuple[np.ndarray, np.ndarray]:
        if not image or not mask:
            raise SegAgentError("Give a picture and its mask first.")
        pixels = checked(read(load_image, image))
        return pixels, read(load_mask, mask, pixels.shape[:2])

    @told
    def on_score(self, image: str | None, expression: str, mask: str | None) -> Iterator[dict]:
        pixels, given = self._given(image, expression, mask)
        yield {self.note: film.note("Looking …")}
        score = self.runs.score(pixels, expression, given)
        words = "keep it" if score >= 0.8 else "look at it again" if score >= 0.5 else "it is probably wrong"
        yield {
            self.before: _shown(pixels, given, f"Your mask: predicted IoU {score:.2f}"),
            self.after: "",
            self.note: film.note(f"The model gives your mask {score:.2f}: {words}."),
            self.result: None,
        }

    @told
    def on_refine(self, image: str | None, expression: str, mask: str | None, steps: int) -> Iterator[dict]:
        pixels, given = self._given(image, expression, mask)
        yield {self.note: film.note("Looking …")}
        result = self.runs.refine(pixels, expression, given, int(steps))
        first, now = result.trajectory.predicted_ious[0], result.predicted_iou
        same = bool((result.mask == given).all())
        words = "It finds no better mask than yours." if same else "Repaired: save it if you agree."
        yield {
            self.before: _shown(pixels, given, f"Before: predicted IoU {film.number(first)}"),
            self.after: _shown(
                pixels, result.mask, f"After {len(result.trajectory.steps)} clicks: predicted IoU {film.number(now)}"
            ),
            self.note: film.note(words),
            self.result: saved(f"{Path(image or 'picture').stem[:80]}-refined.png", png(result.mask)),
        }

    def layout(self) -> None:
        gr.HTML(
            '<p class="help">Is a mask right, and can it be made better? Give a picture, its mask and what it should show.</p>'
        )
        with gr.Row():
            self.image = gr.File(label="Picture", file_types=["image"], height=150, elem_id="refine-image")
            self.mask = gr.File(
                label="Mask (black and white PNG, or COCO RLE)",
                file_types=["image", ".json"],
                height=150,
                elem_id="refine-mask",
            )
        with gr.Row():
            self.expression = gr.Textbox(
                label="What the mask shows", placeholder="e.g. the red cup", max_lines=1, elem_id="refine-expression"
            )
            self.steps = gr.Slider(1, 20, 7, step=1, label="Most clicks of a repair")
        with gr.Row(elem_classes="files"):
            self.score = gr.Button("Score", elem_id="refine-score")
            self.refine = gr.Button("Repair", variant="primary", elem_id="refine-run")
            self.save = gr.Button("↓ PNG of the repaired mask", elem_id="refine-save")
        self.note = gr.HTML(film.note(""), elem_id="refine-note")
        with gr.Row():
            self.before, self.after = (
                gr.HTML("", elem_id="before", min_width=300),
                gr.HTML("", elem_id="after", min_width=300),
            )
        self.result = gr.JSON(visible=False)

    def events(self) -> None:
        shows = [self.before, self.after, self.note, self.result]
        given = [self.image, self.expression, self.mask]
        self.score.click(self.on_score, given, shows, **SLOW)
        self.refine.click(self.on_refine, [*given, self.steps], shows, **SLOW)
        self.save.click(None, self.result, js=scripts.DOWNLOAD_JS, **PRIVATE)


class FilterTab:
    """A COCO file and a ZIP of its pictures in; a gallery, the worst first, and the file without the bad ones out."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def fail(self, _: Any, sentence: str) -> dict:
        return {self.note: film.note(sentence, "bad")}

    @told
    def on_run(self, annotations: str | None, archive: str | None, threshold: float) -> Iterator[dict]:
        if not annotations or not archive:
            raise SegAgentError("Give a COCO file and a ZIP of its pictures first.")
        yield {self.note: film.note("Reading and scoring …"), self.gallery: "", self.result: None}
        with tempfile.TemporaryDirectory() as folder:
            unpack(archive, Path(folder) / "images")
            coco = read(lambda path: CocoFile(Path(path)), annotations)
            if len(coco) > MOST_ANNOTATIONS:
                raise DataError(
                    f"The file has {len(coco)} annotations, over {MOST_ANNOTATIONS}: use `python -m segagent filter` for it."
                )
            out = Path(folder) / "out"
            self.runs.filter(Path(annotations), Path(folder) / "images", out, threshold, SHOWN)
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            samples = CocoSamples(coco, Path(folder) / "images")
            cards = "".join(_card(samples, record, threshold) for record in report["worst"])
            data = (out / "filtered.json").read_bytes()
        counts, faults = report["counts"], [w for entry in report["not_scored"].values() for w in entry["which"]]
        words = f"{counts['kept']} of {counts['annotations']} annotations reach {threshold:.2f}; the worst come first."
        if faults:
            words += f" {len(faults)} could not be scored, e.g. {faults[0]}"
        yield {
            self.note: film.note(words),
            self.gallery: f'<div class="gallery">{cards}</div>',
            self.result: saved("filtered.json", data),
        }

    def layout(self) -> None:
        gr.HTML(
            '<p class="help">Which annotations of a data set are wrong? Each is scored by the model; uploads are deleted within the hour.</p>'
        )
        with gr.Row():
            self.annotations = gr.File(label="COCO file", file_types=[".json"], height=150, elem_id="filter-file")
            self.archive = gr.File(
                label="ZIP of its pictures", file_types=[".zip"], height=150, elem_id="filter-images"
            )
        self.threshold = gr.Slider(0, 1, 0.8, step=0.05, label="Keep what reaches this predicted IoU")
        with gr.Row(elem_classes="files"):
            self.run = gr.Button("Rank", variant="primary", elem_id="filter-run")
            self.save = gr.Button("↓ Filtered COCO file", elem_id="filter-save")
        self.note = gr.HTML(film.note(""), elem_id="filter-note")
        self.gallery = gr.HTML("", elem_id="filter-gallery")
        self.result = gr.JSON(visible=False)

    def events(self) -> None:
        given = [self.annotations, self.archive, self.threshold]
        self.run.click(self.on_run, given, [self.note, self.gallery, self.result], **SLOW)
        self.save.click(None, self.result, js=scripts.DOWNLOAD_JS, **PRIVATE)


def unpack(archive: str, folder: Path) -> None:
    """The pictures of a ZIP, by their names within it, and nothing else. Raises DataError."""
    try:
        with zipfile.ZipFile(archive) as files:
            pictures = [i for i in files.infolist() if PurePosixPath(i.filename).suffix.lower() in _PICTURES]
            if not pictures:
                raise DataError(f"{Path(archive).name!r} holds no pictures: give a ZIP of PNG or JPEG files.")
            if sum(info.file_size for info in pictures) > MOST_BYTES:
                raise DataError(
                    f"{Path(archive).name!r} unpacks to over {MOST_BYTES // 10**6} MB: use the command line for it."
                )
            for info in pictures:
                files.extract(info, folder)  # zipfile keeps every name inside the folder
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{Path(archive).name!r} is no ZIP that can be read: {error}.") from error


def _shown(image: np.ndarray, mask: np.ndarray, words: str) -> str:
    url = drawing.data_url(drawing.picture(image, mask, longest=720))
    return f'<figure class="shown"><img src="{url}" alt="{escape(words)}"><figcaption>{escape(words)}</figcaption></figure>'


def _card(samples: CocoSamples, record: dict[str, Any], threshold: float) -> str:
    """One annotation, cut out with some room around it."""
    sample = samples.read(record["number"])
    x0, y0, x1, y1 = box_of(sample.target) or (0, 0, sample.size[1] - 1, sample.size[0] - 1)
    room = max(x1 - x0, y1 - y0) // 4 + 8
    window = np.s_[max(0, y0 - room) : y1 + room, max(0, x0 - room) : x1 + room]
    url = drawing.data_url(drawing.picture(sample.image[window], sample.target[window], longest=220), 80)
    kept = "keep" if record["score"] >= threshold else "remove"
    words = f"{sample.expression}, annotation {record['id']}"
    return (
        f'<figure class="{kept}"><img src="{url}" alt="{escape(words)}"><figcaption><b>{record["score"]:.2f}</b> {kept}<br>'
        f"{escape(words)}</figcaption></figure>"
    )
