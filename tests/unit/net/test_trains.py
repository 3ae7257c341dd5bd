"""Many datagrams to a call, and what is left of them where the system does not do it."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from pyfrp.net import trains
from pyfrp.net.sockets import bind_datagrams
from pyfrp.net.trains import TrainSender, TrainSocket
from tests.support.waiting import until

HOST = "127.0.0.1"


@asynccontextmanager
async def socket_on(host=HOST):
    """A TrainSocket, and lists of what came and of errors."""
    came, errors = [], []
    sock = TrainSocket(
        bind_datagrams(host, 0),
        on_datagrams=lambda datagrams, source: came.append((datagrams, source)),
        on_error=errors.append,
    )
    await sock.attach()
    try:
        yield sock, came, errors
    finally:
        sock.close()
        sock.close()


def all_of(came):
    return [datagram for datagrams, _ in came for datagram in datagrams]


@pytest.mark.parametrize("together", [True, False])
async def test_datagrams_arrive_as_they_were_sent(loop_kind, together):
    sizes = [1358] * 130 + [20, 20, 900, 1358, 1, 1358, 1358, 0, 1358] + [9000] * 9
    sent = [bytes((n,)) * size for n, size in enumerate(sizes)]
    async with socket_on() as (near, _, _), socket_on() as (far, came, _):
        near._sender._trains = near._sender._trains and together
        for at in range(0, len(sent), 50):
            near.send_all(sent[at : at + 50], far.address)
        await until(lambda: len(all_of(came)) == len(sent), "the datagrams")
        assert all_of(came) == sent
        assert {source for _, source in came} == {near.address}


async def test_senders_are_told_apart(loop_kind):
    async with (
        socket_on() as (one, _, _),
        socket_on() as (two, _, _),
        socket_on() as (far, came, _),
    ):
        for sock, text in ((one, b"1"), (two, b"2"), (one, b"1")):
            sock.send_all([text] * 3, far.address)
        await until(lambda: len(all_of(came)) == 9, "the datagrams")
        for datagrams, source in came:
            expected = b"1" if source == one.address else b"2"
            assert set(datagrams) == {expected}


async def test_each_goes_to_its_address(loop_kind):
    async with (
        socket_on() as (near, _, _),
        socket_on() as (one, to_one, _),
        socket_on() as (two, to_two, _),
    ):
        addresses = [one.address, two.address]
        near.send_many([(bytes((n,)) * 100, addresses[n % 3 == 0]) for n in range(30)])
        await until(lambda: len(all_of(to_one) + all_of(to_two)) == 30, "the datagrams")
        assert [data[0] for data in all_of(to_two)] == list(range(0, 30, 3))


@pytest.mark.skipif(sys.platform != "linux", reason="others are answered by the usual way")
async def test_an_answer_leaves_from_the_address_that_was_asked(loop_kind, monkeypatch):
    monkeypatch.setattr(trains, "_MAX_WAYS", 3)
    async with socket_on("0.0.0.0") as (far, came, _), AsyncExitStack() as stack:
        asked = []
        for n in range(6):
            near, answers, _ = await stack.enter_async_context(socket_on())
            near._sock.connect((f"127.0.0.{n + 1}", far.address[1]))
            near.send_all([b"hello"])
            asked.append(answers)
            await until(lambda: len(came) > len(asked) - 1, "it")
        assert len(far._ways) == 3  # Those that were forgotten are answered by the usual one.
        for _, source in came:
            far.send_all([b"you", b"too"], source)
            far.send_all([b"alone"], source)
        await until(lambda: all(len(all_of(each)) == 3 for each in asked[3:]), "the answers")


@pytest.mark.skipif(sys.platform != "linux", reason="trains are Linux'")
def test_a_network_without_trains_gets_them_one_by_one(monkeypatch):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
    ):
        far.bind((HOST, 0))
        monkeypatch.setattr(trains, "_UDP_SEGMENT", 9999)
        sender = TrainSender(near, pytest.fail)
        for _ in range(trains.MAX_FAILURES):
            assert sender._trains
            sender.send_all([b"a" * 100] * 3, far.getsockname())
            assert [far.recv(200) for _ in range(3)] == [b"a" * 100] * 3
        assert not sender._trains
        # Networks of one peer alone may be at fault, who is not there for ever.
        for segment in (9999, 103):
            monkeypatch.setattr(trains, "_UDP_SEGMENT", segment)
            sender._again_at = 0.0
            sender.send_all([b"b" * 100] * 3, far.getsockname())
            assert [far.recv(200) for _ in range(3)] == [b"b" * 100] * 3
            assert sender._trains == (segment == 103)


@pytest.mark.skipif(sys.platform != "linux", reason="trains are Linux'")
def test_a_peer_that_cannot_be_sent_to_says_nothing_of_trains():
    """Anybody can write that he comes from port 0."""
    errors = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        sender = TrainSender(near, errors.append)
        for _ in range(2 * trains.MAX_FAILURES):
            sender.send_all([b"a" * 100] * 3, (HOST, 0))
        assert sender._trains
    assert {exc.errno for exc in errors} == {errno.EINVAL}


async def test_that_nobody_is_there_is_told(loop_kind):
    async with socket_on() as (gone, _, _):
        address = gone.address
    async with socket_on() as (near, answers, errors):
        near._sock.connect(address)

        def told():
            near.send_all([b"x", b"x"])
            return errors

        assert await until(told, "the system's word")
        assert isinstance(errors[0], ConnectionRefusedError)
        # It goes on when somebody is there again, although libuv stops to look after an error.
        again, came = bind_datagrams(*address[:2]), []
        far = TrainSocket(again, on_datagrams=lambda *args: came.append(args), on_error=pytest.fail)
        await far.attach()
        for count in range(1, 4):
            near.send_all([b"hello"])
            await until(lambda: len(came) == count, "it")  # noqa: B023  # awaited at once
            far.send_all([b"hello yourself"], came[-1][1])
            await until(lambda: len(answers) == count, "the answer")  # noqa: B023  # as above
        far.close()


async def test_a_reader_may_close_its_socket():
    async with socket_on() as (near, _, _), socket_on() as (far, _, _):
        sock = TrainSocket(
            bind_datagrams(HOST, 0), on_datagrams=lambda *_: sock.close(), on_error=pytest.fail
        )
        await sock.attach()
        target = sock.address
        near.send_all([b"1"], target)
        far.send_all([b"2"], target)
        await until(lambda: sock.closed, "the end")
        sock.send_all([b"late"], far.address)


async def test_both_families_come_to_the_address_of_all():
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    async with socket_on("0.0.0.0") as (far, came, _), socket_on() as (near, _, _):
        port = far.address[1]
        near.send_all([b"4"], (HOST, port))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
            try:
                six.sendto(b"6", ("::1", port))
            except OSError:
                pytest.skip("no IPv6 here")
            await until(lambda: len(all_of(came)) == 2, "the datagrams")
            # Answers find their way to both.
            for _, source in came:
                far.send_all([b"back"], source)
            assert await asyncio.get_running_loop().run_in_executor(None, six.recv, 10) == b"back"


async def test_where_the_loop_watches_no_sockets_it_reads_them_itself(loop_kind, monkeypatch):
    # Sockets without `recvmsg_into` are Windows', as loops without `add_reader` are.
    monkeypatch.setattr(trains, "hasattr", lambda *_: False, raising=False)
    async with socket_on() as (far, came, _), socket_on() as (near, _, _):
        near.send_all([b"one", b"two"], far.address)
        await until(lambda: len(all_of(came)) == 2, "the datagrams")
        assert all_of(came) == [b"one", b"two"]
        assert far._plain is not None


class Refusing:
    """A socket that takes nothing."""

    def __init__(self, exc):
        self.exc = exc

    def _fail(self, *_):
        raise self.exc

    send = sendto = sendmsg = _fail


@pytest.mark.parametrize("count", [1, 2])
def test_datagrams_that_the_kernel_has_no_room_for_are_lost(count):
    sender = TrainSender(Refusing(BlockingIOError()), pytest.fail)
    sender.send_all([b"x"] * count)
    sender.send_all([b"x"] * count, (HOST, 9))


@pytest.mark.parametrize("count", [1, 2])
def test_other_errors_are_told_once(count):
    errors = []
    sender = TrainSender(Refusing(OSError(errno.ENETUNREACH, "unreachable")), errors.append)
    sender.send_all([b"x"] * count)
    assert len(errors) == 1


class Narrow:
    """A socket on a network of 1500 bytes, and what it was told about cutting datagrams."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.told: list[tuple[int, int, int]] = []
        self.sent: list[bytes] = []
        self.said = 0

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.told.append((level, option, value))

    def fileno(self) -> int:
        return 3

    def sendmsg(self, parts, control) -> None:
        (train,), ((_, _, size),) = parts, control
        if int.from_bytes(size, sys.byteorder) > 1472:
            raise OSError(errno.EINVAL, "")
        self.sent.append(train)

    def send(self, data: bytes) -> None:
        if len(data) > 1472 or self.said:
            self.said = max(self.said - 1, 0)
            raise OSError(errno.EMSGSIZE, "")
        self.sent.append(data)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells datagrams not to be cut")
def test_what_is_too_large_to_go_whole_is_lost_alone():
    sock, errors = Narrow(), []
    sender = TrainSender(sock, errors.append, whole_above=1350)
    assert sender.largest > 16_000
    sender.send_all([b"a" * 1300, b"b" * 9000, b"c" * 20])
    sender.send_all([b"d" * 9000, b"d" * 9000, b"e" * 40])
    sender.send_all([b"f" * 1250])
    assert b"".join(sock.sent) == b"a" * 1300 + b"c" * 20 + b"e" * 40 + b"f" * 1250
    assert sock.told == [(socket.IPPROTO_IP, 10, 3), (socket.IPPROTO_IP, 10, 1)]
    sock.said = 1  # An ICMP message about an earlier one.
    sender.send_all([b"g" * 100])
    assert sock.sent[-1] == b"g" * 100
    assert errors == []
    assert TrainSender(sock, errors.append).largest == 0
