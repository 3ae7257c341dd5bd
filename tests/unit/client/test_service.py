"""A client and a server in one process, over loopback: log in, serve, come back."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from pyfrp.auth import access, issuer
from pyfrp.client import service as module
from pyfrp.client.ladder import NoWay
from pyfrp.client.service import Client, LoginFailed
from pyfrp.config import client_from_dict, server_from_dict
from pyfrp.errors import ConfigError, ProxyError
from pyfrp.server.service import Server
from tests.support import identity
from tests.support.identity import Provider, SigningKey
from tests.support.ports import free_port
from tests.support.waiting import until, within
from tests.unit.client.test_control import service
from tests.unit.net.ends import turns
from tests.unit.server.scene import Log
from tests.unit.server.test_proxies import come

TOKEN = "spec-token"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    """Waits of milliseconds instead of seconds, and a certificate of this run's own."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path_factory.getbasetemp() / "state"))
    for name in ("FIRST_RETRY_S", "FIRST_CAP_S", "LATER_CAP_S"):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr(module, "QUICK_S", (0.01, 0.02))
    log = Log()
    monkeypatch.setattr("pyfrp.server.service.get_logger", lambda: log)
    monkeypatch.setattr("pyfrp.client.service.get_logger", lambda: log)
    return log


@asynccontextmanager
async def serving(port, **settings):
    server = Server(
        server_from_dict(
            {
                "bindAddr": "127.0.0.1",
                "bindPort": port,
                "auth": {"token": TOKEN},
                "transport": {"tcpMux": settings.pop("mux", True)},
                **settings,
            }
        )
    )
    await server.start()
    try:
        yield server
    finally:
        await within(server.stop(0.0), 10, "the server to stop")
        await turns()


def client_of(port, *, mux=True, tls=True, token=TOKEN, **settings):
    transport = {"tcpMux": mux, "tls": {"enable": tls}, "dialServerTimeout": 2}
    return client_from_dict(
        {
            "serverAddr": "127.0.0.1",
            "serverPort": port,
            "auth": {"token": token},
            "transport": transport,
            **settings,
        }
    )


@asynccontextmanager
async def running(cfg, *, ok=()):
    logins = []
    client = Client(cfg, on_login=lambda: logins.append(1))
    client.logins = logins
    client.task = asyncio.get_running_loop().create_task(client.run())
    try:
        yield client
    finally:
        await within(client.stop(0.0), 10, "the client to stop")
        done, _ = await within(asyncio.wait([client.task]), 10, "the client to end")
        for task in done:
            exc = task.exception()
            assert exc is None or isinstance(exc, ok)
        await turns()


@pytest.mark.parametrize("mux", [True, False])
@pytest.mark.parametrize("tls", [True, False])
async def test_a_user_reaches_a_service_through_both(loop_kind, mux, tls):
    port, remote = free_port(), free_port()
    async with service() as local, serving(port, mux=mux):
        proxy = {"name": "echo", "type": "tcp", "localPort": local, "remotePort": remote}
        cfg = client_of(port, mux=mux, tls=tls, proxies=[proxy], user="alice")
        async with running(cfg) as client:
            await until(
                lambda: client._proxies[0].phase.value == "running", "the proxy to be running"
            )
            assert client._proxies[0].name == "alice.echo"
            for number in range(3):
                user = await come(remote)
                await user.send(b"hello %d" % number)
                assert await user.receive_exactly(7) == b"hello %d" % number
                user.end()
                assert await user.receive_all() == b""
                user.close()


@pytest.mark.parametrize("mux", [True, False])
@pytest.mark.parametrize("leaves", [False, True])
async def test_users_who_say_all_they_have_at_once_lose_nothing(loop_kind, mux, leaves):
    """Their bytes and their end are there before the work connection is; some do not even wait."""
    received = []

    async def collect(reader, writer):
        data = await reader.read()
        received.append(data)
        writer.write(b"got %d" % len(data))

    port, remote = free_port(), free_port()
    async with service(collect) as local, serving(port, mux=mux) as server:
        proxy = {"name": "sink", "type": "tcp", "localPort": local, "remotePort": remote}
        # A work connection that is TLS itself ends both ways at once.
        cfg = client_of(port, mux=mux, tls=mux, proxies=[proxy])
        async with running(cfg) as client:
            await until(lambda: client._proxies[0].remote_addr, "the proxy")
            users = []
            for number in range(40):
                user = await come(remote)
                await user.send(b"%02d" % number * 500)
                if leaves:
                    user.close()
                else:
                    user.end()
                users.append(user)
            await until(lambda: len(received) == 40, "all users at the service")
            assert sorted(received) == [b"%02d" % number * 500 for number in range(40)]
            if not leaves:
                for user in users:
                    assert await user.receive_all() == b"got 1000"
                    user.close()
            await until(lambda: not server.bridges, "the bridges to close")


