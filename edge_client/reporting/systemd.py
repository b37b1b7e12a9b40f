"""Notify systemd that the daemon is ready, alive or stopping.

Source: sd_notify(3) and sd_watchdog_enabled(3): datagrams to the socket in the environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class SystemdNotifier:
    """Notifications to systemd; without NOTIFY_SOCKET in the environment, nothing is sent."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of Linux' abstract namespace.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.interval_s = self._interval_s(environment) if address else None

    def ready(self) -> None:
        """Notify that start-up is finished: a release serves, or the daemon waits for the first one."""
        self._send(b"READY=1")

    def alive(self) -> None:
        """Feed the watchdog; due every `interval_s`, or systemd restarts the daemon."""
        self._send(b"WATCHDOG=1")

    def stopping(self) -> None:
        """Notify that the daemon is ending."""
        self._send(b"STOPPING=1")

    def _interval_s(self, environment: Mapping[str, str]) -> float | None:
        """Return half of the unit's WatchdogSec=; None without a watchdog."""
        meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
        with contextlib.suppress(ValueError):
            if meant_for == str(os.getpid()) and (limit_us := int(environment.get("WATCHDOG_USEC", "0"))) > 0:
                return limit_us / 2e6
        return None

    def _send(self, message: bytes) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(self._address)
            notify.send(message)
