"""What every task promises: making one reads nothing, checking one writes nothing, runs are distinct."""

from __future__ import annotations

import dataclasses
import socket
from typing import TYPE_CHECKING

import pytest
from local_services import free_ports

from edge_client.contract.errors import InputError, SettingsError, TransportError
from luigi_tasks import addresses, task
from luigi_tasks.pipeline import DatasetSnapshot, Deploy, EvaluateModel, QuantizeModel, ReadShard, TrainModel
from luigi_tasks.release.keys import make_keys
from luigi_tasks.settings.sections import load_settings
from tests.fakes.datasets import class_folders, write_tree

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A dataset; the settings name a folder store and keys, as luigi.cfg would."""
    make_keys(tmp_path / "keys")

    def load(pictures: str = ""):
        return load_settings(
            pictures,
            dataset={"cache_dir": tmp_path / "cache", "min_images_per_class": 2},
            store={"url": (tmp_path / "store").as_uri()},
            broker={"host": ""},
            trust={"root": tmp_path / "keys/device/root.json", "keys": str(tmp_path / "keys/pipeline")},
        )

    monkeypatch.setattr(task, "load_settings", load)
    return write_tree(tmp_path / "pictures", class_folders({"cat": 20, "dog": 20}))


@pytest.fixture
def store(tmp_path):
    """The folder of the store."""
    return tmp_path / "store"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "url",
    ["s3://no-such-bucket/a", "preset:flowers", "preset:digits", "/no"],
)
@pytest.mark.parametrize("kind", [Deploy, DatasetSnapshot, TrainModel, EvaluateModel])
def test_making_a_task_reads_nothing(pictures, tmp_path, monkeypatch, kind, url):
    """Luigi makes tasks to print a help text, and twice for each it runs."""

    def refuse(*_):
        raise AssertionError("a task that is only made asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    made = kind(pictures=url)
    assert made.pictures == url
    assert made.task_id
    assert not (tmp_path / "cache").exists(), "nothing was unpacked"


def test_a_run_without_pictures_is_refused_with_the_way_out(pictures):
    with pytest.raises(SettingsError, match=r"give --pictures or \[dataset\] url, a folder"):
        Deploy()


def test_a_run_without_its_broker_ends_before_anything_is_read(pictures, store):
    deploy = Deploy(pictures=str(pictures))
    settings, [port] = deploy.workspace.settings, free_ports(1)
    deploy.workspace.settings = dataclasses.replace(
        settings, broker=dataclasses.replace(settings.broker, host="127.0.0.1", port=port)
    )
    with pytest.raises(TransportError, match=r"MQTT broker 127\.0\.0\.1:\d+: .*refused"):
        deploy.of_now().deps()
    assert not store.exists() or files_below(store) == set()


def test_looking_at_a_task_writes_nothing(pictures, store):
    """`luigi.tools.deps` and a dry run ask for requirements and outputs of all tasks."""
    deploy = Deploy(pictures=str(pictures))
    seen, waiting = set(), [deploy]
    while waiting:
        one = waiting.pop()
        if one.task_id not in seen:
            seen.add(one.task_id)
            one.complete()
            waiting += one.deps()
    assert {name.split("_")[0] for name in seen} >= {"Deploy", "EvaluateModel", "TrainModel", "ReadShard"}
    assert not store.exists() or files_below(store) == set()


def test_the_tasks_of_one_run_share_its_workspace_and_its_listing(pictures):
    deploy = Deploy(pictures=str(pictures))
    evaluation = deploy.requires()
    assert (deploy.listing, deploy.run_id != "") == ("", True)
    assert (evaluation.listing, evaluation.run_id) == (deploy.workspace.listing, "")
    assert evaluation.requires().workspace is deploy.workspace
    assert evaluation.requires() == evaluation.clone(QuantizeModel)


def test_the_task_of_the_command_line_stands_for_that_of_the_pictures_as_they_are(pictures):
    """Each process starts another one, and all of them require the same task, which is done once."""
    first, second = (EvaluateModel(pictures=str(pictures)) for _ in range(2))
    assert first.task_id != second.task_id
    assert first.deps() == second.deps() == [first.clone(EvaluateModel)]
    assert first.deps()[0].deps() == [first.clone(QuantizeModel)]
    assert not first.complete()


def test_a_run_that_starts_later_sees_what_arrived_meanwhile(pictures):
    before = DatasetSnapshot(pictures=str(pictures))
    first = before.address()
    write_tree(pictures, class_folders({"cat": 21}))
    after = DatasetSnapshot(pictures=str(pictures))
    assert before.address() == first, "a run stays with what it listed"
    assert after.address() != first
    assert before.task_id != after.task_id


def test_equal_work_has_equal_ids_on_every_machine(pictures):
    ids = [Deploy(pictures=str(pictures)).requires().task_id for _ in range(2)]
    assert ids[0] == ids[1]


def test_pictures_that_changed_since_they_were_listed_stop_the_run(pictures):
    snapshot = Deploy(pictures=str(pictures)).clone(DatasetSnapshot)
    write_tree(pictures, class_folders({"cat": 21}))
    late = DatasetSnapshot(pictures=str(pictures), listing=snapshot.listing)
    late.__dict__.pop("workspace", None)  # as in another process
    with pytest.raises(InputError, match="came or went since they were listed"):
        late.requires()


def test_too_much_left_out_stops_the_run_with_a_list_and_nothing_is_read_twice(pictures, store, caplog):
    write_tree(pictures, {f"dog/broken{number}.png": b"x" for number in range(3)})
    made = DatasetSnapshot(pictures=str(pictures))
    for shard in made.requires():
        shard.run()
    with pytest.raises(InputError, match=r"3 of 43 pictures \(7.0%\) cannot be used") as caught:
        made.clone(DatasetSnapshot).run()
    [path] = store.rglob("left-out.csv")
    assert f"All of them: {path.as_uri()}" in str(caught.value)
    row = path.read_text("utf-8-sig").splitlines()[1]
    assert row.startswith('"dog/broken0.png","undecodable","dog/broken0.png: not a complete picture')
    assert f"Left out: 3 undecodable; all in {path.as_uri()}" in caplog.text
    (pictures / "dog/broken0.png").unlink()
    (pictures / "dog/broken1.png").write_bytes((pictures / "dog/000.png").read_bytes())
    again = DatasetSnapshot(pictures=str(pictures)).clone(DatasetSnapshot)
    assert [one.path for part in again.workspace.plan.new for one in part.pictures] == ["dog/broken1.png"]
    for shard in again.requires():
        shard.run()
    again.run()
    assert again.complete()


def test_a_worker_with_other_settings_refuses_the_task(pictures, monkeypatch):
    made = DatasetSnapshot(pictures=str(pictures))
    load = task.load_settings  # type: ignore[attr-defined]

    def other(pictures: str = ""):
        settings = load(pictures)
        return dataclasses.replace(settings, training=dataclasses.replace(settings.training, epochs=1))

    monkeypatch.setattr(task, "load_settings", other)
    with pytest.raises(SettingsError, match="made with other settings than this worker has"):
        made.requires()


def test_the_snapshot_records_the_plan_so_that_a_late_worker_follows_it(pictures, store):
    made = DatasetSnapshot(pictures=str(pictures))
    for shard in made.requires():
        shard.run()
    assert not (store / "work/plans").exists()
    made.run()
    late = DatasetSnapshot(pictures=str(pictures))
    assert late.complete()
    assert files_below(store) >= {addresses.plan(made.workspace.identity)}
    assert late.workspace.plan == made.workspace.plan
    assert [one.shard for one in late.requires()] == [one.shard for one in made.requires()]
    assert all(isinstance(one, ReadShard) and one.complete() for one in late.requires())