async def test_a_certificate_that_cannot_be_kept_is_warned_about(monkeypatch, tmp_path, quick):
    """Clients that pin it would be locked out by the next start, and nothing would say why."""
    async with serving(free_port()):
        assert not quick.events("warning")
    (tmp_path / "state").write_text("in the way")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    async with serving(free_port()):
        assert quick.has("the tls certificate is a new one at each start", "warning")


async def test_a_client_comes_back_with_its_run_id_and_its_proxies(loop_kind, quick):
    port, remote = free_port(), free_port()
    async with service() as local:
        proxy = {"name": "echo", "type": "tcp", "localPort": local, "remotePort": remote}
        async with (
            serving(port) as first,
            running(client_of(port, proxies=[proxy])) as client,
        ):
            await until(lambda: client._proxies[0].remote_addr, "the proxy")
            run_id = client._run_id
            [control] = first.controls.values()
            control.close()
            await until(lambda: len(client.logins) == 2, "the second login")
            assert client._run_id == run_id
            # The server goes, and another comes in its place.
            await within(first.stop(0.0), 10, "the server to stop")
            await until(lambda: quick.has("connect to server error"), "the client to notice")
            async with serving(port) as second:
                await until(lambda: len(client.logins) == 3, "the third login")
                assert list(second.controls) == [run_id]
                await until(lambda: remote in second.ports._used, "the proxy")
                user = await come(remote)
                await user.send(b"back")
                assert await user.receive_exactly(4) == b"back"
                user.close()
                await until(lambda: not second.bridges, "the bridge to close")
    assert quick.has("session with the server ended", "warning")


async def test_a_wrong_token_ends_a_client_that_may_fail(loop_kind, quick):
    port = free_port()
    async with serving(port):
        cfg = client_of(port, token="wrong")
        async with running(cfg, ok=LoginFailed) as client:
            with pytest.raises(LoginFailed, match="token in login doesn't match token"):
                await within(asyncio.shield(client.task), 5, "the failure")
    assert quick.has("token in login doesn't match token from configuration", "error")


async def test_a_server_that_is_away_is_tried_for_ever_where_the_file_says_so(loop_kind, quick):
    port = free_port()
    async with running(client_of(port, loginFailExit=False)) as client:

        def failures():
            return sum("connect to server error" in event for event in quick.events("warning"))

        await until(lambda: failures() >= 3, "three attempts")
        async with serving(port):
            await until(lambda: client.logins, "the login")


async def test_a_server_that_is_away_ends_a_client_that_may_fail(loop_kind):
    port = free_port()
    async with running(client_of(port), ok=LoginFailed) as client:
        with pytest.raises(LoginFailed, match="connection refused"):
            await within(asyncio.shield(client.task), 5, "the failure")


@pytest.mark.parametrize("mux", [True, False])
async def test_sides_that_disagree_about_the_mux_are_told_so(loop_kind, mux, monkeypatch):
    monkeypatch.setattr(module, "LOGIN_S", 0.3)
    monkeypatch.setattr("pyfrp.server.links.HANDSHAKE_S", 0.5)
    port = free_port()
    cfg = client_of(port, mux=not mux)
    async with serving(port, mux=mux), running(cfg, ok=LoginFailed) as client:
        with pytest.raises(LoginFailed, match="tcpMux"):
            await within(asyncio.shield(client.task), 5, "the failure")


async def test_a_service_that_is_no_frp_server_is_told_so(loop_kind, monkeypatch):
    monkeypatch.setattr(module, "LOGIN_S", 0.3)

    async def http(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with (
        service(http) as port,
        running(client_of(port, tls=False, mux=False), ok=LoginFailed) as client,
    ):
        with pytest.raises(LoginFailed, match="bindPort"):
            await within(asyncio.shield(client.task), 5, "the failure")


async def test_sessions_that_keep_ending_are_not_retried_in_a_rush(loop_kind, monkeypatch, quick):
    monkeypatch.setattr(module, "LATER_CAP_S", 20.0)
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)
        await asyncio.sleep(0)

    port = free_port()
    async with serving(port) as server, running(client_of(port)) as client:
        monkeypatch.setattr(client, "_pause", pause)
        for number in range(1, 7):
            await until(lambda n=number: len(client.logins) == n, "a login")
            await until(lambda: server.controls, "the control")
            for control in list(server.controls.values()):
                control.close()
    # At once, twice quickly, then slower and slower.
    assert all(0.01 <= pause <= 0.02 for pause in pauses[:2])
    assert 1.0 <= pauses[2] <= 1.1
    assert 2.0 <= pauses[3] <= 2.2


