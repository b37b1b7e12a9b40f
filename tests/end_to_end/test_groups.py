"""Bursts through the whole pipeline: one side of the split, features of that split, a report of groups."""

from __future__ import annotations

import collections
import re

import pytest
from pipeline_under_test import PipelineUnderTest

from edge_client.contract.documents import decode_document
from luigi_tasks.dataset.records import Snapshot
from tests.end_to_end.test_deploy import read_all
from tests.pipeline.dataset.test_groups import frame, timed

SCENES, FRAMES = 16, 3


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, object_store, mqtt_broker, scheduler, small_weights):
    """A pipeline that has deployed two classes of near-duplicates, and one of pairs by time."""
    settings = PipelineUnderTest.head_on(small_weights, gate={"min_accuracy": 0.0})
    services = {"store": object_store, "broker": mqtt_broker, "scheduler": scheduler}
    with PipelineUnderTest(tmp_path_factory.mktemp("pipeline"), **services, settings=settings) as pipeline:
        for number in range(SCENES):
            for one in range(FRAMES):
                add(pipeline, f"{'ab'[number % 2]}/s{number}-{one}.jpg", frame(number, one))
            for late in (0, 5):
                name = f"s{number + 100}-{timed(60 * number + late)[4:]}"
                add(pipeline, f"c/{name}", frame(100 + 10 * number + late))
        yield pipeline


def add(pipeline, path, data):
    file = pipeline.pictures / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def newest(found):
    return max(found, key=lambda one: len(one.pictures))


def test_bursts_stay_whole_and_a_frame_that_comes_later_joins_its_burst(pipeline, monkeypatch):
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    assert f"{2 * SCENES} groups ({SCENES} by time, {SCENES} near-duplicates)" in run.stderr
    reports = read_all(pipeline, monkeypatch, "work/evaluations/", "report.html")
    assert len(re.findall(r'scope="row">(by time|near-duplicates)<', reports[0].decode())) == 2
    before = check_sides(pipeline, monkeypatch)
    for number in range(SCENES):
        add(pipeline, f"{'ab'[number % 2]}/s{number}-late.jpg", frame(number, FRAMES))
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    after = check_sides(pipeline, monkeypatch)
    assert len(after) == len(before) + SCENES
    assert {path: after[path] for path in before} == before


def check_sides(pipeline, monkeypatch):
    """Check that no scene stands on both sides of the newest snapshot; return the split by path."""
    files = read_all(pipeline, monkeypatch, "work/snapshots/", "pictures.json")
    snapshot = newest([decode_document(Snapshot, one, source="s", limit_bytes=1 << 20) for one in files])
    sides = {one.path: one.split for one in snapshot.pictures}
    scenes = collections.defaultdict(set)
    for path, side in sides.items():
        scenes[path.split("-")[0]].add(side)
    assert all(len(found) == 1 for found in scenes.values())
    return sides
