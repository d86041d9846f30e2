"""StaR+ and StaR: what is kept of a run and what is corrected, and whole rounds on tiny settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segagent.agent import SegAgent
from segagent.data import hres_synth
from segagent.environment import Environment
from segagent.errors import DataError, MaskError
from segagent.policy import ScriptedPolicy
from segagent.rollout import collect, rollout
from segagent.trajectories import from_row
from segagent.types import Click, Sample
from tests.fakes import BrushSegmenter, FaultySamples
from train import nano, release, sft, star
from train.shards import counted

SIZE = (40, 60)


def run(target: np.ndarray, actions: list[Click | None], steps: int = 7):
    sample = Sample(np.zeros((*SIZE, 3), np.uint8), "the disk", target, "a")
    environment = Environment(BrushSegmenter(radius=8))
    return collect(sample, rollout(environment, ScriptedPolicy(actions), sample, steps=steps))


@pytest.fixture
def target():
    target = np.zeros(SIZE, bool)
    target[10:30, 10:50] = True
    return target


def test_good_actions_stay_and_bad_ones_become_those_of_f_sim(target):
    played = run(target, [Click(15, 15), Click(2, 2), Click(45, 20)])
    better = star.improve(played, stop=0.99)
    assert played.steps[1].reward < played.steps[1].iou
    assert [step.origin for step in better.steps] == ["person", "corrected", "person", "corrected"]
    assert better.steps[0].action == Click(15, 15)
    fixed = better.steps[1]
    assert fixed.action.positive
    assert target[int(fixed.action.y), int(fixed.action.x)]
    assert fixed.reward is None
    assert np.array_equal(fixed.next_state.mask, played.steps[1].next_state.mask)  # the states stay the policy's own
    # The premature stop at the end became a click.
    assert better.steps[3].state is played.states[-1]


def test_a_stop_stays_where_the_mask_is_good_enough(target):
    played = run(target, [Click(15, 15)])
    better = star.improve(played, stop=0.1)
    assert better.end == "stop"
    assert [step.origin for step in better.steps] == ["person"]


def test_an_action_that_harms_a_good_mask_becomes_a_stop(target):
    played = run(target, [Click(15, 15), Click(2, 2), Click(45, 20)])
    better = star.improve(played, stop=played.ious[1])
    assert len(better.steps) == 1
    assert better.end == "stop"
    assert better.transitions[-1].origin == "corrected"


def test_plain_star_keeps_whole_good_runs_alone(target):
    good, bad = run(target, [Click(15, 15)]), run(target, [Click(2, 2)])
    assert star.select(good, stop=0.1) is good
    assert star.select(bad, stop=0.1) is None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An SFT policy that has learnt nothing, and its D_0."""
    from train import generate

    folder = tmp_path_factory.mktemp("star")
    nano.main(["--out", str(folder / "untrained"), "--scenes", "4", "--width", "64", "--layers", "1"])
    generate.main(
        ["--out", str(folder / "d0"), "--size", "96", "--samples", "4", "--decisions", "--workers", "1", "--shard", "4"]
    )
    sft.main([
        "--model", str(folder / "untrained"), "--data", str(folder / "d0"), "--out", str(folder / "sft"),
        "--prompt", "{expression}", "--steps", "1", "--batch", "2", "--workers", "0",
    ])  # fmt: skip
    return folder


def command(base, out, *more: str) -> list[str]:
    return [
        "--model", str(base / "sft"), "--data", str(base / "d0"), "--out", str(out), "--samples", "4", "--size", "96",
        "--horizon", "2", "--shard", "2", "--workers", "1", "--count", "2", *more,
        "--", "--prompt", "{expression}", "--steps", "1", "--batch", "2", "--workers", "0",
    ]  # fmt: skip


