"""unix_domain_socket: a bridge to a path."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from tests.support.waiting import until, within
from tests.unit.plugins.scene import plugin, user

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no unix sockets")


def unix(path):
    return plugin(type="unix_domain_socket", unixPath=str(path))


async def test_bytes_pass_both_ways_and_so_do_the_ends(tmp_path: Path, loop_kind):
    path = tmp_path / "s"
    heard = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        writer.write(await reader.readexactly(8))
        heard.set_result(await reader.read())
        writer.write(b"bye")
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with user(unix(path), early=b"ear") as u:
        await u.done()
        await u.says(b"ly-on", b"early-on")
        assert [bridge.carried() for bridge in u.bridges] == [16]
        await u.says(b"more")
        u.end.write_eof()
        assert await within(heard, 5, "the end") == b"more"
        assert await u.hears_end() == b"bye"
        await until(lambda: u.closed, "the bridge to close")
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "no such file or directory"),
        ("a\0b", "the path has a NUL in it"),
        ("x" * 200, "too long"),
    ],
)
async def test_a_service_that_is_not_there_is_named_and_the_user_not_left_hanging(
    name, words, tmp_path: Path, loop_kind
):
    path = f"{tmp_path}/{name}"
    async with user(unix(path)) as u:
        await u.done()
        assert await u.hears_end() == b""
        assert u.log.has(f"dial to uds {path} error: dial unix", "error")
        assert words in u.log.events("error")[0]


async def test_a_path_that_nobody_listens_on_is_refused(tmp_path: Path):
    (tmp_path / "s").touch()
    async with user(unix(tmp_path / "s")) as u:
        await u.done()
        assert await u.hears_end() == b""
        assert u.log.has("connection refused", "error")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them")
async def test_a_name_with_an_at_is_abstract_as_in_go(tmp_path: Path):
    name = f"pyfrp-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        async with user(unix("@" + name)) as u:
            await u.done()
            with listener.accept()[0] as far:
                far.sendall(b"hi")
            assert await u.hears_end() == b"hi"
