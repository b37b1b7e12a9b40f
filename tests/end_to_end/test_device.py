"""A real device daemon behind a real pipeline: what was published is what serves."""

from __future__ import annotations

import shutil

import pytest
from device_watcher import DeviceWatcher, device_settings, running_device, write_settings
from local_services import wait_until
from pipeline_under_test import PipelineUnderTest

from edge_client.contract.names import MODEL_FILE, patch_file
from edge_client.releases import read_release

pytest.importorskip("luigi", reason="the device's environments have no Luigi")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEVICE = "camera-7"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, object_store, mqtt_broker, scheduler, small_weights):
    folder = tmp_path_factory.mktemp("pipeline")
    services = {"store": object_store, "broker": mqtt_broker, "scheduler": scheduler}
    settings = PipelineUnderTest.head_on(small_weights)
    with PipelineUnderTest(folder, **services, settings=settings) as pipeline:
        pipeline.write_digits(per_class=30)
        run = pipeline.luigi("Deploy")
        assert run.returncode == 0, run.stderr
        yield pipeline


def settings_file(pipeline, folder):
    """Write the settings of a device in `folder`; return their path."""
    sections = device_settings(
        folder,
        device=DEVICE,
        fleet=pipeline.name,
        base_url=f"{pipeline.store.endpoint_url}/{pipeline.store.bucket}/{pipeline.name}",
        root=pipeline.keys / "device/root.json",
        broker=pipeline.broker,
    )
    sections["source"] = {"path": str(folder / "camera"), "after": "delete", "settle_s": 0.0}
    (folder / "camera").mkdir()
    return write_settings(folder / "device.toml", sections)


def published_sizes(pipeline, release):
    """Bytes of a release's files, by name."""
    found = pipeline.store.client().list_objects_v2(
        Bucket=pipeline.store.bucket, Prefix=f"{pipeline.name}/targets/releases/{release}/"
    )
    return {one["Key"].rpartition("/")[2].partition(".")[2]: one["Size"] for one in found["Contents"]}


def assert_sure_as_published(folder, watcher, release):
    """The device judges by the thresholds that the pipeline chose, and shows what was thin."""
    document = read_release(folder / "state/slots" / release)
    point = document.operating_point
    assert point is not None
    for result in watcher.results:
        label = document.labels.index(result.label)
        assert result.sure == point.is_sure(label, result.confidence, result.known)
        assert (result.known is None) == (point.least_known is None)
    status = watcher.wait_for(lambda one: one.sure is not None and one.sure.answers == 5, "the sure ones")
    assert (status.sure.precision, status.sure.coverage) == (point.precision, point.coverage)
    assert status.sure.share == sum(result.sure for result in watcher.results) / 5
    assert status.evidence == document.evidence


def test_a_device_pulls_serves_and_follows_with_a_key_that_may_only_read(pipeline, tmp_path):
    settings = settings_file(pipeline, tmp_path)
    with (
        DeviceWatcher(pipeline.broker, pipeline.name, DEVICE) as watcher,
        running_device(settings, tmp_path / "log", pipeline.store),
    ):
        first = watcher.wait_for(lambda status: status.release is not None, "the first release")
        pipeline.configure(training={"label_smoothing": 0.1})
        run = pipeline.luigi("Deploy")
        assert run.returncode == 0, run.stderr
        second = watcher.wait_for(lambda status: status.release != first.release, "the second release")
        assert second.previous == first.release
        assert second.last_error is None
        for number, picture in enumerate(sorted((pipeline.pictures / "3").iterdir())[:5]):
            shutil.copyfile(picture, tmp_path / "arriving.png")
            (tmp_path / "arriving.png").replace(tmp_path / "camera" / f"{number}.png")
        wait_until(lambda: len(watcher.results) == 5, "five results")
        assert {result.release for result in watcher.results} == {second.release}
        assert_sure_as_published(tmp_path, watcher, second.release)
        cost = watcher.wait_for(lambda status: status.update is not None, "what the update cost").update
        assert cost is not None
        assert cost.release == second.release
        assert first.release is not None
        sizes = published_sizes(pipeline, second.release)
        assert sizes[patch_file(first.release)] < cost.bytes_pulled < sizes[MODEL_FILE]
        run = pipeline.luigi("RollBack", "--to", first.release)
        assert run.returncode == 0, run.stderr
        back = watcher.wait_for(lambda status: status.release == first.release, "the way back")
        assert back.previous == second.release
