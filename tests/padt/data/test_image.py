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
