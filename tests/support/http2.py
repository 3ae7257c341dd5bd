"""A small HTTP/2 caller with prior knowledge, one connection with many streams."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions

HOST = "127.0.0.1"


@dataclass
class Stream:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None


class Http2Caller:
    """One HTTP/2 connection; window credit is given as data arrives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.link = h2.connection.H2Connection(config)
        self.streams: defaultdict[int, Stream] = defaultdict(Stream)
        self.gone_away: int | None = None
        self.closed = False
        self.changed = asyncio.Event()
        self.grant_credit = True

    async def run(self) -> None:
        """Take what the server sends until it closes."""
        while data := await self.reader.read(65536):
            for event in self.link.receive_data(data):
                self._take(event)
            self.flush()
            self.changed.set()
        self.closed = True
        self.changed.set()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.streams[event.stream_id].headers = {str(k): str(v) for k, v in event.headers}
        elif isinstance(event, h2.events.TrailersReceived):
            self.streams[event.stream_id].trailers = {str(k): str(v) for k, v in event.headers}
        elif isinstance(event, h2.events.DataReceived):
            self.streams[event.stream_id].body += event.data
            if self.grant_credit:
                self.link.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.streams[event.stream_id].ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.streams[event.stream_id].reset = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.gone_away = int(event.error_code or 0)

    def flush(self) -> None:
        data = self.link.data_to_send()
        if data:
            self.writer.write(data)

    def request(
        self,
        path: str,
        authority: str,
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        *,
        end: bool = True,
    ) -> int:
        """Open a stream with a request head; return its id."""
        stream = self.link.get_next_available_stream_id()
        head = [
            (":method", method),
            (":scheme", "http"),
            (":authority", authority),
            (":path", path),
            *headers,
        ]
        self.link.send_headers(stream, head, end_stream=end)
        self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send body bytes as the windows allow."""
        while data:
            room = min(
                self.link.local_flow_control_window(stream), self.link.max_outbound_frame_size
            )
            if room <= 0:
                await self.wait()
                continue
            self.link.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
            await self.writer.drain()
        if end:
            self.link.end_stream(stream)
            self.flush()

    def cancel(self, stream: int) -> None:
        self.link.reset_stream(stream, error_code=8)
        self.flush()

    async def wait(self) -> None:
        """Wait until something came."""
        self.changed.clear()
        async with asyncio.timeout(15):
            await self.changed.wait()
        assert not self.closed, "the server closed the connection"

    async def head(self, stream: int) -> Stream:
        """Wait for the head of the answer on `stream`."""
        found = self.streams[stream]
        while not found.headers and found.reset is None:
            await self.wait()
        return found

    async def answer(self, stream: int) -> Stream:
        """Wait for the whole answer on `stream`."""
        found = self.streams[stream]
        while not found.ended and found.reset is None:
            await self.wait()
        return found


@asynccontextmanager
async def http2(
    port: int, *, tls: ssl.SSLContext | None = None, name: str = ""
) -> AsyncIterator[Http2Caller]:
    """A connection to loopback `port`, with prior knowledge or, over TLS, as agreed on there."""
    reader, writer = await asyncio.open_connection(
        HOST, port, ssl=tls, server_hostname=name if tls else None
    )
    if tls is not None:
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    caller = Http2Caller(reader, writer)
    caller.link.initiate_connection()
    caller.flush()
    task = asyncio.get_running_loop().create_task(caller.run(), name="http2 caller")
    try:
        yield caller
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass  # It was lost before; that is closed enough.
