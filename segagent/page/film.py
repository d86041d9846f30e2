"""A run and a search as small pictures: the time line under the canvas, and the tree of candidates. Strings only."""

from __future__ import annotations

import json
from html import escape

from segagent import drawing
from segagent.page.desk import Board
from segagent.page.markup import describe, done, marks, number
from segagent.page.session import Session
from segagent.search.tree import Node, Tree
from segagent.types import Box, Click, State

GRID = 192  # the longest side of the grid that small masks are drawn in
CARD = (104, 112)  # px, width and height of a candidate
GAP = (14, 44)  # px between candidates, and between rows: room for the edges


def timeline(board: Board) -> str:
    """A slider over the steps, and a picture of each; nothing before the first step."""
    session = board.session
    if len(session.moments) < 2:
        return ""
    last = len(session.moments) - 1
    frames = []
    for i, moment in enumerate(session.moments):
        action = moment.transition.action if moment.transition else None
        sign = ("+" if action.positive else "−") if isinstance(action, Click) else ""
        words = f"Step {i}: {done(moment)}, predicted {number(moment.predicted_iou)}, true {number(moment.iou)}"
        here = ' aria-current="true"' if i == session.position else ""
        frames.append(
            f'<button type="button" class="frame" data-key="{i}"{here} aria-label="{escape(words)}" title="{escape(words)}" '
            f"data-marks='{escape(json.dumps(marks(moment.state)))}'>{still(moment.state, board.thing.color)}"
            f"<span>{i or 'start'} {sign}</span><b>{number(moment.predicted_iou)}</b></button>"
        )
    return (
        '<div class="scrub"><button type="button" data-do="play" title="Show the steps again, one after another">▶ Replay</button>'
        f'<input type="range" min="0" max="{last}" value="{session.position}" aria-label="Step shown">'
        f"<output>{session.position} / {last}</output></div>"
        f'<div class="film" role="group" aria-label="Steps as pictures">{"".join(frames)}</div>'
    )


def still(state: State, color: str, longest: int = GRID) -> str:
    """The picture with the state's mask, as large as its place makes it; the mask in a grid of `longest`."""
    height, width = drawing.grid_size(state.size, longest)
    return (
        f'<svg viewBox="0 0 {width} {height}" style="--ratio:{width}/{height};aspect-ratio:{width}/{height}" aria-hidden="true">'
        f'<path d="{drawing.outline(state.mask, longest)}" fill="{color}" fill-rule="evenodd"/></svg>'
    )


def tree_view(tree: Tree | None, color: str, shown: State) -> str:
    """A row a step, a picture a candidate; the chosen path is marked, and each undo is drawn as a way back."""
    if tree is None or len(tree) < 2:
        return ""
    places = _places(tree)
    path, walked = set(tree.path), set(tree.walk)
    columns = max(column for column, _ in places.values()) + 1
    rows = max(row for _, row in places.values()) + 1
    width, height = columns * (CARD[0] + GAP[0]), rows * (CARD[1] + GAP[1]) - GAP[1] + 8
    edges = "".join(_edge(places[n.parent], places[n.index], n.index in path) for n in tree if n.parent is not None)
    backs = "".join(_back(places[a], places[b]) for a, b in tree.jumps)
    cards = "".join(
        _card(
            node,
            places[node.index],
            color,
            node.index in path,
            node.index in walked,
            node.state is shown and not node.stop,
        )
        for node in tree
    )
    spent = tree.spent
    facts = f"{escape(tree.strategy.capitalize())} search: {spent.segmented} masks made, {spent.read} read, duplicates skipped: {spent.merged}"
    return (
        f'<p class="facts">{facts}. Click a candidate to go on from it.</p>'
        f'<div class="tree" tabindex="0" role="group" aria-label="Search tree"><div style="width:{width}px;height:{height}px">'
        f'<svg width="{width}" height="{height}" aria-hidden="true"><defs><marker id="back" viewBox="0 0 8 8" refX="6" refY="4" '
        f'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8Z"/></marker></defs>{edges}{backs}</svg>{cards}</div></div>'
    )


