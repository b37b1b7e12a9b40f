"""Notifications to systemd, on a real socket."""

from __future__ import annotations

import os
import socket

import pytest

from edge_client.reporting.systemd import SystemdNotifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """A socket as systemd's; returns it and its address in the environment."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}" if request.param == "abstract" else name)
        listener.settimeout(20)
        yield listener, f"@{name}" if request.param == "abstract" else name


def test_ready_alive_and_stopping_are_sent(systemd):
    listener, address = systemd
    notifier = SystemdNotifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    assert notifier.interval_s == 15.0
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    assert [listener.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/nowhere/socket"},
        {"NOTIFY_SOCKET": "/nowhere/socket", "WATCHDOG_USEC": "many"},
        {"NOTIFY_SOCKET": "/nowhere/socket", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/nowhere/socket", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_systemd_or_its_watchdog_nothing_happens(environment):
    notifier = SystemdNotifier(environment)
    assert notifier.interval_s is None
    notifier.ready()
    notifier.alive()


def test_the_watchdog_is_meant_for_this_process():
    environment = {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert SystemdNotifier(environment).interval_s == 0.5


@pytest.mark.slow
def test_the_daemon_feeds_the_watchdog(systemd, daemon, watcher, repository, monkeypatch):
    listener, address = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(release)
    heard = [listener.recv(100) for _ in range(4)]
    assert heard == [b"READY=1"] + [b"WATCHDOG=1"] * 3
    assert daemon.terminate() == 0
    while (last := listener.recv(100)) == b"WATCHDOG=1":
        pass
    assert last == b"STOPPING=1"
