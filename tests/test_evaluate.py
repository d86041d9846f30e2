"""Evaluation: figures of runs, runs kept on disk and shared, samples that cannot be used, no such object, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fakes import BrushSegmenter, FunctionPolicy, disc_sample

from segagent import Box, Click, Environment, Sample, evaluate, players, runs
from segagent.clickers import TRIES, BoxFirst, Insistent
from segagent.errors import DataError, ExpressionError, SegAgentError
from segagent.ledger import Ledger
from segagent.masks import box_of, from_rle
from segagent.players import Player, runs_of
from segagent.policy import FixedReading, Proposal
from segagent.rollout import collect, rollout
from segagent.runs import Run, Setup

DATA = "hres-synth:easy,size=96"


class Sampling:
    """Greedily it stops (or clicks, once); sampled, each TRIES-th answer is a click at the mask's end, then a box."""

    def read(self, observations):
        return [SamplingReading(o) for o in observations]


class SamplingReading:
    def __init__(self, observation):
        self.observation, self.predicted_iou, self.text = observation, 0.5, "said"

    def propose(self, candidates=1, temperature=0.0, seed=None):
        if temperature == 0:
            return [Proposal(None if self.observation.state.actions else Click(20, 15), "greedy")]
        assert candidates == TRIES
        return [Proposal(None), Proposal(Click(25, 15, False), "sampled"), Proposal(Box(1, 2, 30, 20))]


def samples() -> list[Sample]:
    """Three discs, one of them absent."""
    present = [disc_sample(f"disc {i}", x=15 + 10 * i) for i in range(3)]
    return [*present[:2], replace(present[2], target=np.zeros((40, 50), bool), meta={"level": "absent"})]


def clicks_the_middle(observation):
    """Clicks once on the disc whose number is in the expression; sees that there is no third one."""
    number = int(observation.expression.split()[-1])
    if number == 2:
        return 1.0, [None]
    done = bool(observation.state.actions)
    return (0.9 if done else 0.1), [None if done else Click(15 + 10 * number, 15)]


def test_figures_with_a_sample_without_a_target():
    figures = evaluate.evaluate(
        Environment(BrushSegmenter(8)), FunctionPolicy(clicks_the_middle), samples(), convention="grefcoco"
    )
    best = figures["all"]["best"]
    assert (best["ciou"], best["n_acc"], best["t_acc"], best["count"]) == (1.0, 1.0, 1.0, 3)
    assert figures["all"]["first_click_hit"] == 1.0
    assert figures["all"]["noc85"] == 1.0
    assert figures["absent"]["best"]["n_acc"] == 1.0
    text = evaluate.markdown(figures)
    assert "N-acc | T-acc" in text.splitlines()[0]
    assert text.splitlines()[2].endswith("| 100.0 | 100.0 |")
    without = evaluate.evaluate(Environment(BrushSegmenter(8)), FunctionPolicy(clicks_the_middle), samples()[:2])
    assert "N-acc" not in evaluate.markdown(without)


def test_ignored_pixels_do_not_count():
    sample = disc_sample(radius=4)
    ignore = ~sample.target
    figures = evaluate.evaluate(Environment(BrushSegmenter(9)), "simulated", [replace(sample, ignore=ignore)], steps=1)
    assert figures["all"]["best"]["giou"] == 1.0


def test_a_sample_without_a_known_target_is_refused():
    with pytest.raises(DataError, match="no target mask"):
        evaluate.evaluate(Environment(BrushSegmenter()), "simulated", [replace(disc_sample(), target=None)])


def test_insistent_clicks_on_where_the_policy_would_stop():
    sample, environment = disc_sample(), Environment(BrushSegmenter())
    run = Run.of(collect(sample, rollout(environment, Insistent(Sampling()), sample, steps=4)))
    assert [a[1] for a in run.actions] == [20.0, 25.0, 25.0, 25.0]
    assert (run.stop, run.end) == (1, "steps")
    plain = Run.of(collect(sample, rollout(environment, Sampling(), sample, steps=4)))
    heeded = run.heeding_stop()
    assert (heeded.masks, heeded.end, heeded.stop) == (plain.masks, plain.end, plain.stop)
    assert run.until(2).masks == run.masks[:3]
    assert run.until(1).stop == 1
    assert run.until(0).stop is None
    assert run.until(9) is run


