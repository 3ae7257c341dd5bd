"""The control port under attack: the server stays up and small, and its real client is served.

Each test runs beside a legitimate client whose requests go on all the while. None of them may
fail, and the server may not take more than `MEMORY_KIB` above what it had before.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.support.frpwire import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW,
    Peer,
    frame,
    login_message,
    mux,
    mux_data,
    peering,
)
from tests.support.http import calling
from tests.support.office import Office, office
from tests.support.processes import TOKEN, Kind
from tests.support.waiting import all_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MEMORY_KIB = 64 * 1024
PATIENCE_S = 3.0


@dataclass
class Attacked:
    """A scene under attack, by its kind of link."""

    office: Office
    muxed: bool

    @property
    def port(self) -> int:
        return self.office.pair.bind_port

    def peer(self, **options: Any) -> Any:
        return peering(self.port, muxed=self.muxed, **options)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[True, False], ids=["mux", "nomux"]
)
async def target(
    request: pytest.FixtureRequest,
    kinds: tuple[Kind, Kind],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Attacked]:
    link = {"transport": {"tcpMux": request.param}}
    directory = tmp_path_factory.mktemp("hostile")
    async with office(directory, kinds=kinds, server=link, client=link, shared=True) as scene:
        yield Attacked(scene, request.param)


@dataclass
class Recording:
    """A login that was used when the tests of a target began."""

    message: dict[str, Any]
    used_at: float


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def recording(target: Attacked) -> Recording:
    recorded = Recording(login_message(TOKEN), time.monotonic())
    # Equal clients that start in the same second send equal digests: allowed for a moment.
    for _ in range(2):
        async with target.peer() as peer:
            peer.tell("o", recorded.message)
            assert not (await peer.hear())[1].get("error")
    return recorded


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _served_meanwhile(target: Attacked) -> AsyncIterator[None]:
    """Keep a real caller busy, and compare the server before and after."""
    scene, server = target.office, target.office.pair.server
    assert await scene.works()
    before = server.figures()
    server.reset_peak()
    failures: list[str] = []
    slowest = 0.0
    stop = asyncio.Event()

    async def serve() -> None:
        nonlocal slowest
        while not stop.is_set():
            started = time.monotonic()
            try:
                async with calling(scene.http_port, limit_s=10) as caller:
                    answer = await caller.get()
                if (answer.status, answer.body) != (200, b"hello"):
                    failures.append(f"status {answer.status}")
            except (AssertionError, OSError) as error:
                failures.append(repr(error))
            slowest = max(slowest, time.monotonic() - started)
            await asyncio.sleep(0.03)

    logins = scene.pair.client.log().count("login to server success")
    caller = asyncio.get_running_loop().create_task(serve(), name="the real caller")
    yield
    stop.set()
    await caller
    assert not failures, failures[:5]
    assert slowest < PATIENCE_S, f"a request took {slowest:.1f} s"
    assert server.is_running()
    assert scene.pair.client.log().count("login to server success") == logins
    await until(lambda: server.figures().fds <= before.fds + 4, "its descriptors to come back", 15)
    after = server.figures()
    assert after.peak_kib - before.rss_kib < MEMORY_KIB, (before, after)
    assert "Traceback" not in server.log()
    assert "Task exception" not in server.log()


async def many(jobs: list[Coroutine[Any, Any, Any]], at_once: int = 50) -> None:
    """Run jobs, some at a time."""
    for start in range(0, len(jobs), at_once):
        await all_of(jobs[start : start + at_once])


async def throw(port: int, data: bytes, *, wait: bool = True, cut: bool = False) -> None:
    """Send bytes on a connection of their own; they may be answered by anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if cut and writer.can_write_eof():
            writer.write_eof()
        if wait:
            async with asyncio.timeout(2):
                while await reader.read(65536):
                    pass
    except (OSError, TimeoutError):
        pass  # Being cut off is what this deserves; being left waiting is bounded elsewhere.
    finally:
        writer.transport.abort()


# --- bytes that are no frp ----------------------------------------------------------------


async def test_random_bytes_after_every_first_byte(target: Attacked) -> None:
    dice = random.Random(1)
    jobs = [
        throw(target.port, bytes([first]) + dice.randbytes(dice.choice([9, 40, 3000])), cut=True)
        for first in range(256)
    ]
    await many(jobs)


