"""Central scheduler: one that is not there is told at once, and none keeps what is undone from being done."""

from __future__ import annotations

import ctypes
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import luigi
import pytest
from local_services import Scheduler, free_ports
from luigi.rpc import RemoteScheduler
from luigi.scheduler import Scheduler as InProcess
from luigi.worker import TaskStatusReporter

from edge_client.contract.errors import TransportError
from luigi_tasks import luigid
from tests.fakes.datasets import class_folders, write_tree

REPOSITORY = Path(__file__).resolve().parents[3]


class Held(luigi.Task):
    """A task that loads something large."""


class OtherServer(BaseHTTPRequestHandler):
    """A web server that is no luigid."""

    answer = (404, b"")

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        code, body = self.answer
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def other_server():
    server = HTTPServer(("127.0.0.1", 0), OtherServer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def short_limit(monkeypatch):
    monkeypatch.setattr(luigid, "START_LIMIT_S", 0.2)


@pytest.mark.parametrize("answer", [(404, b""), (200, b"<html>"), (200, b"[]"), (200, b"{}")])
def test_something_else_that_listens_there_is_no_luigid(other_server, monkeypatch, answer):
    monkeypatch.setattr(OtherServer, "answer", answer)
    with pytest.raises(
        TransportError, match=r"luigid at http://127\.0\.0\.1:\d+ does not answer .*--scheduler-host"
    ):
        luigid.check_answers(other_server)


def test_a_luigid_that_accepts_and_says_nothing_is_told(short_limit):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(TransportError, match=r"does not answer \(timed out\)"),
    ):
        luigid.check_answers(f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_luigid_that_is_just_starting_is_waited_for(monkeypatch):
    [port] = free_ports(1)
    asked = []

    def start_after_the_first_question(*_):
        asked.append(port)
        if len(asked) == 1:
            server = HTTPServer(("127.0.0.1", port), OtherServer)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    monkeypatch.setattr(luigid, "START_LIMIT_S", 30.0)
    monkeypatch.setattr(OtherServer, "answer", (200, b'{"response": {"paused": false}}'))
    monkeypatch.setattr("luigi_tasks.luigid.time.sleep", start_after_the_first_question)
    luigid.check_answers(f"http://user:secret@127.0.0.1:{port}/")
    assert asked == [port]


def test_a_worker_whose_interpreter_is_held_stays_known(monkeypatch):
    """Luigid in another process: what holds this interpreter holds all of its threads."""
    code = (
        "import http.server as h, sys\n"
        "class Luigid(h.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        body = self.rfile.read(int(self.headers['Content-Length'])).decode()\n"
        "        print(self.path, body, self.headers['Authorization'], flush=True)\n"
        "server = h.HTTPServer(('127.0.0.1', 0), Luigid)\n"
        "print(server.server_port, flush=True)\n"
        "server.timeout = 30\n"
        "server.handle_request()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        scheduler = RemoteScheduler(f"http://me:it@127.0.0.1:{port}/")
        task = Held()
        task.set_tracking_url = TaskStatusReporter(
            scheduler, task.task_id, "W(1, 2)", None
        ).update_tracking_url
        with luigid.stay_known(task):
            ctypes.PyDLL(None).waitpid(server.pid, None, 0)  # keeps the lock of the interpreter
        server.returncode = 0
        assert server.stdout.read() == (
            "/api/ping data=%7B%22worker%22%3A+%22W%281%2C+2%29%22%7D Basic bWU6aXQ=\n"
        )


def test_without_luigid_nobody_is_told(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    task = Held()
    task.set_tracking_url = None
    with luigid.stay_known(task):
        pass
    task.set_tracking_url = TaskStatusReporter(InProcess(), task.task_id, "W", None).update_tracking_url
    with luigid.stay_known(task):
        pass


@pytest.mark.slow
def test_what_was_done_a_moment_ago_and_is_undone_is_done_again(tmp_path):
    """A luigid that did not read our luigi.cfg takes it for done, by default for ten seconds."""
    write_tree(tmp_path / "pictures", class_folders({"cat": 20, "dog": 20}))
    (tmp_path / "luigi.cfg").write_text(
        "[dataset]\nurl = pictures\ncache_dir = cache\n[store]\nurl = file://"
        + str(tmp_path / "store")
        + "\n"
    )
    with Scheduler(tmp_path / "luigid", {"stable_done_cooldown_secs": "600"}) as scheduler:
        for _ in range(3):
            run = subprocess.run(
                [
                    str(Path(sys.executable).with_name("luigi")),
                    *("--module", "luigi_tasks", "DatasetSnapshot"),
                    *("--scheduler-port", str(scheduler.port)),
                ],
                cwd=tmp_path,
                env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            assert "DatasetSnapshot took" in run.stderr, "done anew, from a folder that is not the checkout"
            assert "ReadShard took" in run.stderr
            shutil.rmtree(tmp_path / "store")
