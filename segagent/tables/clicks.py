"""The tables of how well is segmented: 1 (data sets), 2 (steps and PRM), 4 (mask colour), 5 (first action), 6 (coordinates), and figures 3 and 4."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segagent.errors import SegAgentError
from segagent.masks import OVERLAY_COLORS
from segagent.metrics import noc
from segagent.runs import FIRST, Run
from segagent.tables import plots
from segagent.tables.study import Cell, Study, Table, by_prm, by_truth, last

STEPS = (1, 3, 5, 7)  # of the paper's Table 2
CLICKS = 20  # at most, of the simulated annotator
SEARCH = 3  # K of figure 4, as the paper's on HRES

BEST = "the state of the highest predicted IoU up to where the policy stops (Algorithm 2)"


def table1(study: Study) -> Table:
    """cIoU by data set and split, and by the groups that the samples' meta["level"] makes."""
    rows, heads = [], []
    for label, policy in study.policies.items():
        cells = []
        for data in study.data:
            runs = study.good_runs(study.fixed(policy), data)
            for group, part in groups(runs).items():
                heads.append(" ".join([short(data), group]).strip())
                cells.append(study.ciou(part, by_prm, f"{data} {group}".strip(), policy))
        rows.append((label, tuple(cells)))
    heads = heads[: len(rows[0][1])]
    plot = plots.bars("cIoU, %", heads, {label: [c.value for c in cells] for label, cells in rows}, "%")
    note = (
        f"cIoU, %, of {BEST}; samples: {', '.join(f'{h} {c.count}' for h, c in zip(heads, rows[0][1], strict=True))}."
    )
    return Table(
        "table-1", "Table 1: cIoU by data set and split", ("policy", *heads), tuple(rows), study.facts(), (note,), plot
    )


def table2(study: Study) -> Table:
    """Steps with and without the PRM, all from one set of runs, which go on where the policy would stop."""
    steps = [s for s in STEPS if s <= study.steps] or [study.steps]
    steps += [study.steps] if study.steps > STEPS[-1] else []
    choices = {
        "fixed steps, no PRM": last,
        "the policy's own stop, no PRM": lambda run: last(run.heeding_stop()),
        "with PRM": by_prm,
        "with a perfect PRM (ceiling)": by_truth,
    }
    rows = []
    for label, policy, data in _pairs(study):
        runs = study.good_runs(study.fixed(policy), data)
        for words, choose in choices.items():
            cells = [study.ciou([run.until(s) for run in runs], choose, data, policy) for s in steps]
            rows.append((_label(study, label, data, words), tuple(cells)))
    series = {label: [c.value for c in cells] for label, cells in rows[: len(plots.COLORS)]}
    plot = plots.lines("cIoU, %, by the number of clicks", steps, series, "%", "clicks at most")
    notes = (
        f"cIoU, %. All rows of a policy are from one set of {rows[0][1][0].count} runs. With PRM: {BEST}.",
        "Fixed steps: where the policy would stop, the first click among 8 sampled answers is made instead, if there is one.",
    )
    heads = ("", *(f"{s} click{'s' * (s > 1)}" for s in steps))
    return Table(
        "table-2",
        "Table 2: steps, with and without the process reward model",
        heads,
        tuple(rows),
        study.facts(),
        notes,
        plot,
    )


def table4(study: Study) -> Table:
    """The colour of the mask painted on: of one checkpoint every colour, of several each its own."""
    rows = []
    for label, policy, data in _pairs(study):
        own = study.config(policy).color
        for color in OVERLAY_COLORS if len(study.policies) == 1 else (own,):
            runs = study.good_runs(study.fixed(policy, color=None if color == own else color), data)
            rows.append(
                (_label(study, label, data, color + " (its own)" * (color == own)), _scores(study, runs, data, policy))
            )
    note = (
        "One checkpoint, trained with its own colour, sees the others for the first time; the paper trains one for each colour."
        if len(study.policies) == 1
        else "Each checkpoint sees the colour that it was trained with."
    )
    return _scored("table-4", "Table 4: the colour of the mask", study, rows, (note,))


