"""The server's side of SOCKS5, without I/O (RFC 1928, and RFC 1929 for user and password)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import ClassVar

from pyfrp.errors import RemoteWireError

VERSION = 5
_AUTH_VERSION = 1
_NO_AUTH, _PASSWORD, _NO_METHOD = 0x00, 0x02, 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_ADDRESS_BYTES = {_IPV4: 4, _IPV6: 16}


class Reply:
    """The reply codes of RFC 1928, section 6, that are used here."""

    SUCCEEDED: ClassVar[int] = 0
    NETWORK_UNREACHABLE: ClassVar[int] = 3
    HOST_UNREACHABLE: ClassVar[int] = 4
    REFUSED: ClassVar[int] = 5
    NO_SUCH_COMMAND: ClassVar[int] = 7
    NO_SUCH_ADDRESS_TYPE: ClassVar[int] = 8


class Socks5Error(RemoteWireError):
    """A handshake that ends here.

    Args:
        reason: For the log; it holds nothing of the caller's credentials.
        answer: What to send before the connection is closed; may be empty.
        denied: Whether the credentials were wrong, so that guessing can be slowed down.
    """

    def __init__(self, reason: str, answer: bytes = b"", *, denied: bool = False) -> None:
        self.answer = answer
        self.denied = denied
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a caller wants to go: an address or a name, and a port."""

    host: str
    port: int


class Handshake:
    """One caller's handshake: bytes in, bytes out, until `target` is known.

    A message is at most 513 bytes, and only unread ones are kept, apart from what a caller sends
    ahead; that is for the target.

    Args:
        username, password: What a caller must pass; both empty: callers pass nothing, and those
            that offer only credentials are refused, as frp does.

    Attributes:
        target: Set once the request is read; answer it with `reply`.
    """

    def __init__(self, username: str, password: str) -> None:
        self.target: Target | None = None
        self._user = username.encode()
        self._password = password.encode()
        self._method = _PASSWORD if username or password else _NO_AUTH
        self._step = self._greeting
        self._data = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the caller.

        Returns:
            What to send.

        Raises:
            Socks5Error: when this ends here; send its `answer` after what was returned before.
        """
        self._data += data
        out = b""
        while self.target is None:
            try:
                answer = self._step()
            except Socks5Error as exc:
                exc.answer = out + exc.answer
                raise
            if answer is None:
                break
            out += answer
        return out

    def leftover(self) -> bytes:
        """What came after the request."""
        return bytes(self._data)

    def _greeting(self) -> bytes | None:
        data = self._data
        self._check_version(VERSION, "SOCKS")
        if len(data) < 2 or len(data) < 2 + data[1]:
            return None
        offered = self._take(2 + data[1])[2:]
        if self._method not in offered:
            raise Socks5Error(
                "the caller offers no user and password"
                if self._method == _PASSWORD
                else "the caller offers only ways to authenticate, and none is asked for",
                bytes((VERSION, _NO_METHOD)),
            )
        self._step = self._credentials if self._method == _PASSWORD else self._request
        return bytes((VERSION, self._method))

    def _credentials(self) -> bytes | None:
        data = self._data
        self._check_version(_AUTH_VERSION, "the authentication")
        if len(data) < 2 or len(data) < 3 + data[1]:
            return None
        split = 2 + data[1]
        if len(data) < split + 1 + data[split]:
            return None
        whole = self._take(split + 1 + data[split])
        # Both are compared, so that the time does not tell which one was wrong.
        good = hmac.compare_digest(whole[2:split], self._user)
        if not hmac.compare_digest(whole[split + 1 :], self._password) or not good:
            raise Socks5Error("wrong user or password", bytes((_AUTH_VERSION, 0x01)), denied=True)
        self._step = self._request
        return bytes((_AUTH_VERSION, 0x00))

    def _request(self) -> bytes | None:
        data = self._data
        self._check_version(VERSION, "SOCKS")
        if len(data) < 5:
            return None
        command, kind = data[1], data[3]
        start = 5 if kind == _NAME else 4
        size = data[4] if kind == _NAME else _ADDRESS_BYTES.get(kind)
        if size is None:
            raise Socks5Error(f"unknown address type {kind}", reply(Reply.NO_SUCH_ADDRESS_TYPE))
        if len(data) < start + size + 2:
            return None
        whole = self._take(start + size + 2)
        if command != _CONNECT:
            raise Socks5Error(
                f"command {command}; only CONNECT is served", reply(Reply.NO_SUCH_COMMAND)
            )
        port = int.from_bytes(whole[-2:], "big")
        self.target = Target(_read_host(kind, whole[start:-2]), port)
        return b""

    def _check_version(self, wanted: int, of: str) -> None:
        if self._data and self._data[0] != wanted:
            raise Socks5Error(f"version {self._data[0]} of {of}; only {wanted} is served")

    def _take(self, size: int) -> bytes:
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken


def _read_host(kind: int, field: bytes) -> str:
    if kind == _IPV4:
        return str(IPv4Address(field))
    if kind == _IPV6:
        return str(IPv6Address(field))
    # A name goes to the resolver and into the log: only what a host name may be made of.
    if not field or not field.isascii() or not all(0x21 <= byte <= 0x7E for byte in field):
        raise Socks5Error(
            "the name of the target is not a host name", reply(Reply.HOST_UNREACHABLE)
        )
    return field.decode("ascii")


def reply(code: int, address: tuple[str, int] = ("", 0)) -> bytes:
    """The answer to a request.

    Args:
        code: One of `Reply`.
        address: Ours of the connection to the target; zeros where there is none.
    """
    host, port = address
    bound = ip_address(host.partition("%")[0]) if host else IPv4Address(0)
    kind = _IPV4 if bound.version == 4 else _IPV6
    return bytes((VERSION, code, 0, kind)) + bound.packed + port.to_bytes(2, "big")
