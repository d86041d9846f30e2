"""The page's HTML: strings only, every word of a user or a model escaped. No gradio here.

Pictures travel once, by themselves (the CSS variable --picture holds them); masks are drawn over them as SVG paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from segagent import drawing
from segagent.examples import Example
from segagent.page.desk import Board
from segagent.page.session import Moment, Session
from segagent.types import Action, Box, Click, State, Undo

SHOWN = 1280  # px, the longest side of the picture on the page; masks and exports have the original's size
GRID = 1024  # the longest side of the grid that shown masks are drawn in
WHO = {"policy": "Agent", "simulated": "Annotator", "corrected": "Annotator", "person": "You"}
ENDS = {
    "stop": "{who} is content with the mask and stops.",
    "absent": "{who} sees nothing that the words mean, and stops. Click on it yourself, or say it in other words.",
    "steps": "That was the last click of this run: press Run for more.",
    "converged": "The search sees no more gain and ends.",
    "malformed": "The model gave no answer that can be read, so the run ended: click yourself, or press Run again.",
}

HEADER = (
    "<h1>SegAgent</h1><p>A vision-language model that segments as a person does: "
    "it looks at the mask so far, says where to click, and looks again.</p>"
)


def picker(examples: Sequence[Example], chosen: str = "") -> str:
    """One button for each example."""
    marked = ' class="chosen" aria-pressed="true"'
    buttons = "".join(
        f'<button type="button" data-key="{escape(e.key)}" title="{escape(f"{e.expression}. {e.credit}")}"{marked if e.key == chosen else ""}>'
        f'<img src="{_thumbnail(e)}" alt="" width="56" height="56">'
        f"<span>{escape(e.expression)}</span></button>"
        for e in examples
    )
    return f'<div class="picker" role="group" aria-label="Examples">{buttons}</div>'


@cache
def _thumbnail(example: Example) -> str:
    return drawing.data_url(drawing.thumbnail(example.load().image, 112), 80)


def sources(examples: Sequence[Example]) -> str:
    """Author, licence and source of each photograph, as a list."""
    lines = dict.fromkeys(e.credit.rpartition(", ") for e in examples if e.kind == "photograph")
    items = "".join(
        f'<li>{escape(words)}, <a href="{escape(source)}" target="_blank" rel="noopener">source</a></li>'
        for words, _, source in lines
    )
    return f'<ul class="sources">{items}</ul><p class="sources">Their target masks were drawn for this project.</p>'


def picture(board: Board) -> str:
    """The plain picture, for the browser to keep."""
    return drawing.data_url(drawing.picture(board.session.sample.image, longest=SHOWN))


def canvas(board: Board) -> dict[str, Any]:
    """The value of the canvas: what is drawn over the picture."""
    session, state = board.session, board.session.state
    grid, target = drawing.grid_size(state.size, GRID), session.sample.target
    layers = [
        {"d": drawing.outline(t.session.state.mask, GRID), "color": t.color, "on": i == board.active}
        for i, t in enumerate(board.things)
    ]
    words = f"The picture with the mask of “{board.thing.title}” ({state.mask.mean():.1%} of it) and {len(state.actions)} clicks"
    return {
        "w": state.size[1],
        "h": state.size[0],
        "grid": f"0 0 {grid[1]} {grid[0]}",
        "layers": layers,
        "target": "" if target is None else drawing.outline(target, GRID),
        "marks": marks(state),
        "alt": words,
    }


def marks(state: State) -> list[dict[str, Any]]:
    """Where the actions' marks stand, in percent of the picture's width and height."""
    height, width = state.size
    found: list[dict[str, Any]] = []
    for number, action in enumerate(state.actions, 1):
        if isinstance(action, Click):
            at = {"x": 100 * (action.x + 0.5) / width, "y": 100 * (action.y + 0.5) / height}
            found.append({"n": number, "sign": "add" if action.positive else "remove", **at})
        elif isinstance(action, Box):
            corner = {"x": 100 * action.x0 / width, "y": 100 * action.y0 / height}
            extent = {"w": 100 * (action.x1 - action.x0) / width, "h": 100 * (action.y1 - action.y0) / height}
            found.append({"n": number, "sign": "box", **corner, **extent})
    return [{k: round(v, 3) if isinstance(v, float) else v for k, v in mark.items()} for mark in found]


def objects(board: Board) -> str:
    """A button for each object, with what can be done to the one that is worked on."""
    items = []
    for i, thing in enumerate(board.things):
        swatch = f'<i style="background:{thing.color}"></i>'
        if i != board.active:
            label = f"Work on {thing.title}"
            items.append(
                f'<button type="button" class="thing" data-key="select:{i}" aria-label="{escape(label)}">{swatch}'
                f"<span>{escape(thing.title)}</span></button>"
            )
            continue
        items.append(
            f'<span class="thing current"><input type="color" value="{thing.color}" data-key="paint" aria-label="Colour" '
            f'title="Colour"><input type="text" value="{escape(thing.name)}" placeholder="{escape(thing.title)}" '
            f'data-key="rename" maxlength="80" aria-label="Name of the object" title="Name it">'
            f'<button type="button" data-key="remove:{i}" title="Remove this object" aria-label="Remove this object">×</button></span>'
        )
    more = '<button type="button" class="thing more" data-key="add" title="Segment one more object in this picture">＋ Object</button>'
    return f'<div class="things" role="group" aria-label="Objects">{"".join(items)}{more}</div>'


def status(session: Session, note: str = "", tone: str = "") -> str:
    """The figures of the shown state, what the model said, and one sentence."""
    shown = session.shown
    known = session.sample.target is not None
    figures = (
        ("Predicted IoU", number(shown.predicted_iou), "what the model thinks of its mask"),
        ("True IoU", number(shown.iou), "with the target mask" if known else "no target mask is known"),
        ("Clicks", str(len(shown.state.actions)), "up to the mask shown"),
    )
    cells = "".join(f'<div title="{hint}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value, hint in figures)
    sentence = note or _ending(session)
    return f'<dl class="figures">{cells}</dl><p class="note {tone}" role="status">{escape(sentence)}</p>'


def log(session: Session) -> str:
    """The curve of IoUs, and a row for each moment of the history, to be clicked."""
    rows = "".join(_row(i, m, i == session.position) for i, m in enumerate(session.moments))
    true = [m.iou for m in session.moments]
    predicted = [m.predicted_iou for m in session.moments]
    plot = ""
    if len(session.moments) > 1 and any(v is not None for v in (*true, *predicted)):
        plot = (
            f'<img class="curve" alt="IoU after each click" src="{drawing.data_url(drawing.curve(true, predicted))}">'
        )
    head = "<div class='entry head'><span>#</span><span>Click, and what was said</span><span>Predicted</span><span>True</span></div>"
    return f'{plot}<div class="steps" role="group" aria-label="Steps">{head}{rows}</div>'


def _row(index: int, moment: Moment, current: bool) -> str:
    said = " ".join(t.text for t in (moment.transition, moment.closing) if t is not None and t.text)
    words = f"<q>{escape(said[:300])}</q>" if said else ""
    return (
        f'<button type="button" class="entry{" current" if current else ""}" data-key="{index}"'
        f"{' aria-current=true' if current else ''}><span>{index or '–'}</span><span>{escape(done(moment))}{words}</span>"
        f"<span>{number(moment.predicted_iou)}</span><span>{number(moment.iou)}</span></button>"
    )


def done(moment: Moment) -> str:
    """What led to a moment, in a few words."""
    transition = moment.transition
    if transition is None:
        return "Start from a mask" if moment.state.mask.any() else "Start"
    return f"{WHO.get(transition.origin, transition.origin)} {describe(transition.action)}"


def describe(action: Action | None) -> str:
    """An action in a few characters."""
    if isinstance(action, Click):
        return f"{'+' if action.positive else '−'} ({action.x:.0f}, {action.y:.0f})"
    if isinstance(action, Box):
        return f"box ({action.x0:.0f}, {action.y0:.0f})–({action.x1:.0f}, {action.y1:.0f})"
    return "↶ undo" if isinstance(action, Undo) else "stop"


def _ending(session: Session) -> str:
    """Why the run ended at the shown state; where the model liked an earlier mask better, which."""
    closing = session.shown.closing
    if closing is None:
        return "Press Run, or click on the picture yourself." if len(session.moments) == 1 else ""
    absent = closing.end == "stop" and not session.state.mask.any()
    sentence = ENDS["absent" if absent else closing.end or "steps"].format(
        who=f"The {WHO.get(closing.origin, 'agent').lower()}"
    )
    best = session.trajectory().best()
    if best != session.position and session.moments[best].predicted_iou is not None:
        sentence += f" It rates the mask of step {best} higher: click that row to take it."
    return sentence


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
