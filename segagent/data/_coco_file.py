"""A COCO file larger than memory: gone through in pieces, its annotations read by their places, and copied as they were written.

What is held: one element at a time; of each picture its name and size; of each annotation its id and four integers. Places are
bytes. Strings may hold anything, and numbers keep the digits that they were written with, since nothing is written anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator
from json.decoder import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from segagent.data._annotations import Picture, read_element
from segagent.errors import DataError, SegAgentError

PIECE = 1 << 20  # bytes read at a time
_SPACE = re.compile(r"[ \t\r\n]*")


class Element(NamedTuple):
    key: str  # of the list that it is in
    value: Any
    offset: int  # bytes into the file
    length: int


class _Text:
    """A window on a file, a character for each byte, that grows at its end and forgets what lies behind."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.text, self.at, self.behind = stream, "", 0, 0
        self.digest, self.ended = hashlib.blake2b(digest_size=16), False

    def more(self) -> bool:
        """Reads on; whether there was anything."""
        piece = self.stream.read(max(PIECE, len(self.text) - self.at))  # at least doubling: no element is scanned often
        self.digest.update(piece)
        self.behind += self.at
        self.text, self.at = self.text[self.at :] + piece.decode("latin-1"), 0
        self.ended = not piece
        return bool(piece)

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise JSONDecodeError(f"Expecting {character!r} at byte {self.behind + self.at}", self.text[:80], self.at)
        self.at += 1

    def value(self) -> tuple[Any, int, int]:
        """(the next value, its place, its length)."""
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self.text, self.at)
                # A number at the window's end may go on behind it.
                if end < len(self.text) or self.ended or self.text[end - 1] in '}]"':
                    break
            except JSONDecodeError:
                if self.ended:
                    raise
            self.more()
        offset, length = self.behind + self.at, end - self.at
        self.at = end
        return found, offset, length


_DECODER = JSONDecoder()


