"""HRES-Synth: exact masks, expressions that denote exactly their target, determinism, splits apart."""

from __future__ import annotations

import math
import re

import cv2
import numpy as np
import pytest

from segagent.data import build_hres_synth, expressions, hres_synth, load_hres, make_scene, vocabulary
from segagent.data.synth import KINDS, LEVELS
from segagent.data.synth_shards import complexity
from segagent.errors import DataError

# An evaluator of the English that shares nothing with the generator: it parses the text with regular expressions and measures
# on the masks alone, with the plainest reading of each word and no margins. What the generator calls unambiguous must be so here.

ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
TEXTURES = {"stripes": "striped", "dots": "dotted", "checks": "checkered", "a pattern": "plain"}
RELATION = re.compile(
    r" (?:to the )?(left of|right of|above|higher than|below|lower than|(?:partly )?(?:behind|hidden by|hiding)|in front of"
    r"|inside|within|in|closest to|nearest to|nearest) (the (?!middle|center|top|bottom).*)$"
)
SUPERLATIVES = {
    "left": r"\bleftmost |\bfirst (?=.* from the left$)| farthest to the left$",
    "right": r"\brightmost |\bfirst (?=.* from the right$)| farthest to the right$",
    "top": r"\b(?:topmost|highest) |\bfirst (?=.* from the top$)",
    "bottom": r"\b(?:bottommost|lowest) |\bfirst (?=.* from the bottom$)",
}


class Reader:
    """The set of objects that a text denotes in a scene, read off masks, colours, shapes, textures and depth."""

    def __init__(self, scene):
        self.things, self.size = scene.objects, scene.size
        where = [np.nonzero(thing.mask) for thing in scene.objects]
        self.center = [(xs.mean(), ys.mean()) for ys, xs in where]
        self.reach = [max(np.ptp(xs), np.ptp(ys)) for ys, xs in where]

    def denotes(self, text):
        text = text.removeprefix("the ")
        side, n = None, 1
        for name, pattern in SUPERLATIVES.items():
            if re.search(pattern, text):
                side, text = name, re.sub(pattern, "", text, count=1).removesuffix(f" from the {name}")
        if side is None and (
            match := re.match(r"(second|third|fourth|fifth) (.*) from the (left|right|top|bottom)$", text)
        ):
            n, text, side = ORDINALS[match[1]], match[2], match[3]
        landmark = RELATION.search(text)
        chosen = self.filtered(text[: landmark.start()] if landmark else text)
        if landmark:
            chosen = self.related(
                chosen, landmark[1].removeprefix("partly ").replace("in front", "front").split()[0], landmark[2]
            )
        if side is not None:
            axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
            chosen = sorted(chosen, key=lambda i: sign * self.center[i][axis])[n - 1 : n]
        return set(chosen)

    def filtered(self, text):
        size = re.match(r"(biggest|largest|big|large|smallest|small|little) ", text)
        text = text[size.end() :] if size else text
        place = re.search(r" (?:on|at|in) the ([a-z ]+)$", text)
        words = (text[: place.start()] if place else text).replace(" that is", "")
        for late, name in TEXTURES.items():
            words = re.sub(rf"^(.*) with(?:out)? {late}$", rf"{name} \1", words)
        letter = re.search(r"letter [a-z](?= |$)|letter", words)
        words, shape = (words.replace(letter[0], ""), letter[0]) if letter else (words, None)
        known = [i for i, thing in enumerate(self.things) if shape is None or thing.shape.startswith(shape)]
        for word in set(words.split()) - {"shape"}:
            known = [i for i in known if word in (self.things[i].color, self.things[i].shape, self.things[i].texture)]
        if place:
            known = [i for i in known if self.lies(i, place[1])]
        if size and known:
            pick = max if size[1].startswith(("big", "large", "largest")) else min
            known = [pick(known, key=lambda i: self.reach[i])]
        return known

    def lies(self, i, place):
        x, y = self.center[i][0] / self.size[1], self.center[i][1] / self.size[0]
        if place in ("middle", "center"):
            return max(abs(x - 0.5), abs(y - 0.5)) < 0.17
        inside = {"left": x < 0.44, "right": x > 0.56, "top": y < 0.44, "bottom": y > 0.56}
        return all(inside[side] for side in place.split() if side not in ("side", "corner"))

    def related(self, chosen, relation, landmark):
        marks = self.denotes(landmark)
        if len(marks) != 1:
            return []
        (mark,) = marks
        chosen = [i for i in chosen if i != mark]
        if relation in ("closest", "nearest"):
            return sorted(chosen, key=lambda i: math.dist(self.center[i], self.center[mark]))[:1]
        return [i for i in chosen if self.stands(relation, i, mark)]

    def stands(self, relation, i, mark):
        (x, y), (mark_x, mark_y) = self.center[i], self.center[mark]
        gaps = {"left": mark_x - x, "right": x - mark_x, "above": mark_y - y, "below": y - mark_y}
        gaps |= {"higher": gaps["above"], "lower": gaps["below"]}
        if relation in gaps:
            return gaps[relation] > 0
        if relation in ("inside", "within", "in"):
            ys, xs = np.nonzero(self.things[mark].mask)
            return xs.min() < x < xs.max() and ys.min() < y < ys.max() and self.reach[i] < self.reach[mark]
        back, front = (i, mark) if relation in ("behind", "hidden") else (mark, i)
        near = cv2.dilate(self.things[back].mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        return self.things[back].z < self.things[front].z and bool((near & self.things[front].mask).any())


@pytest.mark.parametrize("level", LEVELS)
def test_each_expression_denotes_exactly_its_target(level):
    kinds, count = set(), 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, level, (180, 200))
        reader = Reader(scene)
        for text, targets, kind in expressions(scene, rng):
            assert reader.denotes(text) == set(targets), f"scene {seed}: {text!r} ({kind})"
            kinds.add(kind)
            count += 1
    assert kinds == set(KINDS)
    assert count > 30 * 8


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
    assert [s.id for s in mixed[1:7:2][1:]] == [mixed[3].id, mixed[5].id]


