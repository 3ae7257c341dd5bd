"""Probes of the local service, and what they do to its proxy."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from pyfrp.client import health
from pyfrp.client.health import HealthMonitor, make_monitor
from pyfrp.client.proxies.base import Phase
from pyfrp.config import client_from_dict
from pyfrp.errors import DialError
from pyfrp.net.dial import look_up_with
from pyfrp.wire.messages import CloseProxy, NewProxy, NewProxyResp
from tests.support.waiting import until
from tests.unit.client.scene import session
from tests.unit.server.scene import Log


class Service:
    """Stands for a service; `alive` decides what a probe finds."""

    def __init__(self, *script: bool) -> None:
        self.script = list(script)
        self.alive = True
        self.asked = 0

    async def probe(self, timeout_s: float) -> None:
        self.asked += 1
        if not (self.script.pop(0) if self.script else self.alive):
            raise DialError("dead")


@asynccontextmanager
async def watched(service, max_failed=1):
    monitor = HealthMonitor(service.probe, interval_s=0.001, timeout_s=1.0, max_failed=max_failed)
    log, changes = Log(), []
    task = asyncio.create_task(monitor.run(lambda: changes.append(monitor.healthy), log))
    try:
        yield monitor, log, changes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- when the health changes --------------------------------------------------------------------


async def test_a_service_is_unhealthy_until_the_first_success():
    service = Service(False, False, True)
    async with watched(service) as (monitor, log, changes):
        assert not monitor.healthy
        await until(lambda: service.asked > 4, "some probes")
        assert changes == [True]
        assert monitor.healthy
    assert log.events("info") == ["health check status change to success", "health check success"]
    assert log.events("warning") == ["do one health check failed: dead"] * 2


@pytest.mark.parametrize(
    ("max_failed", "script", "changes"),
    [
        (1, [True, False, True], [True, False, True]),
        (3, [True, False, False, True, False, False, True], [True]),
        (3, [True, False, False, False, False, True], [True, False, True]),
        (2, [False, False, True, False, True], [True]),
    ],
)
async def test_so_many_failures_in_a_row_make_it_unhealthy(max_failed, script, changes):
    service = Service(*script)
    async with watched(service, max_failed) as (_, log, seen):
        await until(lambda: not service.script and service.asked > len(script) + 1, "all probes")
        assert seen == changes
    assert log.events("info").count("health check failed") == changes.count(False)


# -- probes -------------------------------------------------------------------------------------


def monitor_of(port, localIP="127.0.0.1", **check):
    cfg = client_from_dict(
        {
            "serverAddr": "127.0.0.1",
            "proxies": [
                {
                    "name": "p",
                    "type": "tcp",
                    "localIP": localIP,
                    "localPort": port,
                    "remotePort": 1,
                    "healthCheck": check,
                }
            ],
        }
    )
    return make_monitor(cfg.proxies[0])


@asynccontextmanager
async def answering(answer):
    """A service that answers whatever it is asked, once per connection; its port and requests."""
    requests = []

    async def serve(reader, writer):
        try:
            if answer is not None:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The probe has what it wanted.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        server.close()
        await server.wait_closed()


def test_a_proxy_without_a_check_or_a_port_has_no_monitor():
    assert monitor_of(1) is None
    assert monitor_of(0, type="tcp") is None


@pytest.mark.parametrize("value", [0, -1])
def test_numbers_that_make_no_sense_are_the_defaults(value):
    keys = ("intervalSeconds", "timeoutSeconds", "maxFailed")
    monitor = monitor_of(1, type="tcp", **dict.fromkeys(keys, value))
    assert (monitor._interval_s, monitor._timeout_s, monitor._max_failed) == (10, 3, 1)


async def test_a_port_that_takes_connections_is_alive():
    async with answering(None) as (port, _):
        await monitor_of(port, type="tcp")._probe(5.0)
    with pytest.raises(DialError, match="refused"):
        await monitor_of(port, type="tcp")._probe(5.0)


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_any_2xx_is_alive(status):
    answer = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
    async with answering(answer) as (port, requests):
        await monitor_of(port, type="http", path="health")._probe(5.0)
    head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port
    assert requests == [head]


async def test_headers_are_sent_and_host_is_the_host():
    headers = [{"name": "Host", "value": "llm.local"}, {"name": "X-Key", "value": "v"}]
    async with answering(b"HTTP/1.1 103 E\r\n\r\nHTTP/1.0 200 OK\r\n\r\n") as (port, requests):
        await monitor_of(port, type="http", path="/h", httpHeaders=headers)._probe(5.0)
    assert requests[0].startswith(b"GET /h HTTP/1.1\r\nHost: llm.local\r\n")
    assert b"\r\nX-Key: v\r\n" in requests[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", r"StatusCode is \[500\] not 2xx"),
        (b"HTTP/1.1 301 X\r\nContent-Length: 0\r\n\r\n", r"\[301\] not 2xx"),
        (b"SSH-2.0-x\r\n\r\n", "127.0.0.1"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, "127.0.0.1"),
        (None, "(closed the connection without an answer|reset by peer)"),
    ],
    ids=["500", "301", "ssh", "endless", "closed"],
)
async def test_anything_else_is_dead_with_the_reason(answer, words):
    async with answering(answer) as (port, _):
        with pytest.raises(DialError, match=words):
            await monitor_of(port, type="http", path="/")._probe(5.0)


@asynccontextmanager
async def redirecting(answers):
    """A service that answers each path with a status and a Location; its port and requests."""
    requests = []

    async def serve(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        requests.append(request)
        status, location = answers[request.split()[1].decode()]
        writer.write(b"HTTP/1.1 %d X\r\nLocation: %s\r\n\r\n" % (status, location.encode()))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        server.close()
        await server.wait_closed()


async def test_redirections_are_followed_with_the_same_words():
    headers = [{"name": "host", "value": "llm.local"}, {"name": "Cookie", "value": "v"}]
    answers = {"/a": (307, "/b/"), "/b/": (301, "c?d"), "/b/c?d": (204, "")}
    async with redirecting(answers) as (port, requests):
        await monitor_of(port, type="http", path="a", httpHeaders=headers)._probe(5.0)
    assert [request.split()[1] for request in requests] == [b"/a", b"/b/", b"/b/c?d"]
    assert all(b"\r\nHost: llm.local\r\n" in request for request in requests)
    assert all(b"\r\nCookie: v\r\n" in request for request in requests)


async def test_another_host_is_asked_by_its_own_name_and_learns_no_secrets():
    headers = [{"name": "Host", "value": "llm.local"}, {"name": "Authorization", "value": "v"}]
    async with redirecting({"/there": (200, "")}) as (there, asked_there):
        answers = {"/": (302, f"http://localhost:{there}/there")}
        async with redirecting(answers) as (port, _):
            await monitor_of(port, type="http", path="/", httpHeaders=headers)._probe(5.0)
    head = b"GET /there HTTP/1.1\r\nHost: localhost:%d\r\nConnection: close\r\n\r\n" % there
    assert asked_there == [head]


@pytest.mark.parametrize(
    ("location", "words", "asked"),
    [("/", "sends us on and on", 10), ("http://[::", "no host that there could be", 1)],
)
async def test_a_redirection_to_nowhere_is_dead(location, words, asked):
    async with redirecting({"/": (302, location)}) as (port, requests):
        with pytest.raises(DialError, match=words):
            await monitor_of(port, type="http", path="/")._probe(5.0)
    assert len(requests) == asked


async def test_names_are_looked_up_where_the_configuration_says():
    async def lookup(name):
        return ["127.0.0.1"] if name == "llm.test" else []

    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (port, _):
        monitor = monitor_of(port, localIP="llm.test", type="http", path="/")
        look_up_with(lookup)
        try:
            await monitor._probe(5.0)
        finally:
            look_up_with(None)


async def test_a_path_is_percent_encoded_where_it_must_be():
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (port, requests):
        await monitor_of(port, type="http", path="/a b%20é?c=d")._probe(5.0)
    assert requests[0].startswith(b"GET /a%20b%20%C3%A9?c=d HTTP/1.1\r\n")


async def test_a_silent_service_is_dead_after_the_timeout():
    async with answering(b"") as (port, _):
        with pytest.raises(DialError, match=r"no answer of http://127.*within 0\.05 s"):
            await monitor_of(port, type="http", path="/")._probe(0.05)


# -- what becomes of the proxy ------------------------------------------------------------------


async def test_a_proxy_is_offered_while_its_service_is_alive(monkeypatch):
    service = Service()
    service.alive = False
    monkeypatch.setitem(health.PROBES, "tcp", lambda host, port, check: service.probe)
    monkeypatch.setattr(HealthMonitor, "run", _quick(HealthMonitor.run))
    check = {"type": "tcp"}
    table = {"name": "a", "type": "tcp", "localPort": 1, "remotePort": 2, "healthCheck": check}
    other = {"name": "b", "type": "tcp", "localPort": 1, "remotePort": 3}
    async with session(table, other) as s:
        await s.accept("b")
        await until(lambda: service.asked > 2, "some probes")
        assert s.proxies[0].phase is Phase.NEW
        for _ in range(3):
            service.alive = True
            msg = await s.read()
            assert isinstance(msg, NewProxy)
            assert msg.proxy_name == "a"
            s.server.write(NewProxyResp(proxy_name="a", remote_addr=":2"))
            await until(lambda: s.proxies[0].phase is Phase.RUNNING, "the proxy to run")
            service.alive = False
            assert await s.read() == CloseProxy(proxy_name="a")
            assert s.proxies[0].phase is Phase.CHECK_FAILED
        assert s.proxies[1].phase is Phase.RUNNING


def _quick(run):
    async def quick(self, on_change, log):
        self._interval_s = 0.001
        await run(self, on_change, log)

    return quick
