"""Deploy without S3: the store is a folder, which devices read as file:// or behind a plain web server."""

from __future__ import annotations

import contextlib
import csv
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, cast

import pytest
from device_watcher import DeviceWatcher, device_settings, running_device, write_settings
from local_services import ObjectStore, free_ports, wait_until
from pipeline_under_test import PipelineUnderTest

from edge_client.contract.documents import decode_document
from edge_client.contract.release import ReleaseDocument

pytest.importorskip("luigi", reason="the device's environments have no Luigi")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Pictures of a 3 that stand among those of an 8.
MISLABELLED = (7, 19)


class NoObjectStore:
    """In place of S3 where there is none."""

    bucket = endpoint_url = device_access_key = device_secret_key = ""

    def credentials(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}


NO_S3 = cast("ObjectStore", NoObjectStore())


@pytest.fixture
def folder(tmp_path):
    """The store; its name has a space."""
    return tmp_path / "edge models"


@pytest.fixture
def pipeline(tmp_path, folder, mqtt_broker, scheduler, small_weights):
    settings = PipelineUnderTest.head_on(
        small_weights,
        store={"url": f"file://{folder}", "endpoint_url": "", "region": ""},
        release={"precision": 0.8},
    )
    with PipelineUnderTest(
        tmp_path / "pipeline", store=NO_S3, broker=mqtt_broker, scheduler=scheduler, settings=settings
    ) as pipeline:
        pipeline.write_digits(per_class=30)
        for number in MISLABELLED:
            (pipeline.pictures / f"3/{number:04}.png").rename(pipeline.pictures / f"8/from-3-{number:04}.png")
        yield pipeline


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """`python -m http.server` as a user starts it."""
    [port] = free_ports(1)
    command = [
        sys.executable,
        "-m",
        "http.server",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(folder),
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def settings_file(pipeline: PipelineUnderTest, device: Path, base_url: str) -> Path:
    """Write the settings of a device in a folder of its name; return their path."""
    sections = device_settings(
        device,
        device=device.name,
        fleet=pipeline.name,
        base_url=base_url,
        root=pipeline.keys / "device/root.json",
        broker=pipeline.broker,
    )
    sections["source"] = {"path": str(device / "camera"), "after": "delete", "settle_s": 0.0}
    (device / "camera").mkdir(parents=True)
    return write_settings(device / "device.toml", sections)


def assert_device_installs_and_answers(pipeline: PipelineUnderTest, device: Path, base_url: str) -> str:
    """Run a device until it has classified a picture; return its release."""
    settings = settings_file(pipeline, device, base_url)
    doctor = subprocess.run(
        [sys.executable, "-m", "edge_client.cli", "doctor", "--config", str(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{base_url}: channel stable points to release" in doctor.stdout, doctor.stdout + doctor.stderr
    with (
        DeviceWatcher(pipeline.broker, pipeline.name, device.name) as watcher,
        running_device(settings, device / "log", NO_S3),
    ):
        status = watcher.wait_for(lambda status: status.release is not None, "the release")
        picture = next((pipeline.pictures / "3").iterdir())
        shutil.copyfile(picture, device / "arriving.png")
        (device / "arriving.png").replace(device / "camera" / "3.png")
        wait_until(lambda: len(watcher.results) == 1, "the result")
        assert watcher.results[0].release == status.release
    assert status.release is not None
    return status.release


def test_what_is_deployed_into_a_folder_is_installed_from_it_and_over_http(pipeline, folder, tmp_path):
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    again = pipeline.luigi("Deploy", report_imports=True)
    assert again.returncode == 0, again.stderr
    assert "s took " not in again.stderr
    assert "tensorflow imported: False" in again.stdout
    assert not [path for path in (folder / ".staging").iterdir() if path.name != "lock"]
    local = assert_device_installs_and_answers(pipeline, tmp_path / "camera-1", folder.as_uri())
    with web_server(folder) as url:
        remote = assert_device_installs_and_answers(pipeline, tmp_path / "camera-2", url)
    assert local == remote
    assert (folder / "targets/releases" / local).is_dir()
    assert_release_says_what_is_sure(folder, local)
    assert_wrong_labels_are_found(pipeline, folder)


def assert_release_says_what_is_sure(folder: Path, release: str) -> None:
    """Scores from which on a label is sure are signed, and the report shows how far scores can be trusted."""
    signed = folder / "targets/releases" / release
    [description], [page] = signed.glob("*.release.json"), folder.glob("work/evaluations/*/report.html")
    document = decode_document(ReleaseDocument, description.read_bytes(), source="", limit_bytes=1 << 20)
    point = document.operating_point
    assert point is not None
    assert (point.precision, len(point.thresholds)) == (0.8, 10)
    assert point.coverage > 0
    report = page.read_text()
    assert "Calibration error" in report
    assert "[release] precision asks for 80.00 %" in report


def assert_wrong_labels_are_found(pipeline: PipelineUnderTest, folder: Path) -> None:
    """The features are those of the run before: nothing is computed again."""
    run = pipeline.luigi("DoubtfulLabels", report_imports=True)
    assert run.returncode == 0, run.stderr
    assert "tensorflow imported: False" in run.stdout
    [table] = folder.glob("work/doubtful/*/doubtful.csv")
    assert table.name in run.stderr
    rows = {row["path"]: row for row in csv.DictReader(table.read_text("utf-8-sig").splitlines())}
    wrong = {f"8/from-3-{number:04}.png" for number in MISLABELLED}
    assert wrong <= rows.keys()
    assert {rows[one]["probable label"] for one in wrong} == {"3"}
    assert len(rows) < 20
    assert "data:image/png;base64," in table.with_suffix(".html").read_text()
