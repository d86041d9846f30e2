"""The command line. Exit codes: 0 done, 1 a fault of this package, 2 bad usage or input (one sentence says which), 130 interrupted.

    python -m segagent segment photo.jpg "the red cup" --out mask.png
    python -m segagent refine photo.jpg "the red cup" mask.png --out better.png --json
    python -m segagent score photo.jpg "the red cup" mask.png
    python -m segagent filter annotations.json --images DIR --threshold 0.8 --out DIR

With --json, standard output holds one JSON object and nothing else. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from segagent import __version__
from segagent.errors import SegAgentError
from segagent.outputs import check_outputs, in_words, summary, write_outputs

if TYPE_CHECKING:
    import numpy as np

    from segagent.agent import SegAgent
    from segagent.types import Click

# Commands with a module of their own, whose main(arguments) is called.
MODULES = {
    "evaluate": ("segagent.evaluate", "measure a checkpoint, or simulated clicks, on a data set"),
    "benchmark": ("segagent.benchmark", "measure segmenters with simulated clicks on folders of masks"),
    "filter": ("segagent.filtering", "score the annotations of a COCO file and keep the good ones"),
    "data": ("segagent.data.cli", "build, inspect, push and convert data sets"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():  # a script reads errors there, not the progress of a download
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if arguments and arguments[0] in MODULES:
            return importlib.import_module(MODULES[arguments[0]][0]).main(arguments[1:]) or 0
        if arguments[:1] == ["refine"] and any(a.split("=")[0] == "--images" for a in arguments):  # many masks
            return importlib.import_module("segagent.refinement").main(arguments[1:])
        options = _parser().parse_args(arguments)
        options.run(options)
    except SegAgentError as error:
        print("segagent:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("segagent: interrupted.", file=sys.stderr)
        return 130
    return 0


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="segagent", description="Segments what an expression names, click by click.")
    parser.add_argument("--version", action="version", version=f"segagent {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, text in (
        ("segment", _segment, "find and segment what an expression names"),
        ("refine", _segment, "improve a mask; with --images DIR, those of a folder or a COCO file"),
        ("score", _score, "say how good a mask is: its predicted IoU"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        command.add_argument("image", help="a picture, or - for standard input")
        command.add_argument("expression", help='what to segment, e.g. "the red cup"')
        if name == "segment":
            command.add_argument("--mask", metavar="FILE", help="begin with this mask instead of nothing")
        else:
            command.add_argument("mask", help="a black and white picture, or a .json COCO RLE")
        command.add_argument(
            "--threshold", type=float, metavar="VALUE", help="for a mask of grey values: what reaches this is in it"
        )
        add_model(command)
        if run is _segment:
            _add_run(command)
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    for name, (_, text) in MODULES.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def add_model(command: argparse.ArgumentParser) -> None:
    """The options that load_agent reads."""
    model = command.add_argument_group("model")
    model.add_argument("--checkpoint", metavar="FOLDER|OWNER/NAME", help="default: the embedded segagent-nano")
    model.add_argument("--revision", metavar="NAME", help="the repository's branch, tag or commit")
    model.add_argument(
        "--segmenter", metavar="NAME", help="instead of the checkpoint's, e.g. sam:facebook/sam-vit-base"
    )
    model.add_argument("--device", metavar="NAME", help="e.g. cpu or cuda")
    model.add_argument("--dtype", metavar="NAME", help="e.g. float32 or bfloat16")
    model.add_argument(
        "--verifier", metavar="FOLDER|OWNER/NAME", help="a vision-language model for a second opinion on each mask"
    )
    model.add_argument("--combine", metavar="HOW", default="mean", help="the two opinions: mean, min, product or other")
    model.add_argument("--local-files-only", action="store_true", help="never ask the Hub")


def _add_run(command: argparse.ArgumentParser) -> None:
    run = command.add_argument_group("run")
    run.add_argument("--steps", type=int, metavar="T", help="decisions at most")
    run.add_argument("--candidates", type=int, metavar="K", help="clicks to compare at each step")
    run.add_argument(
        "--strategy", metavar="NAME", help="greedy, beam, best-first or mcts; without --candidates it compares 3"
    )
    run.add_argument("--width", type=int, metavar="B", help="states that a beam keeps (3)")
    run.add_argument("--patience", type=int, metavar="N", help="end after N steps without gain; 0: never")
    run.add_argument("--gain", type=float, metavar="IOU", help="what counts as gain of the predicted IoU (0.01)")
    run.add_argument("--temperature", type=float, metavar="T", help="of sampled clicks; 0 takes the likeliest")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="of sampled clicks (0)")
    for sign, text in (("positive", "on the object"), ("negative", "off the object")):
        run.add_argument(
            f"--{sign}",
            dest="clicks",
            action="append",
            type=_click(sign == "positive"),
            metavar="X,Y",
            help=f"a click of your own {text}, in pixels, made first; repeatable",
        )
    files = command.add_argument_group("files")
    files.add_argument("--out", metavar="FILE", help="the mask: .png, or .json for a COCO RLE")
    files.add_argument("--overlay", metavar="FILE", help="the picture with the mask painted on: .png")
    files.add_argument("--trajectory", metavar="FILE", help="the whole run, to replay: .json")
    files.add_argument("--tree", metavar="FILE", help="all that a search saw, with every mask: .json")


def _click(positive: bool) -> Callable[[str], Click]:
    def click(text: str) -> Click:
        from segagent.types import Click

        x, y = (float(n) for n in text.split(","))
        return Click(x, y, positive)

    click.__name__ = "position X,Y"  # argparse names it in its message
    return click


def _segment(options: argparse.Namespace) -> None:
    outputs = check_outputs(options)
    image, expression, mask = _inputs(options)
    agent = load_agent(options)
    from segagent.agent import RunOptions
    from segagent.result import Result
    from segagent.types import Sample, Trajectory

    transitions = []
    for transition in agent.stream(
        image,
        expression,
        mask=mask,
        seed=options.seed,
        clicks=options.clicks or (),
        **{name: getattr(options, name) for name in RunOptions.__annotations__},
    ):
        transitions.append(transition)
        if not options.json:
            print(in_words(len(transitions), transition), flush=True)
    result = Result.of(Trajectory(Sample(image, expression), tuple(transitions)), agent.segmenter.reference)
    write_outputs(result, outputs, agent)
    if options.json:
        print(json.dumps(summary(result)))
    else:
        quality = "" if result.predicted_iou is None else f", predicted IoU {result.predicted_iou:.2f}"
        print(f"{', '.join(outputs.values())}: {result.mask.mean():.1%} of the picture{quality}")


def _score(options: argparse.Namespace) -> None:
    image, expression, mask = _inputs(options)
    predicted = load_agent(options).score(image, expression, mask)
    print(json.dumps({"predicted_iou": predicted}) if options.json else f"{predicted:.4f}")


def _inputs(options: argparse.Namespace) -> tuple[np.ndarray, str, np.ndarray | None]:
    """Picture, expression and mask, checked before a model is loaded."""
    from segagent.grammar import check_expression
    from segagent.images import load_image, load_mask

    expression = check_expression(options.expression)
    image = load_image(sys.stdin.buffer.read() if options.image == "-" else options.image)
    mask = None if options.mask is None else load_mask(options.mask, image.shape[:2], options.threshold)
    return image, expression, mask


def load_agent(options: argparse.Namespace) -> SegAgent:
    """The agent of add_model's options. Raises SegAgentError."""
    from segagent.agent import SegAgent
    from segagent.judges import check_combine

    check_combine(options.combine)  # before a model is loaded in vain
    agent = SegAgent.from_pretrained(
        options.checkpoint,
        segmenter=options.segmenter,
        device=options.device,
        dtype=options.dtype,
        revision=options.revision,
        local_files_only=options.local_files_only,
    )
    if options.verifier is None:
        return agent
    from segagent.verifier import Verifier

    where = {"dtype": options.dtype or "auto", "local_files_only": options.local_files_only}
    return agent.second_opinion(
        Verifier.from_pretrained(options.verifier, device=options.device, **where), options.combine
    )
