"""`static_file`: the files of a directory.

Source: frp `pkg/plugin/client/static_file.go` on Go's `net/http/fs.go`. Unlike there, HEAD is
answered too, NUL and encoded slashes in a path are refused, and only what becomes shorter is packed
(`pyfrp.plugins.packing`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import secrets
from functools import partial
from urllib.parse import quote, unquote_to_bytes

from pyfrp.config.plugins import StaticFilePlugin as Options
from pyfrp.errors import BadHead
from pyfrp.plugins.base import Visit
from pyfrp.plugins.files import Found, Reader, beside, content_type, listing, look
from pyfrp.plugins.http_session import (
    WRONG_PASSWORD_S,
    After,
    HTTPPlugin,
    Session,
    answer_head,
    knows_password,
)
from pyfrp.plugins.packing import LEAST_BYTES, Packer, accepts_gzip, packs_well
from pyfrp.wire.http1 import LAST_CHUNK, RequestHead, encode_chunk, http_date
from pyfrp.wire.http_fields import fields_of
from pyfrp.wire.http_ranges import Fields, Unsatisfiable, precondition, range_field, read_ranges

# Read at once; as large as a work connection takes before it asks to wait.
CHUNK_BYTES = 256 * 1024
_INDEX = "/index.html"
_REFUSED = {errno.ENOENT: 404, errno.ENOTDIR: 404, errno.EACCES: 403, errno.EPERM: 403}
_WORDS = {404: "404 page not found", 403: "403 Forbidden", 500: "500 Internal Server Error"}


_PACKED = ("Content-Encoding", "gzip")
_VARIES = ("Vary", "Accept-Encoding")


class _Moved(Exception):
    """The path has another, canonical form; the text is the Location, without the query."""


class StaticFilePlugin(HTTPPlugin):
    """Serves GET and HEAD."""

    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._prefix = f"/{options.strip_prefix}/" if options.strip_prefix else "/"

    def warnings(self) -> list[str]:
        path = self.options.local_path
        return [] if os.path.isdir(path) else [f"static_file: localPath {path} is no directory"]

    async def answer(self, session: Session, head: RequestHead, visit: Visit) -> After:
        reply = _Reply(session, head)
        options = self.options
        try:
            path = _path_of(head.target)
            if not path.startswith(self._prefix):
                return reply.text(404, _WORDS[404])
            if head.method not in (b"GET", b"HEAD"):
                return reply.text(405)
            given = reply.fields.get(b"authorization")
            if not knows_password(given, options.http_user, options.http_password):
                await asyncio.sleep(WRONG_PASSWORD_S)
                challenge = ("WWW-Authenticate", 'Basic realm="Restricted"')
                return reply.text(401, "Unauthorized", challenge)
            return await self._serve(reply, "/" + path[len(self._prefix) :])
        except _Moved as exc:
            query = head.target.partition(b"?")[1:]
            return reply.text(301, "", ("Location", str(exc) + b"".join(query).decode("ascii")))
        except OSError as exc:
            status = _REFUSED.get(exc.errno or 0, 500)
            if status == 500:
                visit.log.warning(f"static_file: {exc.strerror}")
            return reply.text(status, _WORDS[status])

    async def _serve(self, reply: _Reply, path: str) -> After:
        """Answer with what is at `path`, which begins with "/" and is clean."""
        if path.endswith(_INDEX):
            raise _Moved("./")
        if os.sep != "/" and (os.sep in path or ":" in path):
            return reply.text(404, _WORDS[404])  # It would mean more there than one name.
        local = self.options.local_path + path.rstrip("/")
        found = await beside(lambda: look(local or "/"), Found.close)
        try:
            name = _escaped(posixpath.basename(path.rstrip("/")))
            if found.is_dir:
                if not path.endswith("/"):
                    raise _Moved(f"{name}/")
                index = await self._index(local)
                if index is None:
                    return await reply.directory(found, local or "/")
                found, local = index, local + _INDEX
            elif path.endswith("/"):
                raise _Moved(f"../{name}")
            if found.file is None:
                return reply.text(403, _WORDS[403])  # A FIFO, a device: reading might never end.
            return await reply.file(found, local)
        finally:
            if not reply.reading:
                found.close()

    async def _index(self, local: str) -> Found | None:
        """The directory's own page."""
        try:
            found = await beside(lambda: look(local + _INDEX), Found.close)
        except OSError:
            return None
        return found if found.file is not None else None


