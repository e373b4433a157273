"""The server-sent events of a job, continued after a broken connection with `Last-Event-ID`."""

import httpx
from httpx_sse import ServerSentEvent

from reverie.errors import ProblemError, UnreachableError
from reverie.records import TERMINAL, Event
from reverie.requests import ApiRequest, Delay, path_of

# The service sends a comment every 15 s; a connection without data for longer than this is
# broken.
SILENCE_TIMEOUT_S = 45.0

# Failed connections in a row before the client gives up.
# A service that restarts is back by then.
MAX_FAILURES = 20


class JobEventStream:
    """The state of an event stream over several connections.

    It records the last event that was received, and whether the job has ended (`ended`).
    """

    def __init__(self, job_id: str, after: int) -> None:
        """Start after event number `after`."""
        self.ended = False
        self._path = path_of("jobs", job_id, "events")
        self._last_id = after
        self._failures = 0
        self._retry_s = 2.0

    def build_request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the request for the events after the last event received."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._last_id)}
        return ApiRequest("GET", self._path, headers=headers, timeout_s=SILENCE_TIMEOUT_S).build(http)

    def receive(self, message: ServerSentEvent) -> Event | None:
        """Record a message of the stream and return its event, or None if it has none.

        Updates the state: `ended` becomes true with a final status, and the next connection starts
        after this event. A message may also set the delay before the next connection (`retry`).
        Messages after the final status are ignored: the result is None.
        """
        if message.retry is not None:
            self._retry_s = message.retry / 1000
        if self.ended or not message.data:
            return None
        number = int(message.id) if message.id else None
        if number == self._last_id:
            number = None  # a message without an id of its own repeats the last one
        event = Event(message.event, message.json(), number)
        self._failures = 0
        self._last_id = number or self._last_id
        self.ended = event.kind == "status" and event.data.get("status") in TERMINAL
        return event

    def reconnect_delay(self, outcome: httpx.Response | httpx.TransportError) -> Delay:
        """Return how long to wait before the next connection; update the state.

        `outcome` is the last response, or the error that ended it. Status 204 means that there are
        no more events, and sets `ended`. Raises ProblemError for an error response, and
        UnreachableError after too many failed connections.
        """
        response = outcome if isinstance(outcome, httpx.Response) else None
        self.ended = self.ended or (response is not None and response.status_code == 204)
        if self.ended:
            return Delay(0.0)
        self._failures += 1
        cut_off = response is not None and not response.is_error
        if self._failures <= MAX_FAILURES and (cut_off or ApiRequest("GET", self._path).may_retry(outcome)):
            backoff = Delay.before_retry(self._failures, response)
            return Delay(self._retry_s if cut_off else min(self._retry_s, backoff.seconds))
        if response is not None and response.is_error:
            raise ProblemError.from_response(response)
        raise UnreachableError(
            f"{self._path}: the connection failed {self._failures} times without an event: {outcome}"
        )
