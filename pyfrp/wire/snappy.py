"""The snappy framing format, as `useCompression` puts it on a stream.

Source: google/snappy `framing_format.txt`; golib `io/io.go` (one flush for each write).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pyfrp.errors import RemoteWireError

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
MAX_PLAIN = 65536
"""Most uncompressed bytes in a chunk."""

_CHECKSUM = 4
# What snappy may need in the worst case for MAX_PLAIN bytes (snappy.cc, MaxCompressedLength).
_MAX_COMPRESSED = 32 + MAX_PLAIN + MAX_PLAIN // 6

_COMPRESSED, _PLAIN, _IDENTIFIER = 0x00, 0x01, 0xFF
_FIRST_SKIPPABLE = 0x80


@cache
def _library() -> Any:
    """Import the codec when the first proxy with compression is served, not at each start."""
    import cramjam

    return cramjam


class SnappyWriter:
    """One outgoing direction. Each call gives complete chunks, so that nothing waits in a buffer.

    The stream identifier comes before the first chunk.
    """

    __slots__ = ("_compress", "_flush")

    def __init__(self) -> None:
        compressor = _library().snappy.Compressor()
        self._compress: Callable[[bytes], int] = compressor.compress
        self._flush: Callable[[], Any] = compressor.flush

    def compress(self, data: bytes) -> bytes:
        """Return the chunks for `data`, at most 64 KiB of it in each; nothing for nothing."""
        self._compress(data)
        return bytes(self._flush())


class SnappyReader:
    """One incoming direction.

    Holds at most one incomplete chunk (76 KiB) between calls, and returns at most 64 KiB for each
    chunk, of which the smallest takes about 3 KB: input can grow some twenty times, no more.
    """

    __slots__ = ("_held", "_need", "_skip", "_started")

    def __init__(self) -> None:
        self._held = bytearray()
        self._need = 4
        self._skip = 0
        self._started = False

    def decompress(self, data: bytes) -> bytes:
        """Return the plain bytes of every chunk that `data` completes.

        Raises:
            RemoteWireError: A wrong checksum, size or chunk type, a stream that does not begin
                with the identifier, or a block that is not snappy.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return b""
            data = bytes(self._held)
        runs, end = self._cut(data)
        self._held = bytearray(data[end:])
        if not runs:
            return b""
        cramjam = _library()
        try:
            # The codec reads whole streams. One call for all chunks at hand: each call costs 6 us
            # before the first byte.
            return bytes(cramjam.snappy.decompress(b"".join((IDENTIFIER, *runs))))
        except (cramjam.DecompressionError, OSError) as exc:
            raise RemoteWireError(f"bad snappy data: {exc}") from exc

    def _cut(self, data: bytes) -> tuple[list[bytes], int]:
        """Find complete chunks.

        Returns:
            The stretches of `data` that hold nothing but data chunks, and where the first
            incomplete chunk begins; `_need` is its length as far as known.
        """
        runs: list[bytes] = []
        total = len(data)
        at = start = min(self._skip, total)
        self._skip -= at
        self._need = 4
        while total - at >= 4:
            kind = data[at]
            length = data[at + 1] | data[at + 2] << 8 | data[at + 3] << 16
            if kind <= _PLAIN:
                _check_size(kind, length)
                if not self._started:
                    raise RemoteWireError("snappy stream without its identifier")
                if total - at < 4 + length:
                    self._need = 4 + length
                    break
                at += 4 + length
                continue
            # Everything else is left out of the run that ends here.
            if start < at:
                runs.append(data[start:at])
            if kind == _IDENTIFIER:
                if length != 6:
                    raise RemoteWireError(f"snappy stream identifier of {length} bytes")
                if total - at < 10:
                    self._need = 10
                    start = at
                    break
                if data[at : at + 10] != IDENTIFIER:
                    raise RemoteWireError("not a snappy stream")
                self._started = True
                at += 10
            elif kind >= _FIRST_SKIPPABLE:
                if not self._started:
                    raise RemoteWireError("snappy stream without its identifier")
                # Not held, however long it says it is (up to 16 MiB).
                skip = min(4 + length, total - at)
                self._skip = 4 + length - skip
                at += skip
            else:
                raise RemoteWireError(f"reserved snappy chunk type 0x{kind:02x}")
            start = at
        if start < at:
            runs.append(data[start:at])
        return runs, at


def _check_size(kind: int, length: int) -> None:
    # A compressed block has at least the byte that says how long it is.
    least = _CHECKSUM + (kind == _COMPRESSED)
    most = _CHECKSUM + (_MAX_COMPRESSED if kind == _COMPRESSED else MAX_PLAIN)
    if not least <= length <= most:
        raise RemoteWireError(f"snappy chunk of {length} bytes")
