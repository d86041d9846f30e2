"""What the tabs share: handlers whose errors become one sentence, and files that are read and saved."""

from __future__ import annotations

import base64
import mimetypes
import os
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from segagent.errors import SegAgentError

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
QUICK: dict[str, Any] = {"concurrency_limit": None, **PRIVATE}
# "multiple": a run that was taken over may still be in its last step when the next one is asked for.
LONG: dict[str, Any] = {"concurrency_limit": 16, "concurrency_id": "run", "trigger_mode": "multiple", **PRIVATE}


def told(handler: Callable[..., Iterator[dict]]) -> Callable[..., Iterator[dict]]:
    """A tab's handler whose errors become one sentence on the page, by the tab's `fail(*inputs, sentence)`."""

    @wraps(handler)
    def safe(tab: Any, *inputs: Any) -> Iterator[dict]:
        try:
            yield from handler(tab, *inputs)
        except SegAgentError as error:
            sentence = said(error, *inputs)
            gr.Warning(sentence)
            yield tab.fail(inputs[0], sentence)

    return safe


def answered(call: Callable[..., Any]) -> Callable[..., Any]:
    """A named endpoint: its errors reach the program that called as one sentence."""

    @wraps(call)
    def safe(*inputs: Any) -> Any:
        try:
            return call(*inputs)
        except SegAgentError as error:
            raise gr.Error(said(error, *inputs), print_exception=False) from error

    return safe


def read(loader: Callable[..., Any], path: str, *rest: Any) -> Any:
    """What `loader` makes of an uploaded file."""
    try:
        return loader(path, *rest)
    except SegAgentError as error:
        raise type(error)(said(error, path)) from error


def said(error: SegAgentError, *inputs: Any) -> str:
    """The error's sentence, with each uploaded file under the name that its owner knows."""
    sentence = str(error)
    for path in inputs:
        if isinstance(path, str) and os.path.isabs(path):
            sentence = sentence.replace(path, Path(path).name)
    return sentence


def saved(name: str, data: bytes) -> dict[str, str]:
    """One file as {name, type, base64}, for the browser to save; nothing is left on the server."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return {"name": name, "type": kind, "base64": base64.b64encode(data).decode("ascii")}
