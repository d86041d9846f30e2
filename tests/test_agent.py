"""SegAgent with a scripted policy: what a run returns, and one sentence for each bad input, raised before the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from segagent import Click, Result, SegAgent, Trajectory, load_mask
from segagent.errors import ActionError, ExpressionError, ImageError, MaskError, SegAgentError
from segagent.export import replay
from segagent.masks import from_polygons
from segagent.policy import FixedReading, Proposal
from segagent.segmenters import Prediction

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


class Columns:
    """A segmenter whose mask is the columns up to the click's."""

    reference = "columns"

    def encode(self, image):
        return image

    def predict(self, embedding, states, actions):
        columns = np.arange(embedding.shape[1])
        return [Prediction(np.broadcast_to(columns <= a.x, embedding.shape[:2])) for a in actions]


class Sweep:
    """Clicks further right at each step, sure of itself as `ious` says, and stops after the last of them."""

    def __init__(self, *ious):
        self.ious = ious

    def read(self, observations):
        readings = []
        for observation in observations:
            step = len(observation.state.actions)
            stop = step + 1 >= len(self.ious)
            action = None if stop else Click(10.0 * step, 5.0)
            readings.append(FixedReading((Proposal(action, f"step {step}"),), self.ious[min(step, len(self.ious) - 1)]))
        return readings


@pytest.fixture
def agent():
    return SegAgent(Sweep(0.1, 0.5, 0.9, 0.4), Columns())


def test_the_best_mask_by_predicted_iou(agent):
    result = agent.segment(IMAGE, "the left")
    assert result.predicted_iou == 0.9
    assert result.mask.sum() == 40 * 11  # after the click at x = 10, not after the last
    assert result.trajectory.end == "stop"
    assert len(result.trajectory.steps) == 3
    assert result.trajectory.sample.expression == "the left"
    assert result.segmenter == "columns"


def test_without_predictions_the_last_mask():
    result = SegAgent(Sweep(None, None, None), Columns()).segment(IMAGE, "the left")
    assert result.predicted_iou is None
    assert result.mask.sum() == 40 * 11


def test_stream_is_the_same_run_step_by_step(agent):
    steps = []
    for transition in agent.stream(IMAGE, "the left"):
        steps.append(transition.text)
    assert steps == ["step 0", "step 1", "step 2", "step 3"]


def test_steps(agent):
    assert len(agent.segment(IMAGE, "the left", steps=1).trajectory.steps) == 1
    assert agent.segment(IMAGE, "the left", steps=2).trajectory.end == "steps"
    assert not agent.segment(IMAGE, "the left", steps=0).mask.any()


def test_every_kind_of_source(agent, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    wanted = agent.segment(IMAGE, "the left").mask
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(IMAGE),
        (tmp_path / "a.png").read_bytes(),
    ):
        assert (agent.segment(source, "the left").mask == wanted).all()


@pytest.mark.parametrize("strategy", ["greedy", "beam", "best-first", "mcts"])
def test_a_strategy_makes_it_a_search(agent, strategy):
    result = agent.segment(IMAGE, "the left", strategy=strategy)
    assert result.tree.strategy == strategy
    assert (result.tree.nodes[result.tree.best].state.mask == result.mask).all()
    assert result.predicted_iou == 0.9
    trees = [t.details for t in agent.stream(IMAGE, "the left", strategy=strategy) if t.details is not None]
    assert [len(tree) for tree in trees] == sorted(len(tree) for tree in trees)
    refined = agent.refine(IMAGE, "the left", np.ones((40, 50), bool), strategy=strategy, steps=1, candidates=2)
    assert refined.tree.nodes[0].state.mask.all()
    assert refined.tree.spent.steps == 1


def test_without_a_search_the_tree_is_the_run(agent):
    result = agent.segment(IMAGE, "the left", clicks=[Click(20, 1)], steps=3)
    tree = result.tree
    assert tree.strategy == "none"
    assert [node.state for node in tree] == list(result.trajectory.states)
    assert [node.predicted_iou for node in tree] == list(result.trajectory.predicted_ious)
    assert tree.path[-1] == result.trajectory.best()
    assert json.dumps(tree.to_json())


def test_a_run_ends_where_the_predicted_iou_does_not_rise():
    agent = SegAgent(Sweep(0.1, 0.5, 0.5, 0.5, 0.5, 0.5), Columns())
    result = agent.segment(IMAGE, "the left", patience=2)
    assert result.trajectory.end == "converged"
    assert len(result.trajectory.steps) == 3


def test_an_unknown_option_is_said_at_once(agent):
    with pytest.raises(TypeError, match="depth"):
        agent.stream(IMAGE, "the left", depth=3)


