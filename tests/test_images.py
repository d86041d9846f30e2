"""Pictures and masks of every kind that people have, and one sentence for what is none."""

from __future__ import annotations

import io
import json
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from segagent import load_image, load_mask
from segagent.errors import ImageError, MaskError
from segagent.images import MAX_PIXELS
from segagent.masks import to_rle

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
MASK = RNG.random((12, 17)) > 0.5


def encoded(image, format="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    """The start of a PNG whose header claims a size."""
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert text[0].isupper()
    assert text.endswith((".", "…"))
    assert len(text) < 300


class TestImage:
    @pytest.mark.parametrize("kind", ["path", "string", "bytes", "file", "pil", "array"])
    def test_sources(self, kind, tmp_path):
        (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(RGB)))
        source = {
            "path": tmp_path / "a.png",
            "string": str(tmp_path / "a.png"),
            "bytes": (tmp_path / "a.png").read_bytes(),
            "file": io.BytesIO((tmp_path / "a.png").read_bytes()),
            "pil": Image.fromarray(RGB),
            "array": RGB,
        }[kind]
        image = load_image(source)
        assert (image == RGB).all()
        assert image.dtype == np.uint8
        assert not image.flags.writeable

    def test_the_callers_array_stays_writable(self):
        array = RGB.copy()
        image = load_image(array)
        array[:] = 0
        assert (image == RGB).all()

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
    def test_modes(self, mode):
        """A flat grey of every mode is the same grey."""
        grey = {"I;16": 128 * 257, "I": 128 * 257, "F": 128 / 255}.get(mode)
        picture = Image.new(mode, (3, 2), grey) if grey else Image.new("L", (3, 2), 128).convert(mode)
        image = load_image(picture)
        assert image.shape == (2, 3, 3)
        if mode == "1":
            assert set(np.unique(image)) <= {0, 255}
        else:
            assert np.abs(image.astype(int) - 128).max() <= 1

    def test_alpha_is_laid_on_white(self):
        rgba = np.zeros((1, 3, 4), np.uint8)
        rgba[0, :, 3] = 0, 128, 255
        assert load_image(Image.fromarray(rgba))[0, :, 0].tolist() == [255, 127, 0]
        assert (load_image(rgba) == load_image(Image.fromarray(rgba))).all()

    def test_transparent_palette(self):
        picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
        picture.putpalette([200, 0, 0, 0, 0, 200])
        data = encoded(picture, transparency=0)
        assert load_image(data).tolist() == [[[255, 255, 255], [0, 0, 200]]]

    def test_sixteen_bits_are_scaled(self):
        values = np.array([[0, 257, 32768, 65535]], np.uint16)
        expected = [0, 1, 128, 255]
        assert load_image(encoded(Image.fromarray(values)))[0, :, 0].tolist() == expected
        assert load_image(values)[0, :, 0].tolist() == expected

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_rotation(self, orientation):
        turned = Image.new("RGB", (8, 4))
        turned.putpixel((7, 0), (255, 255, 255))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = load_image(encoded(turned, exif=exif))
        place = {1: (7, 0), 2: (0, 0), 3: (0, 3), 4: (7, 3), 5: (0, 7), 6: (3, 7), 7: (3, 0), 8: (0, 0)}[orientation]
        assert image.shape[:2] == ((4, 8) if orientation < 5 else (8, 4))
        assert image[place[1], place[0]].tolist() == [255, 255, 255]

    def test_odd_metadata_do_not_matter(self):
        """A maker's text with the type of a fraction, as some cameras write it: cannot be written anew, need not be."""
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x0f\0\x05\0\0\0\x01\0\0\0\x26\0\0\0\0\0\0\0\x01\0\0\0\x02"
        image = load_image(encoded(Image.fromarray(RGB), "jpeg", exif=exif))
        assert image.shape == (17, 12, 3)

    def test_first_frame(self):
        frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
        data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
        assert load_image(data)[0, 0].tolist() == [255, 0, 0]

    def test_one_pixel(self):
        assert load_image(encoded(Image.new("RGB", (1, 1), "red"))).tolist() == [[[255, 0, 0]]]

    def test_twenty_thousand_wide(self):
        assert load_image(encoded(Image.new("L", (20_000, 3), 7))).shape == (3, 20_000, 3)

    @pytest.mark.parametrize(("width", "height"), [(12_000, 8_000), (60_000, 60_000)])
    def test_too_many_pixels(self, width, height):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(ImageError, match="scale it down") as error:
                load_image(png_of_size(width, height))
        one_sentence(error)

    def test_our_limit_speaks_before_pillows(self):
        assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS

    @pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "bmp", "gif"])
    def test_truncated(self, format):
        data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)
        with pytest.raises(ImageError, match=r"cut off|no picture") as error:
            load_image(data[: len(data) // 2])
        one_sentence(error)

    @pytest.mark.parametrize(
        "data", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"]
    )
    def test_not_a_picture(self, data, tmp_path):
        (tmp_path / "a.png").write_bytes(data)
        for source in (data, tmp_path / "a.png"):
            with pytest.raises(ImageError, match="no picture") as error:
                load_image(source)
            one_sentence(error)

    def test_no_such_file(self, tmp_path):
        for source, reason in [
            (tmp_path / "none.png", "No such file"),
            (tmp_path, "Is a directory"),
            ("a\0b", "null"),
        ]:
            with pytest.raises(ImageError, match=reason) as error:
                load_image(source)
            one_sentence(error)

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((3, 8, 9), np.uint8), "channels last"),
            (np.zeros((8,), np.uint8), "height, width, 3"),
            (np.zeros((8, 9, 2), np.uint8), "height, width, 3"),
            (np.zeros((0, 9, 3), np.uint8), "height, width, 3"),
            (np.full((2, 2, 3), 200.0), "0 to 1"),
            (np.full((2, 2, 3), np.nan), "0 to 1"),
            (np.full((2, 2, 3), -1), "0 to 255"),
            (np.full((2, 2, 3), 1j), "numbers"),
            (3, "a path"),
            (None, "a path"),
        ],
    )
    def test_wrong_arrays(self, array, words):
        with pytest.raises(ImageError, match=words) as error:
            load_image(array)
        one_sentence(error)

    def test_floats_and_integers(self):
        assert load_image(np.array([[0.0, 0.5, 1.0]]))[0, :, 0].tolist() == [0, 128, 255]
        assert load_image(RGB.astype(np.int64)).tolist() == RGB.tolist()
        assert load_image(MASK)[..., 1].tolist() == (MASK * 255).tolist()


