"""HRES-Synth: exact masks, expressions that denote exactly their target, determinism, splits apart."""

from __future__ import annotations

import numpy as np
import pytest

from segagent.data import expressions, hres_synth, make_scene, vocabulary
from segagent.data._expressions import KINDS
from segagent.data._scenes import LEVELS
from segagent.errors import DataError


@pytest.mark.parametrize("level", LEVELS)
def test_masks_are_disjoint_and_large_enough(level):
    for seed in range(12):
        scene = make_scene(np.random.default_rng(seed), level, (208, 288))
        assert scene.image.shape == (208, 288, 3)
        assert scene.image.dtype == np.uint8
        low, high = LEVELS[level].objects
        assert low <= len(scene.objects) <= high
        masks = np.stack([thing.mask for thing in scene.objects])
        assert masks.sum(0).max() == 1
        for thing in scene.objects:
            assert thing.mask.sum() >= 40
            assert thing.visible >= LEVELS[level].visible - 1e-9
            ys, xs = np.nonzero(thing.mask)
            assert thing.center == pytest.approx((xs.mean(), ys.mean()))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_deterministic_by_split_level_and_index(split):
    mixed, hard = hres_synth(split, count=9), hres_synth(split, "hard", count=3)
    for inner in range(3):
        a, b = mixed[3 * inner + 2], hard[inner]
        assert a.id == b.id == f"hres-synth/{split}/hard/{inner:06d}"
        assert a.expression == b.expression
        assert (a.image == b.image).all()
        assert (a.target == b.target).all()
    assert mixed[-1].id == mixed[8].id
    assert [s.id for s in mixed[1:3]] == [mixed[1].id, mixed[2].id]


def test_splits_levels_and_seeds_do_not_overlap():
    seen = set()
    for seed in (0, 1):
        for split in ("train", "validation", "test"):
            for sample in hres_synth(split, count=12, size=(96, 96), seed=seed):
                seen.add(sample.image.tobytes())
    assert len(seen) == 2 * 3 * 12


def test_sizes():
    assert hres_synth(size=(100, 140), count=1)[0].size == (100, 140)
    assert max(hres_synth(size=512, count=1)[0].size) == 512
    assert all(192 <= side <= 320 for sample in hres_synth(count=6) for side in sample.size)


def test_words_are_of_the_vocabulary():
    words = set(vocabulary())
    for level in LEVELS:
        for seed in range(10):
            rng = np.random.default_rng(seed)
            for text, targets, kind in expressions(make_scene(rng, level, (160, 160)), rng):
                assert set(text.split()) <= words
                assert kind in KINDS
                assert (kind == "absent") == (targets == ())


def test_bad_names_are_told():
    with pytest.raises(DataError, match="no split 'val'"):
        hres_synth("val")
    with pytest.raises(DataError, match="no level"):
        hres_synth("test", "extreme")
    with pytest.raises(DataError, match="too small"):
        make_scene(np.random.default_rng(0), "easy", (10, 300))
    with pytest.raises(IndexError, match="3 samples"):
        hres_synth(count=3)[3]
