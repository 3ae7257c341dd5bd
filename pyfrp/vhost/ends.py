"""How an exchange ends where it does not end in order: refused, cut off, or out of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.net.endpoint import end_writing, reset
from pyfrp.vhost.caller import CallerSide
from pyfrp.vhost.serving import Refusal, Serving
from pyfrp.vhost.stages import BODY_S, HEAD_S, LINGER_S, Answering, Asking
from pyfrp.wire import http1
from pyfrp.wire.http1 import RequestHead, ResponseHead

if TYPE_CHECKING:
    from pyfrp.vhost.frontend import HttpRoute
    from pyfrp.vhost.upstream import Upstream


class Ends(CallerSide):
    """Where a request and its answer stand, and the ways out from there.

    Attributes:
        deadline: When `expire` is to be called; 0 for never.
    """

    __slots__ = (
        "_answering",
        "_asking",
        "_buffer",
        "_frontend",
        "_half_closed",
        "_head",
        "_keep_alive",
        "_moved",
        "_queued",
        "_route",
        "_upstream",
        "deadline",
    )

    def __init__(self, frontend: Serving) -> None:
        super().__init__()
        self._frontend = frontend
        self._half_closed = False
        self._asking: int = Asking.HEAD
        self._answering: int = Answering.NONE
        self._buffer = b""  # Of a head that is not complete, or of what comes after this request.
        self._head: RequestHead | None = None
        self._route: HttpRoute | None = None
        self._upstream: Upstream | None = None
        self._queued = b""  # Of the request, for the work connection that is being opened.
        self._moved = False  # Bytes of the request's body came since `expire` last looked.
        self._keep_alive = True
        self.deadline = frontend.clock() + HEAD_S

    def _finish(self, answer: ResponseHead | None) -> None:
        """The answer is complete: see `HttpExchange`."""
        raise NotImplementedError

    def refuse(
        self,
        status: int,
        reason: str,
        *,
        stage: str,
        keep_alive: bool = True,
        extra: tuple[tuple[str, str], ...] = (),
        page: bytes | None = None,
    ) -> None:
        """Answer in the upstream's place, and end this exchange.

        Args:
            stage: How far the request came, for the log.
            keep_alive: Whether the caller's connection may stay, if its framing allows.
            extra: Header fields to add.
            page: An HTML body to send instead of ours.
        """
        head = self._head
        self._tell(status, stage, reason)
        self._drop_upstream()
        self._queued = b""
        self._keep_alive = keep_alive and self._keep_alive and self._asking == Asking.DONE
        self._write(
            http1.error_response(
                status,
                reason,
                json=head is not None and head.accepts_json,
                keep_alive=self._keep_alive,
                head_only=head is not None and head.method == b"HEAD",
                extra=extra,
                page=page,
            )
        )
        self._finish(None)

    def _cut(self, exc: Exception | None) -> None:
        """The answer broke off: the caller's connection ends in a way that it can tell."""
        self._drop_upstream()
        why = str(exc) if exc is not None else "the local service closed the connection"
        self._tell(0, "response body", f"answer cut: {why}")
        self._answering = Answering.OVER
        if self._caller is not None:
            reset(self._caller)

    def _close(self) -> None:
        """Close after the last answer; one that still sends is not reset before it has read it."""
        self._answering = Answering.OVER
        caller = self._caller
        if caller is None:
            return
        if self._half_closed or (self._asking == Asking.DONE and not self._buffer):
            caller.close()
            return
        self.deadline = self._frontend.clock() + LINGER_S
        self._buffer = b""
        self._reading = True
        caller.resume_reading()
        if caller.can_write_eof():
            end_writing(caller)

    def expire(self) -> None:
        """The frontend found `deadline` passed."""
        self.deadline = 0.0
        if self._caller is None:
            return
        if self._answering == Answering.HEAD and self._asking == Asking.BODY:
            self._look_at_upload()
        elif self._answering == Answering.HEAD:
            self.refuse(504, "the local service sent no answer in time", stage="response head")
        elif self._answering == Answering.OVER:
            self._caller.abort()
        elif not self._buffer:
            self._caller.close()
        else:
            self._asking = Asking.DONE
            self._buffer = b""
            self.refuse(
                408, "the request head took too long", stage="request head", keep_alive=False
            )

    def _look_at_upload(self) -> None:
        """End a request whose caller has sent nothing for long; who is made to wait may stay."""
        if self._moved or not self._reading:
            self._moved = False
            self.deadline = self._frontend.clock() + BODY_S
            return
        self._asking = Asking.DONE
        self.refuse(408, "the request body stalled", stage="request body", keep_alive=False)

    def drain(self) -> None:
        """The server is ending: idle connections close now, busy ones after their answer."""
        self._keep_alive = False
        if self._asking == Asking.HEAD and not self._buffer and self._caller is not None:
            self._caller.close()

    def _tell(self, status: int, stage: str, cause: str) -> None:
        refusal = Refusal(self._route, self._head, self._address, status, stage, cause)
        self._frontend.log_refusal(refusal)

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
