"""A transport that sends the head and the body of an HTTP response in one system call.

uvicorn writes the two separately, and uvloop sends each write at once. The second system call would
take some 4 % of the API's CPU time for a small response, and its client would have to read twice.
"""

import asyncio
from typing import Any

JOIN_BYTES = 64 << 10  # from so many bytes on, writes are not delayed


# See docs/decisions.md#a-response-is-sent-in-one-system-call
class JoinedWrites(asyncio.Transport):
    """Sends everything that is written in one iteration of the event loop together.

    Wraps the transport of a connection. Of a transport's methods it has those that uvicorn's HTTP
    protocol and ours call.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap the transport `transport`, whose callbacks run in the event loop `loop`."""
        self._transport = transport
        self._loop = loop
        self._unsent: list[bytes | bytearray | memoryview] = []
        self._unsent_bytes = 0

    # --- writing and closing ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data by the end of this iteration of the event loop, after what was written before."""
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes >= JOIN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what was written, now. If the connection was closed meanwhile, it is dropped."""
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if unsent and not self._transport.is_closing():
            self._transport.writelines(unsent)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that were written but not passed to the operating system."""
        return self._unsent_bytes + self._transport.get_write_buffer_size()

    def write_eof(self) -> None:
        """Send what was written, then the end of the stream."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Send what was written, then close the connection."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once, and drop what was not sent."""
        self._unsent, self._unsent_bytes = [], 0
        self._transport.abort()

    # --- passed on ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the connection, such as its `socket`."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Return whether the connection is closed or is being closed."""
        return self._transport.is_closing()

    def is_reading(self) -> bool:
        """Return whether received data is passed to the protocol."""
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        """Stop passing received data to the protocol."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Pass received data to the protocol again."""
        self._transport.resume_reading()
