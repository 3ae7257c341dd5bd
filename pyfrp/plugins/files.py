"""Files and directories, read beside the event loop: a slow disk must not stop the tunnel."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from html import escape
from io import FileIO
from typing import TypeVar
from urllib.parse import quote

T = TypeVar("T")

SNIFF_BYTES = 512  # What Go looks at to tell the type of a file without a known extension.
_WORKERS = 8  # Reads at once; more only compete for the disk.

# Go's own table (`mime/type.go`); it goes before the system's.
_TYPES = {
    ".avif": "image/avif",
    ".css": "text/css; charset=utf-8",
    ".gif": "image/gif",
    ".htm": "text/html; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".xml": "text/xml; charset=utf-8",
    # What Python's table takes for an encoding of something else.
    ".bz2": "application/x-bzip2",
    ".gz": "application/gzip",
    ".xz": "application/x-xz",
}
_SIGNATURES = (
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"<?xml", "text/xml; charset=utf-8"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")
_BINARY = frozenset(range(0x20)) - frozenset(b"\t\n\x0c\r\x1b")


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WORKERS, thread_name_prefix="files")


async def beside(job: Callable[[], T], drop: Callable[[T], object]) -> T:
    """Run `job` in a thread; if nobody waits for its result any more, `drop` gets it."""
    running = _workers().submit(job)
    try:
        return await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        running.add_done_callback(lambda done: _dropped(done, drop))
        raise


def _dropped(done: Future[T], drop: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        drop(done.result())


@dataclass(slots=True)
class Found:
    """What is at a path.

    Attributes:
        file: Open, for a regular file that was to be opened; whoever has this closes it.
        start: The first bytes of it.
    """

    is_dir: bool
    is_file: bool
    size: int
    modified: int
    file: FileIO | None = None
    start: bytes = b""

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def look(path: str) -> Found:
    """Open what is at `path`, unless it is a directory or no file at all; links are followed.

    Raises:
        OSError: when there is nothing, or it may not be read.
    """
    found = _found(os.stat(path))
    if not found.is_file:
        return found
    # Should a FIFO have taken the file's place meanwhile, opening it must not wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = FileIO(path, "rb", opener=lambda name, _: os.open(name, flags | _NOT_INHERITED))
    try:
        found = _found(os.fstat(file.fileno()))
        if found.is_file:
            found.file = file
            found.start = file.read(SNIFF_BYTES) or b""
            return found
    except BaseException:
        file.close()
        raise
    file.close()
    return found


_NOT_INHERITED = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)


def _found(seen: os.stat_result) -> Found:
    mode = seen.st_mode
    return Found(stat.S_ISDIR(mode), stat.S_ISREG(mode), seen.st_size, int(seen.st_mtime))


class Reader:
    """Reads an open file piece by piece, one piece at a time."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._job: Future[bytes] | None = None

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end of the file."""

        def job() -> bytes:
            self._file.seek(offset)
            return self._file.read(size) or b""

        self._job = _workers().submit(job)
        return await asyncio.wrap_future(self._job)

    def close(self) -> None:
        """Close the file, after a read that is still under way: its descriptor is in use."""
        if self._job is None:
            self._file.close()
        else:
            self._job.add_done_callback(lambda _: self._file.close())


def content_type(path: str, start: bytes) -> str:
    """The media type by the extension, else by the first bytes (Go `net/http/sniff.go`)."""
    extension = os.path.splitext(path)[1].lower()
    known = _TYPES.get(extension)
    if known is None and extension:
        known = mimetypes.guess_type("x" + extension)[0]
        if known is not None and known.startswith("text/"):
            known += "; charset=utf-8"
    if known is not None:
        return known
    for signature, kind in _SIGNATURES:
        if start.startswith(signature):
            return kind
    if start.lstrip(b"\t\n\x0c\r ").lower().startswith(_PAGES):
        return "text/html; charset=utf-8"
    return "application/octet-stream" if _BINARY & set(start) else "text/plain; charset=utf-8"


def listing(path: str) -> bytes:
    """A page with a link for each entry of a directory, as Go's file server has it."""
    with os.scandir(path) as entries:
        names = [
            os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b"")
            for entry in entries
        ]
    names.sort(key=lambda name: name.removesuffix(b"/"))
    lines = ["<!doctype html>", '<meta name="viewport" content="width=device-width">', "<pre>"]
    for name in names:
        link = quote(name, safe="$&+,/:;=@~")
        if ":" in link:
            link = f"./{link}"  # Else it would be taken for a scheme.
        shown = escape(name.decode("utf-8", "replace"), quote=False)
        shown = shown.replace('"', "&#34;").replace("'", "&#39;")
        lines.append(f'<a href="{link}">{shown}</a>')
    return "\n".join([*lines, "</pre>", ""]).encode()