async def test_truncated_and_broken_tls(target: Attacked) -> None:
    dice = random.Random(2)
    hello = bytes.fromhex("16030100c8010000c40303") + dice.randbytes(240)
    jobs = [
        throw(target.port, prefix + hello[:size], cut=cut, wait=cut)
        for prefix in (b"", b"\x17")
        for size in (1, 5, 6, 11, 43, 120, 240)
        for cut in (True, False)
    ]
    jobs += [throw(target.port, b"\x17" * 11), throw(target.port, b"\x16" * 5000, cut=True)]
    jobs += [throw(target.port, b"\x17" + frame("o", login_message(TOKEN)), cut=True)]
    await many(jobs)


async def test_websocket_openings_that_lead_nowhere(target: Attacked) -> None:
    opening = b"GET /~!frp HTTP/1.1\r\n"
    jobs = [
        throw(target.port, opening + rest, cut=True)
        for rest in (
            b"",
            b"\r\n",
            b"Host: x\r\n\r\n",
            b"Host: x\r\nUpgrade: websocket\r\n\r\n",
            b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
            b"\0" * 100,
        )
    ]
    await many(jobs)


# --- messages -----------------------------------------------------------------------------

LENGTHS = [-1, -(2**63), 10241, 65536, 2**31, 2**32 + 5, 2**62, 2**63 - 1]


@pytest.mark.parametrize("kind", ["o", "w", "v", "p", "Z", "\0"])
async def test_impossible_lengths_close_the_connection(target: Attacked, kind: str) -> None:
    async def one(length: int) -> None:
        async with target.peer() as peer:
            peer.say(kind.encode() + struct.pack(">q", length) + b"{}" * 20)
            assert await peer.closed(), f"length {length}"

    await all_of(one(length) for length in LENGTHS)


def nested(open_: bytes, close: bytes, depth: int) -> bytes:
    return open_ * depth + close * depth


BODIES: dict[str, bytes] = {
    "deep lists": b'{"version":' + nested(b"[", b"]", 4900) + b"}",
    "deep objects": nested(b'{"a":', b"}", 1600).replace(b":}", b":1}", 1),
    "unclosed lists": b"[" * 10_000,
    "list, no object": b"[]",
    "null": b"null",
    "number": b"1",
    "nothing": b"",
    "not JSON": b"version=1",
    "not UTF-8": b'{"version":"\xff\xfe"}',
    "lone surrogate": b'{"version":"\\ud800"}',
    "NUL": b'{"version":"\\u0000"}',
    "huge number": b'{"timestamp":' + b"9" * 9000 + b"}",
    "huge exponent": b'{"timestamp":1e400}',
    "NaN": b'{"timestamp":NaN}',
    "fraction": b'{"timestamp":1.5}',
    "trailing garbage": b'{"version":"1"}}}}}',
    "key twice": b'{"timestamp":1,"timestamp":2}',
}


@pytest.mark.parametrize("kind", ["o", "w", "v"])
async def test_bodies_that_are_no_message(target: Attacked, kind: str) -> None:
    async def one(body: bytes) -> None:
        async with target.peer() as peer:
            peer.say(frame(kind, body))
            try:
                heard, answer = await peer.hear(5)
            except ConnectionError:
                return
            assert answer.get("error"), (heard, answer)

    await all_of(one(body) for body in BODIES.values())


async def test_a_conversation_must_begin_with_one_of_three_messages(target: Attacked) -> None:
    async def one(kind: str) -> None:
        async with target.peer() as peer:
            peer.say(frame(kind, {}))
            assert await peer.closed(), kind

    await all_of(one(kind) for kind in "1p2crs3h4uinm56")


# --- logins -------------------------------------------------------------------------------


async def test_a_flood_of_wrong_logins(target: Attacked) -> None:
    async def one() -> None:
        async with target.peer() as peer:
            body = await peer.login("wrong")
            assert "token in login doesn't match" in body["error"]
            assert await peer.closed()

    await many([one() for _ in range(400)], at_once=100)


