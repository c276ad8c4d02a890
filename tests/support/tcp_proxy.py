"""A TCP proxy in front of a server for tests: connections are slowed down, cut or reset, by a seed, or never answered.

What happens to a connection is drawn when it is accepted, so one seed gives one sequence of faults, whichever requests of
the clients meet them.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

#: What happens to a connection: each part is late; it ends in order, or by a reset, after some bytes of the answers; it is
#: accepted, and nothing is ever answered.
Fault = Literal["delayed", "cut", "reset", "silent"]
#: Bytes that are passed on at a time, and the most bytes of answers after which a connection ends.
PART, LONGEST = 16 << 10, 256 << 10


@dataclass(frozen=True)
class Faults:
    """The share of the connections that each fault meets, and the longest delay of a part in seconds."""

    delayed: float = 0.0
    cut: float = 0.0
    reset: float = 0.0
    silent: float = 0.0
    longest_delay: float = 0.1


class TcpProxy:
    """A proxy on 127.0.0.1 in front of a port of 127.0.0.1."""

    def __init__(self, port: int, faults: Faults, *, seed: int) -> None:
        self.target, self.faults, self.met = ("127.0.0.1", port), faults, Counter[str]()
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"  #: HTTP address of the proxy
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the proxy and its connections."""
        for each in [self._listener, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._open.add(client)
            kinds: list[Fault] = ["delayed", "cut", "reset", "silent"]
            weights = [getattr(self.faults, kind) for kind in kinds]
            (fault,) = self._random.choices([*kinds, ""], [*weights, 1 - sum(weights)])
            self.met[fault or "undisturbed"] += 1
            plan = fault, self._random.randrange(1, LONGEST), self._random.uniform(0, self.faults.longest_delay)
            if fault != "silent":
                threading.Thread(target=self._serve, args=(client, *plan), daemon=True).start()

    def _serve(self, client: socket.socket, fault: str, most: int, delay: float) -> None:
        try:
            server = socket.create_connection(self.target, timeout=10)
        except OSError:  # the server is down
            client.close()
            return
        server.settimeout(None)
        self._open.add(server)
        wait = delay if fault == "delayed" else 0.0
        requests = threading.Thread(target=_pass_on, args=(client, server), kwargs={"wait": wait}, daemon=True)
        requests.start()
        ended = _pass_on(server, client, wait=wait, most=most if fault in ("cut", "reset") else None)
        if resets := ended and fault == "reset":  # closing without lingering sends RST
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for each, how in ((client, socket.SHUT_RD if resets else socket.SHUT_RDWR), (server, socket.SHUT_RDWR)):
            with suppress(OSError):
                each.shutdown(how)  # also ends the other thread
        requests.join()
        for each in (client, server):
            each.close()
            self._open.discard(each)


def _pass_on(source: socket.socket, target: socket.socket, *, wait: float, most: int | None = None) -> bool:
    """Pass bytes on until the source ends, or `most` have passed; return whether they have."""
    with suppress(OSError):
        while part := source.recv(PART):
            if wait:
                time.sleep(wait)
            target.sendall(part if most is None else part[:most])
            if most is not None and (most := most - len(part)) <= 0:
                return True
        target.shutdown(socket.SHUT_WR)
    return False


@contextmanager
def tcp_proxy(port: int, faults: Faults, *, seed: int = 0) -> Iterator[TcpProxy]:
    """Run a proxy in front of a port while the block runs."""
    proxy = TcpProxy(port, faults, seed=seed)
    try:
        yield proxy
    finally:
        proxy.close()
