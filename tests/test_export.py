"""A run leaves as JSON and comes back: the same trajectory, and the same masks when it is done again."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from segagent import Box, Click, Environment, Sample, Undo, load_segmenter
from segagent.errors import DataError, ImageError, SegAgentError
from segagent.export import VERSION, png, replay, trajectory_from_json, trajectory_to_json, write_file
from segagent.policy import FixedReading, Proposal
from segagent.rollout import collect, rollout
from segagent.types import Trajectory


class Speaker:
    """Says what it is told to, one list of proposals a step, with a rising predicted IoU."""

    def __init__(self, *turns):
        self.turns = list(turns)

    def read(self, observations):
        step = len(observations[0].state.actions)
        turn = self.turns.pop(0) if self.turns else []
        said = [Proposal(action, f"says {action}", -0.25, origin="policy") for action in turn]
        return [FixedReading(tuple(said), predicted_iou=0.25 + step / 10) for _ in observations]


@pytest.fixture(scope="module")
def sample():
    y, x = np.mgrid[:60, :80]
    target = (x - 40) ** 2 + (y - 30) ** 2 < 300
    image = np.random.default_rng(0).integers(0, 60, (60, 80, 3)).astype(np.uint8)
    image[target] += np.array([150, 40, 20], np.uint8)
    return Sample(image, "the red disc", target, "disc-1")


CLICKS = ([Click(40, 30)], [Click(10.5, 3.25, positive=False)], [Box(20, 10, 60, 50)])
RUNS = {
    "stop": [*CLICKS, [None]],
    "steps": [*CLICKS, [Click(45, 30)], [Click(1, 1, False)]],
    "malformed": [*CLICKS, []],
    "undo": [CLICKS[0], CLICKS[1], [Undo()], CLICKS[2], [None]],
    "at once": [[None]],
}


@pytest.fixture(params=RUNS)
def run(request, sample):
    transitions = rollout(Environment(load_segmenter("grabcut")), Speaker(*RUNS[request.param]), sample, steps=4)
    return collect(sample, transitions)


def same(a: Trajectory, b: Trajectory) -> None:
    assert len(a) == len(b)
    for s, t in zip(a, b, strict=True):
        assert (s.state.mask == t.state.mask).all()
        assert (s.next_state.mask == t.next_state.mask).all()
        assert s.next_state.actions == t.next_state.actions
        for name in ("action", "predicted_iou", "iou", "reward", "text", "logprob", "origin", "end"):
            assert getattr(s, name) == getattr(t, name), name
    assert a.best() == b.best()


def test_json_round_trip(run):
    text = json.dumps(trajectory_to_json(run, "grabcut"))
    back = trajectory_from_json(text, run.sample.image)
    same(run, back)
    assert (back.sample.target == run.sample.target).all()
    assert back.sample.expression == "the red disc"
    assert json.dumps(trajectory_to_json(back, "grabcut")) == text


def test_replay_gives_the_identical_masks(run):
    again = replay(trajectory_to_json(run, "grabcut"), png(run.sample.image))
    same(run, again)


def test_a_run_that_was_not_finished(sample):
    steps = rollout(Environment(load_segmenter("grabcut")), Speaker(*CLICKS), sample)
    run = Trajectory(sample, (next(steps), next(steps)))
    saved = trajectory_to_json(run, "grabcut")
    assert [step["kind"] for step in saved["steps"]] == ["click", "click", "open"]
    same(run, trajectory_from_json(saved, sample.image))
    same(run, replay(saved, sample.image))


def test_refinement_replays_from_its_first_mask(sample):
    start = np.roll(sample.target, 7, axis=1)
    run = collect(sample, rollout(Environment(load_segmenter("grabcut")), Speaker(*RUNS["stop"]), sample, start=start))
    again = replay(trajectory_to_json(run, "grabcut"), sample.image)
    assert (again.states[0].mask == start).all()
    same(run, again)


def test_what_is_in_it(sample):
    run = collect(sample, rollout(Environment(load_segmenter("grabcut")), Speaker(*RUNS["stop"]), sample))
    saved = trajectory_to_json(run, "grabcut")
    assert saved["size"] == [60, 80]
    assert saved["segmenter"] == "grabcut"
    assert saved["best"] == 3
    first, last = saved["steps"][0], saved["steps"][-1]
    assert (first["kind"], first["x"], first["y"], first["positive"], first["origin"]) == (
        "click",
        40,
        30,
        True,
        "policy",
    )
    assert first["text"].startswith("says Click")
    assert first["predicted_iou"] == 0.25
    assert first["iou_before"] == 0
    assert last["kind"] == "stop"


def test_only_whole_runs(sample):
    environment = Environment(load_segmenter("grabcut"))
    state = environment.step(environment.reset(sample), Click(40, 30))
    run = collect(sample, rollout(environment, Speaker([None]), sample, start=state))
    with pytest.raises(DataError, match="whole run"):
        trajectory_to_json(run)


def test_bad_json(sample):
    run = collect(sample, rollout(Environment(load_segmenter("grabcut")), Speaker(*RUNS["stop"]), sample))
    good = trajectory_to_json(run)
    entry = good["steps"][0]
    for bad, words in [
        ("{", "no JSON"),
        ("[]", "No saved trajectory"),
        ({}, "No saved trajectory"),
        ({**good, "steps": {}}, "No saved trajectory"),
        ({**good, "steps": []}, "final mask"),
        ({**good, "steps": good["steps"][:-1]}, "final mask"),
        ({**good, "steps": [{**entry, "kind": "jump"}, *good["steps"][1:]]}, "click, box or undo"),
        ({**good, "steps": [{**entry, "x": 900}, *good["steps"][1:]]}, "outside"),
        ({**good, "steps": [{**entry, "x": None}, *good["steps"][1:]]}, "has no x"),
        ({**good, "steps": [{**entry, "mask": {"size": [1, 1], "counts": "1"}}, *good["steps"][1:]]}, "must be equal"),
        ({**good, "steps": [{"kind": "click"}, *good["steps"][1:]]}, "missing"),
        ({**good, "version": VERSION + 1}, "upgrade"),
        ({**good, "version": None}, "upgrade"),
    ]:
        with pytest.raises(DataError, match=words):
            trajectory_from_json(bad, sample.image)
    with pytest.raises(DataError, match="picture of"):
        trajectory_from_json(good, sample.image[1:])
    with pytest.raises(ImageError):
        trajectory_from_json(good, b"nothing")


def test_png(sample):
    mask = np.asarray(Image.open(io.BytesIO(png(sample.target))))
    assert mask.dtype == np.uint8
    assert ((mask == 255) == sample.target).all()
    assert set(np.unique(mask)) == {0, 255}
    assert (np.asarray(Image.open(io.BytesIO(png(sample.image)))) == sample.image).all()


def test_write_file_is_whole_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_file(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(SegAgentError, match="No space left"):
            write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(SegAgentError, match="cannot be written"):
        write_file(tmp_path / "none" / "a.txt", b"")
    with pytest.raises(SegAgentError, match="cannot be written"):
        write_file(tmp_path, b"")


def test_write_file_follows_links_and_spares_devices(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_file(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
    write_file("/dev/null", b"x")
    assert not os.path.isfile("/dev/null")
