"""A UDP relay that loses datagrams, to stand between a client and its server."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

HOST = "127.0.0.1"
BUFFER = 4 * 1024 * 1024


class LossyRelay:
    """Passes datagrams between the clients that come to `port` and the loopback port `target`.

    Attributes:
        loss: The share of datagrams that is lost, each way.
        passed, lost: How many were.
        record: What clients sent, once it is a list.
        far: The sockets to the server, by client.
    """

    def __init__(self, target: int, *, loss: float, seed: int) -> None:
        self.loss = loss
        self.passed = self.lost = 0
        self.record: list[bytes] | None = None
        self._target = target
        self._dice = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._near = self._socket()
        self._near.bind((HOST, 0))
        self.port = int(self._near.getsockname()[1])
        self.far: dict[Any, socket.socket] = {}
        self._loop.add_reader(self._near, self._from_clients)

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        return sock

    def _from_clients(self) -> None:
        for _ in range(64):
            try:
                data, client = self._near.recvfrom(65536)
            except OSError:
                return
            far = self.far.get(client)
            if far is None:
                far = self.far[client] = self._socket()
                far.connect((HOST, self._target))
                self._loop.add_reader(far, self._from_server, far, client)
            if self.record is not None:
                self.record.append(data)
            self._pass(far.send, data)

    def _from_server(self, far: socket.socket, client: Any) -> None:
        for _ in range(64):
            try:
                data = far.recv(65536)
            except OSError:
                return
            self._pass(self._near.sendto, data, client)

    def _pass(self, send: Any, *what: Any) -> None:
        if self._dice.random() < self.loss:
            self.lost += 1
            return
        self.passed += 1
        try:
            send(*what)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        for sock in (self._near, *self.far.values()):
            self._loop.remove_reader(sock)
            sock.close()


@asynccontextmanager
async def losing(target: int, *, loss: float, seed: int = 1) -> AsyncIterator[LossyRelay]:
    """A running relay to loopback `target`."""
    relay = LossyRelay(target, loss=loss, seed=seed)
    try:
        yield relay
    finally:
        relay.close()
