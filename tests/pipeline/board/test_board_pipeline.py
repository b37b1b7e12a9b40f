"""The page Pipeline in a browser, on a real luigid: seen live, started, stopped; what luigid says is text."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import types
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from luigi.rpc import RemoteScheduler

from luigi_tasks.board.access.tokens import Tokens
from luigi_tasks.board.runs.log import outcome_of, steps_of_log
from luigi_tasks.board.runs.luigid import Luigid
from luigi_tasks.board.runs.view import CRON
from tests.fakes.board_fleet import HOSTILE
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.running_board import RunningBoard
from tests.pipeline.board.conftest import board_settings

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.fixture(scope="module")
def place(tmp_path_factory, scheduler):
    """A board under a real luigid, and an operator's token."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        settings = board_settings(CommandFleet(folder, patch), folder, "look_s = 0.2")
        with settings.open("a") as file:
            file.write(
                f"[core]\ndefault-scheduler-host = {scheduler.host}\n"
                f"default-scheduler-port = {scheduler.port}\n"
            )
        token, _ = Tokens(folder / "board").issue("ann", "operator", 1)
        with RunningBoard(settings) as board:
            yield board, token


def sign_in(tab, board, token: str) -> None:
    tab.goto(f"{board.url}sign-in")
    tab.get_by_label("Token").fill(token)
    tab.get_by_role("button", name="Sign in").click()
    tab.get_by_text("ann, operator").wait_for()


def post(board, token: str, path: str, body: str) -> tuple[int, dict[str, Any]]:
    """Return what the board answers a program."""
    request = urllib.request.Request(  # noqa: S310 - http
        board.url + path,
        body.encode(),
        {"Authorization": f"Bearer {token}", "Accept": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def test_a_run_is_started_seen_live_and_read_in_a_browser(place, tab, chromium):
    board, token = place
    context = chromium.new_context()
    watcher = context.new_page()  # somebody without a token, who only looks
    watcher.goto(f"{board.url}pipeline")
    run = watcher.get_by_role("button", name="Run RefreshMetadata …")
    assert run.is_disabled()
    assert watcher.get_by_text("needs the role operator").count() == 4

    sign_in(tab, board, token)
    tab.goto(f"{board.url}pipeline")
    tab.get_by_role("button", name="Run RefreshMetadata …").click()
    tab.get_by_text("Signs again what is half expired").wait_for()
    tab.get_by_role("button", name="Run RefreshMetadata now").click()
    tab.get_by_role("heading", name="RefreshMetadata").wait_for()
    # Both change by themselves.
    watcher.get_by_role(
        "row", name=re.compile("RefreshMetadata.*done.*ann.*nothing is published yet")
    ).wait_for()
    tab.get_by_text("Exit code").wait_for()
    expect(tab.get_by_role("button", name="Stop this run")).to_have_count(0)
    assert "INFO: RefreshMetadata: nothing is published yet" in tab.locator("pre.log").inner_text()
    model = board.json("pipeline")
    assert model["scheduler"] == "answers"
    [seen] = [one for one in model["runs"] if one["task"] == "RefreshMetadata"]
    assert (seen["by"], seen["state"], seen["code"], seen["is_of_board"]) == ("ann", "done", 0, True)
    watcher.get_by_role("link", name="own page").wait_for()
    context.close()


def test_steps_of_others_are_live_and_what_they_say_is_text(place, tab, scheduler):
    """A Deploy that another machine runs under this luigid, which believes all that workers say."""
    board, _ = place
    luigid: Any = RemoteScheduler(scheduler.url)
    worker = "Worker(salt=1, workers=1, host=<b>shop</b>, username=eve, pid=4711)"

    def tell(task: str, status: str, **facts: object) -> None:
        family = task.partition("_")[0]
        luigid.add_task(worker=worker, task_id=task, family=family, status=status, **facts)

    luigid.add_worker(
        worker, [("host", "<b>shop</b>"), ("username", "eve"), ("pid", 4711), ("first_task", "Deploy_x")]
    )
    tell("ReadShard_1", "PENDING", params={"shard": "1"})
    tell("ReadShard_2", "DONE", params={"shard": "2"})
    tell("EvaluateModel_x", "PENDING", params={}, deps=["ReadShard_1", "ReadShard_2"])
    tell("Deploy_x", "PENDING", params={"listing": "", "pictures": HOSTILE}, deps=["EvaluateModel_x"])
    assert luigid.get_work(worker=worker, host="h", current_tasks=[])["task_id"] == "ReadShard_1"
    tab.goto(f"{board.url}pipeline")
    tab.get_by_role("heading", name="Deploy is running").wait_for()
    steps = tab.locator(".steps > li")
    assert [one.split("\n")[0] for one in steps.all_inner_texts()][:2] == [
        "Read pictures that are new",
        "Measure it at the gate",
    ]
    luigid.set_task_status_message("ReadShard_1", HOSTILE)
    luigid.set_task_progress_percentage("ReadShard_1", 40)
    tab.get_by_text("70.0%").wait_for()  # one of two is done, and 40% of the other
    assert "1 of 2" in steps.first.inner_text()
    assert "<script>alert(2)" in steps.first.inner_text()
    assert tab.locator("main img, main b").count() == 0

    tell("ReadShard_1", "FAILED", expl=json.dumps(f"Traceback\nTransportError: {HOSTILE}"))
    tab.get_by_text("failed", exact=True).first.wait_for()
    tab.get_by_text("Error", exact=True).first.click()
    assert "TransportError" in tab.locator(".steps pre").inner_text()
    for task in ("ReadShard_1", "EvaluateModel_x", "Deploy_x"):
        tell(task, "DONE")
    tab.get_by_role("heading", name="Steps of the last Deploy").wait_for()


def test_a_run_outlives_the_board_and_the_next_one_finds_it(place):
    board, token = place
    code, answer = post(board, token, "pipeline/start", "task=AdvanceRollout&channel=stable")
    assert code == 200, answer
    name = answer["run"]["id"]
    board.stop()
    board.start()
    ended = board.json(f"pipeline/runs/{name}")["run"]
    while ended["state"] == "running":
        time.sleep(0.1)
        ended = board.json(f"pipeline/runs/{name}")["run"]
    assert (ended["task"], ended["options"], ended["by"]) == (
        "AdvanceRollout",
        ["--channel", "stable"],
        "ann",
    )
    assert ended["state"] == "done", ended
    assert post(board, token, f"pipeline/runs/{name}/stop", "")[1]["run"]["state"] == "done", "it had ended"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("task=RollBack", 400),
        ("task=TakeLabelled&labels=/etc/passwd", 400),
        ("task=AdvanceRollout&channel=../x", 400),
        ("", 400),
    ],
)
def test_no_other_task_and_no_free_text_is_started(place, body, code):
    board, token = place
    assert post(board, token, "pipeline/start", body)[0] == code
    assert post(board, "", "pipeline/start", "task=RefreshMetadata")[0] in {401, 403}