def test_box_first_takes_the_given_box_or_the_policys_own():
    sample, environment = disc_sample(), Environment(BrushSegmenter())
    own = collect(sample, rollout(environment, BoxFirst(Sampling()), sample, steps=3))
    assert [type(t.action).__name__ for t in own.steps] == ["Box"]
    assert own.steps[0].action == Box(1, 2, 30, 20)
    given = collect(
        sample, rollout(environment, BoxFirst(Sampling(), {sample.id: Box(3, 3, 9, 9)}.get), sample, steps=3)
    )
    assert given.steps[0].action == Box(3, 3, 9, 9)
    assert given.steps[0].origin == "given"
    none = collect(sample, rollout(environment, BoxFirst(Sampling(), {}.get), sample, steps=3))
    assert none.steps[0].action == Click(20, 15)


def test_the_best_state_by_prm_and_by_truth():
    run = Run("a", masks=({},) * 4, predicted=(0.1, 0.8, 0.8, None), ious=(0.0, 0.5, 0.9, 0.7))
    assert run.best() == 2
    assert Run("a", masks=({},) * 2, predicted=(None, None)).best() == 1
    assert Run("a", masks=({},) * 3, predicted=(0.3, math.nan, 1.5)).best() == 0


@pytest.fixture
def played(monkeypatch):
    """Setups play the simulated annotator with a brush; → the batches that were played, and by which setup."""
    batches = []
    plain = Player.__call__

    def noting(self, numbers):
        batches.append(list(numbers))
        return plain(self, numbers)

    monkeypatch.setattr(Player, "__call__", noting)
    monkeypatch.setattr(Setup, "build", lambda self: ("simulated", Environment(BrushSegmenter(10))))
    monkeypatch.setattr(runs, "fingerprint", lambda name, revision=None: f"print of {name}")
    return batches


def test_runs_are_kept_shared_and_gone_on_with(played, tmp_path):
    how = {"batch": 2, "folder": tmp_path}
    first = runs_of(Setup(steps=3), DATA, count=5, **how)
    assert played == [[0, 1], [2, 3], [4]]
    assert [run.id for run in first] == [f"hres-synth/test/easy/00000{i}" for i in range(5)]
    again = runs_of(Setup(steps=3), DATA, count=5, **how)
    assert len(played) == 3
    assert [run.masks for run in again] == [run.masks for run in first]
    shorter = runs_of(Setup(steps=1), DATA, count=3, **how)  # of the longer runs
    assert len(played) == 3
    assert [run.masks for run in shorter] == [run.masks[:2] for run in first[:3]]
    runs_of(Setup(steps=3), DATA, count=6, **how)  # whole batches count
    assert played[3:] == [[4, 5]]
    runs_of(Setup(steps=4), DATA, count=2, **how)
    runs_of(Setup(steps=3, seed=1), DATA, count=2, **how)
    assert played[4:] == [[0, 1], [0, 1]]
    kept = runs_of(Setup(steps=3), DATA, count=2)  # nowhere kept
    assert kept[0].masks == first[0].masks


def test_an_interrupted_ledger_is_cut_back_to_whole_batches(tmp_path):
    path = tmp_path / "a" / "runs.jsonl"
    ledger = Ledger(path, {"a": 1}, 2)
    ledger.append([{"n": 0}, {"n": 1}])
    ledger.append([{"n": 2}, {"n": 3}])
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # killed within a line
    ledger = Ledger(path, {"a": 1}, 2)
    assert ledger.resume(6) == 2
    ledger.append([{"n": 2}, {"n": 3}])
    assert path.read_bytes() == whole
    assert ledger.resume(3) == 3
    assert list(ledger.read(3)) == [{"n": 0}, {"n": 1}, {"n": 2}]
    with pytest.raises(DataError, match="other settings"):
        Ledger(path, {"a": 2}, 2)
    path.write_bytes(whole.replace(b'{"n": 1}', b'{"n": 1"'))
    with pytest.raises(DataError, match=r"Line 3.*damaged"):
        list(Ledger(path, {"a": 1}, 2).read(4))
    path.write_bytes(b'{"sett')  # killed within the first line
    assert Ledger(path, {"a": 1}, 2).resume(4) == 0
    with pytest.raises(SegAgentError, match="at least one"):
        Ledger(None, {}, 0)


def test_a_sample_that_cannot_be_used_costs_no_other(played, monkeypatch):
    plain = players.play

    def refusing(environment, policy, part, setup):
        if any(sample.id.endswith("1") for sample in part):
            raise ExpressionError("too long")
        return plain(environment, policy, part, setup)

    monkeypatch.setattr(players, "play", refusing)
    found = runs_of(Setup(steps=1), DATA, count=4, batch=4)
    assert [run.error for run in found] == ["", "too long", "", ""]
    figures = evaluate.figures_of(found, 1)
    assert figures["all"]["best"]["count"] == 3


