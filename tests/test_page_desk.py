"""Several objects on one desk, the models by name, the tree of a search, and what is drawn of them."""

from __future__ import annotations

import pickle
import re
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import BrushSegmenter, disc_sample, scripted

from segagent.agent import SegAgent
from segagent.environment import Environment
from segagent.errors import ActionError, CheckpointError, ImageError, SegAgentError
from segagent.page import film, markup
from segagent.page.desk import MOST_OBJECTS, Board, Desk
from segagent.page.files import checked
from segagent.page.models import Models, Shelf, gpu
from segagent.page.runs import STRATEGIES, Runs
from segagent.page.session import act, play
from segagent.policy import FixedReading, Proposal
from segagent.search import TreeSearch
from segagent.types import Click

BRUSH = Environment(BrushSegmenter())


def test_each_object_has_its_name_its_colour_and_its_history():
    board = Board.begin(disc_sample())
    board = board.put(act(board.session, BRUSH, Click(20, 15))).rename("  my   disc ").paint("#ABCDEF").add()
    assert (len(board.things), board.active, board.session.sample.expression) == (2, 1, "")
    assert board.things[0].color != board.things[1].color
    board = board.put(act(act(board.session, BRUSH, Click(3, 3)), BRUSH, Click(5, 5)))
    assert [len(t.session.moments) for t in board.things] == [2, 3]
    back = board.select(0)
    assert (back.thing.title, back.thing.color, len(back.session.moments)) == ("my disc", "#abcdef", 2)
    assert back.session.sample.image is board.session.sample.image
    assert len(back.put(back.session.undo()).select(1).session.moments) == 3
    assert markup.objects(board).count('data-key="select:') == 1
    shown = markup.canvas(back)
    assert [layer["on"] for layer in shown["layers"]] == [True, False]
    assert all(layer["d"] for layer in shown["layers"])


def test_objects_are_removed_and_never_too_many():
    board = Board.begin(disc_sample()).add().add()
    assert board.remove(0).active == 1
    assert board.select(0).remove(2).active == 0
    alone = board.remove(0).remove(0).remove(0)
    assert (len(alone.things), alone.session.state.mask.any()) == (1, False)
    for bad in (-1, 3):
        with pytest.raises(SegAgentError, match="no such object"):
            board.select(bad)
    with pytest.raises(SegAgentError, match="colour"):
        board.paint("red;}")
    while len(board.things) < MOST_OBJECTS:
        board = board.add()
    with pytest.raises(SegAgentError, match="are the most"):
        board.add()


def test_a_run_ends_when_its_person_turns_to_another_object():
    desk = Desk(Board.begin(disc_sample()).add().select(0))
    running = play(desk.session, BRUSH, scripted((0.1, Click(9, 9)), (0.2, Click(20, 20)), (0.3, None)))
    before, after = desk.session, next(running)
    assert desk.follow(before, after)
    desk.arrange(lambda b: b.rename("renaming does not end it"))
    before, after = after, next(running)
    assert desk.follow(before, after)
    desk.arrange(lambda b: b.select(1))
    assert not desk.follow(after, next(running))
    assert len(desk.board.things[0].session.moments) == 3


class Fork:
    """Proposes two clicks at each of two steps; the second branch looks better, but only at first."""

    def read(self, observations):
        return [self._reading(o.state.actions) for o in observations]

    def _reading(self, actions):
        scores = {
            0: 0.1,
            1: 0.5 if actions and actions[0].x < 20 else 0.6,
            2: 0.2 if actions and actions[0].x > 20 else 0.9,
        }
        place = 10 * len(actions)
        clicks = (Proposal(Click(12, 5 + place), "left"), Proposal(Click(30, 5 + place), "right"))
        return FixedReading(clicks if len(actions) < 2 else (Proposal(None),), scores[len(actions)])


@pytest.fixture
def searched():
    session = Board.begin(disc_sample()).session
    *_, session = play(session, BRUSH, TreeSearch(Fork(), BRUSH, "best-first", 2), steps=5)
    return session


def test_a_search_is_drawn_with_a_row_a_step_its_path_and_its_way_back(searched):
    tree = searched.tree
    html = film.tree_view(tree, "#22c55e", searched.state)
    assert html.count('data-key="') == len(tree) > 5
    tops = {int(t) for t in re.findall(r"top:(\d+)px", html)}
    assert len(tops) == max(n.depth + n.stop for n in tree) + 1
    assert html.count('<path class="chosen"') == len(tree.path) - 1
    assert html.count('<path class="undo"') == len(tree.jumps) >= 1
    assert "undo" in markup.log(searched)
    assert film.tree_view(None, "#22c55e", searched.state) == ""


