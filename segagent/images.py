"""Pictures and masks from whatever holds them: a path, the bytes of a file, a PIL image, an array, a COCO RLE."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segagent.errors import ImageError, MaskError, SegAgentError
from segagent.masks import from_rle
from segagent.types import as_mask, read_only

# Below the size at which Pillow suspects a decompression bomb (89.5 million pixels), so that it is this limit that speaks.
MAX_PIXELS = 89_000_000
# Pillow would also run Ghostscript on an uploaded EPS, and knows formats that no camera or drawing program writes.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
# What Pillow's decoders raise on a damaged file (RuntimeError: AVIF's).
_DAMAGED = (OSError, ValueError, SyntaxError, RuntimeError)
_ORIENTATION = 0x0112  # the EXIF tag, and what puts a picture of each of its values upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, read-only, from a path, the bytes of a file, a binary file, a PIL image or an array.

    Alpha is laid on white, EXIF rotation applied, 16 bit scaled to 8, grey and CMYK converted; of several frames the first
    counts. Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); floats lie in [0, 1]. Raises ImageError.
    """
    if _is_array(source):
        return _rgb_of_array(np.asarray(source))
    with _decoding("picture", source, ImageError):
        picture = _open(source, "picture", ImageError)
        if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
            grey = np.asarray(picture)
            return _rgb_of_array(grey if picture.mode == "F" else _uint16(grey))
        if picture.has_transparency_data:
            picture = _on_white(picture)
        # convert() copies a picture that is RGB already.
        return read_only(np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB")))


def load_mask(source: Any, size: tuple[int, int] | None = None, threshold: float | None = None) -> np.ndarray:
    """(H, W) bool, read-only, from what load_image takes, a COCO RLE (dict), or a .json file that holds one.

    A picture's mask is its alpha where it has any transparency, else what is not black: 0 and 1, 0 and 255, or black and one
    colour. Other values need `threshold`, in the mask's own values: what reaches it is in the mask. `size` is the (height,
    width) that the mask must have. Raises MaskError.
    """
    if isinstance(source, dict):
        return as_mask(_mask_of_rle(source), size)
    if isinstance(source, str | PathLike) and fspath(source).lower().endswith(".json"):
        return as_mask(_mask_of_rle(_read_json(Path(source))), size)
    if _is_array(source):
        values = np.asarray(source)
    else:
        with _decoding("mask", source, MaskError):
            values = _mask_values(_open(source, "mask", MaskError))
    return as_mask(_binary(_one_channel(values), threshold), size)


def _is_array(source: Any) -> bool:
    return hasattr(source, "__array__") and not isinstance(source, Image.Image)


def _name(source: Any) -> str:
    return f"{fspath(source)!r}" if isinstance(source, str | PathLike) else "what was given"


@contextmanager
def _decoding(noun: str, source: Any, error: type[SegAgentError]) -> Iterator[None]:
    """Turns what a decoder raises into one sentence."""
    try:
        yield
    except SegAgentError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
        raise error(f"The {noun} {_name(source)} has far over {MAX_PIXELS:,} pixels: scale it down first.") from bomb
    except Image.UnidentifiedImageError as unknown:
        raise error(
            f"The {noun} {_name(source)} is no picture that can be read: give a PNG, JPEG, WebP, TIFF or the like."
        ) from unknown
    except _DAMAGED as damage:
        raise error(f"The {noun} {_name(source)} is damaged or cut off ({damage}): export or download it again.") from (
            damage
        )


def _open(source: Any, noun: str, error: type[SegAgentError]) -> Image.Image:
    """The decoded and upright picture, of at most MAX_PIXELS."""
    if isinstance(source, Image.Image):
        picture = source
    elif isinstance(source, bytes | bytearray | memoryview):
        picture = Image.open(io.BytesIO(source), formats=FORMATS)
    elif hasattr(source, "read"):
        picture = Image.open(io.BytesIO(source.read()), formats=FORMATS)
    elif isinstance(source, str | PathLike):
        try:
            data = Path(source).read_bytes()
        except (OSError, ValueError) as failure:
            reason = getattr(failure, "strerror", None) or str(failure)
            raise error(f"The {noun} {_name(source)} cannot be read: {reason}.") from failure
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    else:
        raise error(f"A {noun} is a path, a PIL image, an array or the bytes of a file; got {type(source).__name__}.")
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise error(f"The {noun} is {width}×{height} px, over {MAX_PIXELS:,} pixels: scale it down first.")
    if width * height == 0:
        raise error(f"The {noun} has no pixels: it is {width}×{height} px.")
    picture.load()
    # Not ImageOps.exif_transpose: it writes the metadata anew and fails where a camera wrote them badly.
    turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION))
    return picture if turn is None else picture.transpose(turn)