def test_splits_levels_and_seeds_do_not_overlap():
    seen = set()
    for seed in (0, 1):
        for split in ("train", "validation", "test"):
            for sample in hres_synth(split, count=12, size=(96, 96), seed=seed):
                seen.add(sample.image.tobytes())
    assert len(seen) == 2 * 3 * 12


def test_sizes():
    assert hres_synth(size=(100, 140), count=1)[0].size == (100, 140)
    assert len(make_scene(np.random.default_rng(0), "hard", (64, 64)).objects) >= 4
    assert make_scene(np.random.default_rng(0), "hard", (64, 900)).size == (64, 900)
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


def test_masks_agree_with_the_picture():
    """Within its mask an object has its colour, just outside of it the picture differs: masks are neither shifted nor grown."""
    for seed in range(20):
        scene = make_scene(np.random.default_rng(seed), "easy", (256, 256))
        lab = cv2.cvtColor(scene.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for thing in scene.objects:
            core = cv2.erode(thing.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            rim = (cv2.dilate(thing.mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0) & ~(
                cv2.dilate(thing.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            )
            rim &= ~np.any([other.mask for other in scene.objects], axis=0)
            if thing.texture != "plain" or core.sum() < 30 or not rim.any():
                continue
            color = np.median(lab[core], axis=0)
            off = np.linalg.norm(lab - color, axis=-1)
            assert np.median(off[core]) < 8
            assert np.median(off[rim]) > 15


def test_shards_are_what_load_dataset_and_load_hres_read(tmp_path):
    from datasets import load_dataset

    written = build_hres_synth(tmp_path / "set", {"train": 4, "test": 3}, size=(80, 96))
    assert written == {"train": 4, "test": 3}
    rows = load_dataset(str(tmp_path / "set"), split="test", cache_dir=str(tmp_path / "cache"))
    samples = hres_synth("test", count=3, size=(80, 96))
    for row, sample in zip(rows, samples, strict=True):
        assert (row["id"], row["expression"], row["level"]) == (sample.id, sample.expression, sample.meta["level"])
        assert (np.asarray(row["image"]) == sample.image).all()
        assert ((np.asarray(row["mask"]) > 0) == sample.target).all()
    again = load_hres(tmp_path / "set", "train", cache_dir=tmp_path / "cache")
    assert [sample.id for sample in again] == [sample.id for sample in hres_synth("train", count=4)]


def test_complexity_is_that_of_known_figures():
    y, x = np.mgrid[:201, :201] - 100
    assert complexity(np.hypot(x, y) <= 80) == pytest.approx(1, abs=0.15)
    side = np.zeros((201, 201), bool)
    side[40:160, 40:160] = True
    assert complexity(side) == pytest.approx(4 / np.pi, rel=0.03)
    ring = (np.hypot(x, y) <= 80) & (np.hypot(x, y) > 76)
    assert complexity(ring) == pytest.approx((156 * 2) ** 2 / (80**2 - 76**2) / 4, rel=0.25)
    assert complexity(side & ~side) is None


def test_bad_names_are_told():
    with pytest.raises(DataError, match="no split 'val'"):
        hres_synth("val")
    with pytest.raises(DataError, match="no level"):
        hres_synth("test", "extreme")
    with pytest.raises(DataError, match="too small"):
        make_scene(np.random.default_rng(0), "easy", (10, 300))
    for arguments in ({"size": 10}, {"size": (100, 20)}, {"size": (100, 100, 3)}, {"count": -1}, {"seed": -1}):
        with pytest.raises(DataError, match="HRES-Synth"):
            hres_synth(**arguments)
    with pytest.raises(IndexError, match="3 samples"):
        hres_synth(count=3)[3]