def test_addresses_of_runs_that_are_not_there(place):
    board, token = place
    for name in ("nothing", "%2e%2e%2fstart", "20261128T000000Z-000000", "%00"):
        for path in (f"pipeline/runs/{name}", f"pipeline/runs/{name}/log"):
            with pytest.raises(urllib.error.HTTPError) as e:
                board.json(path)
            assert e.value.code in {400, 404}
    assert post(board, token, "pipeline/runs/nothing/stop", "")[0] == 404


class Foreign(BaseHTTPRequestHandler):
    """A server that is no luigid."""

    answer = (200, b"{}")

    def do_POST(self):
        code, body = self.answer
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        pytest.fail("a redirect was followed, with luigid's password")

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    "answer",
    [
        (404, b""),
        (200, b"<html>"),
        (200, b'{"response": 7}'),
        (200, b'{"response": {"Deploy_x": {"name": 7}}}'),
        (200, b'{"response": {"Deploy_x": {"name": "Deploy", "params": null}}}'),
        (200, b"\xff" * 100),
        (200, b'{"response": ' + b"[" * 100_000),
        (302, b""),
    ],
)
def test_what_is_no_luigid_or_another_version_is_said_with_the_way_out(answer, monkeypatch):
    monkeypatch.setattr(Foreign, "answer", answer)
    with HTTPServer(("127.0.0.1", 0), Foreign) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        look = Luigid(f"http://me:secret@127.0.0.1:{server.server_port}/").look()
        server.shutdown()
    assert look.state == "older"
    assert "pip install -U luigi" in look.words
    assert "secret" not in repr(look)