class TestMask:
    def pictures(self):
        grey = (MASK * 255).astype(np.uint8)
        palette = Image.fromarray(MASK.astype(np.uint8)).convert("P")
        palette.putpalette([0, 0, 0, 128, 0, 0])
        inverted = Image.fromarray((~MASK).astype(np.uint8)).convert("P")
        inverted.putpalette([255, 255, 255, 0, 0, 0])
        color = np.zeros((*MASK.shape, 3), np.uint8)
        color[MASK] = 0, 128, 64
        alpha = np.full((*MASK.shape, 4), 90, np.uint8)
        alpha[..., 3] = grey
        return {
            "0/255": Image.fromarray(grey),
            "0/1": Image.fromarray(MASK.astype(np.uint8)),
            "one bit": Image.fromarray(MASK),
            "16 bit": Image.fromarray(MASK.astype(np.uint16) * 65535),
            "palette": palette,
            "palette whose first colour is white": inverted,
            "one colour on black": Image.fromarray(color),
            "alpha": Image.fromarray(alpha),
            "opaque": Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])),
        }

    def test_pictures(self, tmp_path):
        for name, picture in self.pictures().items():
            picture.save(tmp_path / "mask.png")
            for source in (picture, tmp_path / "mask.png", (tmp_path / "mask.png").read_bytes()):
                mask = load_mask(source, MASK.shape)
                assert (mask == MASK).all(), name
            assert mask.dtype == bool
            assert not mask.flags.writeable

    @pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
    def test_arrays(self, dtype):
        assert (load_mask(MASK.astype(dtype)) == MASK).all()
        assert (load_mask(MASK.astype(dtype)[..., None]) == MASK).all()

    @pytest.mark.parametrize("value", [0, 1, 255])
    def test_flat(self, value):
        assert (load_mask(np.full((3, 4), value, np.uint8)) == bool(value)).all()

    def test_rle(self, tmp_path):
        rle = to_rle(MASK)
        (tmp_path / "mask.json").write_text(json.dumps({"mask": rle, "predicted_iou": 0.5}))
        for source in (rle, {"segmentation": rle}, tmp_path / "mask.json"):
            assert (load_mask(source, MASK.shape) == MASK).all()

    def test_grey_values_need_a_threshold(self):
        grey = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
        for source in (grey, Image.fromarray(grey), encoded(Image.fromarray(grey), "jpeg"), grey / 255):
            with pytest.raises(MaskError, match="threshold") as error:
                load_mask(source)
            one_sentence(error)
        assert (load_mask(grey, threshold=120) == (grey >= 120)).all()
        assert (load_mask(grey / 255, threshold=0.5) == (grey >= 127.5)).all()

    def test_soft_alpha(self):
        rgba = np.zeros((1, 3, 4), np.uint8)
        rgba[0, :, 3] = 0, 128, 255
        with pytest.raises(MaskError, match="threshold"):
            load_mask(Image.fromarray(rgba))
        assert load_mask(Image.fromarray(rgba), threshold=128).tolist() == [[False, True, True]]

    def test_another_size(self):
        with pytest.raises(MaskError, match=r"17×12 px.*20×10 px") as error:
            load_mask(MASK, (10, 20))
        one_sentence(error)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            (RGB, "several colours"),
            (np.full((2, 2, 3), (255, 0, 0), np.uint8), "several colours"),  # no black
            (np.zeros((2, 2, 2)), "height, width"),
            (np.zeros((0, 2)), "height, width"),
            (b"nothing", "no picture"),
            (b"", "no picture"),
            ("none.png", "No such file"),
            ("none.json", "No such file"),
            (7, "a path"),
            ({"size": [2, 2]}, "RLE"),
            ({"size": [2, 2], "counts": "11"}, "add up"),
            ({"size": [100_000, 100_000], "counts": "1"}, "scale it down"),
        ],
    )
    def test_no_masks(self, source, words):
        with pytest.raises(MaskError, match=words) as error:
            load_mask(source)
        one_sentence(error)

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"mask": 3}', "[" * 100_000])
    def test_malformed_json(self, text, tmp_path):
        (tmp_path / "mask.json").write_text(text)
        with pytest.raises(MaskError) as error:
            load_mask(tmp_path / "mask.json")
        one_sentence(error)
