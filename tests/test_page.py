"""Sessions: history, undo and redo, hand-over; the shared models; the packaged examples; what the page is told."""

from __future__ import annotations

import copy
import pickle
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import BrushSegmenter, scripted

from segagent.agent import SegAgent
from segagent.environment import Environment, reward
from segagent.errors import ActionError, CheckpointError, ExpressionError, MaskError, SegAgentError
from segagent.examples import example, examples
from segagent.export import replay, trajectory_to_json
from segagent.images import load_image
from segagent.page import film, markup
from segagent.page.desk import Board, Desk, Thing
from segagent.page.models import GOOD, Models
from segagent.page.session import Session, act, play
from segagent.policy import FixedReading, Proposal
from segagent.types import Box, Click, Sample


@pytest.fixture
def environment():
    return Environment(BrushSegmenter())


@pytest.fixture
def sample():
    target = np.zeros((40, 50), bool)
    target[10:30, 10:40] = True
    return Sample(np.zeros((40, 50, 3), np.uint8), "the box", target, id="s")


@pytest.fixture
def session(sample):
    return Session.begin(sample)


SCRIPT = scripted((0.0, Click(15, 15)), (0.4, Click(25, 20)), (0.8, Click(32, 25)), (0.6, None))


def last(sessions):
    *_, session = sessions
    return session


def test_a_run_is_shown_step_by_step_with_predicted_and_true_iou(session, environment):
    seen = list(play(session, environment, SCRIPT, steps=5))
    assert [s.position for s in seen] == [1, 2, 3, 3]
    assert [m.predicted_iou for m in seen[-1].moments] == [0.0, 0.4, 0.8, 0.6]
    assert seen[-1].shown.closing.end == "stop"
    ious = [m.iou for m in seen[-1].moments]
    assert ious[0] == 0
    assert ious == sorted(ious)
    assert session.position == 0  # sessions do not change


def test_undo_redo_and_a_new_click_that_cuts_off_what_lay_ahead(session, environment):
    ran = last(play(session, environment, SCRIPT))
    back = ran.undo().undo()
    assert (back.position, back.can_redo, back.state.mask.sum()) == (1, True, ran.moments[1].state.mask.sum())
    assert back.redo().redo().state is ran.state
    forked = act(back, environment, Click(30, 15))
    assert (forked.position, forked.can_redo, len(forked.moments)) == (2, False, 3)
    assert forked.shown.transition.origin == "person"
    with pytest.raises(ActionError, match="nothing to undo"):
        session.undo()
    with pytest.raises(ActionError, match="nothing to redo"):
        ran.redo()
    assert ran.restart().state is session.state


def test_hand_over_and_back_keeps_one_history_that_replays_to_the_identical_mask(session, environment, sample):
    one = last(play(session, environment, SCRIPT, steps=1))
    two = act(one, environment, Click(36, 26), judge=SCRIPT)
    three = last(play(two, environment, SCRIPT))
    assert [m.transition.origin for m in three.moments[1:]] == ["policy", "person", "policy"]
    trajectory = three.trajectory()
    assert [t.action for t in trajectory.steps] == [m.transition.action for m in three.moments[1:]]
    again = replay(trajectory_to_json(trajectory), sample.image, BrushSegmenter())
    assert (again.states[-1].mask == three.state.mask).all()
    assert trajectory.ious[-1] == three.shown.iou


def test_the_trajectory_ends_at_the_shown_state(session, environment):
    ran = last(play(session, environment, SCRIPT))
    assert len(ran.trajectory().steps) == 3
    assert ran.trajectory().end == "stop"
    back = ran.undo()
    assert len(back.trajectory().steps) == 2
    assert back.trajectory().end is None


def test_a_person_is_judged_by_the_model_where_there_is_one(session, environment):
    alone = act(session, environment, Click(20, 20))
    assert alone.shown.predicted_iou is None
    judged = act(session, environment, Click(20, 20), judge=SCRIPT)
    assert (judged.moments[0].predicted_iou, judged.shown.predicted_iou, judged.shown.closing) == (0.0, 0.4, None)
    wordless = act(session.ask(" "), environment, Click(20, 20), judge=SCRIPT)
    assert wordless.shown.predicted_iou is None


@pytest.mark.parametrize("action", [Click(50, 3), Click(-1, 3), Click(float("nan"), 3), Box(0, 0, 70, 3)])
def test_impossible_clicks_are_refused_and_change_nothing(session, environment, action):
    with pytest.raises(ActionError, match="outside"):
        act(session, environment, action)


def test_a_run_from_a_mask_and_masks_of_another_size(sample, environment):
    mask = sample.target.copy()
    mask[:20] = False
    session = Session.begin(sample, mask)
    assert 0 < session.shown.iou < 1
    assert (act(session, environment, Click(15, 15)).state.mask & mask).sum() == mask.sum()
    with pytest.raises(MaskError, match="7×5 px and the picture 50×40 px"):
        Session.begin(sample, np.ones((5, 7), bool))
    with pytest.raises(MaskError):
        session.aim(np.ones((5, 7), bool))


def test_a_target_given_later_scores_what_was_done_before(sample, environment):
    blind = last(play(Session.begin(Sample(sample.image, "the box")), environment, SCRIPT))
    assert {m.iou for m in blind.moments} == {None}
    aimed = blind.aim(sample.target)
    assert aimed.shown.iou == pytest.approx(reward(blind.state, sample.target))
    assert aimed.trajectory().ious[-1] == aimed.shown.iou


