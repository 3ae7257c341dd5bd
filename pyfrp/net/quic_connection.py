"""aioquic's connection, with what it does not offer and what it would decide otherwise.

Everything that depends on its insides is here and in `quic_fast`: credit as a reader reads, a
certificate that a server asks for, tokens of resets, limits of streams, bursts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic.quic.connection import (
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionState,
)
from aioquic.quic.packet import QuicFrameType

from pyfrp.net.quic_fast import Shortcuts
from pyfrp.net.quic_tls import Setup

# Timers of event loops have a millisecond, so this much may leave at once: more than aioquic's
# sixteen datagrams on a fast network, and less than a fifth of a round trip on a slow one.
BURST_S = 0.002
# For a packet that nothing is said after; aioquic tells the peer to expect 25 ms.
ACK_DELAY_S = 0.02


class Connection(Shortcuts, QuicConnection):
    """One connection.

    Args:
        setup: Of our side.
        token: Makes the token of a reset from a connection id; a server's.
        largest: Bytes of a datagram to try at most, if that is more than what passes anywhere.
        options: aioquic's own.
    """

    def __init__(
        self,
        setup: Setup,
        token: Callable[[bytes], bytes] | None = None,
        largest: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(configuration=setup.quic, largest=largest, **options)
        self._asks = setup.trust is not None and not setup.quic.is_client
        self._token_for = token
        self._mark()
        self._ack_delay = ACK_DELAY_S
        pacer = self._loss._pacer
        usual = pacer.update_rate

        def update_rate(congestion_window: int, smoothed_rtt: float) -> None:
            usual(congestion_window, smoothed_rtt)
            pacer.bucket_max = max(pacer.bucket_max, BURST_S)

        pacer.update_rate = update_rate  # type: ignore[method-assign]  # aioquic makes it itself

    @property
    def begun(self) -> bool:
        """Whether a client's connection has begun; a server's has with its first good packet."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT or bool(
            self._configuration.is_client
        )

    @property
    def has_events(self) -> bool:
        """Whether there is a next event."""
        return bool(self._events)

    @property
    def is_urgent(self) -> bool:
        """Whether a timer may be for sooner than ACK_DELAY_S from now."""
        return not self._handshake_confirmed or (
            self._pacing_at is not None
            or self._space.loss_time is not None
            or not self._network_paths[0].is_validated
        )

    # -- certificates --------------------------------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = self._asks

    @property
    def shown(self) -> list[Any]:
        """The certificates that the peer has shown, its own first; none if it has none."""
        own = self.tls._peer_certificate
        return [] if own is None else [own, *self.tls._peer_certificate_chain]

    # -- resets --------------------------------------------------------------------------------

    @property
    def peers_token(self) -> bytes:
        """What ends a datagram by which the peer tells that it does not know us; b"" if unknown."""
        return self._peer_cid.stateless_reset_token or b""

    @property
    def draining(self) -> bool:
        """Whether the peer has closed it: what still comes means nothing (RFC 9000, 10.2.2)."""
        return self._state is QuicConnectionState.DRAINING

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._mark()

    def _mark(self) -> None:
        if self._token_for is not None:
            # Those that were sent have theirs already, which is the same.
            for known in self._host_cids:
                known.stateless_reset_token = self._token_for(known.cid)

    # -- streams -------------------------------------------------------------------------------

    @property
    def opened(self) -> int:
        """How many bidirectional streams the peer has opened."""
        return self._local_max_streams_bidi.used

    def begin_with_streams(self, count: int) -> None:
        """Before the handshake: how many streams the peer may open, both ways only."""
        for limit, value in (
            (self._local_max_streams_bidi, count),
            (self._local_max_streams_uni, 0),
        ):
            limit.value = limit.sent = value

    def allow_streams(self, count: int) -> None:
        """Let the peer open so many in all, if that is more than before."""
        limit = self._local_max_streams_bidi
        limit.value = max(limit.value, count)

    def unsent(self, number: int, written: int) -> int:
        """How much of what was written to a stream has not been sent yet."""
        stream = self._streams.get(number)
        return 0 if stream is None else max(0, written - stream.sender.highest_offset)

    def has_sent(self, number: int) -> bool:
        """Whether all of a stream has arrived, or it was reset."""
        stream = self._streams.get(number)
        return stream is None or stream.sender.is_finished

    def announce(self, number: int) -> None:
        """Let the peer know of a stream although nothing is written yet.

        A service may speak first. A new limit for what the peer may send opens the stream there
        (RFC 9000, 3.1), in official peers too.
        """
        stream = self._streams[number]
        stream.max_stream_data_local += 1
        self._look_after(stream)

    def allow(self, number: int, limit: int) -> None:
        """Let the peer send so much of a stream in all, if that is more than before."""
        stream = self._streams.get(number)
        if stream is not None and 0 < stream.max_stream_data_local < limit:
            stream.max_stream_data_local = limit
            self._look_after(stream)

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        """Tell the peer of a new limit.

        aioquic doubles a limit whenever half of it has come, read or not: a slow reader would have
        everything in memory. Here it is `allow` that sets it.
        """
        if stream.max_stream_data_local != stream.max_stream_data_local_sent:
            buffer = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buffer.push_uint_var(stream.stream_id)
            buffer.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local
