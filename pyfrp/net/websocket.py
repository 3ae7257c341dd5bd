"""frp's websocket on any endpoint, itself an endpoint.

What is written in one call leaves as one binary frame; a mux above writes once in a turn of the
loop. What comes is a stream of bytes, whatever its frames.
"""

from __future__ import annotations

import asyncio
import os

from pyfrp.errors import BadHead, HandshakeError, PeerClosed, RemoteWireError
from pyfrp.net.byteconn import ByteConn
from pyfrp.net.endpoint import Endpoint, OnLink, Pieces, ViewReader, writer_of_pieces
from pyfrp.wire import websocket as wire

# A refused client gets so long to read why.
REFUSAL_S = 1.0
# After a close, for some of what is pending to leave: a peer that does not read would have it, and
# the connection, kept for ever. A thin link may take its time.
LINGER_S = 10.0

_HTTP = b"HTTP/1."
_NORMAL = (1000).to_bytes(2, "big")  # RFC 6455, 7.4.1; also below.
_BROKEN = (1002).to_bytes(2, "big")


class WebSocketEndpoint(OnLink, ViewReader):
    """A websocket after its handshake: protocol towards the link, transport towards its reader.

    Paused until `resume_reading`. There is no half-close: a close frame ends both directions, and
    a connection that ends without one was cut.

    Args:
        link: A connected endpoint, paused; this becomes its protocol.
        client: Whether we mask, or the peer does.
        early: Bytes already read from the link, from the first frame on.
    """

    def __init__(self, link: Endpoint, *, client: bool, early: bytes = b"") -> None:
        self._link = link
        self._client = client
        self._decoder = wire.FrameDecoder(masked=not client)
        self._protocol: asyncio.Protocol = asyncio.Protocol()
        self._held = early  # What came while nobody read.
        self._paused = True
        self._full = False  # The link takes no more for now.
        self._ended = False
        self._closing = False
        self._lost = False
        self._cause: Exception | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._write_pieces = writer_of_pieces(link)
        link.set_protocol(self)

    # -- Endpoint ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]  # readers of bytes, by contract

    def write(self, data: bytes) -> None:
        if data and not self._closing:
            self._send(wire.BINARY, data)

    def writelines(self, pieces: Pieces) -> None:
        """Send pieces as one frame."""
        if not self._closing:
            mask = os.urandom(4) if self._client else b""
            self._write_pieces(wire.encode_pieces(pieces, mask=mask))

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("a websocket cannot be half-closed")

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            self._link.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused or self._closing:
            return
        self._paused = False
        if self._held:
            held, self._held = self._held, b""
            self._take(held)
        elif self._decoder.closed is not None:
            self._end()
        if not self._paused and not self._closing:
            self._link.resume_reading()

    def close(self) -> None:
        """Send what is pending and a close frame, then close; as Go's, it waits for no answer."""
        if not self._closing:
            self._end_link(_NORMAL)

    def abort(self) -> None:
        self._closing = True
        self._link.abort()

    # -- Protocol of the link ------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview) -> None:
        if self._closing:
            return
        if self._paused:
            self._held += data  # A link that was just paused may have had these under way.
        else:
            self._take(data)

    def eof_received(self) -> bool:
        if self._decoder.closed is None and not self._closing:
            self._cause = PeerClosed("the peer closed the connection without ending the websocket")
            self._closing = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        if self._linger is not None:
            self._linger.cancel()
        self._protocol.connection_lost(exc or self._cause)

    def pause_writing(self) -> None:
        self._full = True
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._full = False
        self._protocol.resume_writing()

    # -- within --------------------------------------------------------------------------------

    def _send(self, opcode: int, data: bytes) -> None:
        mask = os.urandom(4) if self._client else b""
        self._link.write(wire.encode_frame(data, opcode=opcode, mask=mask))

    def _take(self, data: bytes | memoryview) -> None:
        decoder = self._decoder
        try:
            plain = decoder.decode(data)
        except RemoteWireError as exc:
            self._cause = exc
            self._end_link(_BROKEN)
            return
        if plain:
            self._protocol.data_received(plain)
        if decoder.ping is not None:
            self._answer(decoder.take_ping())
        if decoder.closed is not None and not self._paused:
            self._end()

    def _answer(self, ping: bytes) -> None:
        # A peer that asks and does not read the answers gets none.
        if not self._full and not self._closing:
            self._send(wire.PONG, ping)

    def _end(self) -> None:
        """The peer sent its close frame, and all before it was read."""
        if self._ended or self._closing:
            return
        self._ended = True
        if not self._protocol.eof_received():
            self.close()

    def _end_link(self, code: bytes) -> None:
        self._send(wire.CLOSE, code)
        self._closing = True
        self._wait(self._link.get_write_buffer_size())
        self._link.close()

    def _wait(self, pending: int) -> None:
        if pending:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(LINGER_S, self._look, pending)

    def _look(self, pending: int) -> None:
        left = self._link.get_write_buffer_size()
        if left < pending:
            self._wait(left)
        else:
            self._link.abort()


async def connect(link: Endpoint, host: str, *, early: bytes = b"") -> WebSocketEndpoint:
    """Do the client's side of the handshake on `link`; return the websocket, paused.

    Runs under the caller's deadline; the link is aborted when that, or anything else, ends it
    early.

    Args:
        link: A paused endpoint.
        host: For the header of that name.
        early: Bytes already read from the link.

    Raises:
        HandshakeError: with who answers what in place of a websocket, and what to try.
    """
    key = wire.new_key()
    conn = ByteConn(link, early=early)
    try:
        conn.write(wire.encode_request(host, key))
        while (end := wire.head_end(data := bytes(conn.buffer))) is None:
            if data and not _HTTP.startswith(data[: len(_HTTP)]):
                wire.check_response(data, key)
            if not await conn.more():
                raise HandshakeError(
                    "the server closed the connection at the websocket handshake; "
                    f"is it an frp server, or does it pass {wire.PATH} on to one?",
                    unanswered=True,
                )
        wire.check_response(conn.take(end), key)
        link, early = conn.detach()
    except BadHead as exc:
        conn.abort()
        raise HandshakeError("the answer to the websocket handshake is too long") from exc
    except BaseException:
        conn.abort()
        raise
    return WebSocketEndpoint(link, client=True, early=early)


async def accept(link: Endpoint, *, early: bytes = b"") -> WebSocketEndpoint:
    """Do the server's side of the handshake on `link`; return the websocket, paused.

    Who does not ask for frp's websocket is told so in HTTP. Otherwise as `connect`.

    Raises:
        HandshakeError: with what is wrong with the request.
        PeerClosed: when it did not come.
    """
    conn = ByteConn(link, early=early)
    try:
        while (end := wire.head_end(bytes(conn.buffer))) is None:
            if not await conn.more():
                raise PeerClosed("the peer closed the connection at the websocket handshake")
        key = wire.decode_request(conn.take(end))
        conn.write(wire.encode_response(key))
        link, early = conn.detach()
    except BadHead as exc:
        conn.write(wire.encode_refusal(exc.status, str(exc)))
        await conn.finish(REFUSAL_S)
        raise HandshakeError(str(exc)) from exc
    except BaseException:
        conn.abort()
        raise
    return WebSocketEndpoint(link, client=False, early=early)
