"""All online keys are stolen and used: what an operator does, with the commands as he runs them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pipeline_under_test import REPOSITORY, PipelineUnderTest

from edge_client.contract.errors import TrustError
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.trusted import TrustedRepository
from edge_client.settings.update import StoreCredentials, StoreSettings

pytest.importorskip("luigi", reason="the device's environments have no Luigi")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_after_a_theft_the_next_deploy_believes_no_work_of_before_and_the_fleet_follows(
    tmp_path, object_store, mqtt_broker, scheduler, small_weights
):
    from luigi_tasks.edge_keys import main  # noqa: PLC0415 - after the check for Luigi

    settings = PipelineUnderTest.head_on(small_weights)
    services = {"store": object_store, "broker": mqtt_broker, "scheduler": scheduler}
    with PipelineUnderTest(tmp_path, **services, settings=settings) as pipeline:
        pipeline.write_digits(per_class=20)
        assert pipeline.luigi("Deploy").returncode == 0
        device = device_with(
            (pipeline.keys / "device/root.json").read_bytes(), pipeline, tmp_path / "metadata"
        )
        release = device()
        assert main(["rotate", str(pipeline.keys), "--stolen", "--root"]) == 0
        run = pipeline.luigi("Deploy")
        assert run.returncode == 0, run.stderr
        assert "restarting its history" in run.stderr
        assert "channels that this machine moved: stable" in run.stderr
        steps = re.findall(r"(\w+) took [\d.]+ s$", run.stderr, re.MULTILINE)
        assert {"ReadShard", "TrainModel", "QuantizeModel"} <= {*steps}  # the thief had the work key too
        assert device() == release
        client, place = pipeline.store.client(), {"Bucket": pipeline.store.bucket}
        place["Key"] = f"{pipeline.name}/metadata/timestamp.json"
        older = client.get_object(**place)["Body"].read()
        command = [sys.executable, "-m", "luigi_tasks.edge_keys", "publish", "--force"]
        subprocess.run(command, env=pipeline.environment(), cwd=REPOSITORY, check=True)
        assert device() == release
        client.put_object(**place, Body=older)  # by a thief of the bucket, or from a backup
        with pytest.raises(TrustError, match="older than what this device has seen"):
            device()
        run = pipeline.luigi("Deploy")  # it has nothing new: what this machine remembers is signed again
        assert run.returncode == 0, run.stderr
        assert "Somebody put back an older copy" in run.stderr
        assert device() == release
        assert "took" not in pipeline.luigi("Deploy").stderr


def device_with(root: bytes, pipeline: PipelineUnderTest, memory):
    """Return a function that gives the channel's release, as verified by a device provisioned with `root`."""
    store = pipeline.store
    settings = StoreSettings(base_url=f"{store.endpoint_url}/{store.bucket}/{pipeline.name}")
    credentials = StoreCredentials(store.device_access_key, store.device_secret_key)

    def check() -> str:
        fetcher = StoreFetcher(settings, credentials)
        with TrustedRepository(root, settings.base_url, memory, fetcher) as trusted:
            trusted.refresh()
            return trusted.channel("stable").release

    return check
