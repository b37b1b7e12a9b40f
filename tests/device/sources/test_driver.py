"""How long a driver has kept its readers waiting."""

from __future__ import annotations

import threading

from edge_client.sources.driver import DriverWatch


def test_the_longest_call_of_a_driver_counts() -> None:
    now = 0.0
    driver = DriverWatch(clock=lambda: now)
    begun, over = threading.Event(), threading.Event()

    def hang() -> None:
        with driver:
            begun.set()
            over.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    assert begun.wait(10)
    now = 50.0
    with driver:
        now = 70.0
        assert driver.waiting_s() == 70
    assert driver.waiting_s() == 70
    over.set()
    thread.join(10)
    assert driver.waiting_s() == 0
