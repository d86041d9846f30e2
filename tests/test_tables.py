"""The paper's tables: layout, numbers against hand counts on scripted policies, what each number says of itself, and the plots."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes import BrushSegmenter, FunctionPolicy

from segagent import Box, Click, Environment, evaluate, runs
from segagent.checkpoint import AgentConfig
from segagent.errors import SegAgentError
from segagent.grammar import Grammar
from segagent.masks import box_of, iou
from segagent.players import Player
from segagent.policy import FixedReading, Proposal
from segagent.runs import Setup
from segagent.tables import Study, make, plots, reward, study
from segagent.tables.clicks import short

DATA = "hres-synth:easy,size=96"


class Wandering:
    """Clicks its own places one after the other and stops at the third; predicts a rising, then a falling IoU."""

    def __init__(self, predicted=(0.0, 0.6, 0.9, 0.3, 0.2, 0.1, 0.1, 0.1)):
        self.predicted = predicted

    def read(self, observations):
        return [self._reading(o) for o in observations]

    def _reading(self, observation):
        number, (height, width) = len(observation.state.actions), observation.state.size
        places = [Click(width // 2 + 9 * k, height // 2 + 5 * number) for k in range(3)]
        stop = [Proposal(None)] if number == 2 else []
        return FixedReading((*stop, *map(Proposal, places)), self.predicted[number])


class Truthful(FunctionPolicy):
    """Knows the true IoU of its samples; clicks in the middle of the target's box."""

    def __init__(self):
        from segagent.data import hres_synth

        targets = {s.id: s.target for s in hres_synth("test", "easy", 8, size=96)}

        def decide(observation):
            target = targets[observation.id]
            box = box_of(target)
            click = Click((box[0] + box[2]) // 2, (box[1] + box[3]) // 2) if box else None
            return iou(observation.mask, target), [None if observation.state.actions else click]

        super().__init__(decide)


@pytest.fixture
def asked(monkeypatch):
    """Every setup plays a scripted policy with a brush; → the setups that were built."""
    built = []

    def build(self):
        built.append(self)
        policies = {"simulated": "simulated", "truthful": Truthful()}
        return policies.get(self.policy) or Wandering(), Environment(BrushSegmenter(12))

    monkeypatch.setattr(Setup, "build", build)
    for module in (runs, study):
        monkeypatch.setattr(module, "fingerprint", lambda name, revision=None: f"{name} 1234")
    monkeypatch.setattr(Study, "config", lambda self, policy: AgentConfig(grammar=Grammar(unit="decimal")))
    return built


def a_study(tmp_path=None, policies=("a",), **changes) -> Study:
    settings = {"count": 8, "steps": 5, "batch": 4, "out": tmp_path, "data": [DATA], **changes}
    return Study(policies={name: name for name in policies}, **settings)


def value(table, label, column):
    return dict(table.rows)[label][table.columns.index(column) - 1].value


def test_table_2_is_of_one_set_of_runs(asked, tmp_path):
    table = make("table 2", a_study(tmp_path))
    assert len(asked) == 1
    assert asked[0].insist
    assert table.columns == ("", "1 click", "3 clicks", "5 clicks")
    fixed, own, prm, truth = (dict(table.rows)[label] for label in dict(table.rows))
    kept = runs.Run.from_json
    played = [kept(json.loads(line)) for line in next((tmp_path / "runs").glob("*.jsonl")).read_text().splitlines()[1:]]
    assert all(len(run.actions) == 5 and run.stop == 2 for run in played)

    def ciou(choose):
        pairs = [(run.masks[choose(run)], run.target) for run in played]
        from segagent.metrics import overlap

        counts = [overlap(mask, target) for mask, target in pairs]
        return 100 * sum(c.intersection for c in counts) / sum(c.union for c in counts)

    assert fixed[2].value == pytest.approx(ciou(lambda run: 5))
    assert own[1].value == own[2].value == pytest.approx(ciou(lambda run: 2))
    assert prm[0].value == pytest.approx(ciou(lambda run: 1))
    assert prm[1].value == prm[2].value == pytest.approx(ciou(lambda run: 2))  # predicted highest
    assert all(t.value >= max(f.value, p.value) - 25 for t, f, p in zip(truth, fixed, prm, strict=True))


def test_with_a_prm_that_is_right_more_steps_never_cost(asked):
    table = make("table 2", a_study(policies=("truthful",)))
    means = [cell.value for cell in dict(table.rows)["with PRM"]]
    assert means == sorted(means)


def test_every_number_says_where_it_is_from(asked, tmp_path):
    table = make("table 1", a_study(tmp_path, convention="lisa"))
    table.write(tmp_path)
    saved = json.loads((tmp_path / "table-1.json").read_text())
    for fact in ("machine", "date", "steps", "seed", "segmenter", "convention"):
        assert fact in saved
    for row in saved["rows"]:
        for cell in row["cells"]:
            assert cell["data"].startswith("hres-synth:easy")
            assert cell["count"] == 8
            assert cell["checkpoint"] == "a 1234"
            assert cell["what"] == "cIoU, %, lisa"
    text = (tmp_path / "table-1.md").read_text()
    assert "![Table 1" in text
    assert "| a | " in text
    assert (tmp_path / "table-1.png").is_file()


def test_table_1_has_a_column_for_each_level_and_data_set(asked):
    table = make("table 1", a_study(data=["hres-synth:size=96,count=6", DATA], policies=("a", "b")))
    assert table.columns == (
        "policy", "HRES-Synth test all", "HRES-Synth test easy", "HRES-Synth test medium", "HRES-Synth test hard",
        "HRES-Synth easy test",
    )  # fmt: skip
    assert [label for label, _ in table.rows] == ["a", "b"]
    assert [cell.count for cell in table.rows[0][1]] == [6, 2, 2, 2, 8]


def test_table_4_paints_every_colour_of_one_checkpoint(asked):
    table = make("table 4", a_study())
    assert [setup.color for setup in asked] == [None, "blue", "red"]
    assert [label for label, _ in table.rows] == ["green (its own)", "blue", "red"]
    asked.clear()
    make("table 4", a_study(policies=("a", "b")))
    assert [setup.color for setup in asked] == [None, None]


def test_table_5_begins_with_a_click_a_given_box_or_its_own(asked):
    table = make("table 5", a_study())
    shares = {label: cells[2].value for label, cells in table.rows}
    assert shares == {"no box": 0.0, "given box": 100.0, "own box": 0.0}
    assert value(table, "given box", "cIoU, %") > value(table, "no box", "cIoU, %")


def test_table_6_names_each_checkpoints_format(asked):
    table = make("table 6", a_study(policies=("a", "b")))
    assert [cells[0].value for _, cells in table.rows] == ["[0, 1), (x, y)"] * 2
    assert "give a checkpoint" in make("table 6", a_study()).notes[0]


def test_figure_3_counts_the_simulated_annotators_clicks(asked):
    table = make("figure 3", a_study(data=["hres-synth:size=96"], count=9))
    assert asked[0].policy == "simulated"
    assert asked[0].steps == 20
    assert table.rows[0][0] == "HRES-Synth test all"
    for _, cells in table.rows:
        assert 1 <= cells[0].value <= cells[1].value <= 20


def test_figure_4_adds_part_by_part(asked, tmp_path):
    table = make("figure 4", a_study(tmp_path, policies=("SFT", "StaR"), steps=3, count=4))
    labels = [label for label, _ in table.rows]
    assert labels[:4] == ["SFT", "+ StaR", "+ PRM", "+ greedy search, K = 3"]
    assert "ceiling" in labels[4]
    assert dict(table.rows)["SFT"][1].value == 0.0
    assert table.rows[4][1][0].value >= table.rows[3][1][0].value - 1e-9
    assert [(s.policy, s.candidates) for s in asked] == [("SFT", 1), ("StaR", 1), ("StaR", 3)]
    with pytest.raises(SegAgentError, match="of checkpoints"):
        make("figure 4", a_study(policies=("simulated",)))


def test_a_search_with_a_perfect_prm_is_at_least_as_good(asked):
    own = make("figure 4", a_study(steps=3, count=4))
    perfect = make("figure 4", a_study(steps=3, count=4, judge="truth"))
    assert "a perfect PRM" in perfect.rows[2][0]
    assert perfect.rows[2][1][0].value >= own.rows[2][1][0].value


def test_table_3_reads_masks_of_random_points(asked):
    table = make("table 3", a_study(policies=("truthful",)))
    assert [label for label, _ in table.rows] == ["the greedy text"]
    cells = dict(zip(table.columns[1:], table.rows[0][1], strict=True))
    assert cells["MAE"].value == pytest.approx(0, abs=1e-9)
    assert cells["Pearson"].value == pytest.approx(1)
    assert cells["masks"].value == 8
    assert cells["AUC of IoU ≥ 0.8"].value in (1.0, None) or np.isnan(cells["AUC of IoU ≥ 0.8"].value)
    assert "random points" in table.notes[0]
    with pytest.raises(SegAgentError, match="baseline"):
        make("table 3", a_study(policies=("simulated",)))


def test_separation_counts_pairs_in_the_right_order():
    assert reward.separation([(0.9, 0.9), (0.2, 0.1), (0.5, 0.85), (0.5, 0.3)], 0.8) == 3.5 / 4
    assert np.isnan(reward.separation([(0.9, 0.9)], 0.8))


def test_random_points_lie_in_the_targets_box_and_come_again():
    from segagent.data import hres_synth

    counts = set()
    for sample in hres_synth("test", "easy", 30, size=96):
        if not sample.target.any():
            continue
        clicks = reward.random_points(sample, 3)
        x0, y0, x1, y1 = box_of(sample.target)
        assert all(x0 <= c.x <= x1 and y0 <= c.y <= y1 and c.positive for c in clicks)
        assert clicks == reward.random_points(sample, 3)
        counts.add(len(clicks))
    assert counts == {1, 2, 3}


def test_all_readings_of_a_model(asked):
    pytest.importorskip("torch")
    import tiny_models
    from fakes import disc_sample

    from segagent.mllm import MLLMPolicy
    from segagent.policy import Observation
    from segagent.types import State

    samples = [disc_sample(f"disc {i}", x=10 + 5 * i) for i in range(3)]
    observations = [Observation(State(s.image, s.target), s.expression, s.id) for s in samples]
    found = reward.readings(MLLMPolicy(*tiny_models.speaker()), observations, 0)
    assert found.keys() == {"greedy", "expected", "sampled", "spread"}
    assert all(len(values) == 3 and all(0 <= v <= 1 for v in values if v is not None) for values in found.values())


def test_refinement_gains_by_kind(asked):
    table = make("refinement", a_study(policies=("truthful",)))
    assert asked[0].start == "corrupted"
    rows = dict(table.rows)
    assert rows["all"][0].value == sum(cells[0].value for label, cells in table.rows if label != "all")
    column = table.columns.index
    for _, cells in table.rows:
        assert cells[column("gain") - 1].value >= 0  # a PRM that is right never returns a worse mask
        assert cells[column("worse, %") - 1].value == 0
        assert cells[column("PRM MAE of the given") - 1].value == 0
        assert cells[column("gain with a perfect PRM") - 1].value >= cells[column("gain") - 1].value - 1e-9


def test_what_is_no_table_is_said_so():
    with pytest.raises(SegAgentError, match="no 'table 7'"):
        make("table 7", a_study())


def test_the_command_makes_several_tables(asked, tmp_path, capsys, monkeypatch):
    arguments = ["--policy", "SFT=a", "--data", DATA, "--count", "4", "--steps", "3", "--out", str(tmp_path)]
    assert evaluate.main([*arguments, "--table", "1", "2", "--figure", "3", "--refinement"]) == 0
    printed = capsys.readouterr().out
    for words in ("## Table 1", "## Table 2", "## Figure 3", "## Refinement", "| SFT |"):
        assert words in printed
    for name in ("table-1", "table-2", "figure-3", "refinement"):
        for ending in ("md", "json", "png"):
            assert (tmp_path / f"{name}.{ending}").is_file()
    played = []
    monkeypatch.setattr(Player, "__call__", lambda self, numbers: played.append(numbers))
    assert evaluate.main([*arguments, "--table", "1", "2"]) == 0  # nothing is played again
    assert played == []


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("hres-synth", "HRES-Synth test"),
        ("hres-synth:hard,split=validation", "HRES-Synth hard validation"),
        ("refer:data/refer,dataset=refcoco+,split_by=unc,split=testA", "refcoco+ testA"),
        ("hres:data/HRES,split=validation", "HRES validation"),
        ("folder:data/mine/,expression=the crack", "mine"),
    ],
)
def test_short_names(spec, name):
    assert short(spec) == name


def test_plots_hold_what_they_are_given():
    bars = plots.bars("Bars", ["one", "a much longer name that wraps"], {"a": [1.0, None], "b": [-2.0, 30.0]}, "%")
    lines = plots.lines(
        "Lines", [1, 3, 5], {f"series {i} of many": [1.0, None, 5.0 + i] for i in range(6)}, "%", "clicks"
    )
    figures = {"bins": [{"predicted": 0.5, "true": 0.4, "count": 3}], "count": 3, "mae": 10.0, "pearson": float("nan")}
    reliability = plots.reliability("Reliability", {"greedy": figures})
    for picture, color in ((bars, 0), (lines, 5), (reliability, 0)):
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert (picture == plots.COLORS[color]).all(axis=2).any()
    assert plots.bars("Empty", [], {}, "%").any()
    assert plots.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert plots.ticks(28.1, 46.2) == [30, 35, 40, 45]


def test_boxes_count_as_actions():
    assert runs._action(Box(1, 2, 3, 4)) == ("box", 1.0, 2.0, 3.0, 4.0)
