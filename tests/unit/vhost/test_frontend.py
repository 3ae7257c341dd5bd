"""What all callers of the vhost share: refusals, credentials, pages, log lines, clean-up."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from pyfrp.errors import IdleTimeout, PeerClosed
from pyfrp.vhost.frontend import LOGGED_REFUSALS, RETRY_AFTER_S, SWEEP_S
from pyfrp.vhost.upstream import IDLE_S
from pyfrp.wire.http1 import HeadEdit
from tests.support.waiting import until
from tests.unit.vhost.scene import (
    ADDRESS,
    HOST,
    Wire,
    answer,
    get,
    post,
    split_answers,
    turns,
    vhost,
)

AWAY = IdleTimeout("timeout trying to get work connection")


def basic(pair):
    return f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}"


async def provoke(v, what):
    """Bring a refusal about; what the caller received."""
    if what == "unknown host":
        caller = await v.ask(get(host="unknown.test"))
    elif what == "unknown path":
        v.frontend.router.add("paths.test", "/api", "", v.route)
        caller = await v.ask(get("/other", host="paths.test"))
    elif what == "client away":
        v.frontend.router.remove(HOST, "", "")
        caller = await v.ask(get())
    elif what == "no work connection":
        v.refusal = AWAY
        caller = await v.ask(get())
    elif what == "client lost":
        v.refusal = PeerClosed("the client is gone")
        caller = await v.ask(get())
    elif what == "service refuses":
        caller = await v.ask(get())
        v.service.end()
    elif what == "service resets":
        caller = await v.ask(get())
        v.service.lose(ConnectionResetError())
    elif what == "service talks nonsense":
        caller = await v.ask(get())
        v.service.feed(b"nonsense\r\n\r\n")
    elif what == "service greets":
        v.greeting = b"SSH-2.0-OpenSSH\r\n"
        caller = await v.ask(get())
    elif what == "client lost while waiting":
        caller = await v.ask(get())
        v.pool.fail()
    else:
        assert what == "silence"
        caller = await v.ask(get())
        v.advance(30)
    await turns()
    return caller.sent


# The status by what happened, in the gateway's style and in frp's.
REFUSALS = {
    "unknown host": (404, 404),
    "unknown path": (404, 404),
    "client away": (503, 404),
    "no work connection": (503, 404),
    "client lost": (503, 404),
    "client lost while waiting": (502, 404),
    "service refuses": (502, 404),
    "service resets": (502, 404),
    "service talks nonsense": (502, 404),
    "service greets": (502, 404),
    "silence": (504, 504),
}


@pytest.mark.parametrize("frp", [False, True])
@pytest.mark.parametrize("what", REFUSALS)
async def test_each_failure_has_its_status_in_both_styles(what, frp):
    async with vhost(frp_errors=frp, header_timeout_s=30) as v:
        [(status, body)] = split_answers(await provoke(v, what))
        assert status == REFUSALS[what][frp]
        assert body


@pytest.mark.parametrize("what", [w for w, (ours, _) in REFUSALS.items() if ours == 503])
async def test_callers_are_told_when_to_come_back(what):
    async with vhost() as v:
        assert f"Retry-After: {RETRY_AFTER_S}\r\n".encode() in await provoke(v, what)


@pytest.mark.parametrize("what", REFUSALS)
async def test_each_failure_is_logged_with_proxy_stage_and_cause(what):
    async with vhost(header_timeout_s=30) as v:
        await provoke(v, what)
        [line] = v.log.lines
        assert line["event"] == "http request failed"
        assert line["status"] == REFUSALS[what][0]
        assert line["caller"] == f"{ADDRESS[0]}:{ADDRESS[1]}"
        assert line["stage"]
        assert line["cause"]
        assert line["host"]
        assert line["level"] == ("warning" if line["status"] >= 500 else "info")
        routed = what not in ("unknown host", "unknown path", "client away")
        assert line["proxy"] == ("llm" if routed else "")


@pytest.mark.parametrize(
    "field", ["Accept: application/json", "Content-Type: application/json; charset=utf-8"]
)
async def test_callers_that_speak_json_get_the_error_shape_of_openai(field):
    async with vhost() as v:
        caller = await v.ask(get("/v1/models", field, host="unknown.test"))
        [(status, body)] = split_answers(caller.sent)
        error = json.loads(body)["error"]
        assert status == 404
        assert set(error) == {"message", "type", "code", "param"}
        assert b"Content-Type: application/json" in caller.sent


async def test_other_callers_get_a_page():
    async with vhost() as v:
        caller = await v.ask(get(host="unknown.test"))
        assert b"Content-Type: text/html" in caller.sent
        assert b"<h1>404 Not Found</h1>" in caller.sent


async def test_the_answer_to_head_is_refused_without_a_body():
    async with vhost() as v:
        caller = await v.ask(get(host="unknown.test").replace(b"GET", b"HEAD"))
        assert caller.sent.endswith(b"\r\n\r\n")
        assert b"Content-Length: 0" not in caller.sent
        assert not caller.closed


async def test_a_refused_caller_may_go_on_unless_he_is_in_the_middle_of_a_body():
    async with vhost() as v:
        caller = await v.ask(get(host="unknown.test"))
        assert not caller.closed
        caller.feed(get())
        await turns()
        v.service.feed(answer(b"x"))
        assert [status for status, _ in split_answers(caller.sent)] == [404, 200]
        request = post(b"0123456789").replace(HOST.encode(), b"unknown.test")
        other = await v.ask(request[:-5])
        assert split_answers(other.sent)[0][0] == 404
        assert b"Connection: close\r\n" in other.sent
        assert other.ended


async def test_the_configured_page_is_read_each_time(tmp_path):
    page = tmp_path / "404.html"
    page.write_text("<p>one</p>")
    async with vhost(not_found_page=str(page)) as v:
        caller = await v.ask(get(host="unknown.test"))
        assert split_answers(caller.take()) == [(404, b"<p>one</p>")]
        page.write_text("<p>two</p>")
        caller.feed(get(host="unknown.test"))
        assert split_answers(caller.take()) == [(404, b"<p>two</p>")]
        page.unlink()
        caller.feed(get(host="unknown.test"))
        assert b"<h1>404 Not Found</h1>" in caller.take()
        assert any("cannot be read" in line["event"] for line in v.log.lines)


async def test_the_configured_page_is_shown_wherever_frp_shows_it(tmp_path):
    page = tmp_path / "404.html"
    page.write_text("<p>ours</p>")
    async with vhost(not_found_page=str(page), frp_errors=True) as v:
        v.refusal = AWAY
        caller = await v.ask(get())
        assert split_answers(caller.sent) == [(404, b"<p>ours</p>")]


# -- credentials --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "admitted"),
    [
        (basic("ann:secret"), True),
        (basic("ann:Secret"), False),
        (basic("bob:secret"), False),
        (basic("ann:"), False),
        (basic("ann"), False),
        ("Authorization: Bearer secret", False),
        ("Authorization: Basic !!!", False),
        ("X-None: 1", False),
    ],
)
async def test_a_route_with_credentials_admits_those_who_have_them(field, admitted):
    async with vhost() as v:
        v.add_route("private.test", user="ann", password="secret")
        caller = await v.ask(get("/", field, host="private.test"))
        if admitted:
            v.service.feed(answer(b"in"))
            assert split_answers(caller.sent) == [(200, b"in")]
            # They are the service's business as well.
            assert field.encode() in v.service.sent
        else:
            assert v.services == []
            assert caller.sent.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
            assert b'WWW-Authenticate: Basic realm="Restricted"\r\n' in caller.sent
            assert not caller.closed


@pytest.mark.parametrize(("user", "password"), [("ann", ""), ("", "secret")])
async def test_half_of_a_credential_is_one(user, password):
    async with vhost() as v:
        v.add_route("private.test", user=user, password=password)
        caller = await v.ask(get(host="private.test"))
        assert split_answers(caller.sent)[0][0] == 401
        caller.take()
        caller.feed(get("/", basic(f"{user}:{password}"), host="private.test"))
        await turns()
        v.service.feed(answer(b"in"))
        assert split_answers(caller.sent) == [(200, b"in")]


async def test_users_choose_among_routes_and_are_judged_by_the_same_credential():
    async with vhost() as v:
        v.frontend.router.add("multi.test", "", "ann", v.route)
        caller = await v.ask(get("/", basic("ann:x"), host="multi.test"))
        v.service.feed(answer(b"hers"))
        assert split_answers(caller.take()) == [(200, b"hers")]
        caller.feed(get("/", basic("bob:x"), host="multi.test"))
        assert split_answers(caller.sent)[0][0] == 404


# -- heads --------------------------------------------------------------------------------------


async def test_the_configured_changes_reach_both_heads():
    async with vhost() as v:
        v.add_route(
            "edited.test",
            request_edit=HeadEdit(b"inner.test", {"X-From": "frp"}),
            response_edit=HeadEdit(None, {"X-Via": "pyfrp"}),
        )
        caller = await v.ask(get("/", "X-From: caller", host="edited.test"))
        assert b"Host: inner.test\r\n" in v.service.sent
        assert b"X-From: frp\r\n" in v.service.sent
        assert b"X-From: caller" not in v.service.sent
        v.service.feed(answer(b"x"))
        assert b"X-Via: pyfrp\r\n" in caller.sent


async def test_answers_without_a_date_get_one():
    async with vhost() as v:
        caller = await v.ask(get())
        v.service.feed(answer(b"x"))
        assert b"\r\nDate: " in caller.sent
        caller.take()
        caller.feed(get())
        v.service.feed(answer(b"x", "Date: Thu, 01 Jan 1970 00:00:00 GMT"))
        assert caller.sent.count(b"Date: ") == 1
        assert b"1970" in caller.sent


# -- time and the end ---------------------------------------------------------------------------


async def test_scanners_do_not_fill_the_log():
    async with vhost() as v:
        caller = v.call()
        for _ in range(LOGGED_REFUSALS + 30):
            caller.feed(get(host="scanner.test"))
        assert len(v.log.lines) == LOGGED_REFUSALS
        v.advance(SWEEP_S)
        assert v.log.lines[-1]["count"] == 30
        caller.feed(get(host="scanner.test"))
        assert len(v.log.lines) == LOGGED_REFUSALS + 2


async def test_long_hosts_are_cut_in_the_log():
    async with vhost() as v:
        await v.ask(get(host="a" * 250 + ".test"))
        assert len(v.log.lines[0]["host"]) == 200


async def test_idle_work_connections_are_swept():
    async with vhost() as v:
        await v.ask(get())
        v.service.feed(answer(b"x"))
        v.advance(IDLE_S - 1)
        assert len(v.pool) == 1
        v.advance(1)
        assert len(v.pool) == 0
        assert v.service.aborted


async def test_the_frontend_sweeps_by_itself():
    async with vhost() as v:
        v.now += 10_000
        caller = v.call()
        v.now += 10_000
        await until(lambda: caller.closed, "the idle caller to be closed")


async def test_removing_a_pool_ends_its_idle_connections_and_lets_the_busy_finish():
    async with vhost() as v:
        first = await v.ask(get())
        await v.ask(get())
        v.services[0].feed(answer(b"x"))
        v.frontend.remove_pool(v.pool)
        v.frontend.remove_pool(v.pool)
        assert v.services[0].aborted
        assert not v.services[1].aborted
        v.services[1].feed(answer(b"y"))
        assert v.services[1].aborted
        assert split_answers(first.sent) == [(200, b"x")]


async def test_closing_drops_everybody():
    async with vhost() as v:
        callers = [await v.ask(get()), v.call(), await v.ask(b"GET / HT")]
        v.frontend.close()
        await turns()
        assert all(caller.aborted for caller in callers)
        assert v.service.aborted
        assert len(v.frontend) == 0


async def test_a_connection_accepted_elsewhere_is_served_with_what_was_read_of_it():
    async with vhost() as v:
        caller = Wire()
        caller.reading = False
        v.frontend.adopt(caller, get())
        assert caller.reading
        await turns()
        v.service.feed(answer(b"x"))
        assert split_answers(caller.sent) == [(200, b"x")]


async def test_a_connection_accepted_elsewhere_that_speaks_nonsense_is_refused():
    async with vhost() as v:
        caller = Wire()
        v.frontend.adopt(caller, b"GET\x00/\r\n")
        assert split_answers(caller.sent)[0][0] == 400
        assert caller.ended
        caller.end()
        assert caller.closed


async def test_requests_are_counted_per_route():
    async with vhost() as v:
        caller = await v.ask(get() + get(host="unknown.test") + get())
        for _ in range(2):
            v.service.feed(answer(b"x"))
            await asyncio.sleep(0)
            await turns()
        assert v.route.requests == 2
        assert len(split_answers(caller.sent)) == 3
