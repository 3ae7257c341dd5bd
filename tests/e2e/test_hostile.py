"""The control port under attack: the server stays up and small, and its real client is served.

Each test runs beside a legitimate client whose requests go on all the while. None of them may
fail, and the server may not grow beyond the bound that `tests.support.attack` states.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
import time
from typing import Any

import pytest

from tests.support.attack import ABSURD, Attacked, many, throw
from tests.support.frpwire import frame, login_message
from tests.support.http import calling
from tests.support.processes import TOKEN
from tests.support.waiting import all_of

pytestmark = [
    pytest.mark.clock,
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("_under_watch"),
]


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
