"""What lies before one person: a picture with the objects that are segmented in it, and the lock that keeps runs in turn."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from segagent.errors import SegAgentError
from segagent.page.session import Session
from segagent.types import Sample

COLORS = ("#22c55e", "#3b82f6", "#f59e0b", "#ec4899", "#8b5cf6", "#06b6d4", "#ef4444", "#a3a30d")
MOST_OBJECTS = 20
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, slots=True, eq=False)
class Thing:
    """One object: its session, with the name and the colour that its person gave it."""

    session: Session
    name: str = ""  # empty: the expression is its name
    color: str = COLORS[0]

    @property
    def title(self) -> str:
        return self.name or self.session.sample.expression.strip() or "object"


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """The objects of one picture, and the one that is worked on. Immutable."""

    things: tuple[Thing, ...]
    active: int = 0

    @classmethod
    def begin(cls, sample: Sample, mask: np.ndarray | None = None) -> Board:
        return cls((Thing(Session.begin(sample, mask)),))

    @property
    def thing(self) -> Thing:
        return self.things[self.active]

    @property
    def session(self) -> Session:
        return self.thing.session

    def put(self, session: Session) -> Board:
        return self._with(replace(self.thing, session=session))

    def add(self) -> Board:
        """With one more object, nameless, in a colour of its own. Raises SegAgentError."""
        if len(self.things) >= MOST_OBJECTS:
            raise SegAgentError(
                f"{MOST_OBJECTS} objects in one picture are the most here: save these, then begin anew."
            )
        used = [thing.color for thing in self.things]
        color = min(COLORS, key=lambda c: (used.count(c), COLORS.index(c)))
        image, name = self.session.sample.image, self.session.sample.id
        session = Session.begin(Sample(image, "", id=name))
        return Board((*self.things, Thing(session, color=color)), len(self.things))

    def select(self, index: int) -> Board:
        self._check(index)
        return replace(self, active=index)

    def remove(self, index: int) -> Board:
        """Without that object; the last one left is emptied instead."""
        self._check(index)
        if len(self.things) == 1:
            return Board.begin(Sample(self.session.sample.image, "", id=self.session.sample.id))
        things = self.things[:index] + self.things[index + 1 :]
        return Board(things, min(self.active - (self.active > index), len(things) - 1))

    def rename(self, name: str) -> Board:
        return self._with(replace(self.thing, name=" ".join(name.split())[:80]))

    def paint(self, color: str) -> Board:
        if not _COLOR.fullmatch(color):
            raise SegAgentError(f"A colour is written #rrggbb; got {color[:20]!r}.")
        return self._with(replace(self.thing, color=color.lower()))

    def _with(self, thing: Thing) -> Board:
        return replace(self, things=(*self.things[: self.active], thing, *self.things[self.active + 1 :]))

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self.things):
            raise SegAgentError("There is no such object any more.")


class Desk:
    """Where one person's board lies; the one thing here that changes. What a person does is done in turn, on the latest
    board; a run goes on only while nobody but itself has changed the session that it works on."""

    def __init__(self, board: Board) -> None:
        self._board, self._lock = board, threading.Lock()
        self.note = ""  # what the page says to what the person did last
        self.run: object | None = None  # the latest run's own mark
        self.comparison: object | None = None  # likewise, of the tab that compares
        self.policy, self.segmenter = "", ""  # the names of the models that this person chose; empty: the embedded ones

    def __deepcopy__(self, _: object) -> Desk:
        return Desk(self._board)

    @property
    def board(self) -> Board:
        return self._board

    @property
    def session(self) -> Session:
        return self._board.session

    def change(self, function: Callable[[Session], Session], note: str = "") -> Board:
        """A person's doing: the active session becomes what `function` makes of it, and stays where that raises."""
        return self.arrange(lambda board: board.put(function(board.session)), note)

    def arrange(self, function: Callable[[Board], Board], note: str = "") -> Board:
        """The same for the whole board."""
        with self._lock:
            self._board, self.note = function(self._board), note
            return self._board

    def follow(self, before: Session, after: Session) -> bool:
        """A run's next session, unless someone took over since `before`; → whether it is the latest now."""
        with self._lock:
            if self._board.session is not before:
                return False
            self._board = self._board.put(after)
            return True
