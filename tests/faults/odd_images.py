"""Images and DICOM files that nobody should have to decode, and a mutator of any bytes, keyed by (seed, number)."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

_ODD_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(data: bytes, *key: object) -> bytes:
    """Return the bytes with a few changes: bits, odd integers, cut, doubled, removed and foreign pieces."""
    rng = random.Random(":".join(map(str, key)))
    text = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(text), rng.choice((64, 512, 1 << 30))) or 1)
        way = rng.randrange(7)
        if way < 2 and text:
            text[at % len(text)] ^= 1 << rng.randrange(8)
        elif way < 4:
            packed = struct.pack(rng.choice("<>") + "I", rng.choice(_ODD_INTEGERS))
            text[at : at + 4] = packed[: rng.choice((1, 2, 4))]
        elif way == 4:
            del text[at : at + rng.randint(1, 200)]
        elif way == 5:
            text[at:at] = text[at : at + rng.randint(1, 400)]
        else:
            text[at:] = rng.randbytes(rng.randint(0, 64)) if rng.random() < 0.5 else b""
    return bytes(text)


def picture(side: int = 40, mode: str = "RGB") -> Image.Image:
    """Return a rough picture that does not compress to nothing."""
    rng = np.random.default_rng(side)
    rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return rough.resize((side, side), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def png(width: int, height: int, data: bytes, depth: int = 8, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a gray PNG file with these compressed rows, whatever they hold, and more chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def zeros(num_bytes: int) -> bytes:
    """Return `num_bytes` zeros, compressed, without having them."""
    squeeze = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [squeeze.compress(block) for _ in range(num_bytes >> 20)]
    return b"".join([*parts, squeeze.compress(bytes(num_bytes & 0xFFFFF)), squeeze.flush()])


def png_bomb(side: int) -> bytes:
    """Return a whole, valid PNG of side x side pixels: 13,000 are 169 megapixels in 164 KB."""
    return png(side, side, zeros(side * (side + 1)))


def seeds() -> dict[str, bytes]:
    """Return a good file of every kind that is accepted."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    deep = Image.fromarray((np.arange(900, dtype=np.uint16) * 70).reshape(30, 30))
    return {
        "rgb.jpg": encoded(picture(), "JPEG", quality=90),
        "progressive.jpg": encoded(picture(64), "JPEG", progressive=True, exif=exif),
        "gray.jpg": encoded(picture(33, "L"), "JPEG"),
        "cmyk.jpg": encoded(picture(32, "CMYK"), "JPEG"),
        "rgb.png": encoded(picture(), "PNG"),
        "palette.png": encoded(picture(31).quantize(16), "PNG"),
        "alpha.png": encoded(picture(30, "RGBA"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "bits.png": encoded(picture(29, "1"), "PNG"),
        "rgb.bmp": encoded(picture(28), "BMP"),
        "palette.bmp": encoded(picture(27).quantize(16), "BMP"),
    }


def odd_files() -> dict[str, tuple[bytes, bool]]:
    """Return name -> (bytes, whether a build takes it) of what is strange by itself."""
    frames = [picture(16, "L"), picture(17, "L").resize((16, 16)), picture(18, "L").resize((16, 16))]
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * (8 << 20), zip=True)
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    loop = b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"  # an EXIF folder that holds itself
    return {
        "wrong_extension.png": (encoded(picture(), "JPEG"), True),
        "jpeg_in_gif.jpg": (encoded(picture(), "GIF"), False),
        "cmyk.jpg": (encoded(picture(32, "CMYK"), "JPEG"), True),
        "deep.png": (seeds()["deep.png"], True),
        "animated.png": (encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), False),
        "text_bomb.png": (encoded(picture(), "PNG", pnginfo=text), False),
        "exif_large.jpg": (encoded(picture(), "JPEG", exif=exif), True),
        "exif_loop.jpg": (encoded(picture(), "JPEG", exif=b"Exif\0\0" + loop), True),
        "exif_garbage.jpg": (encoded(picture(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 5000), True),
        "empty.png": (b"", False),
        "no_width.png": (png(0, 4, zeros(4)), False),
        "no_height.png": (png(4, 0, zeros(4)), False),
        "narrow.png": (png(65_500, 1, zeros(65_501)), True),
        "tall.png": (png(1, 65_500, zeros(2 * 65_500)), True),
        "bomb.png": (png_bomb(13_000), False),
        "beyond.png": (png(2**31 - 1, 2**31 - 1, zeros(100)), False),
        "lying.png": (png(40, 40, zeros(64 << 20)), True),  # more rows than it says: they are not unpacked
        "short.png": (png(400, 400, zeros(100)), False),
        "jp2.jpg": (encoded(picture(), "JPEG2000"), False),
        "tiff.jpg": (encoded(picture(), "TIFF"), False),
        "text.jpg": (b"GIF89a <script>", False),
    }