async def test_a_proxy_that_does_not_know_us_is_asked_rarely(loop_kind, monkeypatch, quick):
    told = []
    client = Client(client_of(free_port(), loginFailExit=False), on_wait=told.append)
    answers = [ProxyError("wrong", 407)] * 4 + [ProxyError("away", 502), NoWay("none", 407)]
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)
        if not answers:
            client._stopping.set()

    async def fail():
        raise answers.pop(0)

    monkeypatch.setattr(client, "_pause", pause)
    monkeypatch.setattr(client, "_try_login", fail)
    await within(client.run(), 5, "the client to end")
    assert [seconds == module.UNKNOWN_PAUSE_S for seconds in pauses] == [
        *(False, False, True, True),
        *(False, False),
    ]
    assert quick.has("many wrong passwords lock an account", "warning")
    # Who starts us anew because we are not ready would have us ask at once.
    assert told == [module.UNKNOWN_PAUSE_S] * 2


async def test_the_first_climb_is_given_its_time(loop_kind, monkeypatch):
    told = []
    cfg = client_of(free_port(), loginFailExit=False, transport={"protocol": "auto"})
    client = Client(cfg, on_wait=told.append)
    tried = []

    async def pause(seconds):
        if len(tried) == 3:
            client._stopping.set()

    async def climb(prove, attempt):
        tried.append(list(told))
        client._ladder._vain += 1
        raise NoWay("none")

    monkeypatch.setattr(client, "_pause", pause)
    monkeypatch.setattr(client._ladder, "climb", climb)
    await within(client.run(), 5, "the client to end")
    # Before each climb, until one with all patience was in vain.
    assert tried == [[30.0], [30.0, 60.0], [30.0, 60.0]]


async def test_a_stopped_client_lets_its_users_finish(loop_kind):
    port, remote = free_port(), free_port()
    async with service() as local, serving(port):
        proxy = {"name": "echo", "type": "tcp", "localPort": local, "remotePort": remote}
        async with running(client_of(port, proxies=[proxy])) as client:
            await until(lambda: client._proxies[0].remote_addr, "the proxy")
            user = await come(remote)
            await user.send(b"x")
            assert await user.receive_exactly(1) == b"x"
            stopping = asyncio.get_running_loop().create_task(client.stop(10))
            await turns()
            await user.send(b"y")
            assert await user.receive_exactly(1) == b"y"
            assert not stopping.done()
            user.close()
            await within(stopping, 5, "the stop")
            await within(asyncio.wait([client.task]), 5, "the client to end")


async def test_a_stopped_client_cuts_users_who_do_not_finish(loop_kind, quick):
    port, remote = free_port(), free_port()
    async with service() as local, serving(port):
        proxy = {"name": "echo", "type": "tcp", "localPort": local, "remotePort": remote}
        async with running(client_of(port, proxies=[proxy])) as client:
            await until(lambda: client._proxies[0].remote_addr, "the proxy")
            user = await come(remote)
            await user.send(b"x")
            assert await user.receive_exactly(1) == b"x"
            await within(client.stop(0.05), 5, "the stop")
            await within(asyncio.wait([client.task]), 5, "the client to end")
            assert quick.has("grace period is over", "warning")
            try:
                assert await user.receive() == b""
            except ConnectionResetError:
                pass  # As good an end.
            user.close()


async def test_a_client_that_is_stopped_while_it_waits_to_try_again_ends_at_once(
    quick, monkeypatch
):
    monkeypatch.setattr(module, "FIRST_RETRY_S", 60.0)
    monkeypatch.setattr(module, "FIRST_CAP_S", 60.0)
    async with running(client_of(free_port(), loginFailExit=False)) as client:
        await until(lambda: quick.has("connect to server error"), "the first attempt")
        await client.stop(0.0)
        await within(asyncio.wait([client.task]), 5, "the client to end")


