"""The page's HTML, CSS and JavaScript: strings only, every word of a user or a model escaped. No gradio here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from segagent import drawing
from segagent.examples import Example
from segagent.space import Moment, Session
from segagent.types import Action, Box, Click

WHO = {"policy": "Agent", "simulated": "Annotator", "corrected": "Annotator", "person": "You"}
ENDS = {
    "stop": "{who} is content with the mask and stops.",
    "steps": "That was the last click of this run: press Run for more.",
    "malformed": "The model gave no answer that can be read, so the run ended: click yourself, or press Run again.",
}

HEADER = (
    "<h1>SegAgent</h1><p>A vision-language model that segments as a person does: "
    "it looks at the mask so far, says where to click, and looks again.</p>"
)

CANVAS = (
    '<div class="stage"><img src="${value.src}" width="${value.w}" height="${value.h}" alt="${value.alt}" '
    'decoding="sync" draggable="false"></div>'
)
# Positions leave as shares of the picture's width and height, so that no scaling on the way can shift them.
CANVAS_JS = """
const send = (event, right) => {
  const image = element.querySelector('.stage img');
  if (!image || event.target !== image) return;
  event.preventDefault();
  const box = image.getBoundingClientRect();
  trigger('select', {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height, right});
};
element.addEventListener('click', event => send(event, false));
element.addEventListener('contextmenu', event => send(event, true));
"""
# A list of buttons, each with a data-key, that says which one was pressed.
BUTTONS_JS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-key]');
  if (button) trigger('select', {key: button.dataset.key});
});
"""
DOWNLOAD_JS = """
file => {
  if (!file) return;
  const bytes = Uint8Array.from(atob(file.base64), c => c.charCodeAt(0));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], {type: file.type}));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
"""


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


def canvas(session: Session, longest: int, target: bool = False) -> dict[str, Any]:
    """The value of the canvas: the shown state as a picture."""
    state = session.state
    shown = drawing.picture(
        state.image, state.mask, state.actions, longest=longest, target=session.sample.target if target else None
    )
    share = state.mask.mean()
    words = f"The picture with the mask of “{session.sample.expression}” ({share:.1%} of it) and {len(state.actions)} clicks"
    return {"src": drawing.data_url(shown), "w": shown.shape[1], "h": shown.shape[0], "alt": escape(words)}