def _path_of(target: bytes) -> str:
    """The path that a target names, as the file system spells it.

    Raises:
        BadHead: for what is in no name of a file.
        _Moved: when it is not clean: the router of the official client sends callers there.
    """
    raw = target.partition(b"?")[0]
    if raw[:1] != b"/":
        _, _, rest = raw.partition(b"://")
        raw = b"/" + rest.partition(b"/")[2] if rest else raw
    if b"%2f" in raw.lower():
        raise BadHead("an encoded slash in the path")
    octets = unquote_to_bytes(raw)
    if b"\0" in octets:
        raise BadHead("a NUL in the path")
    path = os.fsdecode(octets)
    # normpath keeps two slashes at the start, and drops the last.
    clean = "/" + posixpath.normpath("/" + path).lstrip("/")
    if path.endswith("/") and clean != "/":
        clean += "/"
    if clean != path:
        raise _Moved(_escaped(clean))
    return path


def _escaped(path: str) -> str:
    link = quote(os.fsencode(path), safe="$&+,/:;=@~")
    return link if link.startswith("/") or ":" not in link else f"./{link}"


class _Reply:
    """The answer to one request.

    Attributes:
        reading: Whether the file has a reader, which closes it.
    """

    def __init__(self, session: Session, head: RequestHead) -> None:
        self.fields: Fields = fields_of(head)
        self.reading = False
        self._session = session
        self._bodiless = head.method == b"HEAD"
        self._packs = accepts_gzip(self.fields)
        self._chunks = head.minor > 0
        # A body that nobody reads would be taken for the next request.
        self._keep = head.keep_alive and not head.length

    def text(self, status: int, text: str = "", *extra: tuple[str, str]) -> After:
        return self._session.answer(
            status, text, keep=self._keep, bodiless=self._bodiless, extra=extra
        )

    async def directory(self, found: Found, path: str) -> After:
        if precondition(_only_since(self.fields), found.modified) == 304:
            return self._head(304, [])
        page = await beside(lambda: listing(path), lambda _: None)
        fields = [("Content-Type", "text/html; charset=utf-8"), _modified(found), _VARIES]
        if self._packs and len(page) >= LEAST_BYTES:
            packer = Packer()
            page = await beside(lambda: packer.pack(page) + packer.end(), lambda _: None)
            fields.append(_PACKED)
        after = self._head(200, [*fields, ("Content-Length", str(len(page)))])
        if not self._bodiless:
            self._session.write(page)
        return after

    async def file(self, found: Found, path: str) -> After:
        size, fields = found.size, self.fields
        kind = content_type(path, found.start)
        status = precondition(fields, found.modified)
        if status == 304:
            return self._head(304, [_modified(found)])
        if status == 412:
            return self._head(412, [_modified(found), ("Content-Length", "0")])
        try:
            wanted = range_field(fields, found.modified)
            ranges = read_ranges(wanted, size) if wanted else []
        except Unsatisfiable as exc:
            extra = [("Content-Range", f"bytes */{size}")] if exc.beyond else []
            return self.text(416, str(exc), *extra)
        common = [("Accept-Ranges", "bytes"), _modified(found)]
        if len(ranges) > 1:
            return await self._parts(found, ranges, kind, common)
        start, length = ranges[0] if ranges else (0, size)
        if packs_well(kind):
            common.append(_VARIES)
            if self._packs and self._chunks and not wanted and size >= LEAST_BYTES:
                common += [("Content-Type", kind), _PACKED, ("Transfer-Encoding", "chunked")]
                return await self._stream_packed(found, self._head(200, common))
        if ranges:
            common.append(("Content-Range", _part(start, length, size)))
        common += [("Content-Type", kind), ("Content-Length", str(length))]
        after = self._head(206 if ranges else 200, common)
        return await self._stream(found, [(b"", start, length)], b"", after)

    async def _parts(
        self,
        found: Found,
        ranges: list[tuple[int, int]],
        kind: str,
        common: list[tuple[str, str]],
    ) -> After:
        """Several parts in one answer (RFC 9110, 14.6)."""
        boundary = secrets.token_hex(30)
        parts = []
        for number, (start, length) in enumerate(ranges):
            where = _part(start, length, found.size)
            lead = "\r\n" if number else ""
            text = f"{lead}--{boundary}\r\nContent-Range: {where}\r\nContent-Type: {kind}\r\n\r\n"
            parts.append((text.encode(), start, length))
        end = f"\r\n--{boundary}--\r\n".encode()
        total = sum(len(text) + length for text, _, length in parts) + len(end)
        common.append(("Content-Type", f"multipart/byteranges; boundary={boundary}"))
        after = self._head(206, [*common, ("Content-Length", str(total))])
        return await self._stream(found, parts, end, after)

    def _head(self, status: int, fields: list[tuple[str, str]]) -> After:
        self._session.write(answer_head(status, fields, keep=self._keep))
        return After.KEEP if self._keep else After.CLOSE

    async def _stream(
        self, found: Found, parts: list[tuple[bytes, int, int]], end: bytes, after: After
    ) -> After:
        """Send texts and pieces of the file, as fast as the user takes them."""
        if self._bodiless:
            return after
        assert found.file is not None
        session = self._session
        reader = Reader(found.file)
        self.reading = True
        try:
            for text, start, length in parts:
                session.write(text)
                at, stop = start, start + length
                while at < stop:
                    chunk = found.start[at : min(stop, len(found.start))]
                    if not chunk:
                        chunk = await self._read(reader, at, min(CHUNK_BYTES, stop - at))
                    if not chunk:
                        # The file has become shorter: only a cut can say so now.
                        session.conn.reset()
                        return After.HANDED_ON
                    at += len(chunk)
                    session.write(chunk)
                    await session.conn.drain()
        finally:
            reader.close()
        session.write(end)
        return after

    async def _stream_packed(self, found: Found, after: After) -> After:
        """Send the whole file packed, in chunks, as fast as the user takes them."""
        if self._bodiless:
            return after
        assert found.file is not None
        session, packer = self._session, Packer()
        reader = Reader(found.file)
        self.reading = True
        at = 0
        try:
            while at < found.size:
                chunk = await self._read(reader, at, min(CHUNK_BYTES, found.size - at))
                if not chunk:
                    session.conn.reset()  # As in `_stream`.
                    return After.HANDED_ON
                at += len(chunk)
                packed = await beside(partial(packer.pack, chunk), lambda _: None)
                if packed:
                    session.write(encode_chunk(packed))
                    await session.conn.drain()
        finally:
            reader.close()
        session.write(encode_chunk(packer.end()) + LAST_CHUNK)
        return after

    async def _read(self, reader: Reader, at: int, size: int) -> bytes:
        try:
            return await reader.read(at, size)
        except OSError:
            return b""  # A disk that fails amid a file is for the user the same as its end.


def _part(start: int, length: int, size: int) -> str:
    return f"bytes {start}-{start + length - 1}/{size}"


def _modified(found: Found) -> tuple[str, str]:
    return "Last-Modified", http_date(found.modified).decode()


def _only_since(fields: Fields) -> Fields:
    """Of a listing only the date counts (`checkIfModifiedSince`)."""
    return {name: fields[name] for name in (b"if-modified-since",) if name in fields}