def test_any_candidate_can_be_gone_on_from(searched):
    tree = searched.tree
    other = next(n for n in tree if n.depth == 2 and n.index not in tree.path and not n.stop)
    there = searched.branch(other.index)
    assert there.state is other.state
    assert there.shown.predicted_iou == other.predicted_iou
    assert [m.state for m in there.moments] == [tree.nodes[i].state for i in tree.path_to(other.index)]
    assert there.tree is tree  # and from there to any other
    assert there.branch(tree.best).state is tree.nodes[tree.best].state
    went_on = act(there, BRUSH, Click(45, 35))
    assert went_on.trajectory().states[-1].actions[-1] == Click(45, 35)
    with pytest.raises(ActionError, match="no such candidate"):
        searched.branch(len(tree))
    with pytest.raises(ActionError, match="no such candidate"):
        Board.begin(disc_sample()).session.branch(0)


def test_the_time_line_has_a_picture_a_step(searched):
    board = Board.begin(disc_sample()).put(searched)
    html = film.timeline(board)
    assert html.count('class="frame"') == len(searched.moments)
    assert f'max="{len(searched.moments) - 1}"' in html
    assert html.count('aria-current="true"') == 1
    assert film.timeline(Board.begin(disc_sample())) == ""


@pytest.mark.parametrize("strategy", [name for _, name in STRATEGIES])
def test_every_strategy_of_the_page_runs_on_plain_data(strategy):
    models = Models(SegAgent(Fork(), BrushSegmenter()))
    session = pickle.loads(pickle.dumps(Board.begin(disc_sample()).session))
    *_, ended = Runs(models).walk(session, "agent", strategy, 2, 3)
    assert ended.shown.closing is not None
    assert (ended.tree is None) == (strategy == "none")
    pickle.dumps(ended)  # what a worker with the GPU sends back


def test_spaces_marks_what_needs_a_gpu_where_that_package_is(monkeypatch):
    marked = []
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lambda f: marked.append(f) or f))
    Runs(Models())
    assert sorted(f.__name__ for f in marked) == ["_filter", "_refine", "_score", "_segment", "_walk"]
    monkeypatch.setitem(sys.modules, "spaces", None)  # as if not installed
    assert gpu(len) is len


def test_a_shelf_makes_each_thing_once_and_gives_up_the_least_used():
    made, gate = [], threading.Event()

    def make(name):
        gate.wait(10)
        made.append(name)
        if name == "bad":
            raise CheckpointError("none")
        return name.upper()

    shelf = Shelf(make, 2)
    threads = [threading.Thread(target=shelf, args=("a",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    assert [shelf(n) for n in "bac"] == ["B", "A", "C"]
    assert ("a" in shelf, "b" in shelf) == (True, False)
    for _ in range(2):  # a failure is not kept: the Hub may be back
        with pytest.raises(CheckpointError):
            shelf("bad")
    assert made.count("bad") == 2


def test_models_by_name(monkeypatch):
    agent = SegAgent(scripted((0.5, None)), BrushSegmenter())
    monkeypatch.setattr(SegAgent, "from_pretrained", lambda name: agent)
    models = Models(SegAgent(scripted((0.1, None)), BrushSegmenter()))
    assert models.judge("someone/model") is None
    assert models.policy("agent", disc_sample(), "someone/model") is agent.policy
    assert models.judge("someone/model") is agent.policy
    assert models.environment("", "someone/model") is agent.environment
    assert models.environment("grabcut").segmenter.reference == "grabcut"
    with pytest.raises(SegAgentError, match="no segmenter named"):
        models.environment("nonsense")


@pytest.mark.parametrize(
    "name", ["/etc", "../up", "a/../../b", "sam:/etc/passwd", "segment-anything:vit_b:/x.pth", "~/x"]
)
def test_on_a_public_space_only_the_hub_is_looked_into(monkeypatch, name):
    monkeypatch.setenv("SPACE_ID", "someone/segagent")
    for ask in (Models().agent, Models().environment):
        with pytest.raises(CheckpointError, match="no repository of the Hub"):
            ask(name)


def test_pictures_are_smaller_where_many_share_the_memory(monkeypatch):
    image = np.zeros((2100, 2100, 3), np.uint8)
    assert checked(image) is image
    monkeypatch.setenv("SPACE_ID", "someone/segagent")
    with pytest.raises(ImageError, match="over 4 million"):
        checked(image)


def test_a_model_that_cannot_be_had_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SegAgentError) as told:
        Models().agent("nobody/no-such-model")
    assert "nobody/no-such-model" in str(told.value)
    assert np.char.count(str(told.value), "\n") == 0
