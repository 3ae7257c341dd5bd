"""TLS over any endpoint, itself an endpoint.

Our own `SSLObject` over memory BIOs instead of the loop's TLS: one implementation on every loop,
bytes that were read before TLS was recognised can be replayed, reads go into one shared buffer, and
everything written in one call becomes as few records as possible.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from pyfrp.errors import CertificateError, HandshakeError
from pyfrp.net.endpoint import Endpoint, OnLink, Pieces, ViewReader
from pyfrp.net.peercert import issuer_of, shown_certificate

RECORD = 16 * 1024  # The most plaintext a TLS record holds (RFC 8446, 5.1).
# Two buffers for all connections of a process, what is read and what it says: both are filled and
# emptied within one callback. By `make bench`, rows down and up, half of this costs a tenth more.
_READ_SIZE = 128 * 1024
_read_buffer = memoryview(bytearray(_READ_SIZE))
_plain = memoryview(bytearray(_READ_SIZE))
# Answers to key updates, of 27 bytes each, that may wait for the peer to read. An honest one asks
# once in many gigabytes.
_UNREAD_LIMIT = 64 * 1024

ReadInto = Callable[[int, memoryview], int]


class TlsEndpoint(OnLink, asyncio.BufferedProtocol):
    """A TLS connection on an endpoint: protocol towards it, transport towards its reader.

    `handshaken` is a future that settles when the handshake is done, with HandshakeError when it
    failed. Writes before that are an error of the caller.

    A TLS connection cannot be half-closed by us: `can_write_eof` is False, as Go peers end both
    directions when either ends.

    Args:
        link: A connected endpoint; this becomes its protocol.
        context: Client or server context.
        server_side: Which part to play.
        server_name: SNI and the name to verify, client side.
        early: Bytes already read from the link that belong to the handshake.
    """

    def __init__(
        self,
        link: Endpoint,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
        early: bytes = b"",
    ) -> None:
        self._link = link
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self.set_protocol(asyncio.Protocol())
        self._paused = False
        self._ended = False
        self._closing = False
        self._lost = False
        self._ready = False
        self._stop: ssl.SSLError | None = None  # The peer's end, or the failure, met while reading.
        self._unread = 0  # Bytes of answers since the link last had nothing to send.
        self._cause: HandshakeError | None = None
        self.handshaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A failure that nobody awaits any more (the dialler gave up) is not worth a warning.
        self.handshaken.add_done_callback(lambda done: done.cancelled() or done.exception())
        link.set_protocol(self)
        if early:
            self._incoming.write(early)
        if early or not server_side:
            self._shake()

    # -- Endpoint ------------------------------------------------------------------------------

    KEEPS_NOTHING = True  # It is in records, or refused.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._read = protocol.data_received  # type: ignore[attr-defined]  # readers of bytes
        self._lends = isinstance(protocol, ViewReader)

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as exc:
            self._fail(HandshakeError(f"TLS failed: {exc.reason or exc}"))
            return
        self._link.write(self._outgoing.read())

    def writelines(self, pieces: Pieces) -> None:
        """Write pieces in turn, each in records of its own; they leave together."""
        if self._closing:
            return
        try:
            for piece in pieces:
                self._tls.write(piece)
        except ssl.SSLError as exc:
            self._fail(HandshakeError(f"TLS failed: {exc.reason or exc}"))
            return
        self._link.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("a TLS connection cannot be half-closed")

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            self._link.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused:
            return
        self._paused = False
        self._deliver()
        if not self._paused and not self._closing:
            self._link.resume_reading()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # Wants the peer's close_notify, which nobody waits for; ours is queued.
        rest = self._outgoing.read()
        if rest:
            self._link.write(rest)
        self._link.close()

    def abort(self) -> None:
        self._closing = True
        self._link.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        return super().get_extra_info(name, default)

    # -- Protocol of the link ------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._incoming.write(_read_buffer[:nbytes])
        if self._ready:
            self._deliver()
        else:
            self._shake()

    def data_received(self, data: bytes) -> None:
        """For links that deliver bytes instead of filling a buffer, such as mux streams."""
        self._incoming.write(data)
        if self._ready:
            self._deliver()
        else:
            self._shake()

    def eof_received(self) -> bool:
        if not self._ready:
            words = "the peer closed the connection during the TLS handshake"
            self._fail(HandshakeError(words, unanswered=True))
        elif not self._ended:
            # Whoever can send a FIN could truncate what is read here (RFC 8446, 6.1).
            self._fail(HandshakeError("the peer closed the connection without ending TLS"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        if not self.handshaken.done():
            cause = f": {exc}" if exc else ""
            self.handshaken.set_exception(
                HandshakeError(
                    f"the connection was lost during the TLS handshake{cause}", unanswered=True
                )
            )
        if self._ready:
            self._protocol.connection_lost(exc or self._cause)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # -- within --------------------------------------------------------------------------------

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLCertVerificationError as exc:
            self._send()  # The alert that tells the peer why.
            self._fail(CertificateError(untrusted(exc, shown_certificate(self._tls))), exc)
            return
        except ssl.SSLError as exc:
            self._send()
            self._fail(HandshakeError(explain(exc)), exc)
            return
        self._send()
        self._ready = True
        if not self.handshaken.done():
            self.handshaken.set_result(None)
        # The reader is set by whoever awaits `handshaken`; until then nothing may be delivered.
        self.pause_reading()

    def _send(self) -> None:
        data = self._outgoing.read()
        if data:
            self._link.write(data)

    def _deliver(self) -> None:
        read: ReadInto = self._tls.read  # type: ignore[assignment]  # typeshed: no buffers
        incoming = self._incoming
        try:
            # `read` takes a whole record each time, so an empty BIO means there is nothing left.
            while incoming.pending and not self._paused and not self._closing:
                size = read(RECORD, _plain)
                if not size:
                    self._stop = ssl.SSLZeroReturnError()
                    break
                if incoming.pending:
                    size = self._read_rest(size)
                data = _plain[:size]
                self._read(data if self._lends and size > RECORD else data.tobytes())
        except ssl.SSLWantReadError:
            pass  # The rest of a record is on its way.
        except ssl.SSLError as exc:
            self._stop = exc
        if self._outgoing.pending:
            self._answer()
        if self._stop is not None and not self._paused:
            if isinstance(self._stop, ssl.SSLZeroReturnError):
                self._end()
            else:
                self._fail(HandshakeError(explain(self._stop)))

    def _answer(self) -> None:
        """Send what TLS itself answers, to key updates, if the peer reads that."""
        data = self._outgoing.read()
        if not self._link.get_write_buffer_size():
            self._unread = 0
        self._unread += len(data)
        if self._unread <= _UNREAD_LIMIT:
            self._link.write(data)
        elif not self._closing:
            self._cause = HandshakeError("the peer asks for new keys and does not read the answers")
            self.abort()

    def _read_rest(self, size: int) -> int:
        """Read what else is at hand behind `size` bytes; one piece means fewer calls upwards."""
        read: ReadInto = self._tls.read  # type: ignore[assignment]  # typeshed: no buffers
        incoming = self._incoming
        try:
            while incoming.pending and size <= _READ_SIZE - RECORD:
                more = read(RECORD, _plain[size:])
                if not more:
                    self._stop = ssl.SSLZeroReturnError()
                    break
                size += more
        except ssl.SSLWantReadError:
            pass  # The rest of a record is on its way.
        except ssl.SSLError as exc:
            self._stop = exc  # Told after these have been delivered.
        return size

    def _end(self) -> None:
        if self._ended or self._closing:
            return
        self._ended = True
        keep = isinstance(self._protocol, asyncio.Protocol) and self._protocol.eof_received()
        if not keep:
            self.close()

    def _fail(self, exc: HandshakeError, cause: ssl.SSLError | None = None) -> None:
        if self._closing:
            return
        exc.__cause__ = cause
        if not self.handshaken.done():
            self.handshaken.set_exception(exc)
        self._closing = True
        self._cause = exc
        if self._link.get_write_buffer_size():
            self._link.close()
        else:
            self._link.abort()


def untrusted(exc: ssl.SSLCertVerificationError, shown: bytes | None) -> str:
    """As `explain`, for a certificate that failed verification."""
    by = f" (it was issued by {issuer_of(shown)})" if shown else ""
    return (
        f"the peer's certificate is not trusted: {exc.verify_message}{by}; "
        "check transport.tls.trustedCaFile and transport.tls.serverName"
    )


def explain(exc: ssl.SSLError) -> str:
    """What an operator can make of a TLS failure, in one sentence."""
    reason = (exc.reason or str(exc)).replace("_", " ").lower()
    if "wrong version number" in reason or "http request" in reason:
        return "the peer does not speak TLS on this port"
    if "certificate required" in reason or "peer did not return a certificate" in reason:
        return (
            "a client certificate is required; "
            "set transport.tls.certFile and transport.tls.keyFile on the client"
        )
    return f"TLS handshake failed: {reason}"


async def upgrade(
    link: Endpoint,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_name: str | None = None,
    early: bytes = b"",
) -> TlsEndpoint:
    """Do the TLS handshake on `link` and return the TLS endpoint, paused.

    The caller sets its protocol, then calls `resume_reading`. Runs under the caller's deadline; the
    link is aborted when that, or anything else, ends it early.

    Raises:
        HandshakeError: with the reason in words.
    """
    tls = TlsEndpoint(link, context, server_side=server_side, server_name=server_name, early=early)
    link.resume_reading()
    try:
        await tls.handshaken
    except BaseException:
        if not tls.is_closing():
            link.abort()
        raise
    return tls
