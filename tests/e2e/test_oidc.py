"""OpenID Connect between our programs and the official ones, with a certified provider."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.frpwire import peering
from tests.support.http import calling
from tests.support.identity import (
    AUDIENCE,
    CLIENT,
    SECRET,
    SUBJECT,
    Provider,
    SigningKey,
    serving,
)
from tests.support.idp import RealProvider, real_provider
from tests.support.oidc_attacks import ATTACKS
from tests.support.ports import free_port
from tests.support.processes import (
    HOST,
    SERVER_READY,
    TOKEN,
    Kind,
    Program,
    Tunnel,
    require_official,
    server_config,
    tcp_proxy,
    tunnel,
)
from tests.support.services import EchoBackend, running
from tests.support.waiting import all_of, until_async

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

KINDS: tuple[Kind, ...] = ("ours", "official")
PAIRS: list[tuple[Kind, Kind]] = list(itertools.product(KINDS, repeat=2))
SCOPES = ["HeartBeats", "NewWorkConns"]


def _sides(provider: RealProvider, **client: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides' settings: all scopes, and a heartbeat each second."""
    common = {"method": "oidc", "additionalScopes": SCOPES}
    server = {"auth": common | {"oidc": {"issuer": provider.url, "audience": AUDIENCE}}}
    oidc = {"clientID": CLIENT, "clientSecret": SECRET, "tokenEndpointURL": provider.endpoint}
    return server, {
        "auth": common | {"oidc": oidc | client},
        "transport": {"heartbeatInterval": 1, "heartbeatTimeout": 30},
        "log": {"level": "debug"},
    }


@asynccontextmanager
async def _scene(
    directory: Path, kinds: tuple[Kind, Kind], server: Any, client: Any, **more: Any
) -> AsyncIterator[tuple[Tunnel, int]]:
    if "official" in kinds:
        require_official()
    echo, port = EchoBackend(), free_port()
    async with (
        running(echo),
        tunnel(
            directory,
            [tcp_proxy("echo", echo.port, port)],
            kinds=kinds,
            server=server,
            client=client,
            **more,
        ) as pair,
    ):
        yield pair, port