def test_two_rounds_keep_their_data_models_and_reports(base, tmp_path, capsys):
    star.main(command(base, tmp_path, "--rounds", "2"))
    assert len((tmp_path / "star.md").read_text().splitlines()) == 2 + 3
    for number in (1, 2):
        rows = sft.load_trajectories([tmp_path / f"round-{number}" / "data"])
        assert len(rows) == 4
        assert {row["round"] for row in rows} == {number}
        assert any(step["origin"] == "corrected" for row in rows for step in row["steps"])
        from_row(rows[0])
        SegAgent.from_pretrained(tmp_path / f"round-{number}" / "model")
        json.loads((tmp_path / f"round-{number}" / "report" / "report.json").read_text())
    # An interrupted round makes only what is missing.
    data = tmp_path / "round-2" / "data"
    before = [row["steps"] for row in sft.load_trajectories([data])]
    (tmp_path / "round-2" / "model" / "segagent.json").unlink()
    (data / "train-00001.parquet").unlink()
    (data / ".train-00001.1234.tmp").write_bytes(b"half a shard")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round 2: 4 runs")]
    first = (data / "train-00000.parquet").stat().st_mtime_ns
    star.main(command(base, tmp_path, "--rounds", "2"))
    assert (data / "train-00000.parquet").stat().st_mtime_ns == first
    assert [row["steps"] for row in sft.load_trajectories([data])] == before
    assert {file.name for file in data.iterdir()} == {"train-00000.parquet", "train-00001.parquet"}
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round 2:")]
    assert again == told  # of all shards, the former run's too
    assert len(told) == 1
    with pytest.raises(DataError, match=r"other settings \(stop\)"):
        star.main(command(base, tmp_path, "--stop", "0.5"))
    (tmp_path / "settings.json").write_text('{"model')
    with pytest.raises(DataError, match=r"settings\.json cannot be read"):
        star.main(command(base, tmp_path))


def test_what_cannot_be_rolled_out_is_counted_and_logged(base, tmp_path, caplog):
    good = hres_synth("train", count=2, size=96)
    bare = Sample(good[0].image, "the ring", id="bare")
    settings = {
        "method": "star+", "round": 1, "steps": 1, "stop": 0.9, "temperature": 0.0, "seed": 0, "batch": 4, "source": "test",
        "threads": 0, "model": str(base / "sft"), "size": 9, "out": tmp_path,
    }  # fmt: skip
    samples = FaultySamples([good[0], MaskError("a size"), OSError("a disk"), bare, good[1]])
    counts = star.roll_shard(0, samples=samples, **settings)
    assert (counts["runs"], counts["unreadable"], counts["without target"]) == (2, 2, 1)
    assert caplog.text.count("is skipped") == 3
    assert sft.load_trajectories([tmp_path])["id"][:] == [good[0].id, good[1].id]
    assert counted(tmp_path) == counts


def test_a_wrong_word_is_told_before_the_roll_outs(base, tmp_path, capsys):
    words = command(base, tmp_path)
    for more, told in (
        ([*words, "--no-such-option"], "no-such-option"),
        ([*words, "--data", "elsewhere"], "given before --"),
        (["--rollouts", "0", *words], "count from 1"),
        (["--stop", "80", *words], "lie in"),
    ):
        with pytest.raises(SystemExit):
            star.main(more)
        assert told in capsys.readouterr().err
    with pytest.raises(DataError, match="no level"):
        star.main(["--source", "hres-synth:extreme", *words])
    assert not list(tmp_path.iterdir())


def test_figures_that_are_not_known_are_dashes(tmp_path):
    best = {"ciou": 1.0, "giou": 1.0}
    figures = {"first_click_hit": None, "best": best, "last": best, "noc85": None, "calibration": None}
    report = tmp_path / "round-0" / "report" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"figures": {"all": figures}}))  # only of expressions that denote nothing
    args, _ = star.parse(["--model", "m", "--data", "d", "--out", str(tmp_path)])
    assert star.summary(args).splitlines()[-1] == "| S_0 | – | 100.0 | 100.0 | 100.0 | – | – |"


