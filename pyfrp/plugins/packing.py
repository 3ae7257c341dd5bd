"""Whether an answer is sent packed with gzip, and the packing (RFC 9110, 8.4 and 12.5.3).

Unlike frp (`pkg/util/net/http.go`), which packs whatever is asked for with gzip among what is
accepted: what is packed already, too short, a part of a file, or refused by `gzip;q=0` is sent as
it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

LEAST_BYTES = 256  # Below, the frame of gzip outweighs what it saves.
_LEVEL = 6  # Go's default.
_GZIP = 31  # The largest window, in gzip's frame.

_CODING = re.compile(rb"([^\s;,]+)[ \t]*(?:;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?))?[ \t]*")
_TEXT = re.compile(
    r"text/|application/(?:json|javascript|xml|wasm|x-ndjson|[a-z.+-]*\+(?:xml|json))|"
    r"image/svg\+xml|font/(?:ttf|otf)"
)


def accepts_gzip(fields: Mapping[bytes, Sequence[bytes]]) -> bool:
    """Whether the caller takes gzip; by `*` as well."""
    weights: dict[bytes, float] = {}
    for part in b",".join(fields.get(b"accept-encoding", ())).split(b","):
        match = _CODING.fullmatch(part.strip(b" \t"))
        if match is not None:
            weights[match[1].lower()] = float(match[2] or 1)
    return weights.get(b"gzip", weights.get(b"*", 0.0)) > 0


def packs_well(kind: str) -> bool:
    """Whether bodies of this media type become shorter; those of images and archives do not."""
    return _TEXT.match(kind) is not None


class Packer:
    """Packs one body, piece by piece; both methods take time and belong in a thread."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)

    def pack(self, data: bytes) -> bytes:
        """What can be sent after these bytes; often nothing."""
        return self._deflate.compress(data)

    def end(self) -> bytes:
        """The rest."""
        return self._deflate.flush()