async def _echoes(port: int) -> bool:
    try:
        async with calling(port) as user:
            await user.send(b"anybody there?")
            return await user.exactly(14) == b"anybody there?"
    except (OSError, AssertionError, EOFError):
        return False


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
async def test_logins_heartbeats_and_work_connections_carry_tokens(
    kinds: tuple[Kind, Kind], tmp_path: Path
) -> None:
    algorithm = "ES256" if kinds == ("ours", "ours") else "RS256"
    async with real_provider(tmp_path, algorithm) as provider:
        server, client = _sides(provider)
        async with _scene(tmp_path, kinds, server, client) as (pair, port):
            assert await _echoes(port)
            pongs = "receive heartbeat from server"
            await pair.client.logged(pongs, count=2)
            assert await _echoes(port)
            for program in (pair.server, pair.client):
                assert SECRET not in program.log()
                assert "invalid" not in program.log()


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
async def test_token_scopes_agree(kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    auth = {"auth": {"additionalScopes": SCOPES}}
    beats = {"transport": {"heartbeatInterval": 1, "heartbeatTimeout": 30}}
    client = {**auth, **beats, "log": {"level": "debug"}}
    async with _scene(tmp_path, kinds, auth, client) as (pair, port):
        assert await _echoes(port)
        await pair.client.logged("receive heartbeat from server")
        assert await _echoes(port)


@pytest.mark.parametrize("kind", KINDS)
async def test_bad_tokens_are_refused_with_frps_words(kind: Kind, tmp_path: Path) -> None:
    """All attacks as logins of their own, a good token, and what must not follow that."""
    if kind == "official":
        require_official()
    async with serving(Provider(free_port())) as provider:
        config = server_config({"auth": provider.server() | {"additionalScopes": SCOPES}})
        port = config["bindPort"]
        # frps tells times in its own zone.
        server = Program(kind, "server", config, tmp_path, env={"TZ": "UTC"}).start()
        try:
            await server.logged(SERVER_READY)
            # All at once: our server lets each token of an unknown key wait for the next keys.
            said = await all_of(_login(port, attack.make(provider)) for attack in ATTACKS)
            failures = {
                attack.name: words
                for attack, words in zip(ATTACKS, said, strict=True)
                if not attack.refuses(words or "", kind)
            }
            assert not failures, json.dumps(failures, indent=1)
            await _check_later_messages(port, provider)
        finally:
            server.kill()


async def _login(port: int, token: str) -> str:
    """Log in with a token and return the error, "" for none."""
    async with peering(port) as peer:
        return str((await peer.login(TOKEN, privilege_key=token)).get("error", ""))


async def _check_later_messages(port: int, provider: Provider) -> None:
    """Show tokens of somebody who never logged in, expired ones and none after a good login."""
    bad = {
        provider.token(sub="thief"): "received different OIDC subject in login and ping. "
        "new subject: thief",
        provider.token(exp=1): "invalid OIDC token in ping: oidc: token is expired "
        "(Token Expiry: 1970-01-01 00:00:01 +0000 UTC)",
        "": "invalid OIDC token in ping: oidc: malformed jwt: oidc: malformed jwt, "
        "expected 3 parts got 1",
    }
    async with peering(port) as peer:
        assert not (await peer.login(TOKEN, privilege_key=provider.token())).get("error")
        for token, words in bad.items():
            said = await peer.ask("h", {"privilege_key": token}, "4")
            assert _as_newer(said["error"]) == words
            async with peering(port) as work:
                said = await work.ask("w", {"run_id": peer.run_id, "privilege_key": token}, "s")
                assert _as_newer(said["error"]) == words
        good = {"privilege_key": provider.token()}
        assert not (await peer.ask("h", good, "4")).get("error")


def _as_newer(text: str) -> str:
    """0.65 tells a stranger who has logged in; newer releases and ours do not."""
    return text.replace(f"original subjects: [{SUBJECT}], ", "")


async def test_a_provider_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Away at the start, there, away again, and back with other keys: no hand is needed."""
    provider = Provider(free_port(), lifetime=None)
    server = {"auth": {**provider.server(), "additionalScopes": ["NewWorkConns"]}}
    client = {
        "auth": {**provider.client(), "additionalScopes": ["NewWorkConns"]},
        "loginFailExit": False,
        "transport": {"poolCount": 1},
    }
    async with _scene(tmp_path, ("ours", "ours"), server, client, ready=False) as (pair, port):
        await pair.server.logged(r"oidc: the issuer .* cannot be used: .*connection refused")
        words = "couldn't generate OIDC token for login: .*connection refused"
        await pair.client.logged(rf"connect to server error: {words}")
        async with serving(provider):
            await pair.client_ready()
            assert await _echoes(port)
        # Whoever is connected stays so, and the session lasts, while there are no tokens.
        async with calling(port) as user:
            await user.send(b"still")
            assert await user.exactly(5) == b"still"
            await pair.client.logged("error during NewWorkConn authentication")
            await user.send(b"there")
            assert await user.exactly(5) == b"there"
        provider.key = SigningKey("key-2", which=1)
        async with serving(provider):
            await until_async(lambda: _echoes(port), "users to be served again", 20)
        assert len(pair.client.log().split("login to server success")) == 2
        for program in (pair.server, pair.client):
            assert SECRET not in program.log()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_provider_that_is_away_at_the_first_login_ends_the_client(
    kind: Kind, tmp_path: Path
) -> None:
    """`loginFailExit` means this, too. frpc asks for a token only once it is connected."""
    if kind == "official":
        require_official()
    provider = Provider(free_port())
    # Says nothing: whatever a peer says may end the mux before the provider is asked.
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        config = {"serverAddr": HOST, "serverPort": port, "auth": provider.client()}
        config["transport"] = {"tls": {"enable": False}}
        program = Program(kind, "client", config, tmp_path).start()
        try:
            assert await program.exited() == 1
        finally:
            program.kill()
    assert "couldn't generate OIDC token for login" in program.log()
    assert "connection refused" in program.log()


async def test_a_token_of_a_program_logs_in(tmp_path: Path) -> None:
    async with serving(Provider(free_port())) as provider:
        script = tmp_path / "print-token"
        script.write_text(f"#!/bin/sh\necho $GREETING >&2\nprintf '%s\\n' '{provider.token()}'\n")
        script.chmod(0o755)
        source = {"type": "exec", "exec": {"command": str(script)}}
        client = {"auth": {"method": "oidc", "oidc": {"tokenSource": source}}}
        server = {"auth": provider.server()}
        async with _scene(
            tmp_path,
            ("ours", "ours"),
            server,
            client,
            unsafe=True,
        ) as (_, port):
            assert await _echoes(port)


async def test_a_shared_token_of_a_program_logs_in(tmp_path: Path) -> None:
    """Both ends; and what it gave is the key of encryption, too."""
    env = [{"name": "WORD", "value": "a-test-token"}]
    run = {"command": "sh", "args": ["-c", 'echo " $WORD "'], "env": env}
    source = {"auth": {"token": "", "tokenSource": {"type": "exec", "exec": run}}}
    for kinds in (("ours", "ours"), ("ours", "official"), ("official", "ours")):
        sides = [source if kind == "ours" else {} for kind in kinds]
        async with _scene(
            tmp_path / "-".join(kinds),
            kinds,
            *sides,
            unsafe=True,
        ) as (_, port):
            assert await _echoes(port)
