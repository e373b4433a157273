"""uvicorn's HTTP/1.1 protocol with limits on header bytes, time, transfer rates and connections.

uvicorn's parser (httptools) accepts request heads of any size, and its only timer is for
keep-alive. This protocol counts the bytes of a head before it feeds them to the parser. A watchdog
timer per connection closes connections whose head is not complete in time, whose body or response
is slower than a minimum rate, or which are idle.
"""

import asyncio
import heapq
import logging
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from uuid import uuid4

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.errors import closing_response
from api.joined_writes import JoinedWrites
from api.transfer_limits import ProgressCredit, StalledWrites
from core.settings import Settings

log = logging.getLogger("api.access")

MAX_HEADERS = 256  # most header fields of a request
MAX_PIPELINED = 64  # most pipelined requests that wait on a connection
MAX_SMALL_CHUNKS = 16_384  # more chunks must have `MIN_CHUNK_BYTES` each, on average: each costs two callbacks
MIN_CHUNK_BYTES = 64
LINGER_S = 2.0  # how long a rejected connection is read before it is closed, so that the client can read the problem

_PIECE_BYTES = 64 << 10  # most bytes that are fed to the parser at once
_EVICTED_SHARE = 20  # with too many connections, one of 20 is closed


class _RejectedError(Exception):
    """Raised in a parser callback to stop the parser, after the rejection was sent."""