def stream_elements(path: Path, seen: Callable[[str, set[str]], None] = lambda digest, keys: None) -> Iterator[Element]:
    """Each element of the lists in a file's JSON object, one at a time; `seen` gets its digest and keys at the end.

    Other values are passed over. Raises DataError.
    """
    try:
        with path.open("rb") as stream:
            text = _Text(stream)
            if text.peek() == "\xef":  # a byte order mark
                text.at += 3
            keys = yield from _members(text)
            seen(text.digest.hexdigest(), keys)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except (JSONDecodeError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not a JSON object, or is cut off: {error}.") from error


def _members(text: _Text) -> Generator[Element, None, set[str]]:
    """→ the object's keys."""
    keys = set()
    text.take("{")
    while text.peek() != "}":
        key = str(text.value()[0])
        keys.add(key)
        text.take(":")
        if text.peek() == "[":
            text.take("[")
            while text.peek() != "]":
                yield Element(key, *text.value())
                if text.peek() != "]":
                    text.take(",")
            text.take("]")
        else:
            text.value()
        if text.peek() != "}":
            text.take(",")
    text.take("}")
    if text.peek():
        raise JSONDecodeError("More after the end", text.text[:80], text.at)
    return keys


class CocoFile:
    """The index of one file: pictures, categories, and where each annotation lies. Raises DataError.

    `images`: {id: Picture}; `categories`: {id: name}; `faults`: {what: [sentences]} of elements that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.digest = path, ""
        self.images: dict[Any, Picture] = {}
        self.categories: dict[Any, str] = {}
        self.faults: dict[str, list[str]] = {}
        self._list_starts: set[int] = (
            set()
        )  # annotations that are the first of a list; more than one list is odd, but JSON
        self.offsets, self.lengths, self._image_numbers = array("q"), array("q"), array("q")
        self.duplicates: set[int] = set()  # numbers of annotations whose id was there before
        self._numbers: dict[Any, int] = {}  # of the pictures that annotations name, in the order met
        self._order: list[int] | None = None
        ids: set[Any] = set()
        last, ends = "", []
        for element in stream_elements(path, lambda *end: ends.extend(end)):
            if element.key == "images":
                self._add_image(element.value)
            elif element.key == "categories":
                self._add_category(element.value)
            elif element.key == "annotations":
                value = element.value if isinstance(element.value, dict) else {}
                number, image = (
                    key if isinstance(key, int | str) else None for key in map(value.get, ("id", "image_id"))
                )
                if number in ids:
                    self.duplicates.add(len(self))
                ids.add(number)
                if last != "annotations":
                    self._list_starts.add(len(self.offsets))
                self.offsets.append(element.offset)
                self.lengths.append(element.length)
                self._image_numbers.append(self._numbers.setdefault(image, len(self._numbers)))
            last = element.key
        self.digest, keys = ends
        if not {"images", "annotations"} <= keys:
            raise DataError(f"{str(path)!r} lacks images or annotations: it is not a COCO file.")

    def __len__(self) -> int:
        """How many annotations there are."""
        return len(self.offsets)

    def order(self) -> list[int]:
        """The annotations' numbers, those of one picture together, so that a picture is decoded once."""
        if self._order is None:
            self._order = sorted(range(len(self)), key=lambda i: (self._image_numbers[i], i))
        return self._order

    def numbers_of(self, image_id: Any) -> list[int]:
        """The numbers of a picture's annotations, in the file's order."""
        which = self._numbers.get(image_id, -1)
        order = self.order()
        first = bisect_left(order, which, key=self._image_numbers.__getitem__)
        return order[first : bisect_right(order, which, key=self._image_numbers.__getitem__)]

    def annotation(self, number: int) -> Any:
        """Annotation `number`, counted from 0 in the file's order; {} where it is no object."""
        try:
            return read_element(self.path, self.offsets[number], self.lengths[number])
        except DataError:
            return {}

    def write(self, target: Path, replacement: Callable[[int], bytes | bool | None]) -> None:
        """Copies the file, each annotation as it was (True), left out (None or False), or replaced by other bytes.

        Everything else is copied byte by byte. The file appears whole or not at all.
        """
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            with self.path.open("rb") as source, temporary.open("wb") as sink:
                self._copy(source, sink, replacement)
            temporary.replace(target)
        except OSError as error:
            raise SegAgentError(f"{str(target)!r} cannot be written: {error.strerror}.") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _copy(self, source: BinaryIO, sink: BinaryIO, replacement: Callable[[int], bytes | bool | None]) -> None:
        """An annotation that is left out goes with the comma and the space on one of its sides."""
        at, wrote = 0, False
        for number, (offset, length) in enumerate(zip(self.offsets, self.lengths, strict=True)):
            new = replacement(number)
            if number in self._list_starts:
                _copy_bytes(source, sink, at, offset)
                wrote = False
            elif new and wrote:
                _copy_bytes(source, sink, at, offset)
            if new is True:
                _copy_bytes(source, sink, offset, offset + length)
            elif new:
                sink.write(new)
            wrote = wrote or bool(new)
            at = offset + length
        _copy_bytes(source, sink, at, self.path.stat().st_size)

    def _add_image(self, value: Any) -> None:
        try:
            key, picture = value["id"], Picture(_utf8(value["file_name"]), int(value["height"]), int(value["width"]))
            known = key in self.images
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._fault("broken image entries", f"An image entry has no id, file_name, height or width: {error!r}.")
            return
        if known:
            self._fault("duplicate image ids", f"Image {key} is listed twice; the first entry counts.")
        else:
            self.images[key] = picture

    def _add_category(self, value: Any) -> None:
        try:
            self.categories.setdefault(value["id"], _utf8(value["name"]))
        except (KeyError, TypeError, AttributeError) as error:
            self._fault("broken category entries", f"A category has no id or name: {error!r}.")

    def _fault(self, kind: str, sentence: str) -> None:
        self.faults.setdefault(kind, []).append(sentence)


def _copy_bytes(source: BinaryIO, sink: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    while start < end and (piece := source.read(min(PIECE, end - start))):
        sink.write(piece)
        start += len(piece)


def _utf8(text: str) -> str:
    """The text as it was written in UTF-8, though it was read a character a byte; an escaped é is right already."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def to_bytes(value: Any) -> bytes:
    """JSON of an annotation that is written anew."""
    return json.dumps(value, ensure_ascii=False).encode()