def _places(tree: Tree) -> dict[int, tuple[int, int]]:
    """(column, row) of each node: a row holds the candidates of one depth, the chosen path's in the first column."""
    path = set(tree.path)
    rows: dict[int, list[Node]] = {}
    for node in tree:
        rows.setdefault(node.depth + node.stop, []).append(node)
    places: dict[int, tuple[int, int]] = {}
    for row, nodes in sorted(rows.items()):
        above = {n.index: places[n.parent][0] if n.parent in places else 0 for n in nodes}
        for column, node in enumerate(sorted(nodes, key=lambda n: (n.index not in path, above[n.index], n.index))):
            places[node.index] = column, row
    return places


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return 4 + place[0] * (CARD[0] + GAP[0]), 4 + place[1] * (CARD[1] + GAP[1])


def _edge(above: tuple[int, int], below: tuple[int, int], chosen: bool) -> str:
    (x0, y0), (x1, y1) = _corner(above), _corner(below)
    x0, x1, y0 = x0 + CARD[0] // 2, x1 + CARD[0] // 2, y0 + CARD[1]
    middle = (y0 + y1) // 2
    kind = ' class="chosen"' if chosen else ""
    return f'<path{kind} d="M{x0} {y0}C{x0} {middle} {x1} {middle} {x1} {y1}"/>'


def _back(below: tuple[int, int], above: tuple[int, int]) -> str:
    """An undo: a dashed arrow beside the edge it goes back on."""
    (x0, y0), (x1, y1) = _corner(below), _corner(above)
    x0, x1, y1 = x0 + CARD[0] - 14, x1 + CARD[0] - 14, y1 + CARD[1] + 3
    middle = (y0 + y1) // 2
    return (
        f'<path class="undo" d="M{x0} {y0}C{x0 + 10} {middle} {x1 + 10} {middle} {x1} {y1}" marker-end="url(#back)"/>'
    )


def _card(node: Node, place: tuple[int, int], color: str, chosen: bool, walked: bool, shown: bool) -> str:
    left, top = _corner(place)
    what = "start" if node.parent is None else describe(node.action)
    states = [name for name, on in (("chosen", chosen), ("walked", walked), ("stop", node.stop)) if on]
    words = f"{what}, predicted {number(node.predicted_iou)}, true {number(node.iou)}"
    if node.merged:
        words += f", and {node.merged} more came to the same"
    here = ' aria-current="true"' if shown else ""
    return (
        f'<button type="button" class="{" ".join(["node", *states])}" data-key="{node.index}"{here} '
        f'style="left:{left}px;top:{top}px;width:{CARD[0]}px;height:{CARD[1]}px" aria-label="{escape(words)}" '
        f'title="{escape(words)}">{still(node.state, color)}<span>{escape(_short(node))}</span>'
        f"<b>{number(node.predicted_iou)}</b></button>"
    )


def _short(node: Node) -> str:
    if isinstance(node.action, Click):
        return f"{'+' if node.action.positive else '−'} {node.action.x:.0f}, {node.action.y:.0f}"
    return "start" if node.parent is None else "box" if isinstance(node.action, Box) else "stop"


def side(session: Session, color: str, seconds: float) -> str:
    """One side of a comparison: the shown state large, its figures, the steps and the curve."""
    shown = session.shown
    figures = (
        ("Predicted IoU", number(shown.predicted_iou)),
        ("True IoU", number(shown.iou)),
        ("Clicks", str(len(shown.state.actions))),
        ("Seconds", f"{seconds:.1f}"),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    frames = "".join(
        f'<div class="frame">{still(m.state, color)}<span>{i or "start"}</span><b>{number(m.predicted_iou)}</b></div>'
        for i, m in enumerate(session.moments)
    )
    true, predicted = [m.iou for m in session.moments], [m.predicted_iou for m in session.moments]
    curve = drawing.data_url(drawing.curve(true, predicted))
    return (
        f'<div class="still">{still(shown.state, color, 640)}</div><dl class="figures four">{cells}</dl>'
        f'<div class="film">{frames}</div><img class="curve" alt="IoU after each click" src="{curve}">'
    )


def note(words: str, tone: str = "") -> str:
    return f'<p class="note {tone}" role="status">{escape(words)}</p>'
