"""Frames of wire v2 and the handshake of its control connection.

The messages are those of v1; what is new is the frame around them, the hellos before the login,
and the encryption after it (see `v2crypto`).

Source: frp `pkg/proto/wire` and `pkg/msg` of 0.70.
"""

from __future__ import annotations

import struct

from pyfrp.errors import BadMessage, FrameTooLarge, LocalWireError, RefusedError, RemoteWireError
from pyfrp.wire import messages as m
from pyfrp.wire.gojson import Record, decode_body, each, encode_body, wire
from pyfrp.wire.version import MAGIC, Hello, Version

MAX_PAYLOAD = 65536
MAX_HELLO = 8192
"""Longest hello that we read. Those of frp have 300 bytes, and nobody has logged in yet."""

CLIENT_HELLO, SERVER_HELLO, MESSAGE = 1, 2, 16
"""Types of frames."""

ALGORITHMS = ("aes-256-gcm", "xchacha20-poly1305")
RANDOM_SIZE = 32

_HEADER = struct.Struct(">HHI")
_ID = struct.Struct(">H")
_HEADER_AND_ID = struct.Struct(">HHIH")

CLASSES: dict[int, type[m.Message]] = {
    1: m.Login,
    2: m.LoginResp,
    3: m.NewProxy,
    4: m.NewProxyResp,
    5: m.CloseProxy,
    6: m.NewWorkConn,
    7: m.ReqWorkConn,
    8: m.StartWorkConn,
    9: m.NewVisitorConn,
    10: m.NewVisitorConnResp,
    11: m.Ping,
    12: m.Pong,
    13: m.UDPPacket,
    14: m.NatHoleVisitor,
    15: m.NatHoleClient,
    16: m.NatHoleResp,
    17: m.NatHoleSid,
    18: m.NatHoleReport,
}
IDS: dict[type[m.Message], int] = {cls: number for number, cls in CLASSES.items()}


# --- hellos ------------------------------------------------------------------------------------


class Bootstrap(Record):
    """What carries the connection; for information only."""

    transport: str = ""
    tls: bool = False
    tcp_mux: bool = wire("tcpMux", default=False)


class MessageCapabilities(Record):
    """How message bodies may be written."""

    codecs: list[str] = each(factory=list)


class CryptoCapabilities(Record):
    """Ciphers the client has, best first, and its part of the keys' salt."""

    algorithms: list[str] = each(factory=list)
    client_random: bytes = wire("clientRandom", default=b"")


class Capabilities(Record):
    """What the client can do."""

    message: MessageCapabilities = each(factory=MessageCapabilities)
    crypto: CryptoCapabilities = each(factory=CryptoCapabilities)


class ClientHello(Record):
    """First frame of a control connection."""

    bootstrap: Bootstrap = each(factory=Bootstrap)
    capabilities: Capabilities = each(factory=Capabilities)


class MessageSelection(Record):
    """How message bodies will be written."""

    codec: str = ""


class CryptoSelection(Record):
    """The cipher chosen, and the server's part of the keys' salt."""

    algorithm: str = ""
    server_random: bytes = wire("serverRandom", default=b"")


class Selection(Record):
    """What the server chose."""

    message: MessageSelection = each(factory=MessageSelection)
    crypto: CryptoSelection = each(factory=CryptoSelection)


class ServerHello(Record):
    """Answer to `ClientHello`; with an `error` the connection ends."""

    selected: Selection = each(factory=Selection)
    error: str = ""


def client_hello(
    random: bytes, *, transport: str, tls: bool, tcp_mux: bool, algorithms: tuple[str, ...]
) -> ClientHello:
    """Make the client's hello.

    Args:
        random: 32 random bytes.
        transport: `transport.protocol`.
        tls: Whether TLS is used.
        tcp_mux: `transport.tcpMux`.
        algorithms: Some of `ALGORITHMS`, best first.
    """
    return ClientHello(
        bootstrap=Bootstrap(transport=transport, tls=tls, tcp_mux=tcp_mux),
        capabilities=Capabilities(
            message=MessageCapabilities(codecs=["json"]),
            crypto=CryptoCapabilities(algorithms=list(algorithms), client_random=random),
        ),
    )


def server_hello(hello: ClientHello, random: bytes) -> ServerHello:
    """Choose from a client's hello: the first of its algorithms that we have.

    Args:
        hello: What the client offers.
        random: 32 random bytes.

    Raises:
        RefusedError: Nothing fits. Send `refusal(str(error))` and close.
    """
    offered = hello.capabilities
    if "json" not in offered.message.codecs:
        raise RefusedError("unsupported message codec")
    size = len(offered.crypto.client_random)
    if size != RANDOM_SIZE:
        raise RefusedError(f"invalid crypto client random length {size}, want {RANDOM_SIZE}")
    for algorithm in offered.crypto.algorithms:
        if algorithm in ALGORITHMS:
            crypto = CryptoSelection(algorithm=algorithm, server_random=random)
            return ServerHello(
                selected=Selection(message=MessageSelection(codec="json"), crypto=crypto)
            )
    raise RefusedError("no supported crypto algorithm")


