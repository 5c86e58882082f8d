"""Pictures as users bring them: odd modes, odd sizes, damage. Each opens upright in RGB or is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from padt.data.image import ResizePolicy, open_image
from padt.errors import ImageError, UserError


def encoded(image, fmt="PNG", **options):
    handle = io.BytesIO()
    image.save(handle, fmt, **options)
    return handle.getvalue()


def gradient(width=40, height=30):
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 6, columns * 5, rows + columns], -1).astype(np.uint8))


def rotated(image, orientation, fmt="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, fmt, exif=exif, **({"quality": 100} if fmt == "JPEG" else {}))


def test_exif_orientation_is_applied():
    image = open_image(rotated(gradient(40, 30), 6))
    assert image.size == (30, 40)
    difference = np.asarray(image).astype(int) - np.asarray(gradient(40, 30).transpose(Image.Transpose.ROTATE_270))
    assert np.abs(difference).mean() < 4
    assert open_image(rotated(gradient(40, 30), 3, "PNG")).tobytes() == gradient().rotate(180).tobytes()


def test_palette_with_transparency_lies_on_white():
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([200, 0, 0, 0, 100, 0])
    palette.putpixel((0, 0), 0)
    image = open_image(encoded(palette, transparency=0))
    assert image.mode == "RGB"
    assert [image.getpixel(place) for place in ((0, 0), (1, 1))] == [(255, 255, 255), (0, 100, 0)]
    assert open_image(encoded(gradient().quantize(16))).mode == "RGB"
    assert open_image(encoded(Image.new("LA", (5, 5), (0, 128)))).getpixel((1, 1)) == (127, 127, 127)


def test_cmyk_and_grey_and_one_bit():
    assert open_image(encoded(gradient().convert("CMYK"), "JPEG")).mode == "RGB"
    assert open_image(encoded(gradient().convert("L"))).mode == "RGB"
    assert open_image(encoded(gradient().convert("1"))).getpixel((0, 0)) in ((0, 0, 0), (255, 255, 255))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    grey = np.asarray(open_image(encoded(Image.fromarray(values))))[..., 0]
    np.testing.assert_allclose(grey, values / 257, atol=1)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_unreadable_not_grey(cut):
    data = encoded(gradient(200, 150), "JPEG")
    with pytest.raises(ImageError) as caught:
        open_image(data[: int(len(data) * cut)])
    assert caught.value.reason == "image_unreadable"


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert caught.value.reason == "image_unreadable"


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(ImageError, match=str(path)) as caught:
            open_image(path)
        assert caught.value.reason == "image_missing"


def giant(fmt, side):
    """A small file whose header promises ``side`` x ``side`` pixels: decoding it would fail, or fill the memory."""
    data = bytearray(encoded(gradient(), fmt))
    if fmt == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data[8:33] = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    elif fmt == "JPEG":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    elif fmt == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "BMP", "GIF"])
@pytest.mark.parametrize("side", [30_000, 10_001])
def test_the_pixel_budget_holds_before_decoding(fmt, side, tmp_path):
    # 30000 x 30000 are 2.7 GB; 10001 x 10001 is just over the budget.
    (tmp_path / "giant.img").write_bytes(giant(fmt, side))
    for source in (giant(fmt, side), tmp_path / "giant.img"):
        with pytest.raises(ImageError, match=f"{side}x{side} pixels, more than the budget of 100,000,000") as caught:
            open_image(source)
        assert caught.value.reason == "image_too_large" and "scale it down" in str(caught.value)
    with pytest.raises(ImageError, match="40x30"):
        open_image(encoded(gradient()), pixel_budget=1000)


def test_a_picture_that_is_opened_already_keeps_to_the_rules():
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        with pytest.raises(ImageError, match="30000x30000"):
            open_image(Image.open(io.BytesIO(giant("PNG", 30_000))))
    finally:
        Image.MAX_IMAGE_PIXELS = before
    cut = Image.open(io.BytesIO(encoded(gradient(200, 150), "JPEG")[:2000]))
    with pytest.raises(ImageError, match="not a readable image"):
        open_image(cut)
    with pytest.raises(ImageError, match="0x5 pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_addresses_are_not_fetched():
    with pytest.raises(ImageError, match=r"https://example.org/cat.jpg is a URL: download"):
        open_image("https://example.org/cat.jpg")


def test_tiny_and_thin_images():
    policy = ResizePolicy()
    assert open_image(encoded(Image.new("RGB", (1, 1)))).size == (1, 1)
    assert policy.grid(1, 1) == (2, 2)
    with pytest.raises(ImageError, match="5000x1 pixels is too long and thin") as caught:
        policy.grid(1, 5000)
    assert caught.value.reason == "image_aspect_ratio"
    assert policy.grid(25, 5000)[0] == 1


@pytest.mark.parametrize("values", [{"factor": 14}, {"min_pixels": 0}, {"min_pixels": 10, "max_pixels": 5}])
def test_an_impossible_policy_is_refused(values):
    with pytest.raises(UserError):
        ResizePolicy(**values)


def test_the_resize_rule_is_that_of_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    random = np.random.default_rng(0)
    policies = [ResizePolicy(), ResizePolicy(min_pixels=50_000, max_pixels=400_000), ResizePolicy(max_pixels=784 * 16)]
    sizes = [
        (1, 1),
        (1, 200),
        (28, 28),
        (14, 14),
        (42, 42),
        (97, 97),
        (640, 480),
        (12_000, 60),
        *random.integers(1, 5000, (2000, 2)),
    ]
    for height, width in sizes:
        if max(height, width) > 200 * min(height, width):
            continue
        for policy in policies:
            expected = smart_resize(int(height), int(width), 28, policy.min_pixels, policy.max_pixels)
            assert policy.size(int(height), int(width)) == expected, (height, width, policy)


def _png_with(*chunks, image=None):
    """A PNG with further chunks before its pixels: ``(kind, content)`` each."""
    data = encoded(image or gradient())
    more = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:33] + more + data[33:]


def _odd_exif(orientation=6):
    """An EXIF block with an orientation and entries that make no sense."""
    entries = [
        (0x0112, 3, 1, struct.pack(">HH", orientation, 0)),
        (0x010F, 2, 3, b"\xff\xfe\x00\x00"),
        (0x9999, 3, 0, b"\0\0\0\0"),
        (0xA005, 2, 4, b"abc\0"),
        (0x8769, 2, 4, b"no\0\0"),
    ]
    body = b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + body + b"\0\0\0\0"


def _jpeg_with_exif(block, **options):
    return encoded(gradient(40, 30), "JPEG", quality=100, exif=b"Exif\0\0" + block, **options)


def test_an_exif_block_that_cannot_be_written_anew_turns_the_picture_all_the_same(monkeypatch):
    def refuse(*_, **__):
        raise struct.error("required argument is not an integer")

    pictures = (_jpeg_with_exif(_odd_exif()), rotated(gradient(40, 30), 6), _png_with((b"eXIf", _odd_exif())))
    monkeypatch.setattr(Image.Exif, "tobytes", refuse)
    for data in pictures:
        image = open_image(data)
        assert image.size == (30, 40)
        # What was turned once says nothing of being turned.
        assert open_image(image).size == (30, 40)


@pytest.mark.parametrize("block", [b"", b"MM", b"nothing of the kind" * 9, b"II*\0\xff\xff\xff\xff", _odd_exif(60)])
def test_an_exif_block_without_sense_turns_nothing(block):
    assert open_image(_jpeg_with_exif(block)).size == (40, 30)
    assert open_image(_png_with((b"eXIf", block))).tobytes() == gradient().tobytes()


_BIG = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iCCP", b"profile\0\0" + _BIG),
        (b"iCCP", b"profile\0\x07" + _BIG),
        (b"iCCP", b"profile\0\0not packed at all"),
        (b"zTXt", b"workflow\0\0" + _BIG),
        (b"iTXt", b"prompt\0\1\0\0\0" + _BIG),
        (b"pHYs", b"\0"),
        (b"cHRM", b"\0\1\2"),
        (b"gAMA", b""),
    ],
)
def test_chunks_that_pillow_refuses_do_not_cost_the_picture(chunk):
    assert open_image(_png_with(chunk)).tobytes() == gradient().tobytes()
    turned = open_image(_png_with(chunk, (b"eXIf", _odd_exif(3))))
    assert turned.tobytes() == gradient().rotate(180).tobytes()
    with pytest.raises(ImageError, match="budget of 1,000"):
        open_image(_png_with(chunk), pixel_budget=1000)


def test_many_texts_do_not_cost_the_picture_and_are_not_unpacked():
    chunk = (b"zTXt", b"part\0\0" + zlib.compress(bytes(1_000_000)))
    assert open_image(_png_with(*[chunk] * 70)).tobytes() == gradient().tobytes()


def test_a_damaged_chunk_keeps_what_the_pixels_need():
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([200, 0, 0, 0, 100, 0])
    palette.putpixel((0, 0), 0)
    data = encoded(palette, transparency=0)
    broken = data[:33] + struct.pack(">I", 4) + b"tEXta\0bc" + b"\0\0\0\0" + data[33:]
    image = open_image(broken)
    assert [image.getpixel(place) for place in ((0, 0), (1, 1))] == [(255, 255, 255), (0, 100, 0)]


def test_segments_of_a_jpeg_that_pillow_refuses_do_not_cost_the_picture(monkeypatch):
    from PIL import JpegImagePlugin

    def stumble(*_):
        raise ValueError("a segment that Pillow cannot read")

    data = encoded(gradient(40, 30).convert("CMYK"), "JPEG", quality=100, exif=b"Exif\0\0" + _odd_exif())
    segment = b"\xff\xed\0\x12Photoshop 3.0\0ab"
    wanted = open_image(data).tobytes()
    monkeypatch.setitem(JpegImagePlugin.MARKER, 0xFFED, ("APP13", "odd", stumble))
    assert open_image(data[:2] + segment + data[2:]).tobytes() == wanted
    with pytest.raises(ImageError, match="a segment that Pillow"):
        open_image(data[:2] + segment + data[2:-300])


def test_what_is_wrong_is_told_in_the_same_words_each_time():
    said = set()
    for _ in range(2):
        for data in (b"", b"<html>not here</html>", encoded(gradient())[:60]):
            with pytest.raises(ImageError) as caught:
                open_image(data)
            said.add(str(caught.value))
    assert len(said) <= 3 and not any("0x" in each for each in said)


def test_an_array_of_bytes_is_a_picture_and_anything_else_is_refused_in_words():
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(open_image(values)), values)
    assert np.array_equal(np.asarray(open_image(values[::2, ::-1])), values[::2, ::-1])
    for wrong in (values[..., 0], values.astype(np.float32), values[:0], values.transpose(2, 0, 1)):
        with pytest.raises(ImageError, match="height x width x 3 bytes"):
            open_image(wrong)
    for wrong in (None, 5, [[1, 2], [3, 4]]):
        with pytest.raises(ImageError, match="give a path"):
            open_image(wrong)
