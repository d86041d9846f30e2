"""Interactive segmenters (F_iter), one file a back end, behind one Protocol. `load_segmenter` makes one from its name."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from segagent.errors import SegmenterError
from segagent.segmenters.base import EmbeddingCache, Prediction, Segmenter

__all__ = ["EmbeddingCache", "Prediction", "Segmenter", "load_segmenter"]


class _BackEnd(NamedTuple):
    """Where a back end is; imported at its first use."""

    module: str
    class_name: str
    weights: str = ""  # what comes after "name:"; none where it has no weights
    embedded: bool = False  # the name alone will do: some weights come with the package

    def form(self, name: str) -> str:
        """How a reader would write it."""
        return f"{name}[:{self.weights}]" if self.embedded else f"{name}:{self.weights}" if self.weights else name


_BACK_ENDS = {
    "grabcut": _BackEnd("grabcut", "GrabCutSegmenter"),
    "sam": _BackEnd("sam", "SamSegmenter", "<repository or folder>"),
    "segment-anything": _BackEnd("segment_anything", "SegmentAnythingSegmenter", "<vit_b|vit_l|vit_h>:<file.pth>"),
    "simpleclick": _BackEnd("simpleclick", "SimpleClickSegmenter", "<file.pth, repository or folder>"),
    "clicknet": _BackEnd("clicknet", "ClickNetSegmenter", "<repository or folder>", embedded=True),
}
# model_type of a transformers config.json → the back end that runs it
_MODEL_TYPES = {
    **dict.fromkeys(("sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker", "sam3_tracker_video", "sam3_video"), "sam"),
    "clicknet": "clicknet",
    "simpleclick": "simpleclick",
    "segment-anything": "segment-anything",
}


def load_segmenter(name_or_path: str = "grabcut", *, device: str | None = None, **options: Any) -> Segmenter:
    """The segmenter that a string names: a back end ("grabcut", "clicknet", "sam:facebook/sam-vit-base",
    "segment-anything:vit_b:sam_vit_b.pth"), or a bare folder, repository or file of weights, whose kind is looked up.

    `device` is where those with weights run; `options` go to the back end's constructor. The result's `.reference` is the string that makes it again.
    Raises SegmenterError.
    """
    name, _, path = str(name_or_path).strip().partition(":")
    if name not in _BACK_ENDS:
        name, path = _resolve(str(name_or_path).strip())
    back_end = _BACK_ENDS[name]
    if path and not back_end.weights:
        raise SegmenterError(f"The segmenter {name} has no weights to load: write {name} alone, not {name_or_path!r}.")
    if back_end.weights and not path and not back_end.embedded:
        raise SegmenterError(f"The segmenter {name_or_path!r} lacks its weights: write {back_end.form(name)}.")
    segmenter = getattr(importlib.import_module(f"{__name__}.{back_end.module}"), back_end.class_name)
    if not back_end.weights:
        return segmenter(**options)
    if device is not None:
        options["device"] = device
    return segmenter.from_pretrained(path, **options) if path else segmenter.from_pretrained(**options)


def _resolve(name_or_path: str) -> tuple[str, str]:
    """(back end, what comes after its colon) of a bare folder, repository or file. Raises SegmenterError."""
    path = Path(name_or_path).expanduser()
    if path.suffix in (".pth", ".pt"):
        size = re.search(r"vit_[blh](?![a-z])", path.name.lower())  # SimpleClick's are named …vit_base, vit_large, …
        if size is None:
            raise SegmenterError(f"Which model {path.name} is cannot be told from its name: write {_forms()}.")
        return "segment-anything", f"{size[0]}:{name_or_path}"
    if name_or_path and path.is_dir():
        config = path / "config.json"
    elif name_or_path.count("/") == 1 and not path.is_absolute() and " " not in name_or_path:
        config = _hub_config(name_or_path)
    else:
        raise SegmenterError(f"There is no segmenter named {name_or_path!r}: write {_forms()}.")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        kind = settings.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise SegmenterError(f"{name_or_path} has no readable config.json: give a transformers checkpoint.") from error
    if kind not in _MODEL_TYPES:
        raise SegmenterError(
            f"{name_or_path} holds a model of type {kind!r}; segmenters are of type {', '.join(sorted(_MODEL_TYPES))}."
        )
    size = f"{settings.get('size')}:" if kind == "segment-anything" else ""
    return _MODEL_TYPES[kind], f"{size}{name_or_path}"


def _hub_config(repository: str) -> Path:
    """The config.json of a repository on the Hub, from the cache where it is there. Raises SegmenterError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "config.json"))
    except (OSError, ValueError) as error:  # the Hub's errors, those of the network and of malformed names
        raise SegmenterError(
            f"No segmenter {repository!r} here or on the Hub ({type(error).__name__}): write {_forms()}."
        ) from error


def _forms() -> str:
    """The known back ends, as a reader would write them."""
    forms = [back_end.form(name) for name, back_end in _BACK_ENDS.items()]
    return f"{', '.join(forms[:-1])} or {forms[-1]}"
