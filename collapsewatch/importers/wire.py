"""Protocol buffers on the wire, as far as logs need them: the fields of a message, without its schema."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_LONGEST = 10  # bytes of a varint of 64 bits


class WireError(ValueError):
    """Bytes that are no message."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    r"""Number and value of each field, in their order: a varint as its integer, anything else as its bytes.

    >>> list(fields(b"\x10\x96\x01\x2a\x02hi"))
    [(2, 150), (5, b'hi')]

    Raises:
        WireError: the bytes are no message.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = varint(message, at)
        elif kind in (_EIGHT, _FOUR):
            size = 8 if kind == _EIGHT else 4
        else:
            raise WireError(f"message: got wire type {kind}, expected 0, 1, 2 or 5")
        if at + size > end:
            raise WireError(f"message: got {end - at} bytes, expected the {size} of field {key >> 3}")
        yield key >> 3, message[at : at + size]
        at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned integer that begins at `at`, and where it ends."""
    if at < len(data) and data[at] < 0x80:  # most are that short
        return data[at], at + 1
    value = 0
    for i, byte in enumerate(data[at : at + _LONGEST]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise WireError(f"message: got no end of the integer at byte {at}")


def signed(value: int) -> int:
    """A varint as the int64 it stands for.

    >>> signed(2**64 - 1)
    -1
    """
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def packed(code: str, value: int | bytes) -> tuple[float, ...]:
    """Little-endian numbers of the `struct` code: `f`, `d`, `i`, `q`; a tail that is none is left out."""
    if isinstance(value, int):
        return ()
    size = struct.calcsize(code)
    return struct.unpack(f"<{len(value) // size}{code}", value[: len(value) // size * size])
