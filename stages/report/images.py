"""Small grey images as inline PNG: one strip of them."""

import base64
import struct
import zlib
from collections.abc import Sequence

__all__ = ["strip"]

MAX_PIXEL = 16
"""Brightest pixel."""


def strip(images: Sequence[Sequence[Sequence[int]]]) -> str:
    """A data URI of all images beside each other, dark ink on white, four bits a pixel.

    Raises:
        ValueError: the images are not square, or not of one size.
    """
    side = len(images[0])
    if any(len(image) != side or any(len(row) != side for row in image) for image in images):
        raise ValueError(f"images have {[(len(i), len(i[0])) for i in images]} pixels; each must be {side} x {side}")
    lines = []
    for y in range(side):
        shades = [15 - min(15, round(max(0, pixel) * 15 / MAX_PIXEL)) for image in images for pixel in image[y]]
        shades += [15] * (len(shades) % 2)  # a line ends with a whole byte
        packed = bytes(a << 4 | b for a, b in zip(shades[::2], shades[1::2], strict=True))
        lines.append(b"\0" + packed)
    header = struct.pack(">IIBBBBB", side * len(images), side, 4, 0, 0, 0, 0)
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
