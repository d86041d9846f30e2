"""Model cards whose figures come from a report of segagent.evaluate, as the Hub's `model-index`, and from nowhere else.

    python -m segagent.evaluate --policy runs/sft --count 1000 --out runs/report
    python -m segagent.cards OWNER/NAME --report runs/report/report.json --card data_cards/segagent-nano.md --out README.md

`SegAgent.push_to_hub(repo, card=…, report=…)` and `train.sft --push` make their cards here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segagent.errors import CheckpointError
from segagent.export import write_file

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

Report = Mapping[str, Any] | str | PathLike[str]
# (where in a group's figures, type, name); the first two are of the state of highest predicted IoU
METRICS = (
    (("best", "ciou"), "ciou", "cIoU"),
    (("best", "giou"), "giou", "gIoU"),
    (("last", "ciou"), "ciou", "cIoU of the last mask"),
    (("first_click_hit",), "accuracy", "first click on the target"),
    (("noc80",), "noc", "clicks to IoU 0.80"),
    (("noc85",), "noc", "clicks to IoU 0.85"),
    (("calibration", "mae"), "mae", "error of the predicted IoU, points"),
    (("calibration", "pearson"), "pearsonr", "correlation of predicted and true IoU"),
)
FACTS = ("policy", "segmenter", "data", "count", "steps", "convention", "seed", "date")
_USE = """## Use

```python
from segagent import SegAgent

agent = SegAgent.from_pretrained("{repo}")
```

`agent.segment(image, expression)` gives a mask, its predicted IoU and the clicks that led to it."""


def read_report(report: Report) -> Mapping[str, Any]:
    """A report as segagent.evaluate writes it: facts, and `figures` by group. Raises CheckpointError."""
    name = "The report"
    if not isinstance(report, Mapping):
        name = f"The report {fspath(report)!r}"
        try:
            report = json.loads(Path(report).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name} cannot be read: {error}.") from error
    figures = report.get("figures") if isinstance(report, Mapping) else None
    if not isinstance(figures, Mapping) or not all(isinstance(f, Mapping) and "best" in f for f in figures.values()):
        raise CheckpointError(f"{name} holds no figures: make one with `python -m segagent.evaluate --out FOLDER`.")
    missing = [fact for fact in FACTS if fact not in report]
    if missing:
        raise CheckpointError(f"{name} does not say its {', '.join(missing)}: a figure without that means nothing.")
    return report


def results(report: Report) -> Iterator[EvalResult]:
    """Each figure of each group as the Hub's EvalResult: shares as percent, others as they are, two decimals."""
    from huggingface_hub import EvalResult

    report = read_report(report)
    arguments = {key: report[key] for key in FACTS if key not in ("policy", "data", "date")}
    for group, figures in report["figures"].items():
        for path, kind, name in METRICS:
            value: Any = figures
            for key in path:
                value = None if value is None else value.get(key)
            if value is None:
                continue
            share = kind in ("ciou", "giou", "accuracy")
            yield EvalResult(
                task_type="image-segmentation",
                task_name="referring segmentation by clicks",
                dataset_type=str(report["data"]).split(":")[0].split(",")[0],
                dataset_name=f"{report['data']}, {figures['best']['count']} samples"
                + ("" if group == "all" else f", {group}"),
                dataset_args=arguments,
                metric_type=kind,
                metric_name=f"{name}, %" if share else name,
                metric_value=round(100 * value if share else value, 2),
            )


def with_results(text: str, report: Report, name: str) -> str:
    """A card's text with the report's figures in its front matter, in place of those that were there. Raises CheckpointError."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The card's front matter is no YAML of a model card: {error}") from error
    card.data.model_name, card.data.eval_results = name, list(results(report))
    return str(card)


def new_card(
    repo: str, report: Report | None = None, *, base: str | None = None, training: Mapping[str, Any] | None = None
) -> str:
    """A card with how to load the model, what it was trained from and with, and what was measured. Raises CheckpointError."""
    from huggingface_hub import ModelCard, ModelCardData

    from segagent.evaluate import markdown

    name = repo.split("/")[-1]
    parts = [
        f"# {name}",
        "A vision-language model that segments click by click, with SegAgent.",
        _USE.format(repo=repo),
    ]
    if training:
        rows = [f"| {key} | {value} |" for key, value in training.items()]
        parts.append("\n".join(["## Training", "", "| what | value |", "|---|---|", *rows]))
    if report is not None:
        report = read_report(report)
        facts = ", ".join(f"{key} {report[key]}" for key in FACTS)
        parts += [f"## Results\n\n{facts}; IoU in percent.", markdown(report["figures"])]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=base,
        tags=["segagent", "referring-segmentation", "interactive-segmentation"],
    )
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    return str(ModelCard(text)) if report is None else with_results(text, report, name)


def card_text(repo: str, card: str | PathLike[str] | None, report: Report | None) -> str | None:
    """The README of a checkpoint: a Markdown file's text, in which OWNER/<its name> becomes `repo`, with the report's figures;
    without a file one is made of the report; without both None. Raises CheckpointError."""
    if card is None:
        return None if report is None else new_card(repo, report)
    try:
        text = Path(card).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"The card {fspath(card)!r} cannot be read: {error}.") from error
    text = text.replace(f"OWNER/{Path(card).stem}", repo)
    return text if report is None else with_results(text, report, repo.split("/")[-1])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m segagent.cards", description=__doc__.splitlines()[0])
    parser.add_argument("repo", metavar="OWNER/NAME")
    parser.add_argument("--report", required=True, help="report.json of segagent.evaluate")
    parser.add_argument("--card", help="a Markdown file to put the figures into; without it a card is made")
    parser.add_argument("--out", default="README.md")
    args = parser.parse_args(argv)
    write_file(args.out, card_text(args.repo, args.card, args.report).encode())
    print(f"{args.out}: {sum(1 for _ in results(args.report))} figures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
