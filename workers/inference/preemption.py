"""Run small batches between the layers of a long forward pass, without losing its work.

A forward pass takes from a millisecond to a second. During a long one, the worker checks the
interactive queue before a layer and runs the batch that it finds there. The long pass then
continues at that layer: nothing is computed a second time, and its results are bit-identical to
those of a pass without interruption.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from core.broker.keys import queue_key

log = logging.getLogger(__name__)

_RETRY_S = 1.0  # after an error
CHECK_S = 0.008  # minimum time between two polls of the queue; each takes a round trip


class _FunctionCalls(TorchFunctionMode):
    """A context manager in which `act` is called before each call of a torch function.

    In the backward pass of a function that records a gradient, `act` is called too.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._act()
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.grad_fn is not None:
            result.grad_fn.register_prehook(lambda _gradients: self._act())
        return result


# See docs/decisions.md#small-batches-run-between-the-layers-of-long-work
class Preemption:
    """Lets batches of the interactive queue interrupt long work, for at most half of the time.

    `consumer` is the Celery consumer through which the batches are received. While it is None,
    nothing is interrupted.
    """

    def __init__(self, targets: Sequence[str] = ("",)) -> None:
        """Let batches of the interactive queues of `targets` interrupt, once `consumer` is set.

        A target is a worker id or a worker group, as in `core.broker.keys.queue_key`.
        """
        self.consumer: Any = None
        self._keys = [queue_key("interactive", target) for target in targets]
        self._preemptible = False
        self._due = math.inf
        self._interrupted_s = 0.0
        self.checks = 0
        """Number of checks so far."""

    def clock(self) -> float:
        """Return a monotonic time in seconds, which does not advance while a batch interrupts."""
        return time.perf_counter() - self._interrupted_s

    @contextlib.contextmanager
    def preemptible(self, *, functions: bool = False) -> Iterator[bool]:
        """Let batches interrupt the work of the block before each layer; yield whether they may.

        Inside an interruption, or while the worker stops, they may not. With `functions`, a batch
        may also interrupt before each torch function; such checks are so frequent that they slow
        down a small model by up to 20 %. Use it only while Celery handles a message: at other times
        Celery's event loop itself waits for the next message, and would receive it first.
        """
        if self._preemptible or self.consumer is None:
            yield False
            return
        hook = register_module_forward_pre_hook(lambda _module, _inputs: self.check())
        self._preemptible, self._due = True, time.perf_counter() + CHECK_S
        try:
            with _FunctionCalls(self.check) if functions else contextlib.nullcontext():
                yield True
        finally:
            self._preemptible, self._due = False, math.inf
            hook.remove()

    def check(self) -> None:
        """Run the next batch of the interactive queue, if the work may be interrupted now.

        The queue is read at most every `CHECK_S` seconds. After an interruption the work continues
        for at least as long as the interruption took. Exceptions are logged.
        """
        self.checks += 1
        started = time.perf_counter()
        if started < self._due:
            return
        self._due = math.inf  # the batch itself is not interrupted
        pause_s = CHECK_S
        try:
            self._run_next()
        except Exception:  # the queue server is unreachable; a batch that was lost is sent again
            log.warning("interactive queue not read", exc_info=True)
            pause_s = _RETRY_S
        ended = time.perf_counter()
        self._interrupted_s += ended - started
        self._due = ended + max(pause_s, ended - started)

    def _run_next(self) -> None:
        """Receive the next message of the interactive queue, and run its batch."""
        consumer, threads = self.consumer, torch.get_num_threads()
        if consumer is None:
            return
        tasks = consumer.task_consumer
        if not _may_have_messages(tasks.channel, self._keys):
            return
        messages = (tasks.channel.basic_get(key, no_ack=True) for key in self._keys)
        message = next((one for one in messages if one is not None), None)
        if message is None:
            return
        self._keys = [*self._keys[1:], self._keys[0]]  # queues take turns
        message.accept = tasks.accept
        consumer.strategies[message.headers["task"]](message)
        if torch.get_num_threads() != threads:  # the interrupted pass must go on as it began
            torch.set_num_threads(threads)


def _may_have_messages(channel: Any, keys: Sequence[str]) -> bool:
    """Return whether any of the queues has a message, by one round trip to the queue server.

    Only kombu's transport of Redis has a client. With any other transport return True, so that the
    queues are read.
    """
    client = getattr(channel, "client", None)
    return client is None or bool(client.exists(*keys))
