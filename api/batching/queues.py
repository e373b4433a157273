"""The queues of the batch scheduler: one for each owner in each group."""

from collections import OrderedDict

from api.batching.requests import PendingRequest

SMALL_ROWS = 16  # requests of at most this many rows fill the rows that a larger one leaves in a forward pass


class OwnerQueue:
    """One owner's waiting requests of one group, oldest first; small and large ones in two
    queues.
    """

    __slots__ = ("large", "small")

    def __init__(self) -> None:
        self.small: OrderedDict[PendingRequest, None] = OrderedDict()
        self.large: OrderedDict[PendingRequest, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self.small or self.large)

    def _queue_of(self, request: PendingRequest) -> OrderedDict[PendingRequest, None]:
        return self.small if request.rows <= SMALL_ROWS else self.large

    def add(self, request: PendingRequest, *, front: bool = False) -> None:
        """Put a request at the end or, with `front`, at the front; a request already there only
        moves.
        """
        queue = self._queue_of(request)
        queue[request] = None
        if front:
            queue.move_to_end(request, last=False)

    def remove(self, request: PendingRequest) -> bool:
        """Remove a request; return whether it was in the queue."""
        queue = self._queue_of(request)
        if request not in queue:
            return False
        del queue[request]
        return True

    def oldest(self) -> PendingRequest:
        """Return the request that has waited longest."""
        if not self.large:
            return next(iter(self.small))
        large = next(iter(self.large))
        if not self.small:
            return large
        small = next(iter(self.small))
        return small if small.arrived <= large.arrived else large

    def fitting(self, rows: int) -> PendingRequest | None:
        """Return the oldest small request, or else the oldest large one, that fits into `rows`
        rows.

        All its unsent rows, or its first slice to be retried, must fit; None if neither request
        does. Slices that must run isolated do not count.
        """
        for queue in (self.small, self.large):
            request = next(iter(queue), None)
            if request is None or (request.retries and request.retries[0].isolated):
                continue
            if (request.retries[0].rows if request.retries else request.rows - request.next_row) <= rows:
                return request
        return None


class Group:
    """Waiting requests that may share a batch; `queues` is keyed by owner."""

    __slots__ = ("last_arrival", "queues", "rows")

    def __init__(self) -> None:
        self.queues: dict[str, OwnerQueue] = {}
        self.rows = 0
        self.last_arrival = 0.0
