"""Connections in memory, and what a network does to them.

Bytes of a connection keep their order and arrive later, in pieces. Each connection draws its
latencies and splits from a stream of its own, so that one connection more or less changes no other.
A draw never depends on the length of a message: answers contain times and sizes of this process.
TLS is left to a test of real processes (``test_tls.py``): it changes no byte that the daemon reads.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, Self

LATENCY_S: Final = (0.001, 0.03)
SPLIT: Final = 0.02
"""Share of the writes that arrive in two pieces."""
HIGH_WATER: Final = 64 * 1024
READ_MOST: Final = 256 * 1024
"""Most bytes that a protocol is given at once, as by asyncio's sockets."""
FIRST_PORT: Final = 40_000


class Address(NamedTuple):
    """Where a socket would be."""

    host: str
    port: int


class TimedLoop(Protocol):
    """What the network needs of the loop."""

    now_s: float

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Any: ...
    def call_soon(self, callback: Callable[..., object], *args: Any) -> Any: ...


class Listening(NamedTuple):
    """Stands for a listening socket."""

    address: Address

    def getsockname(self) -> Address:
        """Return the address."""
        return self.address


class Server:
    """A listening server; *factory* makes the protocol of each connection."""

    def __init__(
        self, network: Network, address: Address, factory: Callable[[], asyncio.Protocol]
    ) -> None:
        self.network, self.address, self.factory = network, address, factory
        self.sockets = (Listening(address),)

    def close(self) -> None:
        """Free the port."""
        if self.network.servers.get(self.address.port) is self:
            del self.network.servers[self.address.port]

    def is_serving(self) -> bool:
        """Return whether the port is bound."""
        return self.network.servers.get(self.address.port) is self

    async def wait_closed(self) -> None:
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.close()


