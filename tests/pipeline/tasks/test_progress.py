"""What a person sees while a step runs: on luigid's page, and as a bar on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading

from luigi_tasks.progress import TaskProgress

BAR = """
import time
from luigi_tasks.progress import TaskProgress
class Task:
    def set_status_message(self, message): pass
    def set_progress_percentage(self, percent): pass
shown = TaskProgress(Task())
for done in range(1, 31):
    time.sleep(0.05)
    shown("decoding pictures", done, 60)
shown.close()
"""


class Page:
    """Stands for a running task; keeps what it reported to luigid."""

    def __init__(self):
        self.messages, self.percents = [], []

    def set_status_message(self, message):
        self.messages.append(message)

    def set_progress_percentage(self, percent):
        self.percents.append(percent)


class Clock:
    """Monotonic seconds that the test advances."""

    now = 100.0

    def __call__(self):
        return self.now


def test_luigids_page_has_what_is_done_the_rate_and_the_time_left():
    page, clock = Page(), Clock()
    shown = TaskProgress(page, clock)
    for done in (1, 40, 100):
        shown("reading pictures", done, 400)
        clock.now += 1
    assert page.messages == [
        "reading pictures: 40 of 400 (40/s, 9 s left)",
        "reading pictures: 100 of 400 (50/s, 6 s left)",
    ]
    assert page.percents == [10, 25]


def test_luigid_gets_progress_twice_a_second_at_most():
    page, clock = Page(), Clock()
    shown = TaskProgress(page, clock)
    for done in range(1, 1001):
        shown("reading pictures", done, 1000)
        clock.now += 0.01
    assert len(page.messages) <= 20


def test_each_stage_of_a_step_has_a_rate_of_its_own():
    page, clock = Page(), Clock()
    shown = TaskProgress(page, clock)
    shown("decoding", 10, 10)
    clock.now += 100
    shown("training", 1, 30)
    clock.now += 2
    shown("training", 10, 30)
    assert page.messages[-1] == "training: 10 of 30 (5/s, 4 s left)"


def test_what_is_done_has_no_time_left():
    page, clock = Page(), Clock()
    shown = TaskProgress(page, clock)
    shown("training", 0, 0)
    clock.now += 1
    shown("training", 30, 30)
    assert page.messages == ["training: 30 of 30 (30/s)"]


def test_terminal_shows_a_bar_with_count_rate_and_time_left():
    master, terminal = pty.openpty()
    seen = bytearray()

    def read():
        try:
            while data := os.read(master, 4096):
                seen.extend(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        subprocess.run([sys.executable, "-c", BAR], stderr=terminal, check=True, env=environment)
    finally:
        os.close(terminal)
        reader.join(10)
        os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"decoding pictures +\S+ *30/60 +(1\d|20)/s +0:00:0[12]", text.replace("\r", "\n")), text
