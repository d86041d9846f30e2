"""What the command line says and writes of a run: checked before any work, written when it is done."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segagent.errors import SegAgentError

if TYPE_CHECKING:
    from segagent.agent import SegAgent
    from segagent.result import Result
    from segagent.types import Transition

ENDS = {
    "stop": "the mask is right",
    "steps": "no steps left",
    "malformed": "no valid answer came",
    "converged": "no more gain in sight",
}


def check_outputs(options: argparse.Namespace) -> dict[str, str]:
    """The files to write, by option. Raises SegAgentError before any work where one could not be written or is an input."""
    formats = {"out": (".png", ".json"), "overlay": (".png",), "trajectory": (".json",), "tree": (".json",)}
    outputs = {name: getattr(options, name) for name in formats if getattr(options, name) is not None}
    if not outputs and not options.json:
        raise SegAgentError("Nothing would keep the mask: say where it should go, --out mask.png, or ask for --json.")
    taken = {os.path.realpath(path): "an input" for path in (options.image, options.mask) if path not in (None, "-")}
    for name, path in outputs.items():
        real = os.path.realpath(path)
        if Path(path).suffix.lower() not in formats[name]:
            raise SegAgentError(f"--{name} writes {' or '.join(formats[name])}; got {path!r}.")
        if not os.path.isdir(os.path.dirname(real)):
            raise SegAgentError(f"--{name} {path!r}: there is no folder {os.path.dirname(real)!r}, make it first.")
        if os.path.isdir(real):
            raise SegAgentError(f"--{name} {path!r} is a folder: name a file.")
        if real in taken:
            raise SegAgentError(f"--{name} {path!r} is also {taken[real]}: give it another name.")
        taken[real] = f"--{name}"
    return outputs


def in_words(number: int, transition: Transition) -> str:
    """One step in words."""
    from segagent.types import Box, Click

    action = transition.action
    if isinstance(action, Click):
        what = f"{'positive' if action.positive else 'negative'} click at ({action.x:.0f}, {action.y:.0f})"
    elif isinstance(action, Box):
        what = f"box ({action.x0:.0f}, {action.y0:.0f}) to ({action.x1:.0f}, {action.y1:.0f})"
    else:
        what = ENDS[transition.end] if transition.end else "undo"
        if transition.end == "stop" and not transition.state.mask.any():
            what = "nothing in the picture is meant"
    quality = "" if transition.predicted_iou is None else f"   (predicted IoU before: {transition.predicted_iou:.2f})"
    return f"{number}. {what}{quality}"


def summary(result: Result) -> dict[str, Any]:
    """What --json prints: mask (COCO RLE), polygons (px), predicted_iou, end, steps and segmenter."""
    saved = result.to_json()
    actions = [
        {
            key: value
            for key, value in step.items()
            if key not in ("mask", "iou_before", "iou_after") and value is not None
        }
        for step in saved["trajectory"]["steps"]
    ]
    return {
        "mask": saved["mask"],
        "polygons": result.polygons(),
        "predicted_iou": saved["predicted_iou"],
        "end": result.trajectory.end,
        "steps": actions,
        "segmenter": result.segmenter,
    }


def write_outputs(result: Result, outputs: dict[str, str], agent: SegAgent) -> None:
    """The files that were asked for. Raises SegAgentError."""
    from segagent.export import png, write_file

    if "out" in outputs:
        result.save(outputs["out"])
    if "overlay" in outputs:
        write_file(outputs["overlay"], png(result.overlay(agent.config.color, agent.config.alpha)))
    if "trajectory" in outputs:
        write_file(outputs["trajectory"], json.dumps(result.to_json()["trajectory"]).encode())
    if "tree" in outputs:
        write_file(outputs["tree"], json.dumps(result.tree.to_json()).encode())