def test_a_luigid_that_is_down_or_silent_is_said_with_the_command(monkeypatch):
    monkeypatch.setattr("luigi_tasks.board.runs.luigid._TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        look = Luigid(f"http://127.0.0.1:{port}/").look()
        assert (look.state, look.command) == ("down", f"luigid --address 127.0.0.1 --port {port}")
    look = Luigid(f"http://127.0.0.1:{port}/").look()
    assert look.state == "down"
    assert "exit code 40" in look.words
    assert Luigid("").look().state == "none"
    assert Luigid("http+unix://%2Frun%2Fluigid/").look().state == "hidden"


def test_the_line_for_cron_is_that_of_the_configuration_that_is_shipped():
    assert CRON in (Path(__file__).parents[3] / "configs/crontab").read_text().splitlines()


LOG = """\
INFO: Informed scheduler that task   Deploy__a_1   has status   PENDING
INFO: Informed scheduler that task   ReadShard_1_2   has status   PENDING
INFO: Informed scheduler that task   ReadShard_2_2   has status   PENDING
INFO: [pid 1] Worker Worker(salt=1, workers=1, host=h, username=u, pid=1) running   ReadShard(shard=1)
INFO: ReadShard: 40 pictures
INFO: Informed scheduler that task   ReadShard_1_2   has status   DONE
"""
FAILED = (
    "ERROR: [pid 1] Worker Worker(salt=1, workers=1, host=h, username=u, pid=1) failed    "
    "ReadShard(shard=2): TransportError: the store is away\n"
)
REFUSED = "WARNING: Release a7e764352c1b5bd537cd is not published, the gate refused: accuracy 0.07\n"


def test_a_log_tells_the_steps_and_the_end_where_no_luigid_does():
    by_task = {one.task: one for one in steps_of_log(LOG)}
    assert [*by_task] == ["ReadShard", "Deploy"]
    assert (by_task["ReadShard"].state, by_task["ReadShard"].percent) == ("running", 50.0)
    failed = {one.task: one for one in steps_of_log(LOG + FAILED)}["ReadShard"]
    assert failed.state == "failed"
    assert outcome_of("Deploy", LOG + FAILED).words == "ReadShard failed: TransportError: the store is away"
    refused = outcome_of("Deploy", LOG + REFUSED)
    assert (refused.state, refused.words) == ("refused", REFUSED.removeprefix("WARNING: ").strip())
    assert outcome_of("Deploy", "luigi: [store] url: none\n").words == "[store] url: none"
    assert outcome_of("Deploy", HOSTILE).words == ""
    assert outcome_of("Deploy", "\nDid not run any tasks\n").words == "nothing was new: all was done already"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_deploy_is_started_in_a_browser_and_publishes_a_release(tmp_path, scheduler, tab, small_weights):
    from pipeline_under_test import PipelineUnderTest  # noqa: PLC0415 - TensorFlow's

    folder = tmp_path / "deploy"
    folder.mkdir()
    pictures: Any = types.SimpleNamespace(pictures=folder / "pictures")
    PipelineUnderTest.write_digits(pictures, 40)
    with pytest.MonkeyPatch.context() as patch:
        settings = board_settings(CommandFleet(folder, patch), folder)
    with settings.open("a") as file:
        file.write(
            f"[core]\ndefault-scheduler-url = {scheduler.url}\n"
            f"[dataset]\nurl = {folder}/pictures\ncache_dir = {folder}/cache\n"
            "[model]\narchitecture = mobilenet_v1\nalpha = 0.25\ninput_size = 32\n"
            f"weights = {small_weights}\n"
            "[quantization]\ncalibration_pictures = 50\n"
            "[gate]\nmin_accuracy = 0.0\nmax_float_drop_points = 100.0\nmax_class_drop_points = 100.0\n"
            "min_class_recall = 0.0\nmin_class_holdout = 0\nthin_evidence = publish\n"
        )
    token, _ = Tokens(folder / "board").issue("ann", "operator", 1)
    with RunningBoard(settings) as board:
        sign_in(tab, board, token)
        tab.goto(f"{board.url}pipeline")
        tab.get_by_role("button", name="Run Deploy …").click()
        tab.get_by_role("button", name="Run Deploy now").click()
        tab.goto(f"{board.url}pipeline")
        tab.get_by_text("Deploy is running").wait_for()
        tab.locator(".outcome").get_by_text("published", exact=True).wait_for(timeout=200_000)
        tab.locator(".outcome").get_by_role("link").click()
        tab.get_by_role("heading", level=1).wait_for()
        assert "/releases/" in tab.url