# See docs/decisions.md#connection-limits-are-in-a-subclass-of-uvicorns-protocol
class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on header bytes, time, transfer rates and connections.

    This class has no values for its limits; each server uses a subclass that sets them.
    """

    limits: ClassVar[Settings]
    stalled_writes: ClassVar[StalledWrites]
    check_interval_s: ClassVar[float]

    # --- opening and closing ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the connection's time-outs, the first of which is that of a request's head."""
        self._writes = JoinedWrites(transport, self.loop)
        super().connection_made(self._writes)
        limits = self.limits
        self.url = b""
        self._in_head = True  # the head of the next request is not complete
        self._head_bytes = 0
        self._silent_bytes = 0  # bytes of chunk extensions and trailers since the last piece of body
        self._messages = 0  # complete requests
        self._parsed_pieces = 0  # pieces of bodies
        self._chunks = 0
        self._message_bytes = 0  # bytes of the current body
        self._new_body_bytes = 0  # since the watchdog's last check
        self._writes_resumed = 0  # since the watchdog's last check
        self._unsent_bytes = 0  # at the watchdog's last check
        self._rejected = False  # further input is dropped
        self._body_framing: bytes | None = None
        self._body_credit = ProgressCredit(limits.body_timeout_s, limits.min_transfer_rate)
        self._write_credit = ProgressCredit(limits.write_timeout_s, limits.min_transfer_rate)
        self._checked_at = self.loop.time()
        self._head_began_at: float | None = self._checked_at
        self._idle_since = self._checked_at
        self._watchdog: asyncio.TimerHandle | None = self.loop.call_later(self.check_interval_s, self._check)
        if len(self.connections) > limits.max_connections:
            self._evict_connections()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer that checks the connection's time-outs."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self.stalled_writes.remove(self.transport)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Count this connection's write buffer, which has exceeded its high-water mark.

        If the counted buffers of all connections exceed their limit together, abort the connections
        that have been counted for the longest time.
        """
        super().pause_writing()
        for transport in self.stalled_writes.add(self.transport):
            log.info("client reads too slowly", extra={"unsent_bytes": transport.get_write_buffer_size()})
            transport.abort()

    def resume_writing(self) -> None:
        """Stop counting this connection's write buffer: the client has read most of it."""
        self._writes_resumed += 1
        self.stalled_writes.remove(self.transport)
        super().resume_writing()

    # --- parsing ---

    def data_received(self, data: bytes) -> None:
        """Feed received bytes to the parser in pieces, so that no head exceeds `max_header_bytes`.

        After the connection has been rejected, received bytes are dropped.
        """
        if self._rejected:
            return  # further input is dropped until the connection is closed
        at = 0
        while at < len(data) and not self._rejected:
            room = self.limits.max_header_bytes - self._head_bytes if self._in_head else _PIECE_BYTES
            if at == 0 and len(data) <= room:
                self._feed(data)
                return
            self._feed(data[at : at + min(room, _PIECE_BYTES)])
            at += min(room, _PIECE_BYTES)

    def _feed(self, piece: bytes) -> None:
        """Feed a piece of data to the parser, and count the bytes of heads.

        Reject the connection if the data is malformed or over a limit.
        """
        began_in_head, messages, parsed_pieces = self._in_head, self._messages, self._parsed_pieces
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._rejected:
                log.debug("malformed request", extra={"reason": str(error)})
                self._reject(400, "this is not HTTP/1.1; see RFC 9112 for what a request looks like")
        limit = self.limits.max_header_bytes
        if self._in_head:
            if not began_in_head or messages != self._messages:
                return  # this head began inside the piece; its bytes are counted from the next piece on
            self._head_bytes += len(piece)
            if self._head_bytes >= limit and not self._rejected:
                in_target = len(self.url) > limit // 2
                what = "request target" if in_target else "head of the request"
                self._reject(414 if in_target else 431, f"the {what} has more than the {limit} bytes that are read")
        elif parsed_pieces == self._parsed_pieces and not self._rejected:
            self._silent_bytes += len(piece)
            if self._silent_bytes >= limit:
                self._reject(431, f"chunk extensions or trailers of more than {limit} bytes are not read")

    def on_message_begin(self) -> None:
        """Start the time-out of a request's head.

        Reject the connection if too many pipelined requests wait for their responses.
        """
        if len(self.pipeline) >= MAX_PIPELINED:
            self._reject(400, f"at most {MAX_PIPELINED} requests can be sent ahead of their responses")
            raise _RejectedError
        if self._head_began_at is None:
            self._head_began_at = self.loop.time()
        HttpToolsProtocol.on_message_begin(self)  # not super(), which costs more: this is the path of every request

    def on_headers_complete(self) -> None:
        """Start processing the request; reject the connection if it has too many header fields."""
        if len(self.headers) > MAX_HEADERS:
            self._reject(431, f"a request has at most {MAX_HEADERS} header fields")
            raise _RejectedError
        HttpToolsProtocol.on_headers_complete(self)
        self._in_head = False
        self._head_bytes = self._silent_bytes = self._chunks = self._message_bytes = 0
        self._head_began_at = None
        self._body_credit.refill()
        if self.parser.should_upgrade():
            self._body_framing = _framing(self.headers)

    def on_chunk_header(self) -> None:
        """Count a chunk of a body; reject the connection if the body has many small chunks."""
        self._chunks += 1
        if self._chunks > MAX_SMALL_CHUNKS and self._message_bytes < MIN_CHUNK_BYTES * self._chunks:
            self._reject(400, f"the chunks of the body are too small; send {_PIECE_BYTES} bytes in each")
            raise _RejectedError

    def on_body(self, body: bytes) -> None:
        """Count bytes of a body and pass them to the application."""
        size = len(body)
        self._parsed_pieces += 1
        self._silent_bytes = 0
        self._message_bytes += size
        self._new_body_bytes += size
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """Complete a request, and expect the head of the next one."""
        if self._body_framing is not None:
            return  # the parser does not read the body of an upgrade request; see _decline_upgrade
        self._messages += 1
        self._in_head = True
        self._head_bytes = 0
        HttpToolsProtocol.on_message_complete(self)

    def on_response_complete(self) -> None:
        """Send the response, and start the next pipelined request.

        uvicorn's keep-alive timer is not used, because the watchdog closes idle connections.
        """
        self.server_state.total_requests += 1
        self._writes.flush()
        if self.transport.is_closing():
            return
        self._idle_since = self.loop.time()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def on_last_message_complete(self) -> None:
        """Complete a request after which the connection is closed; drop data that follows it."""
        self.on_message_complete()
        self._rejected = True

    def _decline_upgrade(self, rest: bytes) -> None:
        """Ignore an `Upgrade` header and process the request as HTTP/1.1, as RFC 9110 allows.

        The parser stops after the head of such a request. So a second parser is created; it gets
        the header line that frames the body, and then parses the body, whose first bytes are
        `rest`. The connection is closed after the response.
        """
        framing, self._body_framing = self._body_framing, None
        if framing is not None:
            self.cycle.keep_alive = False
            callbacks = SimpleNamespace(
                on_body=self.on_body,
                on_chunk_header=self.on_chunk_header,
                on_message_complete=self.on_last_message_complete,
            )
            self.parser = httptools.HttpRequestParser(callbacks)
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        if rest and not self._rejected:
            self._feed(rest)

    # --- rejections ---

    def send_400_response(self, msg: str) -> None:
        """Reject a malformed request; uvicorn calls this."""
        self._reject(400, msg)

    def _reject(self, status: int, detail: str) -> None:
        """Send a problem with this status and detail, and close the connection.

        The responses to earlier requests are sent first. Further input is ignored. If a part of the
        current request's response was already sent, the connection is closed without a problem.
        """
        self._rejected = True
        request_id = uuid4().hex
        log.info("rejected", extra={"request_id": request_id, "status": status, "reason": detail})
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and (self._in_head or self.pipeline):
            if self._in_head:
                cycle.keep_alive = False  # the connection closes after the last complete request's response
            else:
                self.transport.close()
            return
        if cycle is not None and not self._in_head:  # the body of the current request
            began = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if began:
                self.transport.abort()
                return
        self.transport.write(closing_response(status, detail, request_id))
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)

    # --- the watchdog ---

    def _check(self) -> None:
        """Close the connection if one of its time-outs has passed; schedule the next check.

        Time for which the event loop stalled does not count: nothing was read or sent in it.
        """
        now = self.loop.time()
        elapsed_s = min(now - self._checked_at, 1.5 * self.check_interval_s)
        stalled_s, self._checked_at = now - self._checked_at - elapsed_s, now
        self._idle_since += stalled_s
        if self._head_began_at is not None:
            self._head_began_at += stalled_s
        self._check_writing(elapsed_s)
        if not self._rejected and not self.transport.is_closing():
            if not self._in_head:
                self._check_body(elapsed_s)
            elif self._head_began_at is not None:
                self._check_head(now)
            elif self._idle and now - self._idle_since >= self.limits.idle_timeout_s and not self._unsent_bytes:
                self.transport.close()
        self._watchdog = self.loop.call_later(self.check_interval_s, self._check)

    @property
    def _idle(self) -> bool:
        """Whether no request of this connection is being processed."""
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def _check_head(self, now: float) -> None:
        """If a head is late, reject the request (408); if the client never sent data, disconnect."""
        timeout_s = self.limits.header_timeout_s
        if self._head_began_at is not None and now - self._head_began_at >= timeout_s:
            if self._head_bytes == 0 and self._messages == 0:
                self.transport.close()  # the client never sent anything
            else:
                self._reject(408, f"the head of the request was not complete within {timeout_s:g} s")

    def _check_body(self, elapsed_s: float) -> None:
        """If a body arrives too slowly, reject the request (408) or, if it has its response, disconnect."""
        moved, self._new_body_bytes = self._new_body_bytes, 0
        if self.flow.read_paused:
            return  # the application is slow, not the client
        responded = self.cycle.response_complete
        self._body_credit.update(elapsed_s, 0 if responded else moved)
        if self._body_credit.left_s > 0:
            return
        if responded:
            self.transport.close()
            return
        limits = self.limits
        self._reject(
            408,
            f"the body came at less than {limits.min_transfer_rate:g} bytes a second for {limits.body_timeout_s:g} s; "
            "send it again, whole",
        )

    def _check_writing(self, elapsed_s: float) -> None:
        """Abort the connection if the client reads the response too slowly."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0:
            self._write_credit.refill()
        else:
            drained = max(0, self._unsent_bytes - unsent) + self._writes_resumed * HIGH_WATER_LIMIT
            self._write_credit.update(elapsed_s, drained)
            if self._write_credit.left_s <= 0:
                log.info("client stopped reading", extra={"unsent_bytes": unsent})
                self.transport.abort()
        self._unsent_bytes, self._writes_resumed = unsent, 0

    # --- too many connections ---

    def _evict_connections(self) -> None:
        """Abort the connections that are needed least, to make room for this new connection.

        Rejected connections and those with an incomplete request head go first, then idle ones,
        then those with slow uploads. If none of these exist, this connection is rejected (503).
        """
        others = [cast("LimitedHttpProtocol", other) for other in self.connections if other is not self]
        ranked = [(rank, number) for number, other in enumerate(others) if (rank := other._eviction_rank()) is not None]  # noqa: SLF001
        evicted = heapq.nsmallest(max(1, len(others) // _EVICTED_SHARE), ranked)
        for _, number in evicted:
            self.connections.discard(others[number])
            others[number].transport.abort()
        if not evicted:
            self._reject(503, f"{self.limits.max_connections} connections are open; try again in a moment")

    def _eviction_rank(self) -> tuple[int, float] | None:
        """Return a pair by which connections are ordered for eviction; the smallest go first.

        None means that the connection must stay: its body arrives fast enough, its request is being
        processed, or its response is being sent.
        """
        if self._rejected and self._idle:
            return 0, 0.0
        if not self._in_head and not self._idle:
            return (2, self._body_credit.left_s) if self._body_credit.low else None
        if not self._idle or self.transport.get_write_buffer_size():
            return None
        if self._head_began_at is not None:
            return 0, self._head_began_at
        return 1, self._idle_since


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the header line that frames a body, Transfer-Encoding or Content-Length; None if there
    is no body.
    """
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")):
            return name + b": " + value
    return None


def limited_protocol(settings: Settings) -> type[LimitedHttpProtocol]:
    """Return the protocol class with the limits of the settings, for `uvicorn.Config(http=…)`."""
    timeouts_s = (settings.header_timeout_s, settings.idle_timeout_s, settings.body_timeout_s, settings.write_timeout_s)
    attributes: dict[str, Any] = {
        "limits": settings,
        "stalled_writes": StalledWrites(settings.max_inflight_response_bytes),
        "check_interval_s": min(2.5, min(timeouts_s) / 4),
    }
    return type("HttpProtocol", (LimitedHttpProtocol,), attributes)
