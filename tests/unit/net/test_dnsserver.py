"""Names at a DNS server of one's own choice; the server is played by the test, on one loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import dns.rcode
import pytest

from pyfrp.errors import DialError
from pyfrp.net import dial, dnsserver
from pyfrp.net.dnsserver import DnsServer
from tests.support.dns import HOST, zone_of
from tests.support.waiting import within


@asynccontextmanager
async def serving(tmp_path, names, hosts=""):
    """A zone, and a `DnsServer` that asks it."""
    path = tmp_path / "hosts"
    path.write_text(hosts)
    async with zone_of(names) as zone:
        yield zone, DnsServer(HOST, zone.port, hosts=path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dnsserver, "TRY_S", 0.1)
    monkeypatch.setattr(dnsserver, "GIVE_UP_S", 0.25)
    monkeypatch.setattr(dnsserver, "_RESOLV_CONF", "/nonexistent")


async def failure(server, name):
    with pytest.raises(DialError) as caught:
        await within(server.lookup(name), 10, "the answer")
    return str(caught.value)


async def test_both_kinds_of_addresses_are_found(loop_kind, tmp_path):
    names = {"llm.test": ["127.0.0.9", "127.0.0.8", "::1"]}
    async with serving(tmp_path, names) as (zone, server):
        assert sorted(await server.lookup("llm.test")) == ["127.0.0.8", "127.0.0.9", "::1"]
        assert {kind for _, kind, _ in zone.asked} == {"A", "AAAA"}


async def test_nothing_is_remembered(loop_kind, tmp_path):
    """The server at home got another address."""
    async with serving(tmp_path, {"llm.test": ["127.0.0.9"]}) as (zone, server):
        assert await server.lookup("llm.test") == ["127.0.0.9"]
        zone.names["llm.test"] = ["127.0.0.8"]
        assert await server.lookup("llm.test") == ["127.0.0.8"]


async def test_an_answer_that_is_too_long_for_udp_is_asked_for_over_tcp(loop_kind, tmp_path):
    many = [f"10.0.0.{number}" for number in range(1, 200)]
    async with serving(tmp_path, {"llm.test": many}) as (zone, server):
        zone.truncated = True
        assert sorted(await server.lookup("llm.test")) == sorted(many)
        assert ("llm.test", "A", "tcp") in zone.asked


async def test_a_name_that_nobody_knows(loop_kind, tmp_path):
    async with serving(tmp_path, {}) as (_, server):
        assert await failure(server, "llm.test") == (
            f"lookup llm.test on {server._where}: no such host"
        )


async def test_a_name_without_an_address(loop_kind, tmp_path):
    async with serving(tmp_path, {"llm.test": []}) as (_, server):
        assert await failure(server, "llm.test") == (
            f"lookup llm.test on {server._where}: no such host (the name has no address)"
        )


async def test_a_server_that_refuses(loop_kind, tmp_path):
    async with serving(tmp_path, {}) as (zone, server):
        zone.rcode = dns.rcode.REFUSED
        assert "server misbehaving" in await failure(server, "llm.test")


async def test_a_server_that_does_not_answer(loop_kind, tmp_path):
    async with serving(tmp_path, {}) as (zone, server):
        zone.silent = {"A", "AAAA"}
        assert await failure(server, "llm.test") == (
            f"lookup llm.test on {server._where}: no answer within 0.25 s; "
            "check dnsServer, and that UDP gets there"
        )
        assert len(zone.asked) > 2  # It was asked again.


@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_a_kind_that_is_swallowed_does_not_hold_up_the_other(
    loop_kind, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(dnsserver, "GIVE_UP_S", 30)
    monkeypatch.setattr(dnsserver, "LAG_S", 0.05)
    async with serving(tmp_path, {"llm.test": ["127.0.0.9", "::1"]}) as (zone, server):
        zone.silent = {kind}
        rest = {"A": "::1", "AAAA": "127.0.0.9"}[kind]
        assert await within(server.lookup("llm.test"), 5, "the answer") == [rest]


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", "a b" * 100])
async def test_a_text_that_is_no_name(loop_kind, tmp_path, name):
    async with serving(tmp_path, {}) as (_, server):
        text = await failure(server, name)
        assert "no name that can be looked up" in text or "no such host" in text


async def test_the_hosts_file_comes_first(loop_kind, tmp_path):
    hosts = (
        "# ours\n192.0.2.7  Llm.Test  alias # the box\n2001:db8::7 llm.test.\nnonsense llm.test\n"
    )
    async with serving(tmp_path, {"llm.test": ["192.0.2.1"]}, hosts) as (zone, server):
        assert await server.lookup("LLM.test") == ["192.0.2.7", "2001:db8::7"]
        assert await server.lookup("alias") == ["192.0.2.7"]
        assert zone.asked == []


async def test_this_machine_is_never_asked_for(loop_kind, tmp_path):
    async with serving(tmp_path, {}) as (zone, server):
        assert await server.lookup("localhost") == ["127.0.0.1", "::1"]
        assert await server.lookup("llm.localhost") == ["127.0.0.1", "::1"]
        assert zone.asked == []


async def test_search_domains_of_the_system_complete_short_names(loop_kind, tmp_path, monkeypatch):
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 192.0.2.53\nsearch corp.test\n")
    monkeypatch.setattr(dnsserver, "_RESOLV_CONF", str(conf))
    async with serving(tmp_path, {"box.corp.test": ["192.0.2.7"]}) as (_, server):
        assert await server.lookup("box") == ["192.0.2.7"]


async def test_addresses_without_a_route_come_last(loop_kind, tmp_path, monkeypatch):
    monkeypatch.setattr(dnsserver, "_is_out_of_reach", lambda address: ":" in address)
    names = {"llm.test": ["127.0.0.9", "::1"]}
    async with serving(tmp_path, names) as (_, server):
        assert await server.lookup("llm.test") == ["127.0.0.9", "::1"]


async def test_dialling_goes_by_it(loop_kind, tmp_path):
    async def greet(reader, writer):
        writer.close()
        await writer.wait_closed()

    local = await asyncio.start_server(greet, HOST, 0)
    port = local.sockets[0].getsockname()[1]
    async with serving(tmp_path, {"llm.test": [HOST]}) as (_, server):
        dial.look_up_with(server.lookup)
        try:
            endpoint, _ = await dial.dial_tcp("llm.test", port, timeout_s=5)
            endpoint.abort()
        finally:
            dial.look_up_with(None)
    local.close()
    await local.wait_closed()