def status(session: Session, note: str = "", tone: str = "") -> str:
    """The figures of the shown state and one sentence."""
    shown = session.shown
    known = session.sample.target is not None
    figures = (
        ("Predicted IoU", _number(shown.predicted_iou), "what the model thinks of its mask"),
        ("True IoU", _number(shown.iou), "with the target mask" if known else "no target mask is known"),
        ("Clicks", str(len(shown.state.actions)), "up to the mask shown"),
    )
    cells = "".join(f'<div title="{hint}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value, hint in figures)
    sentence = note or _ending(session)
    return f'<dl class="figures">{cells}</dl><p class="note {tone}" role="status">{escape(sentence)}</p>'


def log(session: Session) -> str:
    """A row for each moment of the history, to be clicked, and the curve of IoUs."""
    rows = "".join(_row(i, m, i == session.position) for i, m in enumerate(session.moments))
    true = [m.iou for m in session.moments]
    predicted = [m.predicted_iou for m in session.moments]
    plot = ""
    if len(session.moments) > 1 and any(v is not None for v in (*true, *predicted)):
        plot = (
            f'<img class="curve" alt="IoU after each click" src="{drawing.data_url(drawing.curve(true, predicted))}">'
        )
    head = "<div class='entry head'><span>#</span><span>Click</span><span>Predicted</span><span>True</span></div>"
    return f'<div class="steps" role="group" aria-label="Steps">{head}{rows}</div>{plot}'


def _row(index: int, moment: Moment, current: bool) -> str:
    transition = moment.transition
    if transition is None:
        what = "Start from a mask" if moment.state.mask.any() else "Start"
    else:
        what = f"{WHO.get(transition.origin, transition.origin)} {describe(transition.action)}"
    said = " ".join(t.text for t in (transition, moment.closing) if t is not None and t.text)
    words = f"<q>{escape(said[:300])}</q>" if said else ""
    return (
        f'<button type="button" class="entry{" current" if current else ""}" data-key="{index}"'
        f"{' aria-current=true' if current else ''}><span>{index or '–'}</span><span>{escape(what)}{words}</span>"
        f"<span>{_number(moment.predicted_iou)}</span><span>{_number(moment.iou)}</span></button>"
    )


def describe(action: Action | None) -> str:
    """An action in a few characters."""
    if isinstance(action, Click):
        return f"{'+' if action.positive else '−'} ({action.x:.0f}, {action.y:.0f})"
    if isinstance(action, Box):
        return f"box ({action.x0:.0f}, {action.y0:.0f})–({action.x1:.0f}, {action.y1:.0f})"
    return "undo"


def _ending(session: Session) -> str:
    """Why the run ended at the shown state; where the model liked an earlier mask better, which."""
    closing = session.shown.closing
    if closing is None:
        return "Press Run, or click on the picture yourself." if len(session.moments) == 1 else ""
    sentence = ENDS[closing.end or "steps"].format(who=f"The {WHO.get(closing.origin, 'agent').lower()}")
    best = session.trajectory().best()
    if best != session.position and session.moments[best].predicted_iou is not None:
        sentence += f" It rates the mask of step {best} higher: click that row to take it."
    return sentence


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


CSS = """
.gradio-container { width: 100%; max-width: 1400px !important; margin: 0 auto;
  --quiet: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.gradio-container .main.app { padding: 12px 20px; }
.gradio-container .html-container { padding: 0; }
#header h1 { font-size: 1.4rem; font-weight: 700; margin: 0; }
#header p { margin: 0; color: var(--quiet); font-size: .95rem; }
.picker { contain: inline-size; display: flex; gap: 6px; overflow-x: auto; padding: 2px 2px 6px; scrollbar-width: thin; }
.picker button { flex: 0 0 auto; width: 78px; border: 2px solid transparent; border-radius: 10px; padding: 3px;
  background: var(--background-fill-secondary); color: var(--body-text-color); cursor: pointer; text-align: center; }
.picker button:hover, .picker button:focus-visible { border-color: var(--color-accent); outline: none; }
.picker button.chosen { border-color: var(--color-accent); background: var(--color-accent-soft); }
.picker img { width: 100%; height: 46px; object-fit: cover; border-radius: 7px; display: block; margin: 0; }
.picker span { font-size: .7rem; font-weight: 400; line-height: 1.15; height: 2.3em; margin-top: 3px; overflow: hidden;
  display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; }
.stage { display: flex; justify-content: center; background: var(--background-fill-secondary); border-radius: 10px;
  overflow: hidden; }
.stage img { display: block; width: auto; height: auto; max-width: 100%; max-height: max(300px, calc(100vh - 400px));
  margin: 0; cursor: crosshair; touch-action: manipulation; user-select: none; -webkit-touch-callout: none; }
.figures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin: 0; }
.figures div { background: var(--background-fill-secondary); border-radius: 10px; padding: 6px 12px; }
.figures dt { font-size: .75rem; color: var(--quiet); }
.figures dd { font-size: 1.4rem; line-height: 1.3; font-weight: 600; margin: 0; font-variant-numeric: tabular-nums; }
.note { min-height: 1.5em; margin: 8px 2px 0; font-size: .9rem; }
.note.bad { color: #b91c1c; font-weight: 600; }
.dark .note.bad { color: #fca5a5; }
.steps { border: 1px solid var(--border-color-primary); border-radius: 10px; overflow: auto; max-height: 280px; }
.entry { display: grid; grid-template-columns: 1.2rem 1fr 4.2rem 2.4rem; gap: 6px; width: 100%; padding: 4px 10px;
  text-align: left; font-size: .85rem; font-weight: 400; color: var(--body-text-color); background: none; border: 0;
  font-variant-numeric: tabular-nums; }
.entry.head { position: sticky; top: 0; font-size: .72rem; color: var(--quiet); background: var(--background-fill-secondary); }
button.entry { cursor: pointer; border-top: 1px solid var(--border-color-primary); }
button.entry:hover, button.entry:focus-visible { background: var(--background-fill-secondary); outline: none; }
button.entry.current { background: var(--color-accent-soft); box-shadow: inset 3px 0 var(--color-accent); }
.entry span:nth-child(n+3) { text-align: right; }
.entry q { display: block; quotes: none; color: var(--quiet); font-size: .75rem; overflow-wrap: anywhere; }
.curve { width: 100%; max-width: 440px; margin: 10px auto 0; display: block; }
.sources { font-size: .8rem; padding-left: 1.2em; margin: 0; overflow-wrap: anywhere; }
#bar { align-items: stretch; gap: 10px; }
#run, #stop { max-width: 160px; }
#who label, #sign label { padding: 5px 6px; }
#who .wrap { gap: 5px; }
#who label span, #sign label span { margin-left: 4px; font-size: .85rem; }
#examples { gap: 6px; flex-wrap: nowrap; }
#examples #picker { min-width: 0; flex: 1 1 0; }
#upload { flex: 0 0 auto; width: 78px; min-width: 0; height: 84px; padding: 4px; margin-top: 2px; border-radius: 10px;
  font-size: .75rem; line-height: 1.25; font-weight: 400; white-space: normal; border: 2px dashed var(--border-color-primary);
  background: none; color: var(--body-text-color); }
#upload:hover, #upload:focus-visible { border-color: var(--color-accent); }
#bar button { min-height: 44px; }
#tools, #masks, #exports { gap: 8px; flex-wrap: wrap; }
#tools > *, #masks > *, #exports > * { min-width: max-content !important; flex: 1 1 0; }
#tools button { min-height: 36px; }
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 8px 10px; }
  .stage img { max-height: 60vh; }
  #run, #stop { max-width: none; }
}
"""