@pytest.mark.parametrize("age_s", [-100_000, -1000, 1000, 100_000, -(2**62), 2**62])
async def test_logins_from_another_time_are_refused(target: Attacked, age_s: int) -> None:
    async with target.peer() as peer:
        body = await peer.login(TOKEN, at=int(time.time()) + age_s)
        assert body.get("error")
        assert not body.get("run_id")


async def test_a_login_with_a_known_run_id_replaces_the_old_one_at_once(target: Attacked) -> None:
    async with target.peer() as old, target.peer() as new:
        await old.login(TOKEN)
        proxy = {"proxy_name": "mine", "proxy_type": "http", "custom_domains": ["mine.test"]}
        assert not (await old.ask("p", proxy, "2")).get("error")
        started = time.monotonic()
        body = await new.login(TOKEN, run_id=old.run_id)
        assert body["run_id"] == old.run_id
        assert not (await new.ask("p", proxy, "2")).get("error")
        assert time.monotonic() - started < 1.0
        assert await old.closed(2)


async def test_a_second_login_on_the_same_connection_changes_nothing(target: Attacked) -> None:
    async with target.peer() as peer:
        await peer.login(TOKEN)
        peer.tell("o", login_message(TOKEN))
        peer.tell("h", {})
        try:
            heard, _ = await peer.hear(3)
        except ConnectionError:
            return
        assert heard == "4"


# --- after a valid login ------------------------------------------------------------------

ABSURD: list[Any] = [
    -1,
    0,
    2**31,
    2**63 - 1,
    -(2**63),
    10**30,
    1.5,
    True,
    None,
    "",
    "a" * 9000,
    "\0\r\n\x1b[31m",
    "../../../etc/passwd",
    "%s%n{0}{x!r}",
    "가\U0001f600\u202e",
    [],
    [[]],
    ["", None, 1, {}],
    ["a" * 300] * 30,
    {},
    {"": ""},
    {"a": 1},
    {"X: a\r\nEvil": "b\r\nEvil: yes"},
    {"a": {"b": {"c": []}}},
]

FIELDS: dict[str, list[str]] = {
    "p": [
        "proxy_name",
        "proxy_type",
        "use_encryption",
        "use_compression",
        "bandwidth_limit",
        "bandwidth_limit_mode",
        "group",
        "group_key",
        "metas",
        "annotations",
        "remote_port",
        "custom_domains",
        "locations",
        "subdomain",
        "http_user",
        "http_pwd",
        "host_header_rewrite",
        "headers",
        "response_headers",
        "route_by_http_user",
        "sk",
        "allow_users",
        "multiplexer",
    ],
    "c": ["proxy_name"],
    "h": ["privilege_key", "timestamp"],
    "i": [
        "transaction_id",
        "proxy_name",
        "pre_check",
        "protocol",
        "sign_key",
        "timestamp",
        "mapped_addrs",
        "assisted_addrs",
    ],
    "n": ["transaction_id", "proxy_name", "sid", "mapped_addrs", "assisted_addrs"],
    "m": ["transaction_id", "sid", "candidate_addrs", "detect_behavior", "error"],
    "5": ["transaction_id", "sid", "response", "nonce"],
    "6": ["sid", "success"],
    "u": ["c", "l", "r"],
    "r": ["x"],
    "s": ["proxy_name", "src_addr", "src_port", "error"],
    "1": ["version", "run_id", "error"],
    "2": ["proxy_name", "remote_addr", "error"],
    "3": ["proxy_name", "error"],
    "4": ["error"],
}
BASES: dict[str, list[dict[str, Any]]] = {
    "p": [
        {"proxy_name": "n", "proxy_type": "tcp", "remote_port": 0},
        {"proxy_name": "n", "proxy_type": "http", "custom_domains": ["absurd.test"]},
    ],
}


