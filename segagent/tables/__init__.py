"""The paper's tables and figures, of any checkpoint on any data; `python -m segagent.evaluate --table N` makes them."""

from __future__ import annotations

from segagent.tables.study import Cell, Study, Table

__all__ = ["Cell", "Study", "Table", "make"]


def make(name: str, study: Study) -> Table:
    """ "table 1" … "table 6", "figure 3", "figure 4" or "refinement". Raises SegAgentError."""
    from segagent.errors import SegAgentError
    from segagent.tables import clicks, reward

    makers = {**clicks.TABLES, **reward.TABLES}
    if name not in makers:
        raise SegAgentError(f"There is no {name!r}: choose one of {', '.join(makers)}.")
    return makers[name](study)
