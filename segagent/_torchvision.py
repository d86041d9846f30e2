"""Makes `import torchvision` work, or says clearly that it cannot. Called before transformers, timm or segment_anything.

The torchvision wheels of PyPI hold a CUDA build. On a CPU-only torch it cannot load, and `import torchvision` itself fails
with `operator torchvision::nms does not exist`. That is worse than no torchvision, for transformers sees the package and
then imports it in every image processor. Only the schemas of two operators are missing: with these defined, all that is
Python works. The operators themselves still raise when called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading

from segagent.errors import MissingDependencyError

INSTALL = "pip install torchvision==0.28.0"

_OPERATORS = ("nms", "qnms")
_lock = threading.Lock()
_settled = False
_library = None  # a torch Library withdraws its definitions when it is collected


def mend() -> None:
    """Imports torchvision, mended where its compiled part does not fit torch. Nothing happens where it is healthy or absent.

    Idempotent and thread-safe. Raises MissingDependencyError where it is broken in another way.
    """
    global _settled
    with _lock:
        if not _settled:
            if _installed():
                _import()
            _settled = True


def require(purpose: str) -> None:
    """Mends torchvision; raises MissingDependencyError, which names the `purpose`, where it is absent."""
    mend()
    if not _installed():
        raise MissingDependencyError(f"{purpose} needs torchvision, which is not installed: {INSTALL}")


def _installed() -> bool:
    try:
        return importlib.util.find_spec("torchvision") is not None
    except ImportError:  # an import hook may refuse it so
        return False


def _import() -> None:
    try:
        importlib.import_module("torchvision")
        return
    except (RuntimeError, ImportError, OSError) as error:
        failure = error
    if "operator torchvision::" in str(failure):
        _define_operators()
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]  # half-imported, they would stay so
        try:
            importlib.import_module("torchvision")
            return
        except (RuntimeError, ImportError, OSError) as error:
            failure = error
    raise MissingDependencyError(
        f"The installed torchvision does not fit the installed torch ({failure}): {INSTALL}, or uninstall it."
    ) from failure


def _define_operators() -> None:
    global _library
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