@pytest.mark.parametrize("kind", FIELDS)
async def test_absurd_values_in_every_field_after_a_login(target: Attacked, kind: str) -> None:
    """The session may end over it, and a new one must always be possible."""
    bodies = [
        {**base, field: value}
        for base in BASES.get(kind, [{}])
        for field, value in itertools.product(FIELDS[kind], ABSURD)
    ]
    bodies.append(dict.fromkeys(FIELDS[kind], "a"))
    left = iter(bodies)
    body: dict[str, Any] | None = next(left)
    sessions = 0
    while body is not None:
        sessions += 1
        assert sessions <= len(bodies) + 2
        async with target.peer() as peer:
            assert not (await peer.login(TOKEN)).get("error")
            try:
                while body is not None:
                    sent, body = body, next(left, None)
                    peer.tell(kind, sent)
                    if kind == "p":
                        peer.tell("c", {"proxy_name": str(sent.get("proxy_name"))})
                    # A ping behind each shows whether the session lives.
                    await peer.ask("h", {}, "4", 5)
            except ConnectionError:
                continue


LOGIN_FIELDS = [
    "version",
    "hostname",
    "os",
    "arch",
    "user",
    "privilege_key",
    "timestamp",
    "run_id",
    "client_id",
    "metas",
    "client_spec",
    "pool_count",
]


@pytest.mark.parametrize("field", LOGIN_FIELDS)
async def test_absurd_values_in_every_field_of_a_login(target: Attacked, field: str) -> None:
    async def one(value: Any) -> None:
        async with target.peer() as peer:
            peer.tell("o", login_message(TOKEN, **{field: value}))
            try:
                kind, body = await peer.hear(5)
            except ConnectionError:
                return
            assert kind == "1"
            assert body.get("error") or body.get("run_id")

    await many([one(value) for value in ABSURD])


async def test_fields_of_a_proxy_cannot_smuggle_lines_into_answers(target: Attacked) -> None:
    async with target.peer() as peer:
        await peer.login(TOKEN, pool_count=0)
        proxy = {
            "proxy_name": "smuggler",
            "proxy_type": "http",
            "custom_domains": ["smuggler.test"],
            "response_headers": {"X-A": "b\r\nEvil: yes", "X\r\nEvil": "yes"},
            "headers": {"X-A": "b\r\nEvil: yes"},
            "host_header_rewrite": "a\r\nEvil: yes",
        }
        await peer.ask("p", proxy, "2")
        async with calling(target.office.http_port) as caller:
            await caller.send(b"GET / HTTP/1.1\r\nHost: smuggler.test\r\nConnection: close\r\n\r\n")
            await asyncio.sleep(0)
            peer.tell("h", {})
            await peer.close()
            raw = await caller.everything()
        assert b"\nEvil" not in raw


async def test_a_flood_of_proxies_ends_with_its_session(target: Attacked) -> None:
    async with target.peer() as peer:
        await peer.login(TOKEN)
        for number in range(500):
            peer.tell(
                "p",
                {
                    "proxy_name": f"flood-{number}",
                    "proxy_type": "http",
                    "custom_domains": [f"flood-{number}.test"],
                    "locations": [f"/{n}" for n in range(20)],
                },
            )
        for _ in range(500):
            while (await peer.hear())[0] != "2":
                pass
    async with target.peer() as peer:
        # Every name and route is free again.
        await peer.login(TOKEN)
        proxy = {
            "proxy_name": "flood-0",
            "proxy_type": "http",
            "custom_domains": ["flood-0.test"],
            "locations": ["/0"],
        }

        async def taken() -> bool:
            return bool((await peer.ask("p", proxy, "2")).get("error"))

        for _ in range(50):
            if not await taken():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the names of a dead session stay taken")


async def test_a_flood_of_pings_without_reading_the_answers(target: Attacked) -> None:
    async with target.peer() as peer:
        await peer.login(TOKEN)
        try:
            for _ in range(200):
                for _ in range(100):
                    peer.tell("h", {})
                async with asyncio.timeout(2):
                    await peer.writer.drain()
        except (TimeoutError, ConnectionError):
            pass  # Not being read any more, or being closed, is the right answer.


async def test_messages_are_processed_in_any_pieces(target: Attacked) -> None:
    async with target.peer() as peer:
        await peer.login(TOKEN)
        assert peer.crypt is not None
        data = peer.crypt.seal(frame("h", {}) * 20)
        for index in range(0, len(data), 7):
            peer.say(data[index : index + 7])
            await peer.writer.drain()
        for _ in range(20):
            while (await peer.hear())[0] != "4":
                pass


# --- work connections ---------------------------------------------------------------------


