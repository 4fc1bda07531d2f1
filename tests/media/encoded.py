"""Image files made by hand: PNGs of any depth and kind, and ICC profiles of three spaces."""

import struct
import zlib

import numpy as np

GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # color types of PNG
D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {  # XYZ of red, green and blue, adapted to D50, in columns
    "srgb": ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410)),
    "p3": ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407)),
    "adobe": ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)),
}
ADOBE_GAMMA = 563 / 256


def png(samples: np.ndarray, bits: int, kind: int, chunks: dict[bytes, bytes] | None = None) -> bytes:
    """A PNG of sample values (h, w, c), with further chunks before the pixels."""
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    rows = b"".join(b"\0" + pack(row.reshape(-1), bits) for row in samples)
    parts = {b"IHDR": header, **(chunks or {}), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts.items())


def pack(values: np.ndarray, bits: int) -> bytes:
    if bits == 16:
        return values.astype(">u2").tobytes()
    planes = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(planes.reshape(-1)).tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def to_linear(values: np.ndarray, space: str) -> np.ndarray:
    """0 .. 1 as stored to light."""
    if space == "adobe":
        return values**ADOBE_GAMMA
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_linear(light: np.ndarray, space: str) -> np.ndarray:
    if space == "adobe":
        return light ** (1 / ADOBE_GAMMA)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def from_srgb(pixels: np.ndarray, space: str) -> np.ndarray:
    """uint8 sRGB (h, w, 3) as a space with more colors stores them."""
    to_space = np.linalg.inv(np.array(PRIMARIES[space])) @ np.array(PRIMARIES["srgb"])
    light = to_linear(pixels / 255, "srgb") @ to_space.T
    return np.rint(255 * from_linear(light.clip(0, 1), space)).astype(np.uint8)


def to_srgb(pixels: np.ndarray, space: str) -> np.ndarray:
    """What pixels that a space stores are in sRGB, 0 .. 255, not rounded."""
    from_space = np.linalg.inv(np.array(PRIMARIES["srgb"])) @ np.array(PRIMARIES[space])
    return 255 * from_linear((to_linear(pixels / 255, space) @ from_space.T).clip(0, 1), "srgb")


def profile(space: str) -> bytes:
    """An ICC profile of a space of `PRIMARIES`: its primaries and curve."""
    levels = np.rint(65535 * to_linear(np.linspace(0, 1, 1024), space)).astype(">u2")
    curve = b"curv" + bytes(4) + struct.pack(">I", len(levels)) + levels.tobytes()
    tags = {b"wtpt": xyz(D50)}
    for index, name in enumerate((b"r", b"g", b"b")):
        tags |= {name + b"XYZ": xyz([row[index] for row in PRIMARIES[space]]), name + b"TRC": curve}
    return icc(b"mntr", b"RGB ", b"XYZ ", tags)


def gray_profile(gamma: float) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))
    return icc(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": xyz(D50), b"kTRC": curve})


def ink_profile(lightness: int) -> bytes:
    """Of a press that prints one gray, whatever the inks; lightness 0 to 255."""
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix
    table += 4 * identity + 16 * bytes([lightness, 128, 128]) + 3 * identity
    return icc(b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz(D50), b"A2B0": table})


def xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in values))


def icc(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    index, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        index += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4s4s4s4s4s", offset + len(body), bytes(4), b"\2\x40\0\0", kind, space, connection)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(65536 * value) for value in D50))
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + index + body
