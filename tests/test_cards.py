"""Model cards: every figure in the front matter is one of the report, and what is no report makes no card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import BrushSegmenter, disc_sample
from huggingface_hub import ModelCard
from tiny_models import speaker

from segagent import MLLMPolicy, SegAgent
from segagent.annotator import SimulatedAnnotator
from segagent.cards import FACTS, card_text, main, new_card, results, with_results
from segagent.environment import Environment
from segagent.errors import CheckpointError
from segagent.evaluate import evaluate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report():
    samples = [disc_sample(f"disc {i}", x=10 + 3 * i) for i in range(4)]
    figures = evaluate(
        Environment(BrushSegmenter()), SimulatedAnnotator.for_samples(samples), samples, steps=3, batch=4
    )
    facts = {"policy": "ada/agent", "segmenter": "fake:brush", "data": "hres-synth:easy", "count": 4, "steps": 3,
             "convention": "plain", "seed": 0, "date": "2026-11-22", "machine": "x86_64", "seconds": 1}  # fmt: skip
    return {**facts, "figures": figures}


def numbers(value):
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    return [float(value)] if isinstance(value, int | float) else []


def test_every_figure_is_the_reports(report):
    known = numbers(report["figures"])
    made = list(results(report))
    assert {result.metric_type for result in made} >= {"ciou", "giou", "accuracy", "noc"}
    for result in made:
        scale = 100 if result.metric_name.endswith("%") else 1
        assert any(round(scale * n, 2) == result.metric_value for n in known), result
        assert result.dataset_args["steps"] == 3
    best = next(r for r in made if r.metric_type == "ciou")
    assert best.metric_value == round(100 * report["figures"]["all"]["best"]["ciou"], 2)


def test_a_cards_old_figures_are_replaced_and_its_text_is_kept(report, tmp_path):
    text = (ROOT / "data_cards" / "segagent-nano.md").read_text(encoding="utf-8")
    once = with_results(text, report, "agent")
    worse = json.loads(json.dumps(report))
    worse["figures"]["all"]["best"]["ciou"] = 0.125
    twice = ModelCard(with_results(once, worse, "agent"))
    values = [r.metric_value for r in twice.data.eval_results if r.metric_name == "cIoU, %"]
    assert values == [12.5]
    assert twice.text.strip() == ModelCard(text).text.strip()
    assert twice.data.to_dict()["model-index"][0]["name"] == "agent"
    assert twice.data.license == "apache-2.0"


def test_a_new_card_loads_says_its_facts_and_invents_nothing(report):
    card = ModelCard(new_card("ada/agent", report, base="ada/base", training={"epochs": 2, "examples": 640}))
    assert card.data.base_model == "ada/base"
    assert 'SegAgent.from_pretrained("ada/agent")' in card.text
    assert "| examples | 640 |" in card.text
    assert all(str(report[fact]) in card.text for fact in FACTS)
    bare = ModelCard(new_card("ada/agent"))
    assert bare.data.eval_results is None
    assert "Results" not in bare.text


def test_pushed_with_a_report(hub, report, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "agent.md").write_text("---\nlicense: mit\n---\n# Agent\nOWNER/agent\n")
    agent = SegAgent(MLLMPolicy(*speaker()))
    agent.push_to_hub("ada/mine", card=tmp_path / "agent.md", report=tmp_path / "report.json")
    card = ModelCard(hub.read("model", "ada/mine", "README.md").decode())
    assert card.data.license == "mit"
    assert "ada/mine" in card.text
    assert len(card.data.eval_results) == len(list(results(report)))
    agent.push_to_hub("ada/other", report=report)
    assert b"model-index" in hub.read("model", "ada/other", "README.md")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.json", "cannot be read"),
        ({}, "holds no figures"),
        ({"figures": {"all": 3}}, "holds no figures"),
        ({"figures": {"all": {"best": {}}}}, "does not say its policy"),
    ],
)
def test_what_is_no_report_publishes_nothing(hub, value, words):
    with pytest.raises(CheckpointError, match=words):
        SegAgent(MLLMPolicy(*speaker())).push_to_hub("ada/agent", report=value)
    assert not hub.repos


def test_a_card_that_is_not_there_or_no_card(report, tmp_path):
    with pytest.raises(CheckpointError, match=r"card 'nowhere\.md' cannot be read"):
        card_text("ada/agent", "nowhere.md", None)
    with pytest.raises(CheckpointError, match="no YAML"):
        with_results("---\n- a\n- b\n---\n", report, "agent")
    assert card_text("ada/agent", None, None) is None


def test_the_command(report, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(report))
    main(["ada/agent", "--report", str(tmp_path / "report.json"), "--out", str(tmp_path / "README.md")])
    assert ModelCard((tmp_path / "README.md").read_text()).data.eval_results
    assert "figures" in capsys.readouterr().out