def test_the_best_round_is_found_where_the_rounds_are_now(tmp_path):
    for number, ciou in ((0, 0.1), (2, 0.5), (10, 0.5)):
        report = tmp_path / f"round-{number}" / "report" / "report.json"
        report.parent.mkdir(parents=True)
        report.write_text(json.dumps({"policy": f"old/{number}", "figures": {"all": {"best": {"ciou": ciou}}}}))
        if number:
            (tmp_path / f"round-{number}" / "model").mkdir()
    assert release.best_round(tmp_path) == tmp_path / "round-2" / "model"  # of equals the earlier
    for file in tmp_path.glob("round-*/report/report.json"):
        if "round-0" not in str(file):
            file.unlink()
    assert release.best_round(tmp_path) == Path("old/0")


def test_star_without_a_good_run_says_so(base, tmp_path):
    with pytest.raises(DataError, match="kept none of 4 runs"):
        star.main(command(base, tmp_path, "--method", "star", "--count", "0", "--workers", "2"))


def test_a_model_that_is_no_sft_policy_is_refused(base, tmp_path):
    words = command(base, tmp_path)
    words[1] = str(base / "untrained")
    with pytest.raises(DataError, match="starts from an SFT policy"):
        star.main(words)


def test_the_recipe_of_nano_makes_again_what_was_half_written(tmp_path):
    """With a python that only notes what it is asked for, and writes a stage's last file."""
    stub, log, out = tmp_path / "bin" / "python", tmp_path / "log", tmp_path / "out"
    stub.parent.mkdir()
    stub.write_text(f"""#!/usr/bin/env bash
        echo "$2" >> {log}
        while [ "$1" != --out ]; do module=${{module:-$2}}; shift; done
        case $module in
            train.nano | train.pretrain) touch "$2/processor_config.json" ;;
            train.sft) mkdir -p "$2" && touch "$2/segagent.json" ;;
        esac""")
    stub.chmod(0o755)
    for name in ("untrained", "vision"):  # killed before the processors were there
        (out / name).mkdir(parents=True)
        (out / name / "config.json").touch()
    recipe = Path(__file__).parents[1] / "train" / "nano.sh"
    environment = {
        **os.environ,
        "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}",
        "OUT": str(out),
        "BASELINE": "",
    }
    made = []
    for _ in range(2):
        subprocess.run(["bash", str(recipe)], env=environment, check=True)
        made.append(log.read_text().split())
        log.unlink()
    rest = ["train.star", "train.release"]
    assert made[0] == ["train.nano", "train.pretrain", "train.generate", "train.generate", "train.sft", *rest]
    assert made[1] == ["train.generate", "train.generate", *rest]  # these know themselves what is missing


def test_the_recipe_of_nano_runs_on_tiny_settings(tmp_path):
    """All stages of train/nano.sh, one after another, from nothing to a released checkpoint that segments."""
    tiny = {
        "OUT": tmp_path, "SCENES": 4, "WIDTH": 64, "LAYERS": 2, "MINUTES": 0.02, "BATCH": 2, "TRAJECTORIES": 4, "STEPS": 1,
        "RUNS": 2, "COUNT": 3, "SHARD": 4, "WORKERS": 1, "BASELINE": "", "RELEASE": "", "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": binaries, **{key: str(value) for key, value in tiny.items()}}
    recipe = Path(__file__).parents[1] / "train" / "nano.sh"
    done = subprocess.run(
        ["bash", str(recipe)], cwd=recipe.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    agent = SegAgent.from_pretrained(tmp_path / "nano")
    sample = hres_synth("test", count=1)[0]
    assert agent.segment(sample.image, sample.expression, steps=1).mask.shape == sample.size
    reports = [json.loads((tmp_path / f"star+/round-{n}/report/report.json").read_text()) for n in (0, 1)]
    best = max(reports, key=lambda report: report["figures"]["all"]["best"]["ciou"])
    assert best["policy"] in done.stdout.splitlines()[-1]
