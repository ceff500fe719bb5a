"""Programs that the checks in a browser run beside it."""

import asyncio
import contextlib
import signal
import socket

from chromium import PATIENCE


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Program:
    """A running program, killed at the end."""

    def __init__(self, binary, *arguments, cwd=None):
        self.command, self.cwd = [binary, *map(str, arguments)], cwd

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.cwd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def __aexit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        if reading := getattr(self, "reading", None):
            reading.cancel()

    async def says(self, *parts):
        """Waits for lines with these parts, in their order."""
        async with asyncio.timeout(PATIENCE):
            for part in parts:
                while True:
                    line = (await self.process.stdout.readline()).decode()
                    assert line, f"{self.command} ended before it said {part}"
                    if part in line:
                        break
        # The rest is nobody's concern, but must not fill the pipe.
        self.reading = asyncio.create_task(self.process.stdout.read())

    async def stop(self):
        """Stops it by SIGTERM, which must succeed; returns what it said after `says`."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            text = (await self.reading).decode()
            assert await self.process.wait() == 0, text
        return text