def table5(study: Study) -> Table:
    """What is done first: a click, the target's box, or a box of the policy's own."""
    rows = []
    for label, policy, data in _pairs(study):
        for first in FIRST:
            runs = study.good_runs(study.fixed(policy, first=first), data)
            share = np.mean([bool(run.actions) and run.actions[0][0] == "box" for run in runs])
            boxes = Cell(100 * float(share), data, len(runs), study.checkpoint(policy), "runs that begin with a box, %")
            words = "no box" if first == "click" else first
            rows.append((_label(study, label, data, words), (*_scores(study, runs, data, policy), boxes)))
    notes = (
        "The given box is the target's own, so its row is an upper bound; the paper takes another model's.",
        "Own box: the first box among 8 sampled answers; a policy that says none begins with a click.",
    )
    return _scored("table-5", "Table 5: the first action", study, rows, notes, ("begins with a box, %",))


def table6(study: Study) -> Table:
    """The coordinates' format, a checkpoint each."""
    rows = []
    for label, policy, data in _pairs(study):
        grammar = study.config(policy).grammar
        runs = study.good_runs(study.fixed(policy), data)
        units = {"permille": "[0, 1000)", "decimal": "[0, 1)", "pixel": "pixels"}
        form = f"{units[grammar.unit]}, ({', '.join(grammar.order)})"
        hits = [run.hit for run in runs if run.has_target]
        hit = Cell(
            100 * float(np.mean(hits)) if hits else None,
            data,
            len(hits),
            study.checkpoint(policy),
            "first click hits, %",
        )
        words = Cell(form, data, len(runs), study.checkpoint(policy), "format of coordinates")
        rows.append((_label(study, label, data, ""), (words, *_scores(study, runs, data, policy), hit)))
    notes = (
        ()
        if len(study.policies) > 1
        else ("To compare formats, give a checkpoint trained with each: --policy permille=A decimal=B.",)
    )
    heads = ("policy", "format", "cIoU, %", "gIoU, %", "first click hits, %")
    plot = plots.bars(
        "cIoU, %", [f"{label} {cells[0]}" for label, cells in rows], {"cIoU": [c[1].value for _, c in rows]}, "%"
    )
    return Table("table-6", "Table 6: the format of coordinates", heads, tuple(rows), study.facts(), notes, plot)


def figure3(study: Study) -> Table:
    """How many clicks of the simulated annotator an object takes, by data set: what makes one need an agent at all."""
    rows = []
    for data in study.data:
        runs = study.good_runs(study.setup("simulated", steps=CLICKS), data)
        for group, part in groups(runs).items():
            clicked = [run for run in part if run.has_target]
            name = f"{data} {group}".strip()
            cells = [
                Cell(
                    noc([run.ious[1:] for run in clicked], t, CLICKS),
                    name,
                    len(clicked),
                    "simulated",
                    f"NoC@{t * 100:.0f}",
                    2,
                )
                for t in (0.8, 0.85)
            ]
            share = float(np.mean([max(run.ious) >= 0.85 for run in clicked]))
            cells.append(Cell(100 * share, name, len(clicked), "simulated", "objects that reach 0.85, %"))
            rows.append((" ".join([short(data), group]).strip(), tuple(cells)))
    plot = plots.bars(
        "Clicks of the simulated annotator", [label for label, _ in rows],
        {"to IoU 0.80": [c[0].value for _, c in rows], "to IoU 0.85": [c[1].value for _, c in rows]}, "clicks", 2,
    )  # fmt: skip
    note = (
        f"Mean number of clicks, {CLICKS} at most, misses counted as {CLICKS}; samples without an object are left out."
    )
    heads = ("data", "clicks to 0.80", "clicks to 0.85", "reach 0.85, %")
    facts = {**study.facts(), "steps": CLICKS}
    return Table("figure-3", "Figure 3: clicks to an IoU of 0.80 and 0.85", heads, tuple(rows), facts, (note,), plot)


