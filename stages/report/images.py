"""Small grey images as inline PNG: one strip of them."""

import base64
import struct
import zlib
from collections.abc import Sequence

__all__ = ["strip"]

MAX_PIXEL = 16
"""Brightest pixel, where nothing else is said."""
BLOCK = 65_535
"""Bytes that one stored block holds."""


def strip(images: Sequence[Sequence[Sequence[int]]], top: int = MAX_PIXEL) -> str:
    """A data URI of all images beside each other, dark ink on white, four bits a pixel.

    Args:
        images: rows of pixels of each.
        top: the brightest pixel.

    Raises:
        ValueError: the images are not of one size, or empty.
    """
    height, width = len(images[0]), len(images[0][0]) if images[0] else 0
    if not width or any(len(image) != height or any(len(row) != width for row in image) for image in images):
        sizes = [(len(image), len(image[0]) if image else 0) for image in images]
        raise ValueError(f"images have {sizes} pixels; each must be {height} x {width}, and not empty")
    lines = []
    for y in range(height):
        shades = [15 - min(15, round(max(0, pixel) * 15 / top)) for image in images for pixel in image[y]]
        shades += [15] * (len(shades) % 2)  # a line ends with a whole byte
        packed = bytes(a << 4 | b for a, b in zip(shades[::2], shades[1::2], strict=True))
        lines.append(b"\0" + packed)
    header = struct.pack(">IIBBBBB", width * len(images), height, 4, 0, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", _deflate(b"".join(lines)))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _deflate(data: bytes) -> bytes:
    """Stored, not compressed: builds of zlib differ in their last byte, and the page must not."""
    pieces = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    blocks = b"".join(
        bytes([i == len(pieces) - 1]) + struct.pack("<HH", len(piece), len(piece) ^ 0xFFFF) + piece
        for i, piece in enumerate(pieces)
    )
    return b"\x78\x01" + blocks + struct.pack(">I", zlib.adler32(data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