async def test_work_connections_of_nobody_are_closed(target: Attacked) -> None:
    async def one(run_id: Any) -> None:
        async with target.peer() as peer:
            peer.say(frame("w", {"run_id": run_id}))
            try:
                _, body = await peer.hear(5)
            except ConnectionError:
                return
            assert body.get("error")

    await many([one(value) for value in [*ABSURD, "0123456789abcdef"]])


async def test_unasked_work_connections_are_bounded(target: Attacked) -> None:
    async with target.peer() as control:
        await control.login(TOKEN, pool_count=1)
        if target.muxed:
            async with target.peer() as link:
                for number in range(300):
                    stream = 2 * number + 1
                    message = frame("w", {"run_id": control.run_id})
                    link.raw(mux_data(stream, message, SYN))
                await link.writer.drain()
                # Most of them are closed by the server.
                closed = set()
                async with asyncio.timeout(10):
                    while len(closed) < 250:
                        data = await link.reader.readexactly(12)
                        _, kind, flags, stream, length = struct.unpack(">BBHII", data)
                        if kind == DATA and length:
                            await link.reader.readexactly(length)
                        if flags & (FIN | RST):
                            closed.add(stream)
            return
        peers = [await Peer.open(target.port, muxed=False) for _ in range(100)]
        try:
            for peer in peers:
                peer.say(frame("w", {"run_id": control.run_id}))
            results = await asyncio.gather(*(peer.closed(3) for peer in peers))
            assert sum(results) >= 80
        finally:
            for peer in peers:
                await peer.close()


async def test_visitors_of_nobody_are_refused(target: Attacked) -> None:
    async def one(value: Any) -> None:
        async with target.peer() as peer:
            peer.say(frame("v", {"proxy_name": value, "run_id": value, "sign_key": value}))
            try:
                _, body = await peer.hear(5)
            except ConnectionError:
                return
            assert body.get("error")

    await many([one(value) for value in ABSURD])


# --- yamux --------------------------------------------------------------------------------

KIB = 1024
VIOLATIONS: dict[str, bytes] = {
    "version 1": mux(PING, SYN, 0, 0, version=1),
    "version 255": mux(DATA, SYN, 1, 0, version=255),
    "type 4": mux(4, 0, 1, 0),
    "type 255": mux(255, 0, 1, 0),
    "unknown flags": mux(WINDOW, 0xFFF0, 1, 0),
    "every flag": mux(WINDOW, 0xFFFF, 1, 0),
    "stream opened twice": mux(WINDOW, SYN, 1, 0) * 2,
    "even stream": mux(WINDOW, SYN, 2, 0),
    "stream 0 opened": mux(WINDOW, SYN, 0, 0),
    "data on stream 0": mux_data(0, b"data"),
    "data on an unknown stream": mux_data(77, b"data" * 100),
    "window for an unknown stream": mux(WINDOW, 0, 77, 1000),
    "fin on an unknown stream": mux(WINDOW, FIN, 77, 0),
    "two fins": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, FIN, 1, 0) * 2,
    "data after fin": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, FIN, 1, 0) + mux_data(1, b"data"),
    "data after rst": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, RST, 1, 0) + mux_data(1, b"data"),
    "syn and fin": mux(WINDOW, SYN | FIN, 1, 0),
    "syn and rst": mux(WINDOW, SYN | RST, 1, 0),
    "syn and ack": mux(WINDOW, SYN | ACK, 1, 0),
    "ack of nothing": mux(WINDOW, ACK, 1, 0),
    "window overflow": mux(WINDOW, SYN, 1, 2**32 - 1) + mux(WINDOW, 0, 1, 2**32 - 1) * 4,
    "more than the window": mux(WINDOW, SYN, 1, 0) + mux(DATA, 0, 1, 2**31) + bytes(512 * KIB),
    "length of 4 GiB": mux(WINDOW, SYN, 1, 0) + mux(DATA, 0, 1, 2**32 - 1) + bytes(100),
    "pong nobody asked for": mux(PING, ACK, 0, 12345),
    "ping on a stream": mux(PING, SYN, 5, 1),
    "ping with both flags": mux(PING, SYN | ACK, 0, 1),
    "go away normal": mux(GO_AWAY, 0, 0, 0),
    "go away protocol error": mux(GO_AWAY, 0, 0, 1),
    "go away nonsense": mux(GO_AWAY, 0, 0, 2**32 - 1),
    "go away on a stream": mux(GO_AWAY, 0, 9, 0),
    "half a header": mux(PING, SYN, 0, 0)[:7],
    "half a body": mux(DATA, SYN, 1, 100) + b"half",
    "empty data frames": mux(WINDOW, SYN, 1, 0) + mux_data(1, b"") * 20_000,
    "window updates of 0": mux(WINDOW, SYN, 1, 0) + mux(WINDOW, 0, 1, 0) * 20_000,
}


