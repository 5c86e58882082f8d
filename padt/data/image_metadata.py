"""Encoded images without what is written beside their pixels, for decoders that stumble over it."""

_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that its pixels need, and those that may say how to turn it.
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PNG_ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
# Above this, a text is not there for the sake of one number.
_MOST_TEXT_BYTES = 1 << 16

_JPEG = b"\xff\xd8"
_START_OF_SCAN = 0xDA
_COMMENT = 0xFE
# JFIF says how to read the pixels, as does Adobe's segment (of CMYK).
_JPEG_PIXELS = (0xE0, 0xEE)
_EXIF = 0xE1


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or JPEG with its pixels and orientation only; None for other formats, and where nothing can be left out.

    Nothing is decoded and nothing unpacked: a file is walked by the lengths that it gives.
    """
    if content.startswith(_PNG):
        plain = _plain_png(content)
    elif content.startswith(_JPEG):
        plain = _plain_jpeg(content)
    else:
        return None
    return plain if len(plain) < len(content) else None


def _plain_png(content: bytes) -> bytes:
    kept = [_PNG]
    place = len(_PNG)
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        kind, end = content[place + 4 : place + 8], place + 12 + length
        text = content[place + 8 : min(end, place + 8 + 32)]
        oriented = kind == b"eXIf" or (kind in _PNG_TEXTS and text.startswith(_PNG_ORIENTED))
        if kind in _PNG_PIXELS or (oriented and length <= _MOST_TEXT_BYTES):
            kept.append(content[place:end])
        if kind == b"IEND":
            break
        place = end
    return b"".join(kept)


def _plain_jpeg(content: bytes) -> bytes:
    kept = [_JPEG]
    place = len(_JPEG)
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # Fill bytes may stand before a marker.
            place += 1
            continue
        if marker == _START_OF_SCAN:
            break
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4])
        exif = marker == _EXIF and content[place + 4 : place + 8] == b"Exif"
        if not (0xE0 <= marker <= 0xEF or marker == _COMMENT) or marker in _JPEG_PIXELS or exif:
            kept.append(content[place:end])
        place = end
    return b"".join(kept) + content[place:]