@pytest.mark.parametrize("where", ["the login", "the session"])
async def test_what_nobody_foresaw_is_told_and_ends_no_client(quick, monkeypatch, where):
    port, fails = free_port(), [ValueError("a surprise")]
    owner, name = {
        "the login": (module, "connect"),
        "the session": (module.Control, "_handle"),
    }[where]
    usual = getattr(owner, name)

    def surprising(*args):
        if fails:
            raise fails.pop()
        return usual(*args)

    monkeypatch.setattr(owner, name, surprising)
    proxies = [{"name": "echo", "type": "tcp", "localPort": 7, "remotePort": 0}]
    cfg = client_of(port, loginFailExit=False, proxies=proxies)
    async with serving(port), running(cfg) as client:
        await until(lambda: client._proxies[0].remote_addr, "the proxy")
    assert quick.has(f"internal error in {where}: ValueError: a surprise", "error")


# -- the server's own start and end -------------------------------------------------------------


async def test_ports_that_are_taken_are_named_and_nothing_stays_bound(loop_kind):
    bind, http = free_port(), free_port()
    with socket.create_server(("127.0.0.1", http)):
        server = Server(
            server_from_dict({"bindAddr": "127.0.0.1", "bindPort": bind, "vhostHTTPPort": http})
        )
        with pytest.raises(ConfigError, match=rf"listen tcp 127.0.0.1:{http}: bind"):
            await server.start()
    with socket.create_server(("127.0.0.1", bind)):
        pass  # It is free again.
    await turns()


async def test_callers_of_the_vhost_may_share_the_bind_port(loop_kind):
    port = free_port()
    async with serving(port, vhostHTTPPort=port):
        user = await come(port)
        await user.send(b"GET / HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n")
        assert (await user.receive_all()).startswith(b"HTTP/1.1 404 Not Found\r\n")
        user.close()
        async with running(client_of(port)) as client:
            await until(lambda: client.logins, "the login")


async def test_a_stopped_server_takes_nobody_new(loop_kind):
    port = free_port()
    async with serving(port) as server, running(client_of(port)) as client:
        await until(lambda: client.logins, "the login")
        await within(server.stop(0.0), 5, "the stop")
        with socket.socket() as user:
            assert user.connect_ex(("127.0.0.1", port)) != 0
        assert server.controls == {}


# -- identities ---------------------------------------------------------------------------------


async def test_a_client_whose_provider_is_away_comes_in_when_it_is_back(loop_kind, quick):
    port, provider = free_port(), Provider(free_port())
    cfg = client_of(port, auth=provider.client(), loginFailExit=False)
    async with serving(port, auth=provider.server()), running(cfg) as client:
        words = (
            "connect to server error: couldn't generate OIDC token for login: the token endpoint"
        )
        await until(lambda: quick.has(words, "warning"), "the failure")
        async with identity.serving(provider):
            await until(lambda: client.logins, "the login")


async def test_a_provider_that_is_away_ends_a_client_that_may_fail(loop_kind):
    cfg = client_of(free_port(), auth=Provider(free_port()).client())
    async with running(cfg, ok=LoginFailed) as client:
        with pytest.raises(LoginFailed, match="couldn't generate OIDC token for login"):
            await within(asyncio.shield(client.task), 5, "the failure")


async def test_a_kept_token_that_is_worth_nothing_any_more_is_replaced(monkeypatch, quick):
    monkeypatch.setattr(access, "EARLY_S", 0.0)
    monkeypatch.setattr(issuer, "AGAIN_S", 0.05)
    port = free_port()
    async with identity.serving(Provider(0)) as provider:
        cfg = client_of(port, auth=provider.client(), loginFailExit=False)
        async with running(cfg) as client:
            async with serving(port, auth=provider.server()):
                await until(lambda: client.logins, "the login")
                assert provider.count("/token") == 1
            # The provider loses its keys, as one that keeps them in memory does at a restart.
            provider.key = SigningKey("key-1", which=1)
            async with serving(port, auth=provider.server()):
                await until(lambda: len(client.logins) > 1, "the second login")
        words = "failed to verify signature: failed to verify id token signature"
        assert quick.has(words, "error")


async def test_a_client_that_is_stopped_while_it_logs_in_does_not_stay(loop_kind, quick):
    port = free_port()
    async with identity.serving(Provider(0)) as provider:
        provider.hold.clear()
        async with serving(port, auth=provider.server()):
            cfg = client_of(port, auth=provider.client())
            async with running(cfg) as client:
                await until(lambda: provider.asked, "the client to ask for a token")
                await client.stop(1.0)
                provider.hold.set()
                await within(asyncio.shield(client.task), 5, "the client to end")
