"""Signals to the daemon, and the wait for its end."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from edge_client.state_folder import BUNDLE_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def end_requests() -> Iterator[tuple[Callable[[Mapping[int, Callable[[], None]]], str], Callable[[], None]]]:
    """Turn signals into bytes of a pipe: a handler that took a lock could wait for ever.

    Yields: A function that waits for the end and returns its reason, running the given actions for other
        signals until then; a function that requests the end.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, BUNDLE_SIGNAL)
    signal.set_wakeup_fd(writer)
    handlers = {number: signal.signal(number, lambda _number, _frame: None) for number in signals}

    def wait(others: Mapping[int, Callable[[], None]]) -> str:
        while (number := os.read(reader, 1)[0]) in others:
            others[number]()
        return signal.Signals(number).name if number else "end of the source"

    def request() -> None:
        os.write(writer, b"\0")

    try:
        yield wait, request
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
