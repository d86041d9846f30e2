"""The segmenter Protocol (F_iter) and the cache that makes "encode once, click many" true for every back end."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from segagent.types import Box, Click, State


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    mask: np.ndarray  # (H, W) bool
    memory: Any = None  # what the next call wants back, e.g. (h, w) float32 logits; plain data, no tensors


@runtime_checkable
class Segmenter(Protocol):
    """An interactive segmenter. Stateless: everything about a run is in the State, everything about an image in the Embedding."""

    reference: str  # what load_segmenter takes to make this one again

    def encode(self, image: np.ndarray) -> Any:
        """image (H, W, 3) uint8 RGB → an embedding, cached by the image's content."""
        ...

    def predict(self, embedding: Any, states: Sequence[State], actions: Sequence[Click | Box]) -> list[Prediction]:
        """One prediction for each (state, action) pair of the embedding's image, in one batch.

        `states[i].actions` are the actions before `actions[i]`, `states[i].mask` the mask that it corrects. A state with a
        mask and no actions is the start of a refinement: the mask is to be respected.
        """
        ...


_keys: dict[int, tuple[weakref.ref, str]] = {}


def content_key(image: np.ndarray) -> str:
    """A key equal for equal images. Remembered for read-only arrays, which cannot change under it."""
    known = _keys.get(id(image))
    if known is not None and known[0]() is image:
        return known[1]
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    digest.update(repr((image.shape, image.dtype.str)).encode())
    key = digest.hexdigest()
    if not image.flags.writeable:
        token = id(image)
        _keys[token] = (weakref.ref(image, lambda _, token=token: _keys.pop(token, None)), key)
    return key


class EmbeddingCache:
    """A bounded, thread-safe cache of embeddings keyed by image content; two threads that ask for one image encode it once."""

    def __init__(self, encode: Callable[[np.ndarray], Any], size: int = 8) -> None:
        self._encode, self._size = encode, size
        self._entries: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}

    def __call__(self, image: np.ndarray) -> Any:
        key = content_key(image)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                if key in self._entries:
                    return self._entries[key]
            try:
                embedding = self._encode(image)
            finally:
                with self._lock:
                    self._busy.pop(key, None)
            with self._lock:
                self._entries[key] = embedding
                while len(self._entries) > self._size:
                    self._entries.popitem(last=False)
            return embedding

    def __len__(self) -> int:
        return len(self._entries)


class Holding:
    """A segmenter that keeps the embeddings of more images than the one it is made of: as many as run in lock step.

    With fewer kept than there are runs, each step would encode every image again.
    """

    def __init__(self, segmenter: Segmenter, images: int) -> None:
        self.reference, self.predict = segmenter.reference, segmenter.predict
        self.encode = EmbeddingCache(segmenter.encode, images)