def test_corrupted_starts_are_the_same_again_and_of_every_kind(played):
    found = runs_of(Setup(steps=0, start="corrupted"), "hres-synth:medium,size=96", count=60)
    kinds = {run.start for run in found}
    assert {"wrong", "spill", "cut", "grown", "exact"} <= kinds
    for run in found:
        if run.start == "exact":
            assert run.ious[0] == 1.0
    again = runs_of(Setup(steps=0, start="corrupted"), "hres-synth:medium,size=96", count=60)
    assert [run.masks for run in again] == [run.masks for run in found]


def test_a_given_box_is_the_targets(played, monkeypatch):
    still = FunctionPolicy(lambda observation: (0.5, [None]))
    monkeypatch.setattr(Setup, "build", lambda self: (still, Environment(BrushSegmenter())))
    run = runs_of(Setup(steps=2, first="given box"), DATA, count=1)[0]
    assert run.actions[0] == ("box", *map(float, box_of(from_rle(run.target))))
    assert run.end == "stop"


def test_a_search_keeps_its_ceiling(played, monkeypatch):
    def reading(observation):
        size = observation.state.size
        clicks = [Proposal(Click(x, size[0] // 2)) for x in (5, size[1] // 2, size[1] - 5)]
        return FixedReading(tuple(clicks), 0.5)

    class Wide:
        def read(self, observations):
            return [reading(o) for o in observations]

    monkeypatch.setattr(Setup, "build", lambda self: (Wide(), Environment(BrushSegmenter())))
    found = runs_of(Setup(steps=2, candidates=3), DATA, count=2)
    for run in found:
        target = from_rle(run.target)
        ceiling = from_rle(run.ceiling)
        true = (ceiling & target).sum() / max(1, (ceiling | target).sum())
        assert true >= max(run.ious) - 1e-9


def test_a_second_opinion_is_combined_with_the_policys_own(monkeypatch):
    from segagent import verifier
    from segagent.agent import SegAgent

    own = SegAgent(FunctionPolicy(lambda observation: (0.2, [None])), BrushSegmenter())
    other = FunctionPolicy(lambda observation: (0.6, []))
    monkeypatch.setattr(SegAgent, "from_pretrained", lambda *args, **options: own)
    monkeypatch.setattr(verifier.Verifier, "from_pretrained", lambda name: other)
    monkeypatch.setattr(runs, "fingerprint", lambda name, revision=None: f"print of {name}")
    for combine, predicted in (("mean", 0.4), ("min", 0.2), ("other", 0.6)):
        setup = Setup(verifier="another", combine=combine)
        run = runs_of(setup, DATA, count=1)[0]
        assert run.predicted == (pytest.approx(predicted),)
        assert setup.key(DATA, 1)["verifier"] == "print of another"


def test_processes_give_the_same_runs(tmp_path):
    setup = Setup("simulated", steps=2)
    alone = runs_of(setup, DATA, count=5, batch=2)
    together = runs_of(setup, DATA, count=5, batch=2, workers=2, folder=tmp_path)
    assert [(run.id, run.masks, run.ious) for run in together] == [(run.id, run.masks, run.ious) for run in alone]


def test_a_fault_in_a_process_is_told():
    with pytest.raises(SegAgentError):
        runs_of(Setup("simulated", segmenter="no such thing"), DATA, count=4, batch=2, workers=2)


def test_the_command_writes_a_report(played, tmp_path, capsys):
    out = tmp_path / "report"
    assert evaluate.main(["--data", DATA, "--count", "4", "--steps", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| all | 4 |" in printed
    report = json.loads((out / "report.json").read_text())
    for fact in ("policy", "segmenter", "data", "count", "steps", "convention", "seed", "date", "machine"):
        assert fact in report
    assert report["figures"]["all"]["best"]["count"] == 4
    assert (out / "report.md").read_text().strip() == printed.strip()
    assert "NaN" not in (out / "report.json").read_text()
    assert (out / "worst.png").is_file()


@pytest.mark.parametrize(
    "bad", [["--count", "0"], ["--steps", "-1"], ["--workers", "0"], ["--batch", "0"], ["--candidates", "0"]]
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(SegAgentError, match="numbers from 1"):
        evaluate.main(bad)


def test_nothing_usable_is_an_error(played, monkeypatch):
    monkeypatch.setattr(Player, "_sample", lambda self, number: (_ for _ in ()).throw(DataError("broken")))
    with pytest.raises(DataError, match=r"None of 3 samples.*broken"):
        evaluate.main(["--data", DATA, "--count", "3"])
