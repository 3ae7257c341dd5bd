"""What a mask of websocket frames costs: `python -m tests.perf.websocket_mask`.

For what is in `pyfrp/wire/websocket.py`, and what was tried beside it.
"""

from __future__ import annotations

import os
import timeit
from collections.abc import Callable
from functools import partial

from pyfrp.wire.websocket import FrameDecoder, apply_mask, encode_frame, xor

SIZES = (100, 1400, 16 * 1024, 64 * 1024)
_TABLES = [bytes(byte ^ mask for byte in range(256)) for mask in range(256)]


def _lanes(data: bytes, mask: bytes) -> bytearray:
    """Each byte of the mask for itself, by `bytes.translate`."""
    out = bytearray(len(data))
    for lane, byte in enumerate(mask):
        out[lane::4] = data[lane::4].translate(_TABLES[byte])
    return out


def _decode(frame: bytes) -> bytes:
    return FrameDecoder(masked=True).decode(frame)


def _best(run: Callable[[], object], size: int) -> str:
    count = max(20, 2_000_000 // size)
    seconds = min(timeit.repeat(run, number=count, repeat=5)) / count
    return f"{seconds * 1e6:8.2f} µs {seconds * 1e9 / size:6.2f} ns/byte"


def main() -> None:
    print(f"os.urandom(4): {_best(lambda: os.urandom(4), 4)}")
    for size in SIZES:
        data, mask = os.urandom(size), os.urandom(4)
        masked = encode_frame(data, mask=mask)
        ways: dict[str, Callable[[], object]] = {
            "xor (Python alone)": partial(xor, data, mask),
            "four translations": partial(_lanes, data, mask),
            "apply_mask": partial(apply_mask, data, mask),
            "encode_frame": partial(encode_frame, data, mask=mask),
            "decode": partial(_decode, masked),
        }
        for name, run in ways.items():
            print(f"{size:6} {name:20} {_best(run, size)}")


if __name__ == "__main__":
    main()
