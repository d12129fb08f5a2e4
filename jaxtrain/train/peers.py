"""Watches the other processes of a run: if one is gone, this one prints which, and ends.

A collective whose partner is gone waits for ever, or fails without naming it, and JAX takes 100 s to notice. So every
process holds a TCP connection to the first. The system closes the connections of a process that dies, however it dies;
those of a machine that is gone fail after `KEEPALIVE`. A process that is busy, or stopped for a while, is not gone: its
system still answers.
"""

import asyncio
import atexit
import contextlib
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import NamedTuple, NoReturn, Protocol

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}  # seconds, seconds, times: 14 s in all
GRACE_SECONDS = 10  # for a process to end by itself when another has ended with an error
VERDICT_SECONDS = 5  # from a failure here that the end of another process caused, until we learn of that end
LEAVE_SECONDS = 1
CONNECT_SECONDS = 60
_KEY = "jaxtrain/peers"


class Store(Protocol):
    """The key-value store that all processes share: JAX's distributed client."""

    def key_value_set(self, key: str, value: str) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...


class LostProcess(NamedTuple):
    """A process that has ended, with its exit code if it told the others."""

    process: int
    code: int | None

    def __str__(self) -> str:
        end = "is gone" if self.code is None else f"has ended with exit code {self.code}"
        return f"process {self.process} {end}"

    def line(self) -> bytes:
        return f"{self.process} {'' if self.code is None else self.code}\n".encode()

    @classmethod
    def read(cls, line: bytes) -> "LostProcess":
        process, _, code = line.decode().strip().partition(" ")
        return cls(int(process), int(code) if code else None)


class Peers:
    """The connections of process `index` of `count`. Calls `on_loss`, in another thread, when a process is gone."""

    def __init__(self, index: int, count: int, on_loss: Callable[[LostProcess], object]):
        self._index, self._count, self._on_loss = index, count, on_loss
        self._others: dict[int, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task] = set()  # asyncio keeps weak references only
        self._met, self._learned = threading.Event(), threading.Event()
        if count == 1:
            self._met.set()
        self._lost: LostProcess | None = None
        self._ends = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="peers", daemon=True).start()

    # -- meeting ------------------------------------------------------------------------------------------------

    def relay(self, address: str) -> str:
        """Return an address on this machine that forwards to `address`, and stays connected when `address` disconnects.

        JAX aborts a process, in native code, as soon as its connection to the first one closes.
        """
        host, port = _split(address)
        server = self._run(asyncio.start_server(lambda near, back: _relayed(near, back, host, port), "127.0.0.1", 0))
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def meet(self, address: str, store: Store) -> bool:
        """Connect with the others through the first process, on the machine of `address`; tell whether all did."""
        if self._index == 0:
            token = secrets.token_hex(16)
            listener = _listener()
            self._run(asyncio.start_server(lambda *connection: self._greet(token, *connection), sock=listener))
            store.key_value_set(_KEY, f"{listener.getsockname()[1]} {token}")
            return self._met.wait(CONNECT_SECONDS)
        port, token = store.blocking_key_value_get(_KEY, CONNECT_SECONDS * 1000).split()
        try:
            self._run(asyncio.wait_for(self._join(_split(address)[0], port, token), CONNECT_SECONDS))
        except OSError:
            return False
        return True

    async def _greet(self, token: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        given, _, index = (await reader.readline()).decode(errors="replace").strip().partition(" ")
        if not secrets.compare_digest(given.encode(), token.encode()):
            writer.close()
            return
        self._follow(int(index), reader, writer)
        if len(self._others) == self._count - 1:
            self._met.set()

    async def _join(self, host: str, port: str, token: str) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"{token} {self._index}\n".encode())
        self._follow(0, reader, writer)

    # -- watching -----------------------------------------------------------------------------------------------

    def _follow(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _keep_alive(writer.get_extra_info("socket"))
        self._others[index] = writer
        task = self._loop.create_task(self._hear(index, reader))
        self._tasks.add(task)

    async def _hear(self, index: int, reader: asyncio.StreamReader) -> None:
        """Wait until a process tells who was lost or that it ends itself, or until it is lost."""
        line = b""
        with contextlib.suppress(OSError):
            line = await reader.readline()
        lost = LostProcess.read(line) if line else LostProcess(index, None)
        self._others.pop(index).close()
        if self._ends:
            return
        self._ends, self._lost = True, lost
        await self._tell(lost)
        self._learned.set()
        if lost.code is not None:
            await asyncio.sleep(GRACE_SECONDS)
        self._on_loss(lost)

    async def _tell(self, lost: LostProcess) -> None:
        for writer in self._others.values():
            writer.write(lost.line())
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(writer.drain() for writer in self._others.values())), 1)

    def verdict(self) -> None:
        """Wait for news of a lost process that would explain a failure here: end if there is one, else return."""
        if self._learned.wait(VERDICT_SECONDS) and self._lost:
            self._on_loss(self._lost)

    def leave(self, code: int) -> None:
        """Tell the others that this process ends with an error. With code 0 they end as well, and are not told."""
        if code:
            self._learned.wait(LEAVE_SECONDS)  # if the loss of another is why, it is printed in that time
        self._ends = True
        if code:
            self._run(self._tell(LostProcess(self._index, code)))

    def _run(self, coroutine: Coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _relayed(near: asyncio.StreamReader, back: asyncio.StreamWriter, host: str, port: str) -> None:
    try:
        far, there = await asyncio.open_connection(host, port)
    except OSError:
        back.close()  # JAX tries again
        return
    answers = asyncio.create_task(_pump(far, back))
    await _pump(near, there)  # ends with the caller's connection
    there.close()
    await answers
    back.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()


def _split(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def _listener() -> socket.socket:
    """Return a socket that listens at one port of all addresses of this machine."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for name, value in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# -- the peers of this process ----------------------------------------------------------------------------------

_peers: Peers | None = None
_speaking = threading.Lock()


def watch(index: int, count: int, remedy: Callable[[], str]) -> Peers:
    """Begin to watch the others: if one is gone, this process prints that and `remedy`, and ends with exit code 1."""
    global _peers

    def end(lost: LostProcess) -> NoReturn:
        _speaking.acquire()  # and never release it
        with contextlib.suppress(Exception):
            _say(f"jaxtrain: stopped: {lost}. {remedy()}".rstrip())
        os._exit(1)  # nothing else ends a thread that waits in a collective

    _peers = Peers(index, count, end)
    atexit.register(_peers.leave, 0)  # runs before JAX's own handler, in which all processes wait for each other
    sys.excepthook = _excepthook(sys.excepthook)
    return _peers


def _excepthook(say: Callable[..., object]) -> Callable[..., None]:
    """Return the handler of uncaught exceptions of a process that has others."""

    def hook(kind: type[BaseException], *error) -> None:
        if issubclass(kind, Exception):
            verdict()
        say(kind, *error)
        leave(1)

    return hook


def verdict() -> None:
    """End the process if a failure in it is due to the loss of another."""
    if _peers:
        _peers.verdict()


def leave(code: int) -> None:
    """If there are other processes, tell them and end at once with exit code `code`. JAX would wait for them."""
    if _peers:
        _peers.leave(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _say(text: str) -> None:
    """Write a line to the terminal although another thread may hold its locks, and may have a live display there."""
    if os.isatty(1):
        os.write(1, b"\033[?25h\n")  # the cursor, which displays hide
    os.write(2, f"{text}\n".encode(errors="backslashreplace"))
