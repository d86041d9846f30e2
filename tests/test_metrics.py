"""Every metric against cases worked out by hand."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.morphology import disk

from segagent import masks
from segagent.boundaries import _edges
from segagent.errors import MaskError, SegAgentError
from segagent.metrics import (
    Calibration,
    ClickMetrics,
    OutlineMetrics,
    Overlap,
    RESMetrics,
    at_limit,
    boundary_iou,
    calibration,
    contour_f,
    iou,
    iou_after,
    j_and_f,
    noc,
    nof,
    overlap,
    pack,
    region_j,
)

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def block(rows: slice, columns: slice, size: tuple[int, int] = (10, 10)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


LEFT, TOP, NOTHING = block(slice(None), slice(0, 4)), block(slice(0, 5), slice(None)), np.zeros((10, 10), bool)


def test_overlap_and_iou_by_hand():
    assert overlap(LEFT, TOP) == Overlap(20, 40, 50)
    assert overlap(LEFT, TOP).union == 70
    assert iou(LEFT, TOP) == 20 / 70
    ignore = block(slice(0, 5), slice(0, 2))  # hides 10 common pixels
    assert overlap(LEFT, TOP, ignore) == Overlap(10, 30, 40)
    assert iou(LEFT, TOP, ignore) == 10 / 60
    assert iou(NOTHING, NOTHING) == 1
    assert iou(LEFT, NOTHING) == 0
    assert iou(np.stack([LEFT, NOTHING]), np.stack([TOP, NOTHING])).tolist() == [20 / 70, 1]


def test_all_forms_of_a_mask_count_the_same():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = tuple(int(n) for n in rng.integers(1, 40, 2))
        a, b, ignore = (rng.random(size) < p for p in rng.random(3))
        for hidden in ((), (ignore,)):
            expected = Overlap(*((m & ~hidden[0] if hidden else m).sum() for m in (a & b, a, b)))
            for forms in (
                [a, b],
                [pack(a), pack(b)],
                [masks.to_rle(a), masks.to_rle(b)],
                [a, pack(b)],
                [a, masks.to_rle(b)],
            ):
                convert = {"PackedMask": pack, "dict": masks.to_rle}.get(type(forms[0]).__name__, lambda m: m)
                assert overlap(*forms, *map(convert, hidden)) == expected
    counts = {"size": [2, 3], "counts": [1, 2, 3]}  # column by column
    assert overlap(counts, counts) == Overlap(2, 2, 2)


def test_masks_of_different_sizes_are_refused():
    a, b = np.ones((4, 5), bool), np.ones((5, 4), bool)
    for x, y in ((a, b), (pack(a), pack(b)), (masks.to_rle(a), masks.to_rle(b)), (a, masks.to_rle(b))):
        with pytest.raises(MaskError, match="different sizes"):
            overlap(x, y)


@pytest.mark.parametrize(
    "counts", [[1, 2], [-1, 121], "0", "", "zz", b"\xff", masks.to_rle(np.ones((20, 20), bool))["counts"], None, (120,)]
)
def test_an_rle_that_does_not_fill_its_frame_is_refused(counts):
    # Merged with a good one, it would keep pycocotools busy for ever.
    good, bad = masks.to_rle(np.eye(10, 12, dtype=bool)), {"size": [10, 12], "counts": counts}
    for pair in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(MaskError, match=r"add up to|Not a COCO RLE"):
            overlap(*pair)
    with pytest.raises(MaskError, match="Not a COCO RLE"):
        overlap(good, {"counts": good["counts"]})


def test_an_rles_runs_of_all_lengths_are_counted():
    rng = np.random.default_rng(3)
    for _ in range(60):
        size = tuple(int(n) for n in rng.integers(1, 300, 2))
        a, b = (cv2.resize(rng.random((5, 4)), size[::-1]) > p for p in rng.random(2))
        expected = overlap(a, b)
        assert overlap(masks.to_rle(a), masks.to_rle(b)) == expected
        assert overlap(masks.to_rle(b), masks.to_rle(a), masks.to_rle(~a)).a == expected.intersection
    for height, width in ((1, 1), (1, 7), (2048, 1500)):
        empty = masks.to_rle(np.zeros((height, width), bool))
        full = masks.to_rle(np.ones((height, width), bool))
        assert overlap(full, full) == Overlap(*[height * width] * 3)
        assert overlap(empty, full) == Overlap(0, 0, height * width)


def test_several_masks_are_never_taken_for_one():
    arrays = np.stack([LEFT, TOP, NOTHING]), np.stack([TOP, TOP, NOTHING])
    forms = (
        arrays,
        [list(a) for a in arrays],
        [a.astype(np.uint8) * 255 for a in arrays],
        [a.astype(float) for a in arrays],
        [[pack(m) for m in a] for a in arrays],
        [[masks.to_rle(m) for m in a] for a in arrays],
        [a.tolist() for a in arrays],
        [np.asfortranarray(a) for a in arrays],
    )
    for a, b in forms:
        assert iou(a, b).tolist() == [20 / 70, 1, 1]
        result = RESMetrics().update(a, b).compute()
        assert (result["count"], result["giou"], result["n_acc"]) == (3, pytest.approx((20 / 70 + 2) / 3), 1)
        assert boundary_iou(a, b).tolist() == [boundary_iou(LEFT, TOP), 1, 1]
        assert contour_f(a, b).tolist() == [contour_f(LEFT, TOP), 1, 1]
    assert iou(np.stack([arrays[0]] * 2), np.stack([arrays[1]] * 2)).shape == (2, 3)
    for a, b in ((list(arrays[0]), list(arrays[1])[:2]), ([LEFT, TOP], [TOP, NOTHING[:5]]), (arrays[0], TOP)):
        metrics = RESMetrics()
        with pytest.raises(MaskError):
            metrics.update(a, b)
        assert metrics.compute()["count"] == 0  # all of a batch or none of it
    for wrong in (LEFT * 3, np.stack([LEFT] * 2), np.ones(4, bool)):
        with pytest.raises(MaskError):
            pack(wrong)
    with pytest.raises(MaskError, match="two axes"):
        iou(np.ones(4, bool), np.ones(4, bool))


def test_res_metrics_by_hand():
    metrics = RESMetrics()
    metrics.update(LEFT, TOP).update(TOP, TOP).update(block(slice(0, 4), slice(None)), TOP)
    result = metrics.compute()  # IoUs 20/70, 50/50, 40/50
    assert result["ciou"] == 110 / 170
    assert result["giou"] == pytest.approx((20 / 70 + 1 + 0.8) / 3, abs=1e-15)
    assert [result[f"pr{p}"] for p in (50, 60, 70, 80, 90)] == [2 / 3, 2 / 3, 2 / 3, 2 / 3, 1 / 3]  # ≥: 0.8 is at 0.8
    assert result["count"] == 3
    assert "n_acc" not in result
    assert math.isnan(RESMetrics().compute()["giou"])
    batch = np.stack([LEFT, TOP, block(slice(0, 4), slice(None))]), np.stack([TOP] * 3)
    assert RESMetrics().update(*batch).compute() == result
    assert RESMetrics().update(*batch, ~batch[1]).compute()["giou"] == pytest.approx((20 / 50 + 1 + 0.8) / 3)
    with pytest.raises(MaskError):
        RESMetrics().update(batch[0], TOP)


@pytest.mark.parametrize(
    ("convention", "giou", "ciou", "count"),
    [
        ("plain", (20 / 70 + 1 + 0) / 3, 20 / 110, 3),
        ("lisa", (20 / (70 + 1e-5) + 1 + 0) / 3, 20 / (110 + 1e-10), 3),
        ("visionreasoner", (20 / 70 + 0 + 0) / 3, 20 / 110, 3),
        ("seg-zero", (20 / 70 + 0) / 2, 20 / 110, 2),
        ("grefcoco", (20 / 70 + 1 + 0) / 3, 20 / 110, 3),
    ],
)
def test_conventions_of_empty_targets(convention: str, giou: float, ciou: float, count: int):
    metrics = RESMetrics(convention).update(LEFT, TOP).update(NOTHING, NOTHING).update(LEFT, NOTHING)
    result = metrics.compute()
    assert result["giou"] == pytest.approx(giou, abs=1e-15)
    assert result["ciou"] == ciou
    assert result["count"] == count
    assert result["n_acc"] == 0.5
    assert result["t_acc"] == 1
    assert result["pr50"] == {"plain": 1 / 3, "lisa": 1 / 3, "grefcoco": 0}.get(convention, 0)
    targets = RESMetrics(convention).update(LEFT, TOP).update(NOTHING, TOP).compute()
    assert targets.get("t_acc") == (0.5 if convention == "grefcoco" else None)
    assert targets["ciou"] == pytest.approx(20 / 120)


def test_unknown_conventions_are_named():
    with pytest.raises(SegAgentError, match=r"'coco'.*lisa"):
        RESMetrics("coco")
    with pytest.raises(SegAgentError, match="cannot be merged"):
        RESMetrics("lisa").merge(RESMetrics("plain"))


def test_merging_is_the_same_to_the_last_bit_in_any_order():
    rng = np.random.default_rng(1)
    pairs = [(rng.random((9, 11)) < rng.random(), rng.random((9, 11)) < rng.choice([0, 0.3])) for _ in range(60)]
    whole, backwards, shards = RESMetrics("lisa"), RESMetrics("lisa"), [RESMetrics("lisa") for _ in range(7)]
    for i, pair in enumerate(pairs):
        whole.update(*pair)
        shards[i % 7].update(*pair)
    for pair in reversed(pairs):
        backwards.update(*pair)
    merged = RESMetrics("lisa")
    for shard in shards:
        merged.merge(pickle.loads(pickle.dumps(shard)))
    assert whole.compute() == merged.compute() == backwards.compute()


def test_noc_counts_misses_as_the_limit():
    run = [0.5, 0.84, 0.85, 0.8, 0.95]
    assert noc(run, 0.85) == 3  # ≥
    assert noc(run, 0.8) == 2
    assert noc(run, 0.9, limit=4) == 4  # reached at the fifth
    assert noc(run, 0.99) == 20
    assert noc([], 0.5) == 20
    assert noc([run, [0.9], []], 0.85) == (3 + 1 + 20) / 3
    last = [0.1] * 19 + [0.9]
    assert nof([run, last, [0.1]], 0.9) == 1
    assert at_limit([run, last, [0.1]], 0.9) == 2  # the success of the twentieth click counts there


def test_iou_after_k_clicks_keeps_what_a_finished_run_has():
    assert iou_after([[0.2, 0.6, 1.0], [0.4, 0.8]], limit=4) == pytest.approx([0.3, 0.7, 0.9, 0.9])
    assert iou_after([[0.2, 0.6, 1.0], []], limit=2) == pytest.approx([0.1, 0.3])
    assert iou_after([0.2, 0.6], limit=3) == [0.2, 0.6, 0.6]  # one run
    assert all(map(math.isnan, iou_after([], limit=3)))
    assert (nof([0.2, 0.6], 0.5), nof([0.2, 0.6], 0.7), at_limit([0.2, 0.6], 0.7)) == (0, 1, 1)
    assert iou_after(np.array([[0.2, 0.6]]), limit=3) == [0.2, 0.6, 0.6]


def test_click_metrics_stream_and_merge():
    rng = np.random.default_rng(4)
    runs = [(np.sort(rng.random(rng.integers(0, 9))).tolist(), rng.random()) for _ in range(40)]
    whole, backwards, shards = ClickMetrics(limit=6), ClickMetrics(limit=6), [ClickMetrics(limit=6) for _ in range(3)]
    for i, run in enumerate(runs):
        whole.update(*run)
        shards[i % 3].update(*run)
    for run in reversed(runs):
        backwards.update(*run)
    merged = ClickMetrics(limit=6)
    for shard in shards:
        merged.merge(pickle.loads(pickle.dumps(shard)))
    result = whole.compute()
    assert result == merged.compute() == backwards.compute()
    ious = [run for run, _ in runs]
    assert result["noc85"] == pytest.approx(noc(ious, 0.85, 6))
    assert (result["nof90"], result["at_limit80"]) == (nof(ious, 0.9, 6), at_limit(ious, 0.8, 6))
    assert result["curve"] == iou_after(ious, 6)
    assert result["spc"] == pytest.approx(sum(s for _, s in runs) / sum(map(len, ious)))
    assert result["count"] == 40
    assert math.isnan(ClickMetrics().compute()["noc90"])
    with pytest.raises(SegAgentError, match="cannot be merged"):
        whole.merge(ClickMetrics(limit=20))


def test_boundary_iou_by_hand():
    # 100×100: diagonal 141.4, so the boundary is round(2.83) = 3 px wide.
    a, b = block(slice(10, 50), slice(10, 50), (100, 100)), block(slice(10, 50), slice(12, 52), (100, 100))
    ring = 40 * 40 - 34 * 34
    # Rows 10–12 and 47–49 share columns 12–49; the 34 rows between share the sides: 10–12 ∩ 12–14 and 47–49 ∩ 49–51.
    common = 6 * 38 + 34 * 2
    assert boundary_iou(a, b) == common / (2 * ring - common)
    assert boundary_iou(a, a) == 1
    assert boundary_iou(a, np.zeros_like(a)) == 0
    assert boundary_iou(np.zeros_like(a), np.zeros_like(a)) == 1
    full = np.ones((100, 100), bool)  # the frame's edge is a boundary
    assert boundary_iou(full, block(slice(3, 97), slice(3, 97), (100, 100))) == 0


def test_boundary_iou_is_that_of_the_whole_frame():
    rng = np.random.default_rng(2)
    for _ in range(20):
        size = tuple(int(n) for n in rng.integers(20, 120, 2))
        pair = [cv2.blur(rng.random(size), (9, 9)) > 0.5 for _ in range(2)]
        width = max(1, round(0.02 * float(np.hypot(*size))))
        rings = []
        for mask in pair:
            padded = np.pad(mask, width)  # zeros outside
            eroded = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1,) * 2).all(axis=(2, 3))
            rings.append(mask & ~eroded)
        assert boundary_iou(*pair) == iou(*rings)


def test_contour_f_by_hand():
    # 100×100: the tolerance is ceil(1.13) = 2 px. A vertical edge at column 39, and the same 2 and 3 px to the right.
    halves = [block(slice(None), slice(0, width), (100, 100)) for width in (40, 42, 43)]
    assert contour_f(halves[0], halves[0]) == 1
    assert contour_f(halves[1], halves[0]) == 1
    assert contour_f(halves[2], halves[0]) == 0
    # A square's edge is its rows 9 and 49 and columns 9 and 49, as DAVIS marks them. Half of a second, far one is unmatched.
    one = block(slice(10, 50), slice(10, 50), (100, 100))
    two = one | block(slice(60, 100), slice(60, 100), (100, 100))
    edge_one, edge_far = 4 * 41 - 4, 40 + 40 + 1  # the far one has no lower and right edge: the frame ends there
    precision = edge_one / (edge_one + edge_far)
    assert contour_f(two, one) == pytest.approx(2 * precision / (precision + 1))
    empty = np.zeros_like(one)
    assert contour_f(empty, empty) == 1
    assert contour_f(empty, one) == contour_f(one, empty) == 0


def test_j_and_f_over_frames():
    a, b = np.stack([LEFT, NOTHING, LEFT]), np.stack([LEFT, NOTHING, NOTHING])
    assert region_j(a, b).tolist() == [1, 1, 0]
    assert contour_f(a, b).tolist() == [1, 1, 0]
    assert j_and_f(a, b) == {"j": 2 / 3, "f": 2 / 3, "j_and_f": 2 / 3}


def test_outline_metrics_stream_and_merge():
    video = np.stack([LEFT, NOTHING, LEFT]), np.stack([LEFT, NOTHING, NOTHING])
    whole = OutlineMetrics().update(*video).update(LEFT, TOP)
    result = whole.compute()
    assert result["j"] == pytest.approx((2 / 3 + 20 / 70) / 2)  # a video counts as one object: its mean over frames
    assert result["f"] == pytest.approx((2 / 3 + contour_f(LEFT, TOP)) / 2)
    assert result["boundary_iou"] == pytest.approx((2 / 3 + boundary_iou(LEFT, TOP)) / 2)
    assert result["j_and_f"] == (result["j"] + result["f"]) / 2
    parts = OutlineMetrics().update(pack(LEFT), masks.to_rle(TOP)).merge(OutlineMetrics().update(*video))
    assert parts.compute() == result
    assert math.isnan(OutlineMetrics().compute()["j_and_f"])
    with pytest.raises(MaskError, match="different sizes"):
        whole.update(LEFT, TOP[:5])


def test_contour_f_is_that_of_dilated_boundaries():
    """DAVIS' own words: dilate each boundary with a disk, and count what the other covers."""
    folder = DATA / "davis_osvos_pred" / "car-shadow"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent")
    for name in ("00005", "00030"):
        prediction = np.asarray(Image.open(folder / f"{name}.png")) == 1
        target = np.asarray(Image.open(DATA / "davis/Annotations/car-shadow" / f"{name}.png").convert("L")) > 127
        reach = math.ceil(0.008 * math.hypot(*target.shape))
        edges = [_edges(prediction), _edges(target)]
        grown = [cv2.dilate(e.astype(np.uint8), disk(reach)) > 0 for e in edges]
        precision, recall = (edges[0] & grown[1]).sum() / edges[0].sum(), (edges[1] & grown[0]).sum() / edges[1].sum()
        assert contour_f(prediction, target) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
        assert 0.5 < region_j(prediction, target) < 1


