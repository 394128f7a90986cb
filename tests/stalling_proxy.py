"""A TCP proxy that can stop passing anything on, as a network that hangs: nothing is refused or closed."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.tiny_rollout import free_port


class StallingProxy:
    """Listens on `port` of this machine and passes to another port of it what it gets, while it flows."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self._loop, self._flows = asyncio.new_event_loop(), asyncio.Event()
        self._flows.set()
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing passes for the length of the block, and all of it afterwards: TCP keeps what was sent."""
        self._loop.call_soon_threadsafe(self._flows.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._flows.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # whoever it is for is down just now
            writer.close()
            return
        await asyncio.gather(self._pass_on(reader, ours), self._pass_on(theirs, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(content)
                await writer.drain()
        writer.close()