class Network:
    """All servers and connections of one life, and the faults of those to ``faulty_ports``."""

    def __init__(self, loop: TimedLoop, seed: str) -> None:
        self.loop = loop
        self.servers: dict[int, Server] = {}
        self.faulty_ports: frozenset[int] = frozenset()
        self.latency_s = LATENCY_S
        self.split = SPLIT
        self.kernel_bytes = 0  # beyond the writer's buffer, of each direction
        self.connections: Counter[int] = Counter()  # that were opened, by port
        self.tamper: Callable[[Transport, bytes], bytes] | None = None
        """Changes what a server sends."""
        self.refused_until_s = self.hanging_until_s = self.unresolved_until_s = 0.0
        self._seed = seed
        self._pairs: list[tuple[Transport, Transport]] = []
        self._dialled: dict[int, Server] = {}
        self._dial_rng = random.Random(f"{seed}:dial")
        self._port = FIRST_PORT

    # ------------------------------------------------------------ servers and clients

    def listen(self, factory: Callable[[], asyncio.Protocol], address: Address) -> Server:
        """Bind *address*; port 0 takes the next free one."""
        if not address.port:
            self._port += 1
            address = address._replace(port=self._port)
        if address.port in self.servers:
            raise OSError(errno.EADDRINUSE, "address already in use")
        self.servers[address.port] = server = Server(self, address, factory)
        return server

    async def resolve(self, port: Any, kind: int) -> list[tuple[Any, ...]]:
        """Answer as ``getaddrinfo``: every name is this machine."""
        await self._wait()
        if self.loop.now_s < self.unresolved_until_s:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        stream = kind or socket.SOCK_STREAM
        return [(socket.AF_INET, stream, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    async def dial(self, address: tuple[Any, ...]) -> Server:
        """Return the server at *address* after a while; raises what ``connect`` raises."""
        port = address[1]
        if self.loop.now_s < self.hanging_until_s and port in self.faulty_ports:
            await asyncio.sleep(self.hanging_until_s - self.loop.now_s)
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
        await self._wait()
        server = self.servers.get(port)
        is_refused = self.loop.now_s < self.refused_until_s and port in self.faulty_ports
        if server is None or is_refused:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"Connect call failed {address}")
        return server

    async def dial_socket(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """``dial`` for a socket that ``connect`` is called with later."""
        self._dialled[sock.fileno()] = await self.dial(address)

    async def connect(
        self, factory: Callable[[], Any], address: Address | None, sock: socket.socket | None
    ) -> tuple[Transport, Any]:
        """Connect a client, through *sock* if that has been dialled."""
        if sock is not None:
            server = self._dialled.pop(sock.fileno())
            sock.close()
        else:
            assert address is not None
            if not address.host.replace(".", "").isdigit():
                await self.resolve(address.port, socket.SOCK_STREAM)
            server = await self.dial(address)
        if not server.is_serving():  # it was closed after it had been dialled
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        self._port += 1
        self.connections[server.address.port] += 1
        near, far = Address("127.0.0.1", self._port), server.address
        client = Transport(self, near, far, random.Random(f"{self._seed}:{self._port}:sent"))
        peer = Transport(self, far, near, random.Random(f"{self._seed}:{self._port}:received"))
        client.peer, peer.peer = peer, client
        client.set_protocol(factory())
        peer.set_protocol(server.factory())
        self._pairs = [each for each in self._pairs if not (each[0].is_gone and each[1].is_gone)]
        self._pairs.append((client, peer))
        peer.get_protocol().connection_made(peer)
        client.get_protocol().connection_made(client)
        return client, client.get_protocol()

    async def _wait(self) -> None:
        await asyncio.sleep(self._dial_rng.uniform(*self.latency_s))

    # ------------------------------------------------------------ faults

    def open_pairs(self, ports: frozenset[int] | None = None) -> list[tuple[Transport, Transport]]:
        """Return the connections that are open to *ports*, or to any."""
        return [
            each
            for each in self._pairs
            if not (each[0].is_gone and each[1].is_gone)
            and (ports is None or each[0].far.port in ports)
        ]

    def reset(self, rng: random.Random, *, is_all: bool = False) -> None:
        """Reset a drawn connection to a faulty port, or all, on both sides."""
        if pairs := self.open_pairs(self.faulty_ports):
            for pair in pairs if is_all else [pairs[int(rng.random() * len(pairs))]]:
                for side in pair:
                    side.fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    def half_open(self, rng: random.Random, seconds: float) -> None:
        """Hold what both sides of a drawn connection send; neither is told."""
        if pairs := self.open_pairs(self.faulty_ports):
            for side in pairs[int(rng.random() * len(pairs))]:
                side.held_until_s = self.loop.now_s + seconds

    def slow(self, seconds: float, by_s: float) -> None:
        """Add *by_s* to every latency of the open connections for *seconds*."""
        for pair in self.open_pairs(self.faulty_ports):
            for side in pair:
                side.late_s, side.late_until_s = by_s, self.loop.now_s + seconds


class Transport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, near: Address, far: Address, rng: random.Random) -> None:
        super().__init__({"sockname": near, "peername": far})
        self.network, self.loop, self.far = network, network.loop, far
        self.peer: Transport
        self.is_gone = False
        self.held_until_s = self.late_s = self.late_until_s = 0.0
        self._rng = rng
        self._protocol: Any = None
        self._is_closing = False
        self._is_reading = True
        self._is_paused = False
        self._received: deque[bytes | None] = deque()  # None is the end of the stream
        self._sent: deque[tuple[float, bytes | None]] = deque()  # by arrival
        self._in_flight = 0
        self._low, self._high = HIGH_WATER // 4, HIGH_WATER
        self._newest_s = 0.0

    # ------------------------------------------------------------ protocol and reading

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self.loop.call_soon(self._deliver)

    # ------------------------------------------------------------ writing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return max(0, self._in_flight - self.network.kernel_bytes)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._send(None)

    def write(self, data: Any) -> None:
        if self.is_closing() or not data:
            return
        content = bytes(data)
        if self.network.tamper is not None:
            content = self.network.tamper(self, content)
        is_split, share = self._rng.random() < self.network.split, self._rng.random()
        at = 1 + int(share * (len(content) - 1)) if is_split else len(content)
        for piece in (content[:at], content[at:]):
            if piece:
                self._send(piece)
        if self.get_write_buffer_size() > self._high and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def _send(self, piece: bytes | None) -> None:
        now_s = self.loop.now_s
        late_s = self._rng.uniform(*self.network.latency_s)
        late_s += self.late_s if now_s < self.late_until_s else 0.0
        self._newest_s = max(self._newest_s, now_s + late_s)
        self._in_flight += len(piece or b"")
        self._sent.append((self._newest_s, piece))
        if len(self._sent) == 1:
            self.loop.call_at(max(self._newest_s, self.held_until_s), self._arrive)

    def _arrive(self) -> None:
        """Hand over what is due; one timer, for the head: equal timers have no order."""
        now_s = self.loop.now_s
        while self._sent and max(self._sent[0][0], self.held_until_s) <= now_s:
            self.peer._received.append(self._sent.popleft()[1])
        if self._sent:
            self.loop.call_at(max(self._sent[0][0], self.held_until_s), self._arrive)
        self.peer._deliver()

    def _deliver(self) -> None:
        while self._is_reading and self._received and not self.is_gone:
            piece = self._received.popleft()
            if piece is not None and len(piece) > READ_MOST:
                self._received.appendleft(piece[READ_MOST:])
                piece = piece[:READ_MOST]
            self.peer._taken(len(piece or b""))
            if piece is not None:
                self._protocol.data_received(piece)
            elif not self._protocol.eof_received():
                self.close()

    def _taken(self, count: int) -> None:
        """Let the protocol write on once the other side has read enough."""
        self._in_flight -= count
        if self._is_paused and self.get_write_buffer_size() <= self._low and not self.is_gone:
            self._is_paused = False
            self._protocol.resume_writing()

    # ------------------------------------------------------------ ends

    def is_closing(self) -> bool:
        return self._is_closing or self.is_gone

    def close(self) -> None:
        if not self.is_closing():
            self._is_closing = True
            self._send(None)
            self.loop.call_soon(self._lose, None)

    def abort(self) -> None:
        if not self.is_gone:
            self._is_closing = True
            self.loop.call_soon(self._lose, None)
            late_s = self._rng.uniform(*self.network.latency_s)
            error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            self.loop.call_at(self.loop.now_s + late_s, self.peer.fail, error)

    def fail(self, error: Exception) -> None:
        """Lose the connection by *error*."""
        if not self.is_gone:
            self._is_closing = True
            self.loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._received.clear()
            self._protocol.connection_lost(error)