def refusal(error: str) -> ServerHello:
    """Make the hello that turns a client away."""
    return ServerHello(selected=Selection(message=MessageSelection(codec="json")), error=error)


def check_server_hello(hello: ServerHello, ours: ClientHello) -> str:
    """Return the algorithm that a server chose from our hello.

    Raises:
        RefusedError: The server turned us away; the text is its own.
        RemoteWireError: It chose what was not offered.
    """
    if hello.error:
        raise RefusedError(hello.error)
    selected = hello.selected
    if selected.message.codec != "json":
        raise RemoteWireError("the server chose a message codec that was not offered")
    if selected.crypto.algorithm not in ours.capabilities.crypto.algorithms:
        raise RemoteWireError("the server chose a cipher that was not offered")
    if len(selected.crypto.server_random) != RANDOM_SIZE:
        raise RemoteWireError("the server's random has a wrong length")
    return selected.crypto.algorithm


# --- frames ------------------------------------------------------------------------------------


def encode_frame(kind: int, payload: bytes) -> bytes:
    """Write a frame.

    Raises:
        LocalWireError: The payload is longer than a peer reads.
    """
    if len(payload) > MAX_PAYLOAD:
        raise LocalWireError(f"payload of {len(payload)} bytes: a peer reads {MAX_PAYLOAD}")
    return _HEADER.pack(kind, 0, len(payload)) + payload


def encode(msg: m.Message) -> bytes:
    """Write a message, or a hello, as a whole frame.

    Raises:
        LocalWireError: It is longer than a peer reads.
    """
    if isinstance(msg, Hello):
        return encode_frame(msg.kind, msg.payload)
    return frame(type(msg), encode_body(msg))


def frame(cls: type[m.Message], body: bytes) -> bytes:
    """Put header and id on the body of a message of class `cls`. Raises as `encode`."""
    size = len(body) + _ID.size
    if size > MAX_PAYLOAD:
        raise LocalWireError(
            f"{cls.__name__} of {len(body)} bytes: a peer accepts at most {MAX_PAYLOAD - _ID.size}"
        )
    return _HEADER_AND_ID.pack(MESSAGE, 0, size, IDS[cls]) + body


def decode_message(payload: bytes) -> m.Message:
    """Read the payload of a MESSAGE frame.

    Raises:
        BadMessage: An unknown message id or a bad body.
    """
    if len(payload) < _ID.size:
        raise BadMessage("message frame without a message id")
    (number,) = _ID.unpack_from(payload)
    cls = CLASSES.get(number)
    if cls is None:
        raise BadMessage(f"unknown message id {number}")
    return decode_body(cls, payload[_ID.size :])


class FrameDecoder:
    """Cuts the bytes of one direction, after the magic, into frames.

    Used as `framing.FrameDecoder`. Payloads come as they are, because the hellos' exact bytes
    enter the keys: read them with `decode_message`, or `gojson.decode_body` and the hello's class.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._held += data

    def next(self) -> tuple[int, bytes] | None:
        """Return type and payload of the next frame, or None when it is not all there.

        Raises:
            BadMessage: An unknown type of frame, or flags.
            FrameTooLarge: A payload beyond `MAX_PAYLOAD`, or a hello beyond `MAX_HELLO`.
        """
        held = self._held
        if len(held) < _HEADER.size:
            return None
        kind, flags, length = _HEADER.unpack_from(held)
        if kind not in (CLIENT_HELLO, SERVER_HELLO, MESSAGE):
            raise BadMessage(f"unknown type of frame {kind}")
        if flags:
            raise BadMessage(f"frame with flags 0x{flags:04x}")
        if length > (MAX_PAYLOAD if kind == MESSAGE else MAX_HELLO):
            raise FrameTooLarge(f"frame announces a payload of {length} bytes")
        end = _HEADER.size + length
        if len(held) < end:
            return None
        payload = bytes(held[_HEADER.size : end])
        del held[:end]
        return kind, payload

    def leftover(self) -> bytes:
        """Take the bytes after the last frame returned; the decoder is empty then."""
        rest = bytes(self._held)
        self._held = bytearray()
        return rest


class MessageDecoder:
    """Cuts the bytes of one direction, after the magic, into messages.

    Used as `framing.FrameDecoder`. A hello may come first, and never again.
    """

    __slots__ = ("_begun", "_frames")

    def __init__(self) -> None:
        self._frames = FrameDecoder()
        self._begun = False

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._frames.feed(data)

    def next(self) -> m.Message | None:
        """Return the next message, or None when its bytes are not all there.

        Raises:
            BadMessage: A frame that is none, or a message that is none, or a hello too late.
            FrameTooLarge: A payload longer than allowed.
        """
        found = self._frames.next()
        if found is None:
            return None
        kind, payload = found
        if kind == MESSAGE:
            self._begun = True
            return decode_message(payload)
        if self._begun:
            raise BadMessage("a hello where a message should be")
        self._begun = True
        return Hello(kind=kind, payload=payload)

    def leftover(self) -> bytes:
        """Take the bytes after the last message returned; the decoder is empty then."""
        return self._frames.leftover()


V2 = Version("v2", MAGIC, encode, frame, MessageDecoder)
