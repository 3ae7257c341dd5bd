"""What is around the tunnel: a name server, and the proxy that is the only way out.

Both are Debian's programs, on loopback addresses of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.real.tools import find
from tests.support.waiting import until

NAME = "home.soak.test"
"""What the client has for its server."""
RESOLVER = "127.0.53.1"
"""squid asks name servers on port 53 only, so this one has an address of its own."""
PROXY = "127.0.0.1"
USER, PASSWORD = "office", "a-sample-password"

_NOBODY_LISTENS_S = 10.0


class Daemon:
    """A program in the foreground that can be killed and started again."""

    def __init__(self, words: Sequence[str | Path], log: Path, address: tuple[str, int]) -> None:
        self._words = [find(str(words[0])), *map(str, words[1:])]
        self._log = log
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        await until(self._listens, f"{self._words[0]} to listen", _NOBODY_LISTENS_S, 0.05)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            said = self._log.read_text(errors="replace")[-1500:]
            raise AssertionError(f"{self._words[0]} ended with {self._process.returncode}: {said}")
        host, port = self._address
        wanted = f"{_hex(host)}:{port:04X}"
        rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return any(row.split()[1] == wanted and row.split()[3] == "0A" for row in rows)


def _hex(host: str) -> str:
    """An IPv4 address as /proc/net/tcp has it on a little-endian machine."""
    return bytes(reversed([int(part) for part in host.split(".")])).hex().upper()


class NameServer:
    """dnsmasq with one name, whose address changes."""

    def __init__(self, directory: Path) -> None:
        self._hosts = directory / "hosts"
        config = directory / "dnsmasq.conf"
        lines = [
            *("keep-in-foreground", "no-resolv", "no-hosts", "bind-interfaces", "user=root"),
            *("port=53", f"listen-address={RESOLVER}", "pid-file", "log-facility=-"),
            *(f"addn-hosts={self._hosts}", "local-ttl=0", "local=/soak.test/"),
        ]
        config.write_text("\n".join(lines) + "\n")
        log = directory / "dnsmasq.log"
        self._daemon = Daemon(["dnsmasq", "-C", config], log, (RESOLVER, 53))

    async def start(self, address: str) -> None:
        self._hosts.write_text(f"{address} {NAME}\n")
        await self._daemon.start()

    def move(self, address: str) -> None:
        """Give the name another address, as a dynamic DNS service does."""
        self._hosts.write_text(f"{address} {NAME}\n")
        self._daemon.signal(signal.SIGHUP)

    def stop(self) -> None:
        self._daemon.kill()


class Proxy:
    """squid as a company has it: CONNECT with a password, idle tunnels are cut.

    Args:
        cuts_idle_s: Seconds of silence after which it cuts a tunnel.
    """

    def __init__(self, directory: Path, port: int, *, cuts_idle_s: int) -> None:
        self.port = port
        self._config = directory / "squid.conf"
        self._cuts_idle_s = cuts_idle_s
        # Debian's squid gives up being root, so that its files must be in reach of others.
        os.chmod(directory, 0o755)
        self._passwords = directory / "passwords"
        self._passwords.write_text(f"{USER}:{_crypted(PASSWORD)}\n")
        self._passwords.chmod(0o644)
        log = directory / "squid.log"
        words = ["squid", "-N", "-d", "1", "-f", self._config]
        self._daemon = Daemon(words, log, (PROXY, port))

    async def start(self, *, allowed: bool = True) -> None:
        self._write(allowed=allowed)
        await self._daemon.start()

    def kill(self) -> None:
        self._daemon.kill()

    def _write(self, *, allowed: bool) -> None:
        helper = "/usr/lib/squid/basic_ncsa_auth"
        lines = [
            f"http_port {PROXY}:{self.port}",
            f"auth_param basic program {helper} {self._passwords}",
            *("auth_param basic children 2", "auth_param basic realm office"),
            "acl known proxy_auth REQUIRED",
            # A rule that ends with who it is would ask for a password again, not refuse.
            "http_access allow CONNECT known" if allowed else "http_access deny CONNECT all",
            "http_access deny all",
            f"dns_nameservers {RESOLVER}",
            *("positive_dns_ttl 1 second", "negative_dns_ttl 1 second", "dns_timeout 3 seconds"),
            *("connect_timeout 5 seconds", "shutdown_lifetime 0 seconds"),
            f"read_timeout {self._cuts_idle_s} seconds",
            f"client_lifetime {7 * 24} hours",
            *("cache deny all", "access_log none", "cache_log stdio:/dev/stderr"),
            *(
                "pid_filename none",
                "coredump_dir /tmp",
                "cache_store_log none",
                "netdb_filename none",
            ),
            *("pinger_enable off", "max_filedescriptors 4096", "visible_hostname proxy.soak.test"),
        ]
        self._config.write_text("\n".join(lines) + "\n")
        self._config.chmod(0o644)


def _crypted(password: str) -> str:
    """For squid's file of passwords."""
    return subprocess.run(
        [find("openssl"), "passwd", "-apr1", password], capture_output=True, text=True, check=True
    ).stdout.strip()
