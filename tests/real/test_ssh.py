"""ssh and rsync to a real sshd, over a tcp proxy and over a secret one with its visitor."""

from __future__ import annotations

import filecmp
import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.tools import daemon, find, listening, output, run
from tests.support.ports import free_port
from tests.support.processes import HOST, Kind, tcp_proxy, tunnel
from tests.support.waiting import all_of

pytestmark = pytest.mark.real

MIB = 1024 * 1024
WAYS = ("tcp", "stcp")


@dataclass
class Machine:
    """A machine that is reached by ssh through the tunnel, at one port for each way."""

    directory: Path
    ports: dict[str, int]

    def options(self, way: str) -> list[str]:
        """Options of ssh that leave no question open."""
        given = {
            "Port": self.ports[way],
            "IdentityFile": self.directory / "user_key",
            "UserKnownHostsFile": self.directory / "known_hosts",
            "HostKeyAlias": "office",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": 10,
            "LogLevel": "ERROR",
        }
        return [
            "-F",
            "none",
            *(w for key, value in given.items() for w in ("-o", f"{key}={value}")),
        ]

    def ssh(self, way: str, *command: str) -> list[str]:
        return ["ssh", *self.options(way), f"root@{HOST}", *command]


@asynccontextmanager
async def sshd(directory: Path) -> AsyncIterator[int]:
    """A server with throw-away keys on a port of its own."""
    for name in ("host_key", "user_key"):
        await output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    host_key = (directory / "host_key.pub").read_text().split()
    (directory / "known_hosts").write_text(f"office {host_key[0]} {host_key[1]}\n")
    (directory / "user_key.pub").rename(directory / "authorized_keys")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Where it locks itself in.
    port = free_port()
    config = directory / "sshd_config"
    config.write_text(
        f"ListenAddress {HOST}:{port}\n"
        f"HostKey {directory}/host_key\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\n"
        "PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nMaxStartups 50\n"
        "Subsystem sftp internal-sftp\n"
    )
    log = directory / "sshd.log"
    async with daemon("sshd", "-D", "-e", "-f", config, log=log, ready=listening(port)):
        yield port


@asynccontextmanager
async def machine(directory: Path, kinds: tuple[Kind, Kind]) -> AsyncIterator[Machine]:
    ports = {way: free_port() for way in WAYS}
    async with sshd(directory) as port:
        proxies = [
            tcp_proxy("ssh", port, ports["tcp"]),
            {"name": "secret", "type": "stcp", "secretKey": "key", "localPort": port},
        ]
        visitor = {
            "name": "visitor",
            "type": "stcp",
            "serverName": "secret",
            "secretKey": "key",
            "bindAddr": HOST,
            "bindPort": ports["stcp"],
            "transport": {"useEncryption": True},
        }
        async with tunnel(directory, proxies, kinds=kinds, client={"visitors": [visitor]}) as pair:
            await pair.client.logged("start visitor success")
            yield Machine(directory, ports)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tree(root: Path, dice: random.Random) -> None:
    """Files such as a project has: many small ones, few large ones, an empty one, a link."""
    for number in range(200):
        path = root / f"d{number % 10}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.randrange(4000)))
    (root / "large").write_bytes(dice.randbytes(24 * MIB))
    (root / "zeroes").write_bytes(bytes(24 * MIB))
    (root / "empty").touch()
    (root / "link").symlink_to("large")


def same(left: Path, right: Path) -> bool:
    """Tell whether two trees hold the same files with the same bytes."""
    names = [{str(p.relative_to(root)) for p in root.rglob("*")} for root in (left, right)]
    if names[0] != names[1]:
        return False
    files = [name for name in names[0] if (left / name).is_file()]
    return not any(filecmp.cmpfiles(left, right, files, shallow=False)[1:])


@pytest.mark.parametrize("way", WAYS)
async def test_ssh_runs_commands_and_carries_files(
    way: str, kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    async with machine(tmp_path, kinds) as office:
        assert await output(*office.ssh(way, "echo", "here;", "id", "-u")) == "here\n0\n"
        assert (await run(*office.ssh(way, "exit", "7"))).code == 7

        big = tmp_path / "big"
        big.write_bytes(os.urandom(48 * MIB))
        up = ["scp", *office.options(way), str(big), f"root@{HOST}:{tmp_path}/copy"]
        await output(*up)
        assert digest(tmp_path / "copy") == digest(big)
        down = ["scp", *office.options(way), f"root@{HOST}:{tmp_path}/copy", str(tmp_path / "back")]
        await output(*down)
        assert digest(tmp_path / "back") == digest(big)

        async def one(number: int) -> str:
            return await output(*office.ssh(way, "echo", str(number)))

        said = await all_of(one(number) for number in range(8))
        assert [int(text) for text in said] == list(range(8))


@pytest.mark.parametrize("way", WAYS)
async def test_rsync_keeps_trees_equal(way: str, kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    dice = random.Random(4)
    source, target, back = (tmp_path / name for name in ("source", "target", "back"))
    make_tree(source, dice)
    async with machine(tmp_path, kinds) as office:
        shell = " ".join([find("ssh"), *office.options(way)])
        sync = ("rsync", "-a", "--delete", "--checksum", "-e", shell)
        await output(*sync, f"{source}/", f"root@{HOST}:{target}/")
        assert same(source, target)
        # A change in the middle of a large file makes rsync talk in both directions.
        data = bytearray((source / "large").read_bytes())
        data[12 * MIB : 12 * MIB + 100] = bytes(100)
        (source / "large").write_bytes(data)
        (source / "d3" / "f3").unlink()
        stats = await output(*sync, "--stats", "-z", f"{source}/", f"root@{HOST}:{target}/")
        assert "Number of deleted files: 1 (reg: 1)" in stats
        assert same(source, target)
        await output(*sync, f"root@{HOST}:{target}/", f"{back}/")
        assert same(source, back)
