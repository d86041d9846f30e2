"""Trajectories for trainers that read pictures from files: LLaMA-Factory (ShareGPT), LLaVA, lmms-engine. (TRL: `sft_rows`.)"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from segagent.errors import DataError
from segagent.grammar import Grammar
from segagent.trajectories import sft_rows

STYLES = ("sharegpt", "llava", "lmms")


def chat_row(style: str, key: str, picture: str, prompt: str, answer: str) -> dict[str, Any]:
    """One question and answer about one picture's path, as a trainer of that style (one of STYLES) reads it."""
    if style == "lmms":
        asked = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": prompt}]
        said = [{"type": "text", "text": answer}]
        return {"id": key, "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
    turns = [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": answer}]
    if style == "sharegpt":
        return {"id": key, "conversations": turns, "images": [picture]}
    return {"id": key, "image": picture, "conversations": turns}


def export_chat(
    rows: Iterable[Mapping[str, Any]],
    out: str | PathLike[str],
    style: str = "sharegpt",
    *,
    grammar: Grammar | None = None,
    color: str = "green",
    alpha: float = 0.5,
) -> int:
    """Writes `out`/images and `out`/train.jsonl, one line for each decision of each trajectory row; → how many. Raises DataError.

    Paths are relative to `out`. For "sharegpt" a dataset_info.json makes it a data set named "segagent" of LLaMA-Factory.
    """
    if style not in STYLES:
        raise DataError(f"style is one of {', '.join(STYLES)}; got {style!r}.")
    out = Path(out)
    pictures, partial = out / "images", out / "train.jsonl.partial"
    count = 0
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as stream:
            for number, row in enumerate(rows):
                for step, example in enumerate(sft_rows(row, grammar, color=color, alpha=alpha)):
                    name = f"{number:07d}-{step:02d}.png"
                    example["images"][0].save(pictures / name)
                    texts = example["prompt"][0]["content"], example["completion"][0]["content"]
                    line = chat_row(style, f"{row['id']}-{step}", f"images/{name}", *texts)
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                    count += 1
        if style == "sharegpt":
            columns = {"messages": "conversations", "images": "images"}
            info = {"segagent": {"file_name": "train.jsonl", "formatting": "sharegpt", "columns": columns}}
            (out / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, out / "train.jsonl")
    except OSError as error:
        raise DataError(f"{str(out)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count
