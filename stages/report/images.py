"""8x8 digits as inline PNG: one strip per latent, shown image by image through the style sheet."""

import base64
import struct
import zlib
from collections.abc import Sequence

__all__ = ["strip"]

MAX_PIXEL = 16
"""Brightest pixel of the scikit-learn digits."""
SIDE = 8


def strip(images: Sequence[Sequence[Sequence[int]]]) -> str:
    """A data URI of all images beside each other, dark ink on white, four bits a pixel.

    Raises:
        ValueError: an image is not 8 x 8.
    """
    if any(len(image) != SIDE or any(len(row) != SIDE for row in image) for image in images):
        raise ValueError(f"images have {[(len(i), len(i[0])) for i in images]} pixels; each must be {SIDE} x {SIDE}")
    lines = []
    for y in range(SIDE):
        shades = [15 - min(15, round(max(0, pixel) * 15 / MAX_PIXEL)) for image in images for pixel in image[y]]
        packed = bytes(a << 4 | b for a, b in zip(shades[::2], shades[1::2], strict=True))
        lines.append(b"\0" + packed)
    header = struct.pack(">IIBBBBB", SIDE * len(images), SIDE, 4, 0, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", _deflate(b"".join(lines)))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _deflate(data: bytes) -> bytes:
    """Stored, not compressed: builds of zlib differ in their last byte, and the page must not."""
    assert len(data) < 65536, "one block holds 64 kB"
    block = b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
    return b"\x78\x01" + block + struct.pack(">I", zlib.adler32(data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