def test_calibration_by_hand():
    result = calibration([0.1, 0.5, 0.9, 0.95], [0.2, 0.5, 0.7, 1.0], bins=10)
    assert result["mae"] == pytest.approx(100 * (0.1 + 0 + 0.2 + 0.05) / 4)
    assert result["mse"] == pytest.approx((100 + 0 + 400 + 25) / 4)
    assert result["spearman"] == 1
    assert result["count"] == 4
    assert result["pearson"] == pytest.approx(np.corrcoef([0.1, 0.5, 0.9, 0.95], [0.2, 0.5, 0.7, 1.0])[0, 1])
    assert [row["count"] for row in result["bins"]] == [0, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert result["bins"][9]["predicted"] == pytest.approx(0.925)
    assert result["bins"][9]["true"] == pytest.approx(0.85)
    assert result["ece"] == pytest.approx(100 * (0.1 + 0 + 2 * 0.075) / 4)


def test_calibration_of_ties_constants_and_shards():
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: covariance 1.5, variances 1.5 and 2.
    assert calibration([0.3, 0.3, 0.9], [0.1, 0.2, 0.3])["spearman"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert math.isnan(calibration([0.5, 0.5], [0.1, 0.9])["pearson"])
    assert math.isnan(calibration([], [])["mae"])
    whole = Calibration().update([0.1, 0.7, 1.0], [0.2, 0.6, 0.9])
    parts = Calibration().update(1.0, 0.9).merge(Calibration().update([0.7, 0.1], [0.6, 0.2]))
    assert whole.compute() == parts.compute()


def test_calibration_takes_pairs_only():
    assert Calibration().update(iter([0.1, 0.2]), (v for v in (0.1, 0.3))).compute()["count"] == 2
    for predicted, true in (([0.1], [0.1, 0.2]), ([0.1, 0.2, 0.3], [0.1, 0.2])):
        with pytest.raises(SegAgentError, match="give as many of each"):
            calibration(predicted, true)
    for predicted in (None, math.nan):
        with pytest.raises(SegAgentError, match="leave out what was not predicted"):
            calibration([predicted, 0.2], [0.1, 0.2])
