"""History of acts, and threads that hang: what the board's parts promise each other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest
from local_services import wait_until

from edge_client.contract.errors import TransportError
from luigi_tasks.board.access import audit as audit_module
from luigi_tasks.board.access.acts_told import tell_act
from luigi_tasks.board.access.audit import Act, Audit
from luigi_tasks.board.pools import THREADS, Pool
from luigi_tasks.board.shared_reading import SharedReading
from luigi_tasks.settings.sections import load_settings
from tests.fakes.webhook_receiver import WebhookReceiver

AT = "2026-11-28T02:00:00.000+00:00"


def act(what, **facts):
    """An act of Ann."""
    return Act(at=AT, who="ann", role="operator", what=what, why="blurred\nlens", facts=facts)


def test_acts_of_the_board_are_told_as_events_and_sign_ins_are_not(tmp_path):
    with WebhookReceiver() as receiver:
        file = tmp_path / "webhooks"
        file.write_text(f"{receiver.url} whsec_{'A' * 32}\n")
        file.chmod(0o600)
        settings = load_settings(broker={"host": ""}, fleet={"webhooks_file": str(file)})
        history = Audit(tmp_path, lambda one: tell_act(settings, one))
        for what in ("sign-in", "board.labelled", "sign-out"):
            history.add(act(what, frames="3"))
        wait_until(lambda: bool(receiver.events), "an event")
        [event] = receiver.events
        assert (event["type"], event["timestamp"]) == ("board.labelled", AT)
        assert event["data"] == {
            "fleet": "fleet", "frames": "3", "who": "ann", "role": "operator", "why": "blurred\nlens",
        }  # fmt: skip
        receiver.hang()
        for _ in range(3):
            history.add(act("board.labelled"))
        assert len(history.last(10)) == 6, "a receiver that hangs holds up nobody"


def test_files_are_rotated_and_a_torn_line_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_module, "FILE_BYTES", 1000)
    monkeypatch.setattr(audit_module, "FILES", 3)
    history = Audit(tmp_path, lambda one: one)
    for number in range(30):
        history.add(act(f"act {number}"))
    shown = [one.what for one in history.last(1000)]
    assert shown == [f"act {29 - number}" for number in range(len(shown))]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    found = [one.stat() for one in tmp_path.iterdir()]
    assert all(one.st_size <= 1000 and one.st_mode & 0o777 == 0o600 for one in found)
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"what": "to')
    history.add(act("after a power cut"))
    assert [one.what for one in history.last(2)] == ["after a power cut", "act 29"]


def test_what_cannot_be_written_stands_in_the_log(tmp_path, caplog):
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    history = Audit(tmp_path, lambda one: one)
    history.add(act("board.rollout"))
    history.close()
    assert "stands here alone" in caplog.text
    assert '"board.rollout"' in caplog.text


def test_a_part_whose_threads_all_hang_holds_up_no_other():
    end = threading.Event()

    async def ask():
        store, local = Pool("the store's part", waiting=6), Pool("another part")
        hanging = [asyncio.ensure_future(store.run(end.wait, 60)) for _ in range(THREADS)]
        await asyncio.sleep(0)
        with pytest.raises(TransportError, match="the store's part took over"):
            await store.run(lambda: 1, 0.01)
        assert await local.run(lambda: 2, 60) == 2
        with pytest.raises(ZeroDivisionError):
            await local.run(lambda: 1 // 0, 60)
        waiting = [asyncio.ensure_future(store.run(lambda: 3, 60)) for _ in range(10)]
        end.set()
        said = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(await asyncio.gather(*hanging))
        assert said.count(3) + sum("busy" in str(one) for one in said) == len(said)
        assert await store.run(lambda: 4, 60) == 4, "it works again"

    # The browser of other tests has a loop of its own in this thread.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(ask())).result()


def test_who_asks_a_slow_store_need_not_wait_to_the_end_and_asks_it_nothing_twice():
    answers = iter([1, 2])
    may_end = threading.Event()

    def read():
        answer = next(answers)
        if answer == 1:
            may_end.wait(60)
            return answer
        raise TransportError("away")

    reading = SharedReading("slow", read)
    assert [reading.get(0.01), reading.get(0.01)] == [None, None]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(reading.get, 60)
        may_end.set()
        assert waiting.result() == 1
    with pytest.raises(TransportError, match="away"):
        reading.get(60)