def test_a_run_that_was_taken_over_changes_nothing_any_more(session, environment):
    desk = Desk(Board((Thing(session),)))
    running = play(session, environment, SCRIPT)
    first = next(running)
    assert desk.follow(session, first)
    second = next(running)  # computed when the person clicks
    mine = desk.change(lambda s: act(s, environment, Click(30, 15))).session
    assert not desk.follow(first, second)
    assert desk.session is mine
    assert [m.transition.origin for m in mine.moments[1:]] == ["policy", "person"]
    stopped = desk.change(Session.copy).session
    assert not desk.follow(mine, second)
    assert stopped.state is mine.state
    with pytest.raises(ActionError):
        desk.change(Session.redo)
    assert desk.session is stopped
    assert copy.deepcopy(desk).session is stopped  # each person gets a desk of his own
    assert copy.deepcopy(desk) is not desk


def test_what_a_person_does_at_once_is_done_in_turn(session, environment):
    desk = Desk(Board((Thing(session),)))
    places = [Click(5 * i + 2, 20) for i in range(9)]
    threads = [
        threading.Thread(target=desk.change, args=(lambda s, place=place: act(s, environment, place),))
        for place in places
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.x for a in desk.session.state.actions) == [p.x for p in places]


def test_sessions_pickle(session, environment):
    ran = last(play(session, environment, SCRIPT))
    again = pickle.loads(pickle.dumps(ran))
    assert (again.state.mask == ran.state.mask).all()
    assert again.undo().position == 2


def test_who_clicks(sample, session, environment):
    models = Models(SegAgent(SCRIPT, BrushSegmenter()))
    assert models.policy("agent", sample) is SCRIPT
    done = last(play(session, models.environment(), models.policy("annotator", sample), steps=20))
    assert done.shown.iou >= GOOD or len(done.trajectory().steps) == 20
    assert done.shown.predicted_iou is not None  # the agent's opinion of the annotator's masks
    with pytest.raises(ExpressionError):
        models.policy("agent", session.ask("").sample)
    with pytest.raises(SegAgentError, match="needs a target"):
        models.policy("annotator", Sample(sample.image, "x"))


def test_the_agent_is_loaded_once_by_many_threads_and_its_failure_is_told_each_time(monkeypatch, sample):
    loads = []

    def load(segmenter=None):
        loads.append(segmenter)
        return SegAgent(SCRIPT, BrushSegmenter())

    monkeypatch.setattr(SegAgent, "from_pretrained", load)
    models = Models()
    assert models.judge() is None
    threads = [threading.Thread(target=models.agent) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert models.judge() is SCRIPT

    def fail(segmenter=None):
        raise CheckpointError("No model here.")

    monkeypatch.setattr(SegAgent, "from_pretrained", fail)
    broken = Models(segmenter=BrushSegmenter())
    broken.warm().join()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="No model"):
            broken.policy("agent", sample)
    assert broken.environment().segmenter.reference == "fake:brush"  # a person can still click


def test_every_example_has_a_picture_an_expression_and_a_target():
    photographs = [e for e in examples() if e.kind == "photograph"]
    assert len({id(e.load().image) for e in photographs}) >= 6
    assert len({e.credit for e in photographs}) >= 6
    assert len([e for e in examples() if e.kind == "scene"]) >= 4
    assert len({e.key for e in examples()}) == len(examples())
    for e in examples():
        sample = e.load()
        assert sample.expression == e.expression
        assert sample.expression.strip()
        assert 0 < sample.target.mean() < 0.6
        assert (
            all(word in e.credit for word in ("HRES-Synth",))
            or "CC0" in e.credit
            or "public" in e.credit
            or "no known" in e.credit
        )


def test_the_photographs_are_those_of_scikit_image():
    from skimage import data

    assert (example("coffee-cup").load().image == data.coffee()).all()
    assert (example("camera-man").load().image[..., 0] == data.camera()).all()


def test_words_of_users_and_models_are_escaped(sample, environment):
    evil = "<img src=x onerror=alert(1)>"
    policy = SimpleNamespace(read=lambda _: [FixedReading((Proposal(Click(20, 20), evil),), 0.5)])
    session = last(play(Session.begin(sample).ask(evil), environment, policy, steps=2))
    board = Board((Thing(session, name=evil),))
    for html in (markup.log(session), markup.status(session, evil), markup.objects(board), film.timeline(board)):
        assert "<img src=x" not in html
    assert "&lt;img" in markup.log(session)


def test_the_end_of_a_run_names_a_better_earlier_mask(session, environment):
    ran = last(play(session, environment, SCRIPT))
    words = markup.status(ran)
    assert "The agent is content with the mask" in words
    assert "step 2 higher" in words
    assert "content" not in markup.status(ran.undo())


def test_a_stop_on_the_empty_mask_is_told_as_such(session, environment):
    stop = SimpleNamespace(read=lambda _: [FixedReading((Proposal(None, "Current mIoU: 1.00."),), 1.0)])
    words = markup.status(last(play(session, environment, stop)))
    assert "The agent sees nothing that the words mean" in words
    assert "content" not in words


@pytest.mark.parametrize("size", [(1, 1), (3, 4000)])
def test_pictures_of_any_shape_are_drawn(environment, size):
    session = Session.begin(Sample(load_image(np.zeros((*size, 3), np.uint8)), ""))
    board = Board((Thing(act(session, environment, Click(0, 0))),))
    assert markup.canvas(board)["marks"][0]["n"] == 1
    assert markup.picture(board).startswith("data:image/jpeg")
    assert film.timeline(board).count("<svg") == 2
