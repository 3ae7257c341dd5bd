"""static_file: what is served, where callers are sent, and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfrp.errors import BadHead
from pyfrp.plugins import static_file
from pyfrp.plugins.files import content_type
from pyfrp.plugins.static_file import _Moved, _path_of
from pyfrp.wire.http1 import ChunkedDecoder
from tests.support.waiting import until
from tests.unit.plugins.scene import plugin, user

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the names are those of unix")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    (files / "dir" / "sub").mkdir(parents=True)
    (files / "page").mkdir()
    (files / "a.txt").write_bytes(b"hello")
    (files / "dir" / "b&<'\".bin").write_bytes(bytes(range(256)))
    (files / "page" / "index.html").write_bytes(b"<p>page")
    (files / "co:lon").write_bytes(b"")
    (tmp_path / "outside").write_bytes(b"linked")
    (files / "link").symlink_to(tmp_path / "outside")
    (files / "loop").symlink_to("loop")
    os.mkfifo(files / "pipe")
    return files


def made(root, **options):
    return plugin(type="static_file", localPath=str(root), **options)


async def ask(root, target: str, *lines: str, method: str = "GET", **options):
    """Status, fields and body of one answer."""
    async with user(made(root, **options)) as u:
        head = [f"{method} {target} HTTP/1.1", "Host: a", *lines, "Connection: close", "", ""]
        await u.says("\r\n".join(head).encode())
        raw = await u.hears_end()
        await u.done()
    top, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = top.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    status = int(first.split()[1])
    if method != "HEAD" and status != 304:
        assert len(body) == int(fields["content-length"])
    return status, fields, body


@pytest.mark.parametrize(
    ("target", "status", "what"),
    [
        ("/a.txt", 200, b"hello"),
        ("http://a/a.txt?x", 200, b"hello"),
        ("/%61.txt", 200, b"hello"),
        ("/page/", 200, b"<p>page"),
        # Links are followed out of the root, as Go's http.Dir does.
        ("/link", 200, b"linked"),
        ("/dir?x=1", 301, "dir/?x=1"),
        ("/a.txt/", 301, "../a.txt"),
        ("/page/index.html?q", 301, "./?q"),
        ("/../a.txt", 301, "/a.txt"),
        ("/../../etc/passwd", 301, "/etc/passwd"),
        ("/%2e%2e/%2e%2e/etc/passwd", 301, "/etc/passwd"),
        ("//evil.test/..", 301, "/"),
        ("//evil.test/%0d%0aX:y", 301, "/evil.test/%0D%0AX:y"),
        ("/dir/./sub/", 301, "/dir/sub/"),
        ("/none", 404, b"404 page not found\n"),
        ("/a.txt/b", 404, b"404 page not found\n"),
        ("/pipe", 403, b"403 Forbidden\n"),
        ("/loop", 500, b"500 Internal Server Error\n"),
        ("/" + "x" * 300, 500, b"500 Internal Server Error\n"),
        ("/a%00", 400, b"a NUL in the path\n"),
        ("/dir%2fsub/", 400, b"an encoded slash in the path\n"),
        ("/..%2F..%2Fetc/passwd", 400, b"an encoded slash in the path\n"),
        ("/%zz", 400, b"a percent sign without two hexadecimal digits in the path\n"),
    ],
)
async def test_a_path_names_one_thing_or_is_refused(root, target, status, what):
    got, fields, body = await ask(root, target)
    assert got == status
    assert (fields["location"] if status == 301 else body) == what


async def test_a_directory_is_listed_as_go_does(root):
    status, fields, body = await ask(root, "/")
    assert (status, fields["content-type"]) == (200, "text/html; charset=utf-8")
    assert body.decode().splitlines()[2:6] == [
        "<pre>",
        '<a href="a.txt">a.txt</a>',
        '<a href="./co:lon">co:lon</a>',
        '<a href="dir/">dir/</a>',
    ]
    _, _, body = await ask(root, "/dir/")
    assert b'<a href="b&%3C%27%22.bin">b&amp;&lt;&#39;&#34;.bin</a>\n<a href="sub/">' in body
    later = "If-Modified-Since: Mon, 01 Jan 2046 00:00:00 GMT"
    assert (await ask(root, "/dir/", later))[0] == 304


@pytest.mark.parametrize(
    ("lines", "status", "body"),
    [
        (["Range: bytes=1-2"], 206, b"el"),
        (["Range: bytes=9-"], 416, b"invalid range: failed to overlap\n"),
        (["Range: x"], 416, b"invalid range\n"),
        (["Range: bytes=0-4,0-4"], 200, b"hello"),
        (["If-None-Match: *"], 304, b""),
        (['If-Match: "x"'], 412, b""),
        (["If-Modified-Since: Mon, 01 Jan 2046 00:00:00 GMT"], 304, b""),
        (['If-Range: "x"', "Range: bytes=1-2"], 200, b"hello"),
    ],
)
async def test_parts_and_conditions(root, lines, status, body):
    got, fields, found = await ask(root, "/a.txt", *lines)
    assert (got, found) == (status, body)
    if got == 206:
        assert fields["content-range"] == "bytes 1-2/5"
    if status == 416 and lines != ["Range: x"]:
        assert fields["content-range"] == "bytes */5"
    got, _, found = await ask(root, "/a.txt", *lines, method="HEAD")
    assert (got, found) == (status, b"")


GZIP = "Accept-Encoding: br, gzip;q=0.5"


async def chunked(root, target: str, *lines: str) -> tuple[bytes, bytes]:
    """Head and body of an answer in chunks, unpacked."""
    async with user(made(root)) as u:
        head = [f"GET {target} HTTP/1.1", "Host: a", *lines, "Connection: close", "", ""]
        await u.says("\r\n".join(head).encode())
        raw = await u.hears_end()
        await u.done()
    top, _, body = raw.partition(b"\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked" in top
    assert b"\r\nContent-Length" not in top
    payload, used = ChunkedDecoder().feed(body)
    assert used == len(body)
    return top, gzip.decompress(payload)


async def test_text_is_packed_for_those_who_take_it(root, loop_kind):
    text = b"".join(b"%d bottles\n" % number for number in range(100_000))
    (root / "song.txt").write_bytes(text)
    top, body = await chunked(root, "/song.txt", GZIP)
    assert body == text
    for line in (b"Content-Encoding: gzip", b"Vary: Accept-Encoding"):
        assert b"\r\n" + line in top
    _, fields, _ = await ask(root, "/song.txt", "Accept-Encoding: *", method="HEAD")
    assert fields["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("/song.txt", []),
        ("/song.txt", ["Accept-Encoding: gzip;q=0, *"]),
        ("/song.txt", ["Accept-Encoding: deflate, x-gzip"]),
        ("/song.txt", [GZIP, "Range: bytes=0-"]),
        ("/a.txt", [GZIP]),
        ("/song.zip", [GZIP]),
    ],
)
async def test_what_would_not_become_shorter_is_not_packed(root, target, lines):
    for name in ("song.txt", "song.zip"):
        (root / name).write_bytes(b"la" * 500)
    _, fields, body = await ask(root, target, *lines)
    assert "content-encoding" not in fields
    assert body in (b"la" * 500, b"hello")


async def test_listings_are_packed_as_well(root):
    for number in range(20):
        (root / "dir" / "sub" / f"file {number}").touch()
    _, fields, body = await ask(root, "/dir/sub/", GZIP)
    assert fields["content-encoding"] == "gzip"
    assert gzip.decompress(body).count(b"<a href=") == 20


async def test_a_packed_file_that_shrinks_meanwhile_does_not_look_whole(root):
    (root / "big.txt").write_bytes(os.urandom(8 << 20))
    async with user(made(root)) as u:
        u.end.pause_reading()
        await u.says(f"GET /big.txt HTTP/1.1\r\nHost: a\r\n{GZIP}\r\n\r\n".encode())
        await until(lambda: u.work._choked, "the file to be held back")
        os.truncate(root / "big.txt", 1000)
        u.end.resume_reading()
        await u.done()
        assert u.work.aborted


async def test_several_parts_come_in_one_answer(root):
    status, fields, body = await ask(root, "/a.txt", "Range: bytes=0-0,3-4")
    assert status == 206
    boundary = fields["content-type"].removeprefix("multipart/byteranges; boundary=")
    kind = "Content-Type: text/plain; charset=utf-8"
    assert body.decode() == (
        f"--{boundary}\r\nContent-Range: bytes 0-0/5\r\n{kind}\r\n\r\nh\r\n"
        f"--{boundary}\r\nContent-Range: bytes 3-4/5\r\n{kind}\r\n\r\nlo\r\n--{boundary}--\r\n"
    )


async def test_only_what_is_below_the_prefix_is_served_and_only_with_the_password(
    root, monkeypatch
):
    monkeypatch.setattr(static_file, "WRONG_PASSWORD_S", 0.0)
    options = {"stripPrefix": "st", "httpUser": "u", "httpPassword": "s3cret"}
    good = "Authorization: Basic dTpzM2NyZXQ="
    assert (await ask(root, "/st/a.txt", good, **options))[2] == b"hello"
    assert (await ask(root, "/st/dir", good, **options))[1]["location"] == "dir/"
    for line in ("A: b", "Authorization: Basic dTp4", "Authorization: Bearer s3cret"):
        status, fields, body = await ask(root, "/st/a.txt", line, **options)
        assert (status, body) == (401, b"Unauthorized\n")
        assert fields["www-authenticate"] == 'Basic realm="Restricted"'
    for target in ("/st", "/a.txt", "/stx/a.txt"):
        assert (await ask(root, target, good, **options))[0] == 404
    assert (await ask(root, "/st/a.txt", good, method="POST", **options))[0] == 405


async def test_a_request_with_a_body_is_answered_and_closes(root):
    async with user(made(root)) as u:
        await u.says(b"GET /a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /x HTTP/1.1")
        got = await u.hears_end()
        assert got.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in got


async def test_requests_follow_each_other_and_a_half_closed_user_gets_all(root, loop_kind):
    async with user(made(root)) as u:
        await u.says(b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        u.end.write_eof()
        assert (await u.hears_end()).count(b"\r\n\r\nhello") == 3


async def test_a_large_file_goes_as_fast_as_the_user_reads(root, loop_kind):
    block = os.urandom(1 << 20)
    (root / "big").write_bytes(block * 8)
    async with user(made(root)) as u:
        u.end.pause_reading()
        await u.says(b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await until(lambda: u.work._choked, "the file to be held back")
        sent = len(u.work.written)
        assert sent < 2 << 20
        u.end.resume_reading()
        got = await u.hears_end()
        assert got.partition(b"\r\n\r\n")[2] == block * 8


async def test_a_file_that_shrinks_meanwhile_does_not_look_whole(root):
    (root / "big").write_bytes(bytes(8 << 20))
    async with user(made(root)) as u:
        u.end.pause_reading()
        await u.says(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: u.work._choked, "the file to be held back")
        os.truncate(root / "big", 1000)
        u.end.resume_reading()
        await u.done()
        assert u.work.aborted


async def test_a_user_that_leaves_amid_a_file_leaves_it_closed(root, loop_kind):
    (root / "big").write_bytes(bytes(8 << 20))
    for how in ("leave", "cancel"):
        async with user(made(root)) as u:
            u.end.pause_reading()
            await u.says(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda at=u: at.work._choked, "the file to be held back")
            if how == "leave":
                u.end.abort()
                await u.done()
            else:
                u.task.cancel()
                await asyncio.wait([u.task])


def test_a_directory_that_is_not_there_is_warned_about(tmp_path):
    assert made(tmp_path).warnings() == []
    (warning,) = made(tmp_path / "none").warnings()
    assert "none is no directory" in warning


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("a.HTML", b"", "text/html; charset=utf-8"),
        ("a.js", b"", "text/javascript; charset=utf-8"),
        ("a.tar.gz", b"", "application/gzip"),
        ("a.mp4", b"", "video/mp4"),
        ("a.txt", b"\0", "text/plain; charset=utf-8"),
        ("a", b"", "text/plain; charset=utf-8"),
        ("a", b" <!DOCTYPE html>", "text/html; charset=utf-8"),
        ("a", b"\x89PNG\r\n\x1a\n\0", "image/png"),
        ("a", b"\0\1", "application/octet-stream"),
        ("dir.d/a", b"x", "text/plain; charset=utf-8"),
    ],
)
def test_types_are_told_by_extension_then_by_content(name, start, kind):
    assert content_type(name, start) == kind


PIECES = st.lists(
    st.sampled_from([b"/", b"..", b".", b"%2e", b"%2F", b"a", b"%00", b"%5c", b"\\", b"?", b"//"]),
    max_size=8,
)


@given(PIECES)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_no_path_leaves_the_root(pieces):
    try:
        path = _path_of(b"/" + b"".join(pieces))
    except BadHead:
        return
    except _Moved as exc:
        path = str(exc)
        assert not path.startswith("//")
    assert path.startswith("/")
    assert not {"..", "."} & set(path.split("/"))
    assert "\0" not in path
