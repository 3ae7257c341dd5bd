"""Which proxy answers, with which fields, and what the server says itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.backends import Exchange, HttpBackend
from tests.support.http import calling, fetch, request
from tests.support.office import DOMAIN, Office
from tests.support.ports import free_port
from tests.support.processes import Kind, http_proxy, server_config, tcp_proxy, tunnel
from tests.support.services import running
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_api_port = free_port()
_dead_port = free_port()
_page = Path(tempfile.gettempdir()) / f"pyfrp-test-404-{os.getpid()}.html"
JSON = [("Accept", "application/json")]


def _proxy(name: str, domain: str, **more: object) -> dict[str, object]:
    return http_proxy(name, _api_port, domain, **more)


SCENE = {
    "api_port": _api_port,
    "server": {"subDomainHost": "sub.test", "custom404Page": str(_page)},
    "proxies": [
        _proxy("wild", "*.wild.test", requestHeaders={"set": {"x-proxy": "wild"}}),
        _proxy("exact", "one.wild.test", requestHeaders={"set": {"x-proxy": "exact"}}),
        _proxy("root", "places.test", requestHeaders={"set": {"x-proxy": "root"}}),
        _proxy("a", "places.test", locations=["/a"], requestHeaders={"set": {"x-proxy": "a"}}),
        _proxy(
            "ab", "places.test", locations=["/ab/", "/z"], requestHeaders={"set": {"x-proxy": "ab"}}
        ),
        {
            "name": "sub",
            "type": "http",
            "localPort": _api_port,
            "subdomain": "llm",
            "requestHeaders": {"set": {"x-proxy": "sub"}},
        },
        _proxy("locked", "locked.test", httpUser="alice", httpPassword="s3cret:with colon"),
        _proxy(
            "alice",
            "users.test",
            routeByHTTPUser="alice",
            requestHeaders={"set": {"x-proxy": "alice"}},
        ),
        _proxy("anyone", "users.test", requestHeaders={"set": {"x-proxy": "anyone"}}),
        _proxy(
            "rewritten",
            "rewritten.test",
            hostHeaderRewrite="inner.example",
            requestHeaders={"set": {"x-added": "yes", "X-Replaced": "new"}},
            responseHeaders={"set": {"X-Served-By": "tunnel", "Server": "none"}},
        ),
        http_proxy("dead", _dead_port, "dead.test"),
    ],
}


@pytest.fixture(scope="module", autouse=True)
def _page_file() -> Iterator[None]:
    _page.write_text("<h1>nobody lives here</h1>", encoding="utf-8")
    yield
    _page.unlink()


@pytest.fixture(autouse=True)
def _fresh_records(fresh: Office) -> None:
    """Every test counts requests from zero."""


def basic(user: str, password: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- routes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "path", "proxy"),
    [
        ("one.wild.test", "/hello", "exact"),
        ("ONE.Wild.Test", "/hello", "exact"),
        ("one.wild.test:8080", "/hello", "exact"),
        ("one.wild.test.", "/hello", "exact"),
        ("two.wild.test", "/hello", "wild"),
        ("a.b.wild.test", "/hello", "wild"),
        ("places.test", "/hello", "root"),
        ("places.test", "/a", "a"),
        ("places.test", "/a/x", "a"),
        ("places.test", "/abc", "a"),
        ("places.test", "/ab/", "ab"),
        ("places.test", "/ab/c?d=/e", "ab"),
        ("places.test", "/z", "ab"),
        ("places.test", "/?x=/ab/", "root"),
        ("llm.sub.test", "/hello", "sub"),
    ],
)
async def test_host_and_longest_location_choose_the_proxy(
    scene: Office, host: str, path: str, proxy: str
) -> None:
    await scene.get(path, host)
    seen = scene.api.requests
    assert [(r.target, r.get("x-proxy"), r.get("host")) for r in seen] == [(path, proxy, host)]


async def test_one_connection_may_go_to_many_hosts(scene: Office) -> None:
    async with scene.calling() as caller:
        for host in ("one.wild.test", "llm.sub.test", "places.test", DOMAIN, "two.wild.test") * 3:
            assert (await caller.get("/hello", host)).body == b"hello"
    assert [r.get("x-proxy") for r in scene.api.requests][:5] == [
        "exact",
        "sub",
        "root",
        None,
        "wild",
    ]


async def test_the_user_chooses_the_proxy_where_routes_say_so(scene: Office) -> None:
    for headers, proxy in (
        ([basic("alice", "x")], "alice"),
        ([basic("bob", "x")], "anyone"),
        ([], "anyone"),
        ([("Authorization", "Bearer alice")], "anyone"),
    ):
        scene.api.forget()
        await scene.get("/hello", "users.test", headers=headers)
        assert scene.api.requests[0].get("x-proxy") == proxy


async def test_an_unknown_host_gets_the_page_of_the_operator(scene: Office) -> None:
    async with scene.calling() as caller:
        for host in ("nobody.test", "wild.test", "llm.test.evil", "x.llm.test"):
            answer = await caller.get("/hello", host)
            assert (answer.status, answer.body) == (404, b"<h1>nobody lives here</h1>"), host
            assert (answer.get("content-type") or "").startswith("text/html")
        # The page is read anew each time.
        _page.write_text("<h1>moved</h1>", encoding="utf-8")
        assert (await caller.get("/hello", "nobody.test")).body == b"<h1>moved</h1>"
        assert (await caller.get("/hello")).status == 200
    _page.write_text("<h1>nobody lives here</h1>", encoding="utf-8")
    assert len(scene.api.requests) == 1


async def test_absolute_form_for_its_own_host_is_served(scene: Office) -> None:
    async with scene.calling() as caller:
        data = f"GET http://{DOMAIN}/hello/abs HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n".encode()
        await caller.send(data)
        assert (await caller.answer()).body == b"hello"


# --- who may ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [basic("alice", "wrong")],
        [basic("bob", "s3cret:with colon")],
        [basic("", "")],
        [("Authorization", "Bearer s3cret")],
        [("Authorization", "Basic ????")],
        [("Authorization", "Basic")],
        [("Proxy-Authorization", basic("alice", "s3cret:with colon")[1])],
    ],
    ids=["none", "password", "user", "empty", "bearer", "garbage", "bare", "proxy"],
)
async def test_wrong_credentials_get_401_and_go_nowhere(
    scene: Office, headers: Sequence[tuple[str, str]]
) -> None:
    async with scene.calling() as caller:
        answer = await caller.get("/hello", "locked.test", headers=headers)
        assert answer.status == 401
        assert answer.get("www-authenticate") == 'Basic realm="Restricted"'
        # The connection stays usable for somebody who knows better.
        right = [basic("alice", "s3cret:with colon")]
        assert (await caller.get("/hello", "locked.test", headers=right)).status == 200
    assert len(scene.api.requests) == 1
    assert scene.api.requests[0].get("authorization") == right[0][1]


async def test_two_credentials_are_never_judged_by_one_and_routed_by_the_other(
    scene: Office,
) -> None:
    both = [basic("mallory", "x"), basic("alice", "s3cret:with colon")]
    for headers in (both, both[::-1]):
        answer = await scene.get("/hello", "locked.test", headers=headers)
        assert answer.status in (400, 401)
    assert not scene.api.requests


async def test_a_refused_upload_is_not_read_by_anybody(scene: Office) -> None:
    async with scene.calling() as caller:
        head = request("/hash", "locked.test", "POST", [("Content-Length", "1000000")])
        await caller.send(head + b"x" * 1000)
        assert (await caller.answer()).status == 401
    assert not scene.api.requests


# --- fields -------------------------------------------------------------------------------


async def test_forwarding_fields_are_set_as_frp_sets_them(scene: Office) -> None:
    headers = [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Host", "evil.test"),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", "for=203.0.113.9"),
    ]
    await scene.get("/hello", headers=headers)
    seen = scene.api.requests[0]
    assert ", ".join(seen.all("x-forwarded-for")) == "203.0.113.9, 127.0.0.1"
    assert seen.all("x-forwarded-host") == [DOMAIN]
    assert seen.all("x-forwarded-proto") == ["http"]
    assert seen.all("forwarded") == []


async def test_hop_by_hop_fields_end_at_the_hop(scene: Office) -> None:
    headers = [
        ("Connection", "keep-alive, X-Secret"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("X-Secret", "between us"),
        ("X-Kept", "for all"),
    ]
    await scene.get("/hello", headers=headers)
    seen = scene.api.requests[0]
    for name in ("keep-alive", "proxy-connection", "proxy-authorization", "x-secret"):
        assert seen.all(name) == [], name
    assert seen.all("x-kept") == ["for all"]


async def test_hop_by_hop_fields_of_answers_end_at_the_hop(scene: Office) -> None:
    async def script(x: Exchange) -> None:
        fields = [
            ("Connection", "keep-alive, X-Secret"),
            ("Keep-Alive", "timeout=5"),
            ("X-Secret", "between us"),
            ("X-Kept", "for all"),
        ]
        await x.reply(b"fields", headers=fields)

    scene.api.on("/fields", script)
    answer = await scene.get("/fields")
    assert (answer.get("keep-alive"), answer.get("x-secret")) == (None, None)
    assert answer.get("x-kept") == "for all"


async def test_fields_arrive_in_order_with_their_case_and_their_repeats(scene: Office) -> None:
    headers = [
        ("X-One", "1"),
        ("x-TWO", "2"),
        ("X-One", "3"),
        ("Cookie", "a=b"),
        ("X-Empty", ""),
        ("X-Spaces", "a  b"),
    ]
    await scene.get("/hello", headers=headers)
    names = {name.lower() for name, _ in headers}
    seen = [(n, v) for n, v in scene.api.requests[0].headers if n.lower() in names]
    assert sorted((n.lower(), v) for n, v in seen) == sorted((n.lower(), v) for n, v in headers)
    assert [v for n, v in seen if n.lower() == "x-one"] == ["1", "3"]


async def test_no_field_is_invented(scene: Office) -> None:
    await scene.get("/hello")
    names = sorted(name.lower() for name, _ in scene.api.requests[0].headers)
    allowed = {"host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
    assert set(names) <= allowed | {"accept-encoding"}, names


async def test_host_and_fields_are_rewritten_as_configured(scene: Office) -> None:
    headers = [("X-Replaced", "old"), ("X-Replaced", "older")]
    answer = await scene.get("/hello", "rewritten.test", headers=headers)
    seen = scene.api.requests[0]
    assert seen.all("host") == ["inner.example"]
    assert seen.all("x-forwarded-host") == ["rewritten.test"]
    assert (seen.all("x-added"), seen.all("x-replaced")) == (["yes"], ["new"])
    assert answer.head.all("x-served-by") == ["tunnel"]
    assert answer.head.all("server") == ["none"]


# --- the server's own answers -------------------------------------------------------------


async def test_a_dead_service_is_502_in_the_form_that_was_asked_for(scene: Office) -> None:
    async with scene.calling() as caller:
        answer = await caller.get("/v1/models", "dead.test", headers=JSON)
        assert answer.status == 502
        assert (answer.get("content-type") or "").startswith("application/json")
        error = answer.json()["error"]
        assert {"message", "type", "code"} <= set(error), error
        page = await caller.get("/v1/models", "dead.test", headers=[("Accept", "text/html")])
        assert page.status == 502
        assert (page.get("content-type") or "").startswith("text/html")
        with pytest.raises(json.JSONDecodeError):
            json.loads(page.body)
        assert (await caller.get()).status == 200
    await scene.pair.client.logged(rf"connect to local service \[127\.0\.0\.1:{_dead_port}\] error")


async def test_an_unknown_host_is_404_in_the_form_that_was_asked_for(scene: Office) -> None:
    answer = await scene.get("/v1/models", "nobody.test", headers=JSON)
    assert answer.status == 404
    assert (answer.get("content-type") or "").startswith("application/json")
    assert "error" in answer.json()


async def test_a_service_that_comes_to_life_is_reached_at_once(scene: Office) -> None:
    assert (await scene.get("/hello", "dead.test")).status == 502
    late = HttpBackend(_dead_port)
    async with running(late):
        answer = await scene.get("/hello", "dead.test")
        assert (answer.status, answer.body) == (200, b"hello")
    await until(lambda: not late.live, "the backend to be down")
    assert (await scene.get("/hello", "dead.test")).status == 502


async def test_the_header_timeout_gives_504_only_where_it_is_set(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    api = HttpBackend()
    proxies = [http_proxy("llm", api.port, DOMAIN)]
    async with (
        running(api),
        tunnel(tmp_path, proxies, kinds=kinds, server={"vhostHTTPTimeout": 1}) as pair,
    ):
        answer = await fetch(pair.http_port, "/hang", headers=JSON)
        assert answer.status == 504
        # The timeout is for the head only: a stream may last longer than it.

        async def script(x: Exchange) -> None:
            await x.start_chunked()
            for number in range(15):
                await x.chunk(b"%d" % number)
                await asyncio.sleep(0.1)  # 1.5 s in all, longer than the timeout
            await x.end_chunks()

        api.on("/long", script)
        assert (await fetch(pair.http_port, "/long")).status == 200
        await until(lambda: all(p.lost for p in api.pipes if p.eof), "the hung one to close")


async def test_the_vhost_may_share_the_bind_port(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    api = HttpBackend()
    port, echo_port = free_port(), free_port()
    proxies = [http_proxy("llm", api.port, DOMAIN), tcp_proxy("raw", api.port, echo_port)]
    shared = {"bindPort": port, "vhostHTTPPort": port}
    for name, tls in (("plain", False), ("tls", True)):
        directory = tmp_path / name
        async with (
            running(api),
            tunnel(
                directory,
                proxies,
                kinds=kinds,
                server=shared,
                client={"transport": {"tls": {"enable": tls}}},
            ) as pair,
        ):
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
                answer = await fetch(port, "/hello", method=method)
                assert (answer.status, answer.body) == (200, b"hello"), method
            async with calling(pair.http_port) as caller:
                for _ in range(5):
                    assert (await caller.get()).body == b"hello"
            assert (await fetch(echo_port, "/hello")).body == b"hello"


async def test_frps_own_error_style_can_be_had_back(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    server = server_config({"vhostHTTPErrorStyle": "frp"})
    proxies = [http_proxy("dead", free_port(), DOMAIN)]
    async with tunnel(tmp_path, proxies, kinds=kinds, server=server) as pair:
        assert (await fetch(pair.http_port, "/hello")).status == 404
