"""A TCP proxy that treats connections badly when told to."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

FAULTS = ("refuse", "reset", "truncate", "blackhole", "delay")
_BEFORE_FAULT_BYTES = 300
_DELAY_S = 0.15


class RudeProxy:
    """Use in a `with` block; set `fault` at any time.

    Attributes:
        fault: None: pass everything on. `refuse`: end each connection at once. `reset`, `truncate`: end it
            with RST or FIN after some bytes. `blackhole`: take everything and answer nothing, for as long
            as the connection lasts: bytes of a stream are never left out. `delay`: pass on slowly.
        spoilt: Connections that a fault met.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.fault: str | None = None
        self.spoilt = 0
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self.fault == "refuse":
                self.spoilt += 1
                return
            with socket.create_connection(self._target) as server:
                self._pump(client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        met: str | None = None
        going = True
        while going and not self._closed.is_set():
            for ready in select.select([client, server], [], [], 0.05)[0]:
                data = ready.recv(65536)
                if self.fault is not None and met is None:
                    met, self.spoilt = self.fault, self.spoilt + 1
                going = going and bool(data)
                if going and met != "blackhole":
                    going = self._pass_on(data, ready is client, client, server)

    def _pass_on(self, data: bytes, asks: bool, client: socket.socket, server: socket.socket) -> bool:
        """Pass a piece on, as badly as the fault wants; False ends the connection."""
        if asks or self.fault not in {"reset", "truncate"}:
            (server if asks else client).sendall(data)
            if self.fault == "delay":
                self._closed.wait(_DELAY_S)
            return self.fault != "refuse"
        client.sendall(data[:_BEFORE_FAULT_BYTES])
        if self.fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