def test_refine_begins_with_the_mask(agent):
    mask = np.eye(40, 50, dtype=bool)
    result = agent.refine(IMAGE, "the left", Image.fromarray(mask), steps=1)
    assert (result.trajectory.states[0].mask == mask).all()
    assert len(result.trajectory.states) == 2


def test_a_persons_clicks_come_first_and_count(agent):
    result = agent.segment(IMAGE, "the left", clicks=[Click(20, 1), Click(30, 1, False)], steps=3)
    assert [t.origin for t in result.trajectory.steps] == ["person", "person", "policy"]
    assert result.trajectory.steps[2].action == Click(20, 5)
    assert [t.end for t in result.trajectory][:3] == [None] * 3
    assert len(agent.segment(IMAGE, "the left", clicks=[Click(20, 1)], steps=0).trajectory.steps) == 1


def test_score(agent):
    assert agent.score(IMAGE, "the left", np.zeros((40, 50), bool)) == 0.1
    with pytest.raises(SegAgentError, match="did not say how good"):
        SegAgent(Sweep(None), Columns()).score(IMAGE, "the left", np.zeros((40, 50), bool))


def test_result_leaves_in_every_form(agent, tmp_path):
    result = agent.segment(IMAGE, "the left")
    for name in ("mask.png", "mask.json", "MASK.PNG"):
        result.save(tmp_path / name)
        assert (load_mask(tmp_path / name) == result.mask).all()
    with pytest.raises(SegAgentError, match=r"\.png"):
        result.save(tmp_path / "mask.jpg")
    assert (from_polygons(result.polygons(), (40, 50)) == result.mask).all()
    assert (result.overlay()[~result.mask] == IMAGE[~result.mask]).all()
    assert (result.overlay()[result.mask] != IMAGE[result.mask]).any()
    saved = json.loads(json.dumps(result.to_json()))
    assert (load_mask(saved["mask"]) == result.mask).all()
    again = Result.of(replay(saved["trajectory"], IMAGE, Columns()))
    assert (again.mask == result.mask).all()
    assert again.predicted_iou == result.predicted_iou
    assert isinstance(again.trajectory, Trajectory)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": "none.jpg"}, ImageError, "No such file"),
        ({"image": b"GIF89a"}, ImageError, "picture"),
        ({"image": np.zeros((4, 4, 5))}, ImageError, "height, width, 3"),
        ({"expression": ""}, ExpressionError, "empty"),
        ({"expression": " \n\t"}, ExpressionError, "empty"),
        ({"expression": None}, ExpressionError, "empty"),
        ({"expression": "very " * 2000 + "red"}, ExpressionError, "10003 characters"),
        ({"mask": np.zeros((50, 40), bool)}, MaskError, "must be equal"),
        ({"mask": np.arange(2000).reshape(40, 50) % 256}, MaskError, "threshold"),
        ({"mask": "none.png"}, MaskError, "No such file"),
        ({"clicks": [Click(50, 10)]}, ActionError, r"\(50, 10\) lies outside the image, which is 50×40"),
        ({"clicks": [Click(10, -0.6)]}, ActionError, "outside"),
        ({"clicks": [Click(float("nan"), 0)]}, ActionError, "outside"),
        ({"clicks": [(3, 4)]}, ActionError, "Click"),
        ({"steps": -1}, SegAgentError, "steps"),
        ({"steps": 2.5}, SegAgentError, "steps"),
        ({"candidates": 0}, SegAgentError, "candidates"),
        ({"candidates": 1000}, SegAgentError, "candidates"),
        ({"strategy": "dfs"}, SegAgentError, "greedy, beam, best-first, mcts"),
        ({"width": 0}, SegAgentError, "width"),
        ({"patience": -1}, SegAgentError, "patience"),
        ({"gain": 2}, SegAgentError, "gain"),
        ({"temperature": -1}, SegAgentError, "temperature"),
        ({"temperature": float("nan")}, SegAgentError, "temperature"),
        ({"seed": -1}, SegAgentError, "seed"),
        ({"seed": "x"}, SegAgentError, "seed"),
    ],
)
def test_bad_input_is_one_sentence_raised_at_once(agent, change, error, words):
    arguments = {"image": IMAGE, "expression": "the left", **change}
    with pytest.raises(error, match=words) as raised:
        agent.stream(**arguments)  # not even iterated
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 300
    assert text.endswith(".")
    with pytest.raises(error):
        agent.segment(**arguments)


def test_an_agent_without_a_model_cannot_be_saved(agent, tmp_path):
    with pytest.raises(SegAgentError, match="no model to save"):
        agent.save_pretrained(tmp_path / "a")
