"""The search tree as data: which node is the answer, where the run went back, and JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes import disc_sample

from segagent.masks import from_rle
from segagent.search.tree import Node, Spent, Tree
from segagent.types import Click, Sample, State


@pytest.fixture
def tree() -> Tree:
    """Root, two clicks, a stop under the root, and a click under the second; the run tried the first, then went back."""
    sample = disc_sample()
    states = [State(sample.image, np.zeros(sample.size, bool)), State(sample.image, sample.target)]
    states += [State(sample.image, np.ones(sample.size, bool)), State(sample.image, sample.target)]
    return Tree(
        (
            Node(0, None, None, states[0], predicted_iou=0.1, expanded=0),
            Node(1, 0, Click(3, 4), states[1], 1, 0.8, logprob=-1.5, text="a", expanded=1),
            Node(2, 0, Click(5, 6, False), states[2], 1, 0.4),
            Node(3, 0, None, states[0], 0, 0.1),
            Node(4, 2, Click(7, 8), states[3], 2, 0.8),
        ),
        (0, 1, 0, 2, 4),
        "best-first",
        Spent(steps=3, read=4),
        ("(900, 2) lies outside.",),
    )


def test_the_answer_and_the_way_to_it(tree: Tree):
    assert tree.best == 4  # as good as node 1, and where the run stood last
    assert tree.path == (0, 2, 4)
    assert tree.jumps == ((1, 0),)
    assert [node.index for node in tree.children(0)] == [1, 2, 3]
    assert [node.stop for node in tree] == [False, False, False, True, False]
    assert tree.children(4) == ()


def test_without_predictions_the_answer_is_where_the_run_stands(tree: Tree):
    nodes = tuple(Node(n.index, n.parent, n.action, n.state, n.depth) for n in tree)
    assert Tree(nodes, (0, 1), "greedy").best == 1


def test_true_ious_are_known_once_the_target_is(tree: Tree):
    sample = disc_sample()
    assert tree.scored(Sample(sample.image, "x")) is tree
    scored = tree.scored(sample)
    share = sample.target.mean()
    assert [node.iou for node in scored] == [0, 1, share, 0, 1]
    assert [node.iou for node in tree] == [None] * 5


def test_json(tree: Tree):
    saved = json.loads(json.dumps(tree.scored(disc_sample()).to_json()))
    assert saved["best"] == 4
    assert saved["jumps"] == [[1, 0]]
    assert saved["spent"]["read"] == 4
    assert [node["chosen"] for node in saved["nodes"]] == [True, False, True, False, True]
    assert saved["nodes"][2]["action"] == {"kind": "click", "x": 5, "y": 6, "positive": False, "frame": 0}
    assert saved["nodes"][3]["stop"]
    assert saved["nodes"][3]["action"] is None
    for node, known in zip(saved["nodes"], tree, strict=True):
        assert node["stop"] or (from_rle(node["mask"]) == known.state.mask).all()
    assert "mask" not in tree.to_json(masks=False)["nodes"][0]