@pytest.mark.parametrize("logged_in", [False, True], ids=["stranger", "client"])
async def test_every_kind_of_yamux_violation(target: Attacked, logged_in: bool) -> None:
    async def one(name: str, data: bytes) -> None:
        async with target.peer() as peer:
            if logged_in:
                await peer.login(TOKEN)
            peer.raw(data)
            try:
                async with asyncio.timeout(3):
                    await peer.writer.drain()
            except (TimeoutError, ConnectionError):
                return
            await peer.closed(0.3)

    await many([one(*entry) for entry in VIOLATIONS.items()], at_once=20)


async def test_session_errors_close_the_session(target: Attacked) -> None:
    if not target.muxed:
        return  # Without mux these bytes are just no frp; that is tested above.

    async def one(name: str) -> None:
        async with target.peer() as peer:
            await peer.login(TOKEN)
            peer.raw(VIOLATIONS[name])
            assert await peer.closed(), name

    await all_of(
        one(name)
        for name in (
            "version 1",
            "type 4",
            "stream opened twice",
            "go away protocol error",
            "more than the window",
            "length of 4 GiB",
        )
    )


async def test_a_flood_of_streams_is_bounded(target: Attacked) -> None:
    """Streams that never say anything, from a stranger and from a client."""
    for logged_in in (False, True):
        async with target.peer() as peer:
            if logged_in:
                await peer.login(TOKEN)
            try:
                for batch in range(40):
                    first = 1001 + batch * 1000
                    peer.raw(b"".join(mux(WINDOW, SYN, first + 2 * n, 0) for n in range(500)))
                    async with asyncio.timeout(2):
                        await peer.writer.drain()
            except (TimeoutError, ConnectionError):
                pass  # Not being read any more, or being closed, is the right answer.


async def test_a_flood_of_yamux_pings_without_reading_the_answers(target: Attacked) -> None:
    async with target.peer() as peer:
        try:
            for _ in range(100):
                peer.raw(mux(PING, SYN, 0, 1) * 5000)
                async with asyncio.timeout(2):
                    await peer.writer.drain()
        except (TimeoutError, ConnectionError):
            pass  # Not being read any more, or being closed, is the right answer.


# --- floods of connections ----------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"o", frame("o", b"{}")[:9], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03", b"\x17"],
    ids=["silent", "one-byte", "a-length", "half-a-hello", "marker"],
)
async def test_a_flood_of_half_open_connections(target: Attacked, data: bytes) -> None:
    writers = []
    try:
        for _ in range(10):
            opened = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", target.port) for _ in range(100))
            )
            for _, writer in opened:
                writers.append(writer)
                writer.write(data)
        # The real caller goes on while they are there; so does a login.
        async with target.peer() as peer:
            assert not (await peer.login(TOKEN)).get("error")
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_flood_of_callers_that_never_finish_their_heads(target: Attacked) -> None:
    writers = []
    try:
        for _ in range(10):
            opened = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", target.office.http_port) for _ in range(100))
            )
            for _, writer in opened:
                writers.append(writer)
                writer.write(b"GET / HTTP/1.1\r\nHost: llm.test\r\nX-A: ")
        assert await target.office.works()
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


# --- last, because it waits for what began with this target --------------------------------


async def test_a_recorded_login_works_no_more_after_ten_seconds(
    target: Attacked, recording: Recording
) -> None:
    # The rule speaks of ten seconds, by a clock that counts whole ones.
    await until(lambda: time.monotonic() - recording.used_at > 11.5, "the time to pass")
    async with target.peer() as peer:
        peer.tell("o", recording.message)
        assert (await peer.hear())[1].get("error")
        assert await peer.closed()