def figure4(study: Study) -> Table:
    """What each part adds: SFT, StaR+ (the last of several checkpoints), the PRM as a stop signal, and search."""
    if any(policy in ("simulated", "random", "center") for policy in study.policies.values()):
        raise SegAgentError("Figure 4 is of checkpoints: give those of SFT and, where there are, of StaR+.")
    rows = []
    width = study.candidates if study.candidates > 1 else SEARCH
    for data in study.data:
        stages = []
        for label, policy in study.policies.items():
            runs = study.good_runs(study.fixed(policy), data)
            stages.append((label if not stages else f"+ {label}", runs, last, policy))
        label, policy = list(study.policies.items())[-1]
        stages.append(("+ PRM", stages[-1][1], by_prm, policy))
        found = study.good_runs(study.search(policy, width), data)
        words = f"+ {study.strategy} search, K = {width}" + (", a perfect PRM" if study.judge == "truth" else "")
        stages.append((words, found, Run.best, policy))
        base = study.ciou(stages[0][1], last, data, stages[0][3]).value
        for words, runs, choose, who in stages:
            cell = study.ciou(runs, choose, data, who)
            gain = Cell(cell.value - base, data, cell.count, cell.checkpoint, "points over the first row")
            rows.append((_label(study, "", data, words), (cell, gain)))
        ceiling = study.ciou(found, lambda run: run.ceiling, data, policy)
        gain = Cell(ceiling.value - base, data, ceiling.count, ceiling.checkpoint, "points over the first row")
        rows.append((_label(study, "", data, "a perfect PRM over all the search's masks (ceiling)"), (ceiling, gain)))
    plot = plots.bars("cIoU, %", [label for label, _ in rows], {"cIoU": [c[0].value for _, c in rows]}, "%")
    notes = (
        f"cIoU, %. The rows before the PRM: a fixed number of {study.steps} clicks, the last mask. PRM: {BEST}, from the same runs.",
    )
    heads = ("", "cIoU, %", "gain, points")
    return Table("figure-4", "Figure 4: what each part adds", heads, tuple(rows), study.facts(), notes, plot)


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """All runs ("" where there is but one group, else "all"), and those of each group."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.group, []).append(run)
    if len(found) < 2:
        return {"": list(runs)}
    return {"all": list(runs), **{name: part for name, part in found.items() if name}}


def short(data: str) -> str:
    """A data set's name in a table's head, of the string that names it: its name, or folder, and its split."""
    name, _, rest = data.partition(":")
    words = rest.split(",")
    where = "" if "=" in words[0] else words.pop(0)
    options = dict(word.partition("=")[::2] for word in words)
    name = options.get("dataset") or name
    if where and name in ("folder", "hres", "official", "coco"):
        name = where.rstrip("/").rsplit("/", 1)[-1]
    elif name == "hres-synth":
        name = f"HRES-Synth {where}".strip()
    return f"{name} {options.get('split', 'test' if name.startswith('HRES-Synth') else '')}".strip()


def _pairs(study: Study) -> list[tuple[str, str | None, str]]:
    return [(label, policy, data) for label, policy in study.policies.items() for data in study.data]


def _label(study: Study, label: str, data: str, words: str) -> str:
    """A row's: the policy and the data only where there are several, or where there is nothing else to say."""
    parts = [label] if label and (len(study.policies) > 1 or not words) else []
    return ", ".join([*parts, *([short(data)] if len(study.data) > 1 else []), *([words] if words else [])])


def _scores(study: Study, runs: Sequence[Run], data: str, policy: str | None) -> tuple[Cell, Cell]:
    return study.ciou(runs, by_prm, data, policy), study.ciou(runs, by_prm, data, policy, "giou")


def _scored(
    name: str, title: str, study: Study, rows: list, notes: tuple[str, ...], more: tuple[str, ...] = ()
) -> Table:
    plot = plots.bars("cIoU, %", [label for label, _ in rows], {"cIoU": [cells[0].value for _, cells in rows]}, "%")
    notes = (f"cIoU and gIoU, %, of {BEST}; {rows[0][1][0].count} runs a row.", *notes)
    return Table(name, title, ("", "cIoU, %", "gIoU, %", *more), tuple(rows), study.facts(), notes, plot)


TABLES: dict[str, Callable[[Study], Table]] = {
    "table 1": table1,
    "table 2": table2,
    "table 4": table4,
    "table 5": table5,
    "table 6": table6,
    "figure 3": figure3,
    "figure 4": figure4,
}
