"""The client's side of SOCKS5, without I/O (RFC 1928, and RFC 1929 for user and password).

Source of what is offered: golib `net/dial_option.go`, `socks5ProxyAfterHook`, and Go's
`x/net/internal/socks`.
"""

from __future__ import annotations

from ipaddress import ip_address

from pyfrp.errors import LocalWireError, RemoteWireError
from pyfrp.wire.socks5 import VERSION

_AUTH_VERSION = 1
_NO_AUTH, _PASSWORD, _NO_METHOD = 0x00, 0x02, 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_ADDRESS_BYTES = {_IPV4: 4, _IPV6: 16}
MAX_FIELD_BYTES = 255
"""Longest user, password and name, in bytes."""


class SocksRefusal(RemoteWireError):
    """The proxy said no.

    Args:
        reason: For the log.
        code: Of its reply (RFC 1928, section 6); 0 when it did not come to one.
        method: Of the answer to the greeting, when that was the end; None otherwise.
        denied: Whether user or password were wrong.
    """

    def __init__(
        self, reason: str, *, code: int = 0, method: int | None = None, denied: bool = False
    ) -> None:
        self.code = code
        self.method = method
        self.denied = denied
        super().__init__(reason)


class SocksClient:
    """One request for a connection: bytes in, bytes out, until `done`.

    Args:
        host: A name, which is sent for the proxy to resolve, or an address.
        user: None without credentials; then none are offered.

    Attributes:
        done: The tunnel is made; `leftover` is the first of it.

    Raises:
        LocalWireError: for a host, user or password that does not fit.
    """

    def __init__(self, host: str, port: int, user: str | None = None, password: str = "") -> None:
        self.done = False
        self._target = _address(host) + port.to_bytes(2, "big")
        self._credentials = b""
        if user is not None:
            pair = (user.encode(), password.encode())
            # The RFC wants a password, too; Go and curl send an empty one.
            if not pair[0] or not all(len(text) <= MAX_FIELD_BYTES for text in pair):
                raise LocalWireError(
                    f"user and password of a SOCKS5 proxy have at most {MAX_FIELD_BYTES} bytes "
                    "each, and the user is not empty"
                )
            self._credentials = bytes((_AUTH_VERSION,)) + b"".join(
                bytes((len(text),)) + text for text in pair
            )
        self._data = bytearray()
        self._step = self._method

    def greeting(self) -> bytes:
        """What to send first."""
        methods = (_NO_AUTH, _PASSWORD) if self._credentials else (_NO_AUTH,)
        return bytes((VERSION, len(methods), *methods))

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the proxy.

        Returns:
            What to send.

        Raises:
            SocksRefusal: when it says no.
            RemoteWireError: for what is not SOCKS5.
        """
        self._data += data
        out = b""
        while not self.done:
            answer = self._step()
            if answer is None:
                break
            out += answer
        return out

    def leftover(self) -> bytes:
        """What came after the reply."""
        return bytes(self._data)

    def _method(self) -> bytes | None:
        data = self._data
        if data and data[0] != VERSION:
            raise RemoteWireError("it is not SOCKS5")
        if len(data) < 2:
            return None
        method = self._take(2)[1]
        if method == _NO_AUTH:
            self._step = self._reply
            return self._request()
        if method == _PASSWORD and self._credentials:
            self._step = self._verdict
            return self._credentials
        if method == _NO_METHOD:
            raise SocksRefusal("no acceptable way to authenticate", method=method)
        raise SocksRefusal(f"it asks for method {method}, which was not offered", method=method)

    def _verdict(self) -> bytes | None:
        data = self._data
        # The version is 1 by the RFC; some send that of SOCKS, and curl takes both.
        if data and data[0] not in (_AUTH_VERSION, VERSION):
            raise RemoteWireError("its answer to user and password is not that of SOCKS5")
        if len(data) < 2:
            return None
        if self._take(2)[1]:
            raise SocksRefusal("wrong user or password", denied=True)
        self._step = self._reply
        return self._request()

    def _request(self) -> bytes:
        return bytes((VERSION, _CONNECT, 0)) + self._target

    def _reply(self) -> bytes | None:
        data = self._data
        if data and data[0] != VERSION:
            raise RemoteWireError("its reply is not that of SOCKS5")
        # Some send a refusal without the address that belongs to it.
        if len(data) >= 2 and data[1]:
            raise SocksRefusal(f"reply {data[1]}", code=data[1])
        if len(data) < 5:
            return None
        kind = data[3]
        size = 1 + data[4] if kind == _NAME else _ADDRESS_BYTES.get(kind)
        if size is None:
            raise RemoteWireError("its reply is not that of SOCKS5")
        if len(data) < 4 + size + 2:
            return None
        self._take(4 + size + 2)
        self.done = True
        return b""

    def _take(self, size: int) -> bytes:
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken


def _address(host: str) -> bytes:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return bytes((_IPV4 if address.version == 4 else _IPV6,)) + address.packed
    try:
        name = host.encode() if host.isascii() else host.encode("idna")
    except UnicodeError:
        name = b""
    if not 0 < len(name) <= MAX_FIELD_BYTES:
        raise LocalWireError(f"a SOCKS5 proxy takes names of 1 to {MAX_FIELD_BYTES} bytes")
    return bytes((_NAME, len(name))) + name
