"""D_traj: the three rules against a loop written out, lock step, shards that survive kill -9, Ray, and what is counted and told."""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import BrushSegmenter, FaultySamples, disc, disc_sample

from segagent.annotator import next_click
from segagent.environment import Environment
from segagent.errors import DataError, MaskError, MissingDependencyError
from segagent.masks import iou
from segagent.types import Sample
from train import command, generate
from train.examples import load_trajectories
from train.simulation import INITIAL, initial_actions, initial_mask, simulate, simulate_many

ROOT = Path(__file__).parents[1]
RULES = {"steps": 5, "stop": 0.8, "gain": 0.02, "seed": 0}
SETTINGS = {
    "segmenter": "grabcut", "source": "test", "seed": 0, "steps": 2, "stop": 0.9, "gain": 0.0,
    "shares": [0.7, 0.1, 0.1, 0.1], "scenes": [None, 1], "decisions": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def scene(count=4, size=(60, 80)):
    """Samples of one picture with discs of several sizes."""
    image = np.full((*size, 3), 90, np.uint8)
    image.flags.writeable = False
    return [Sample(image, f"disc {i}", disc(size, 15 + 15 * i, 30, 6 + 2 * i), f"s{i}") for i in range(count)]


def by_hand(sample, start):
    """[(mask, IoU, click), …] and how it ended, by the three rules as they read."""
    environment = Environment(BrushSegmenter(radius=5))
    state, found = environment.reset(sample, start), []
    for _ in range(RULES["steps"]):
        before = iou(state.mask, sample.target)
        if before >= RULES["stop"]:
            return found, "stop"
        click = next_click(state.mask, sample.target, None, state.clicks)
        after = environment.step(state, click)
        if iou(after.mask, sample.target) - before < RULES["gain"]:
            return found, None
        found.append((state.mask, before, click))
        state = after
    return found, "steps"


def test_the_three_rules():
    ends = set()
    for sample in scene():
        for kind in INITIAL:
            environment = Environment(BrushSegmenter(radius=5))
            start = initial_mask(environment, sample, kind, 0)
            wanted, end = by_hand(sample, start)
            run = simulate(environment, sample, kind=kind, **RULES)
            if run is None:
                assert (wanted, end) == ([], None)
                continue
            assert [t.action for t in run.steps] == [click for _, _, click in wanted]
            for step, (mask, before, _) in zip(run.steps, wanted, strict=True):
                np.testing.assert_array_equal(step.state.mask, mask)
                assert step.iou == before
            assert run.end == end
            ends.add(end)
    assert ends == {"stop", "steps", None}


def test_samples_of_one_picture_share_calls_and_get_what_they_get_alone():
    segmenter = BrushSegmenter(radius=5)
    samples, kinds = scene(), ["empty", "box", "points", "empty"]
    together = simulate_many(Environment(segmenter), samples, kinds=kinds, **RULES)
    assert max(segmenter.calls) > 1
    for sample, kind, run in zip(samples, kinds, together, strict=True):
        alone = simulate(Environment(BrushSegmenter(radius=5)), sample, kind=kind, **RULES)
        assert (run is None) == (alone is None)
        if run is not None:
            assert [t.action for t in run] == [t.action for t in alone]
            assert run.ious == alone.ious


def test_the_wrong_object_is_one_where_that_is_known():
    plain = disc_sample("plain", size=(60, 80))
    other = disc((60, 80), 60, 45, 6)
    meant = Sample(plain.image, plain.expression, plain.target, plain.id, meta={"others": [plain.target, other]})
    for seed in range(20):
        (click,) = initial_actions("beside", meant, np.random.default_rng(seed))
        assert other[click.y, click.x]
        (click,) = initial_actions("beside", plain, np.random.default_rng(seed))
        assert not plain.target[click.y, click.x]
    with pytest.raises(DataError, match="Unknown initial state"):
        initial_actions("above", plain, np.random.default_rng(0))


def test_neighbours_of_one_picture_are_grouped():
    first, other, again = scene(2), disc_sample("other"), scene(2)
    groups = list(generate.by_image(iter([*first, other, *again, again[0]])))
    assert [[s.id for s in group] for group in groups] == [["s0", "s1"], ["other"], ["s0", "s1"], ["s0"]]


# Shards


def files(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("train-*.parquet")}


def test_kill_9_at_any_moment_and_the_same_command_gives_the_identical_data(tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["--source", "hres-synth:easy", "--samples", "24", "--size", "96", "--shard", "3", "--steps", "2"]
    generate.main([*command, "--out", str(whole), "--workers", "1"])
    assert len(files(whole)) == 8
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for enough, workers in ((1, "2"), (4, "1")):
        run = subprocess.Popen(
            [sys.executable, "-m", "train.generate", *command, "--out", str(out), "--workers", workers],
            cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=workers == "1",
        )  # fmt: skip
        while len(files(out)) < enough and run.poll() is None:
            time.sleep(0.002)
        run.kill()  # of the two processes' parent alone: they may go on for a while, beside the next run
        run.wait()
        assert not [name for name, held in files(out).items() if files(whole)[name] != held]
    generate.main([*command, "--out", str(out), "--workers", "1"])
    assert files(out) == files(whole)
    for _ in range(100):  # the orphans
        time.sleep(0.05)
    assert files(out) == files(whole)
    assert {f.name for f in out.iterdir()} == {*files(whole), "settings.json"}


def test_settings_that_were_cut_off_or_differ(tmp_path):
    samples = scene()
    generate.generate(tmp_path, samples, workers=1, size=2, settings=SETTINGS)
    with pytest.raises(DataError, match="other settings"):
        generate.generate(tmp_path, samples[:3], workers=1, size=2, settings=SETTINGS)  # its last shard would be short
    (tmp_path / "settings.json").write_text('{"segm')
    with pytest.raises(DataError, match="cannot be used"):
        generate.generate(tmp_path, samples, workers=1, size=2, settings=SETTINGS)


def test_what_cannot_be_used_is_counted(tmp_path, caplog):
    plain = disc_sample("plain")
    faults = [DataError("a fault"), OSError("a disk"), MaskError("a size"), Sample(plain.image, "nothing", id="none")]
    counts = generate.generate(
        tmp_path, FaultySamples([plain, *faults, disc_sample("last")]), workers=1, size=6, settings=SETTINGS
    )
    assert (counts["trajectories"], counts["unreadable"], counts["without target"]) == (2, 3, 1)
    assert caplog.text.count("is skipped") == 4
    assert load_trajectories([tmp_path])["id"][:] == ["plain", "last"]


def test_what_was_counted_before_an_interruption_is_told_after_it(tmp_path):
    plain = disc_sample("plain", size=(60, 80))
    samples = [
        plain,
        Sample(plain.image, "nothing", id="none"),
        Sample(plain.image, " ", plain.target, "unsaid"),
        *scene(),
    ]
    samples.append(Sample(plain.image, "absent", np.zeros((60, 80), bool), "absent"))
    settings = {**SETTINGS, "decisions": False}
    whole = generate.generate(tmp_path, samples, workers=1, size=3, settings=settings)
    assert (whole["unreadable"], whole["without target"]) == (1, 1)
    (tmp_path / "train-00001.parquet").unlink()
    assert generate.generate(tmp_path, samples, workers=1, size=3, settings=settings) == whole
    assert generate.generate(tmp_path, samples, workers=1, size=3, settings=settings) == whole
    rows = load_trajectories([tmp_path])
    assert whole["trajectories"] == len(rows)
    (absent,) = (row for row in rows if row["id"] == "absent")
    assert [step["kind"] for step in absent["steps"]] == ["stop"]
    assert absent["initial"] == "empty"  # whatever was drawn: there is no box, and no point in it
    (tmp_path / "train-00001.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-00001\.parquet cannot be read .* remove it"):
        generate.generate(tmp_path, samples, workers=1, size=3, settings=settings)


def test_a_source_has_as_many_samples_as_it_says():
    samples = generate.open_source("hres-synth:easy", 4, 96, 3)
    assert [sample.id for sample in samples] == [f"hres-synth/easy/{n}" for n in ("0/0", "0/1", "0/2", "1/0")]
    with pytest.raises(IndexError, match="4 expressions"):
        samples[-1]


def test_trajectories_are_a_source_too(tmp_path, caplog):
    made, again = tmp_path / "made", tmp_path / "again"
    common = ["--workers", "1", "--decisions"]
    generate.main(["--out", str(made), "--samples", "3", "--size", "96", *common])
    generate.main(["--out", str(again), "--samples", "2", "--source", str(made), *common])
    assert load_trajectories([again])["id"][:] == load_trajectories([made])["id"][:2]
    assert "Of 3 samples of" in caplog.text
    with pytest.raises(DataError, match="is a stream"):
        generate.open_source(f"trajectories:{made},streaming=true", 2, None, 1)
    with pytest.raises(DataError, match=r"--size and --absent are HRES-Synth's"):
        generate.open_source(str(made), 2, 96, 1)
    with pytest.raises(DataError, match="train split"):
        generate.open_source("hres-synth:split=validation", 2, None, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--shard 0", "count from 1"),
        ("--each 0", "count from 1"),
        ("--samples 0", "count from 1"),
        ("--workers 0", "count from 1"),
        ("--seed -1", "from 0"),
        ("--stop 90", "lie in"),
        ("--absent nan", "lie in"),
        ("--initial 0 0 0 0", "four shares"),
        ("--initial 1 -0.5 0 0", "four shares"),
        ("--initial 1 nan 0 0", "four shares"),
    ],
)
def test_numbers_that_cannot_be(words, told, tmp_path, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--out", str(tmp_path / "out"), *words.split()])
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_word_is_one_line_and_does_not_stick(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--samples", "2", "--size", "96", "--steps", "1", "--workers", "1"]
    with pytest.raises(SystemExit) as told:
        command.as_command(functools.partial(generate.main, [*out, "--segmenter", "nosuch"]))
    assert told.value.code == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "nosuch" in line]
    generate.main([*out, "--segmenter", "grabcut"])  # there is no shard of the other settings


def test_a_source_that_gives_nothing(tmp_path):
    (tmp_path / "images").mkdir()
    from PIL import Image

    Image.fromarray(disc_sample().image).save(tmp_path / "images" / "a.png")
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "expression": "the disc"}\n')
    with pytest.raises(DataError, match=r"Not one of the samples .*1 without target"):
        generate.main(["--out", str(tmp_path / "out"), "--source", f"folder:{tmp_path}", "--workers", "1"])


def test_a_full_disk_loses_no_shard(tmp_path):
    samples = [disc_sample(f"disc {i}", size=(200, 200), x=40 + i) for i in range(4)]
    limits, former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"train-00000\.parquet cannot be written"):
            generate.generate(tmp_path, samples, workers=1, size=2, settings=SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert files(tmp_path) == {}
    generate.generate(tmp_path, samples, workers=1, size=2, settings=SETTINGS)
    assert len(load_trajectories([tmp_path])) == 4


def test_the_same_under_ray(tmp_path):
    ray = pytest.importorskip("ray")
    samples = scene()
    plain = generate.generate(tmp_path / "plain", samples, workers=1, size=2, settings=SETTINGS)
    counts = generate.generate(tmp_path / "ray", samples, workers=1, size=2, settings=SETTINGS, ray=True)
    ray.shutdown()
    assert counts == plain
    assert files(tmp_path / "ray") == files(tmp_path / "plain")


def test_ray_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match="pip install 'ray"):
        generate.generate(tmp_path, scene(), workers=1, size=2, settings=SETTINGS, ray=True)
