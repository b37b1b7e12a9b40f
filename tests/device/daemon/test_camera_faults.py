"""A camera that cannot be used is a status and a line of doctor; the real daemon serves once it is mended."""

from __future__ import annotations

import os
import shutil

import pytest
from local_services import wait_until

from tests.fakes.tiny_model import plain_picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BROKEN = 'raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")\n'


def test_library_that_is_broken_and_mended_while_the_daemon_runs(
    daemon, watcher, serving, tmp_path, monkeypatch
):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra of the device")
    daemon.terminate()
    film = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(film, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(plain_picture("blue", 48, 64)[..., ::-1].copy())
    writer.release()
    first = tmp_path / "first"
    first.mkdir()
    (first / "cv2.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(first), os.environ.get("PYTHONPATH", "")]))
    daemon.settings["source"] = {"kind": "video", "path": film}
    daemon.start()
    told = watcher.wait_status(lambda s: s.last_error is not None, "the library that is broken").last_error
    assert "libGL.so.1" in told
    assert "opencv-python-headless" in told
    [line] = [line for line in daemon.ask("doctor").stdout.splitlines() if " source " in line]
    assert line.startswith("FAIL")
    assert "opencv-python-headless" in line
    assert daemon.process.poll() is None, "no crash loop"
    assert "Traceback" not in daemon.log
    shutil.rmtree(first)
    wait_until(lambda: "the source has no more frames" in daemon.log, "the film")
    assert [result.label for result in watcher.results] == ["blue"]


def test_folder_that_is_filled_for_days_and_with_what_is_no_picture(daemon, watcher, serving):
    daemon.terminate()
    daemon.settings["source"] |= {"recursive": True, "after": "move"}
    (daemon.camera / "2026/11/27").mkdir(parents=True)
    (daemon.camera / "2026/11/27/clip.mp4").write_bytes(b"film")
    daemon.start()
    today = daemon.camera / "2026/11/27"
    daemon.camera, top = today, daemon.camera
    name = daemon.drop("blue")
    daemon.camera = top
    watcher.wait(lambda w: len(w.results) == 1, "the picture")
    assert watcher.results[0].source == f"2026/11/27/{name}"
    status = watcher.wait_status(lambda s: s.passed_over is not None, "what is passed over")
    assert "1 without the name of a picture" in status.passed_over
    assert "(2026/11/27/clip.mp4)" in status.passed_over
    assert "clip.mp4" in daemon.ask("doctor").stdout
    assert "clip.mp4" in daemon.ask("status").stdout
    assert daemon.log.count("clip.mp4") == 1
