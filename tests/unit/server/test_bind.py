"""Ports that are bound before the rest of a server is loaded."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from pyfrp.config import ServerConfig, server_from_dict
from pyfrp.errors import ConfigError
from pyfrp.server.bind import bind_early


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def config(**more: Any) -> ServerConfig:
    link, http = free_ports(2)
    data = {"bindAddr": "127.0.0.1", "bindPort": link, "vhostHTTPPort": http}
    return server_from_dict({**data, **more})


def test_both_ports_listen_at_once() -> None:
    cfg = config()
    bound = bind_early(cfg)
    assert list(bound) == [("127.0.0.1", cfg.bind_port), ("127.0.0.1", cfg.vhost_http_port)]
    for address, sock in bound.items():
        socket.create_connection(address, timeout=5).close()
        sock.close()


def test_a_shared_port_is_bound_once() -> None:
    (port,) = free_ports(1)
    bound = bind_early(config(bindPort=port, vhostHTTPPort=port))
    assert list(bound) == [("127.0.0.1", port)]
    bound["127.0.0.1", port].close()


def test_https_has_a_port_of_its_own_unless_it_shares_the_clients() -> None:
    (port,) = free_ports(1)
    (mux,) = free_ports(1)
    cfg = config(vhostHTTPSPort=port, tcpmuxHTTPConnectPort=mux)
    bound = bind_early(cfg)
    assert [port for _, port in bound] == [cfg.bind_port, cfg.vhost_http_port, port, mux]
    for sock in bound.values():
        sock.close()
    bound = bind_early(config(bindPort=port, vhostHTTPPort=port, vhostHTTPSPort=port))
    assert list(bound) == [("127.0.0.1", port)]
    bound["127.0.0.1", port].close()


def test_without_an_http_port_there_is_none() -> None:
    bound = bind_early(config(vhostHTTPPort=0))
    assert len(bound) == 1
    for sock in bound.values():
        sock.close()


@pytest.mark.parametrize(
    "more",
    [
        {"transport": {"tls": {"certFile": "a.crt", "keyFile": "a.key"}}},
        {"transport": {"tls": {"trustedCaFile": "ca.crt"}}},
        {"log": {"to": "frps.log"}},
        {"bindAddr": "localhost"},
        {"proxyBindAddr": "localhost"},
    ],
)
def test_what_may_still_be_found_wanting_is_checked_first(more: dict[str, Any]) -> None:
    assert bind_early(config(**more)) == {}


def test_a_port_that_is_taken_leaves_nothing_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        cfg = config(vhostHTTPPort=taken)
        with pytest.raises(ConfigError, match=f"127.0.0.1:{taken}: bind: address already in use"):
            bind_early(cfg)
    socket.create_server(("127.0.0.1", cfg.bind_port)).close()


def test_no_event_loop_is_loaded_for_it() -> None:
    code = (
        "import sys, pyfrp.server.bind\n"
        "print(sorted({'asyncio', 'ssl', 'structlog', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
