"""Conversations in control messages on any endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyfrp.errors import LinkError, PeerClosed, RemoteWireError
from pyfrp.net.endpoint import Endpoint
from pyfrp.wire.messages import Message
from pyfrp.wire.version import V1, Decoder, FirstDecoder, Version

if TYPE_CHECKING:
    from pyfrp.wire.v2crypto import Agreement

Transform = Callable[[bytes], bytes]

# So much may wait to be sent to a peer that reads. A stream of a busy mux is told to pause for each
# byte, and its turn may take longer to come than anybody waits for one who has stopped reading.
MOST_PENDING = 64 * 1024


class MessageConn(asyncio.Protocol):
    """`await read()`, `write()` on an endpoint, which can be handed on with not one byte lost.

    One coroutine reads at a time. Deadlines are the caller's (`asyncio.timeout_at`).

    The endpoint is read only while `read` waits for bytes, and stops as soon as there are some:
    what follows a message (a payload, the end of it) may be for whoever gets the endpoint next.

    Args:
        endpoint: A paused endpoint; this becomes its protocol.
        early: Bytes already read from it.
        version: How its messages are written; None if the peer's first bytes tell.

    Attributes:
        version: The same; before those bytes are there it says nothing.
        agreement: What the hellos of wire v2 came to, if there were any.
    """

    def __init__(
        self, endpoint: Endpoint, *, early: bytes = b"", version: Version | None = V1
    ) -> None:
        self.endpoint = endpoint
        self.version = version or V1
        self.agreement: Agreement | None = None
        self._decoder: Decoder = version.decoder() if version else FirstDecoder(self._tell)
        self._encrypt: Transform | None = None
        self._decrypt: Transform | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._choked = False
        self._reading = False
        self._end: LinkError | RemoteWireError | None = None
        self.on_activity: Callable[[], None] | None = None
        endpoint.set_protocol(self)
        if early:
            self._decoder.feed(early)
        if endpoint.is_closing():
            self.connection_lost(None)  # Before this was its protocol: it tells nobody any more.

    async def read(self) -> Message:
        """The next message.

        Raises:
            PeerClosed: when the connection ended; messages that came before are read first.
            RemoteWireError: for bytes that are no message; the connection is of no use any more.
        """
        while True:
            msg = self._decoder.next()
            if msg is not None:
                return msg
            if self._end is not None:
                raise self._end
            self._reader = asyncio.get_running_loop().create_future()
            if not self._reading:
                self._reading = True
                self.endpoint.resume_reading()  # May bring bytes at once.
            try:
                await self._reader
            finally:
                self._reader = None

    def begin(self, *msgs: Message) -> None:
        """Begin the connection as a client, with its first messages. Raises as `write`."""
        data = self.version.magic + b"".join(map(self.version.encode, msgs))
        if self._end is None:
            self.endpoint.write(data)

    def write(self, msg: Message) -> None:
        """Send a message; it leaves with the endpoint's next output, or not at all after the end.

        Raises:
            LocalWireError: when the message is larger than a peer accepts.
        """
        data = self.version.encode(msg)
        if self._end is None:
            self.endpoint.write(self._encrypt(data) if self._encrypt else data)

    async def drain(self) -> None:
        """Wait until the peer reads again, if it has stopped. Raises as `read` when it is gone."""
        stopped = self._choked and self.endpoint.get_write_buffer_size() > MOST_PENDING
        if stopped and self._end is None:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self._end is not None:
            raise self._end

    def secure(self, encrypt: Transform, decrypt: Transform) -> None:
        """From here on both directions run through a cipher, bytes already read included."""
        early = self._decoder.leftover()
        self._encrypt = encrypt
        self._decrypt = decrypt
        if early:
            self._feed(early)

    def detach(self) -> tuple[Endpoint, bytes]:
        """Give up the endpoint, paused, and the bytes read beyond the last message.

        Raises:
            PeerClosed: when the endpoint is gone by now.
        """
        if self._end is not None:
            raise self._end
        self.endpoint.pause_reading()
        return self.endpoint, self._decoder.leftover()

    @property
    def ended(self) -> bool:
        return self._end is not None

    def close(self) -> None:
        """Send what is pending, then close."""
        self._settle(PeerClosed("closed"))
        # A mux stream that is closed with bytes unread is reset, and loses what was just written.
        self.endpoint.resume_reading()
        self.endpoint.close()

    def abort(self) -> None:
        self._settle(PeerClosed("aborted"))
        self.endpoint.abort()

    # -- Protocol ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._end is not None:
            return
        if self.on_activity is not None:
            self.on_activity()
        self._reading = False
        self.endpoint.pause_reading()
        self._feed(data)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def eof_received(self) -> bool:
        self._settle(PeerClosed("the peer closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        cause = f"the connection was lost: {exc}" if exc else "the connection was closed"
        self._settle(PeerClosed(cause))

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _feed(self, data: bytes) -> None:
        try:
            self._decoder.feed(self._decrypt(data) if self._decrypt else data)
        except RemoteWireError as exc:
            self._settle(exc)

    def _tell(self, version: Version, decoder: Decoder) -> None:
        self.version = version
        self._decoder = decoder

    def _settle(self, cause: LinkError | RemoteWireError) -> None:
        if self._end is None:
            self._end = cause
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
