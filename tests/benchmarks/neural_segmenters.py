"""Equality and speed of the neural segmenters: `python -m tests.benchmarks.neural_segmenters`.

Random weights: SimpleClick of the small size of the reference's vectors and of the released base size, a small SAM. Times
are of the processor (all threads together, whatever else the machine does), the quickest of several runs taken in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from segagent.segmenters.sam import FAMILIES, PromptSegmenter, SamSegmenter
from segagent.segmenters.simpleclick import SimpleClickSegmenter
from segagent.segmenters.simpleclick_model import SimpleClickConfig, SimpleClickModel
from segagent.types import Click, State

VECTORS = Path(__file__).parents[2].parent / "shared" / "data" / "simpleclick_vectors"
CLICKS = [Click(200, 100), Click(40, 300), Click(420, 30, positive=False)]


def best_ms(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: min(taken) * 1e3 for name, taken in times.items()}


def small_sam() -> SamSegmenter:
    import transformers

    vision = {
        **{"hidden_size": 96, "output_channels": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_dim": 384},
        **{"image_size": 512, "patch_size": 16, "global_attn_indexes": [1, 3], "num_pos_feats": 32},
    }
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 64, "image_size": 512},
        mask_decoder_config={"hidden_size": 64, "mlp_dim": 256, "num_attention_heads": 4, "iou_head_hidden_dim": 64},
    )
    model = transformers.SamModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return SamSegmenter(model, family=FAMILIES["sam"])


def simpleclick_equality() -> None:
    if not VECTORS.is_dir():
        print("SimpleClick, the reference's vectors: ../shared/data/simpleclick_vectors is absent")
        return
    model = SimpleClickModel.from_pretrained(VECTORS / "weights.pth")
    with np.load(VECTORS / "vectors.npz") as held, torch.inference_mode():
        vectors = {name: torch.from_numpy(held[name]) for name in held.files}
        pixels = vectors["image"].permute(0, 3, 1, 2).float() / 255
        error = (model(pixels, vectors["points"], vectors["prev_mask"]) - vectors["logits"]).abs().max()
    spread = vectors["logits"].max() - vectors["logits"].min()
    print(f"SimpleClick, the reference's vectors: largest error {error:.1e} on logits that span {spread:.2f}")


def report(name: str, segmenter: SimpleClickSegmenter | PromptSegmenter, image: np.ndarray, repeats: int) -> None:
    state = State(image, np.zeros(image.shape[:2], bool))
    embedding = segmenter.encode(image)

    def together() -> list:
        return segmenter.predict(embedding, [state] * 3, CLICKS)

    def apart() -> list:
        return [segmenter.predict(embedding, [state], [click])[0] for click in CLICKS]

    def logits(predictions: list) -> np.ndarray:
        return np.stack([getattr(p.memory, "probabilities", p.memory) for p in predictions])

    def encode() -> None:
        fresh = segmenter.encode._encode(image)
        if isinstance(segmenter, SimpleClickSegmenter):  # whose part of the image waits for the first crop
            fresh.patches((0, 0, image.shape[1] - 1, image.shape[0] - 1))

    error = np.abs(logits(together()) - logits(apart())).max()
    times = best_ms(
        {
            "encode": encode,
            "one": lambda: segmenter.predict(embedding, [state], CLICKS[:1]),
            "together": together,
            "apart": apart,
        },
        repeats,
    )
    print(
        f"{name}: encode {times['encode']:.1f} ms, a click {times['one']:.1f} ms, three candidates together "
        f"{times['together']:.1f} ms ({times['apart']:.1f} ms apart), largest difference {error:.1e}"
    )


@torch.inference_mode()
def padding(segmenter: SamSegmenter, image: np.ndarray) -> None:
    """Why candidates of different lengths are not padded into one call."""
    features = segmenter.encode(image).features
    arguments = {"image_embeddings": features, "multimask_output": False}
    points, labels = torch.tensor([[[[100.0, 80.0]]]]), torch.tensor([[[1]]])
    plain = segmenter.model(input_points=points, input_labels=labels, **arguments).pred_masks
    for label in (-10, -1):
        more = torch.full((1, 1, 4, 2), float(label)), torch.full((1, 1, 4), label)
        padded = segmenter.model(
            input_points=torch.cat([points, more[0]], 2), input_labels=torch.cat([labels, more[1]], 2), **arguments
        ).pred_masks
        change = (padded - plain).abs().max() / plain.std()
        print(f"SAM, one click padded by four points of label {label}: logits change by up to {change:.2f} deviations")


def main() -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    simpleclick_equality()
    image = np.random.default_rng(0).integers(0, 256, (320, 480, 3), dtype=np.uint8)
    if VECTORS.is_dir():
        small = SimpleClickModel.from_pretrained(VECTORS / "weights.pth")
        for flip in (False, True):
            report(f"SimpleClick small, flip {flip}", SimpleClickSegmenter(small, flip=flip), image, 3)
    base = SimpleClickModel(SimpleClickConfig())
    report("SimpleClick base, flip False", SimpleClickSegmenter(base, flip=False), image, 1)
    sam = small_sam()
    report("SAM small, 512 px", sam, image, 10)
    padding(sam, image)


if __name__ == "__main__":
    main()
