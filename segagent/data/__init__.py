"""Data: the procedural HRES-Synth, and readers of the public sets. Each loads at its first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    **dict.fromkeys(("hres_synth", "make_scene", "expressions", "vocabulary"), "synth"),
    **dict.fromkeys(("build_hres_synth", "push_hres_synth"), "synth_shards"),
    "read_refer": "refer",
    "read_coco": "coco",
    "read_reasonseg": "reasonseg",
    "read_folder": "folder",
    **dict.fromkeys(("build_hres", "load_hres", "push_hres"), "hres"),
    **dict.fromkeys(("read_official_trajectories", "write_official_trajectories"), "official"),
    **dict.fromkeys(("evaluate_predictions", "read_predictions", "write_predictions"), "predictions"),
    **dict.fromkeys(("load_trajectories", "open_source"), "sources"),
    "export_chat": "chat",
    "main": "cli",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from segagent.data.chat import export_chat
    from segagent.data.cli import main
    from segagent.data.coco import read_coco
    from segagent.data.folder import read_folder
    from segagent.data.hres import build_hres, load_hres, push_hres
    from segagent.data.official import read_official_trajectories, write_official_trajectories
    from segagent.data.predictions import evaluate_predictions, read_predictions, write_predictions
    from segagent.data.reasonseg import read_reasonseg
    from segagent.data.refer import read_refer
    from segagent.data.sources import load_trajectories, open_source
    from segagent.data.synth import expressions, hres_synth, make_scene, vocabulary
    from segagent.data.synth_shards import build_hres_synth, push_hres_synth


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'segagent.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"segagent.data.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