def _on_white(picture: Image.Image) -> Image.Image:
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _uint16(grey: np.ndarray) -> np.ndarray:
    """Pillow's modes I and I;16 as uint16 (its readers put 16 bit files into both)."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError("The picture has more than 16 bits a pixel: scale it to 8 or 16 bits first.")
    return grey.astype(np.uint16)


def _rgb_of_array(array: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from an array of a picture's shape and values."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        hint = ": move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"An image array is (height, width, 3); got {array.shape}{hint}.")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(
            f"The image is {array.shape[1]}×{array.shape[0]} px, over {MAX_PIXELS:,} pixels: scale it down first."
        )
    array = _uint8(array)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    elif array.shape[2] == 4:
        array = np.asarray(_on_white(Image.fromarray(np.ascontiguousarray(array))).convert("RGB"))
    return read_only(array)


def _uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"An image array holds numbers; got {array.dtype}.")
    highest = 255 if np.issubdtype(array.dtype, np.integer) else 1
    if not ((array >= 0) & (array <= highest)).all():  # also refuses nan
        raise ImageError(
            f"An image array of {array.dtype} holds values from 0 to {highest}; this one goes from {array.min():g} to "
            f"{array.max():g}: scale it first."
        )
    return np.rint(array * (255 // highest)).astype(np.uint8)


def _mask_values(picture: Image.Image) -> np.ndarray:
    """(H, W), (H, W, 3) or (H, W, 4) values of a decoded mask."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return np.asarray(picture)
    if picture.has_transparency_data:
        return np.asarray(picture.convert("RGBA"))
    return np.asarray(picture if picture.mode in ("1", "L") else picture.convert("RGB"))


def _one_channel(values: np.ndarray) -> np.ndarray:
    """(H, W): the alpha where anything is transparent, the grey of grey colours, else which pixels are coloured (0 or 1)."""
    if values.ndim == 3 and values.shape[2] == 4:
        alpha = values[..., 3]
        if (alpha != (255 if values.dtype == np.uint8 else 1)).any():
            return alpha
        values = values[..., :3]
    if values.ndim == 3 and values.shape[2] == 3:
        if (values == values[..., :1]).all():
            return values[..., 0]
        painted = values.any(axis=2)
        if painted.all() or (values[painted] != values[painted][0]).any():
            raise MaskError(
                "The mask has several colours: paint the object in one colour on black, or save it as black and white."
            )
        return painted
    if values.ndim == 3 and values.shape[2] == 1:
        return values[..., 0]
    if values.ndim != 2 or 0 in values.shape:
        raise MaskError(f"A mask array is (height, width); got {values.shape}.")
    return values


def _binary(values: np.ndarray, threshold: float | None) -> np.ndarray:
    """(H, W) bool of one channel."""
    if values.dtype == bool:
        return values
    if threshold is not None:
        return values >= threshold
    highest = values.max()
    if highest not in (0, 1, 255, 65535) or not ((values == 0) | (values == highest)).all():
        raise MaskError(
            "The mask has grey values; only black and white (0 and 1, or 0 and 255) say what is in it: threshold it "
            "first, or give threshold=, e.g. 128 of 255."
        )
    return values != 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise MaskError(f"The mask {str(path)!r} cannot be read: {failure.strerror}.") from failure
    except (ValueError, RecursionError) as failure:
        raise MaskError(f"The mask {str(path)!r} is no JSON: {failure}.") from failure


def _mask_of_rle(value: Any) -> np.ndarray:
    """(H, W) bool of the COCO RLE itself, or of that under "mask" (this package's results) or "segmentation" (COCO's)."""
    candidates = (value, value.get("mask"), value.get("segmentation")) if isinstance(value, dict) else ()
    for rle in candidates:
        if isinstance(rle, dict) and "counts" in rle:
            size = rle.get("size")
            if (
                isinstance(size, list | tuple)
                and all(isinstance(n, int) for n in size)
                and math.prod(size) > MAX_PIXELS
            ):
                raise MaskError(f"The mask has over {MAX_PIXELS:,} pixels: scale it down first.")
            return from_rle(rle)
    raise MaskError('No COCO RLE there: give {"size": [height, width], "counts": …}.')
