"""`luigi --module luigi_tasks Deploy` as a user runs it, on real S3, a real broker and a real luigid.

One head is trained for all tests; a test that wants a fresh start takes a channel of its own, since
targets are addressed by content and the trained model is found again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil

import pytest
from local_services import MqttBroker, ObjectStore
from PIL import Image
from pipeline_under_test import PipelineUnderTest
from task_bars import luigi_tasks

from tests.fakes.datasets import HEIC, picture_bytes, write_tree

pytest.importorskip("luigi", reason="the device's environments have no Luigi")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

READING = ("ReadShard", "DatasetSnapshot")
EXPENSIVE = ("TuneBackbone", "ConvertBackbone", "BackboneFeatures", "TrainModel", "QuantizeModel")
FIRST_LOG = "first.log"
LAST = ("EvaluateModel", "PublishRelease", "AnnounceRelease")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, scheduler, small_weights):
    """A pipeline with services of its own, that has deployed once on channel `stable`."""
    settings = PipelineUnderTest.head_on(small_weights)
    # It has to learn something: a release tests itself with pictures that it answers right.
    settings["training"].update(learning_rate=0.01, batch_size=32)
    with PipelineUnderTest(
        tmp_path_factory.mktemp("pipeline"), scheduler=scheduler, settings=settings
    ) as pipeline:
        pipeline.write_digits(per_class=40)
        add_dirt(pipeline.pictures)
        run = pipeline.luigi("Deploy")
        assert run.returncode == 0, run.stderr
        (pipeline.folder / FIRST_LOG).write_text(run.stderr)
        assert steps_run(run.stderr) == [*READING, *EXPENSIVE[1:], *LAST], "mode head tunes no backbone"
        yield pipeline


def add_dirt(pictures):
    """Add what lies in datasets of the field: pictures of a phone, broken ones, and what is none."""
    digit = (pictures / "3/0000.png").read_bytes()
    upright = Image.open(io.BytesIO(digit)).convert("RGB")
    turned = io.BytesIO()
    upright.save(turned, "JPEG", exif=b"Exif\0\0Exif\0\0II*\0")  # broken
    write_tree(
        pictures,
        {
            "5/IMG_0001.HEIC": HEIC,
            "5/without-suffix": turned.getvalue(),
            "4/copy.png": digit,
            "6/broken.jpg": b"not a picture",
            "6/cut": turned.getvalue()[:400],
            "6/notes.txt": b"notes",
            **{f"new/{number}.png": picture_bytes(number) for number in range(3)},
            "nothing/labels.csv": b"",
            "lost+found/1.png": b"x",
            "System Volume Information/1.png": b"x",
        },
    )


LEFT_OUT = {
    "3/0000.png": "in two classes",
    "4/copy.png": "in two classes",
    "6/broken.jpg": "undecodable",
    "6/cut": "undecodable",
    "6/notes.txt": "no picture",
    "new/": "class without usable pictures",
    "new/0.png": "in a class that is too small",
    "new/1.png": "in a class that is too small",
    "new/2.png": "in a class that is too small",
    "nothing/": "class without usable pictures",
    "nothing/labels.csv": "no picture",
}


@pytest.fixture
def channel(pipeline, request):
    """A channel of the test's own; settings that the test changes are put back."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")
    with pipeline.changed(release={"channel": name}):
        yield name


def steps_run(log: str) -> list[str]:
    """The steps that did work, in order; a step that is found done does none."""
    return re.findall(r"(\w+) took [\d.]+ s$", log, re.MULTILINE)


def state_of(pipeline, monkeypatch):
    """What is published now, verified with the pipeline's root."""
    from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415

    return ReleaseRepository(*parts_of(pipeline, monkeypatch)).load()


def parts_of(pipeline, monkeypatch):
    from luigi_tasks.settings.values import StoreSettings  # noqa: PLC0415
    from luigi_tasks.storage.s3_store import S3Store  # noqa: PLC0415
    from tests.fakes.trust import trust_settings  # noqa: PLC0415

    for name, value in pipeline.store.credentials().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{pipeline.store.bucket}/{pipeline.name}"
    store = S3Store(StoreSettings(url, pipeline.store.endpoint_url, "us-east-1", "when_required", True))
    keys = pipeline.keys
    trust = trust_settings(keys)
    return store, trust


def announced(pipeline, channel: str) -> str | None:
    from luigi_tasks.release.announcement import announced_release  # noqa: PLC0415
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415
    from luigi_tasks.settings.values import BrokerSettings  # noqa: PLC0415

    broker = pipeline.broker
    client = BrokerClient(BrokerSettings(broker.host, broker.port, pipeline.name, "", "", False, "", 5.0))
    return announced_release(client, channel)


def test_a_release_is_one_signed_unit_and_announced(pipeline, monkeypatch):
    from luigi_tasks.release.verify import verify_release  # noqa: PLC0415

    state = state_of(pipeline, monkeypatch)
    release = state.channel("stable").release
    names = {path.split("/")[2] for path in state.files if path.startswith(f"releases/{release}/")}
    files = {"model.tflite", "labels.txt", "release.json", "evidence.intoto.jsonl"}
    assert names >= {*files, "selftest-1.png", "selftest-5.png"}
    assert not names & {"evaluation.json", "report.html"}, "with pictures and file names of the hold-out"
    proof = verify_release(state, release)
    assert proof.faults == ()
    made = [one.step for one in proof.steps]
    assert made[0] == "DatasetSnapshot"
    assert made[-3:] == ["QuantizeModel", "EvaluateModel", "PublishRelease"]
    document = state.release(release)
    assert document.labels == tuple("0123456789")
    assert document.operators
    assert len(document.self_test) == 5
    # The model has two outputs; clients that know of one refuse this schema before the download.
    assert (document.schema, document.operating_point.least_known) == (2, 0.5)
    assert announced(pipeline, "stable") == release


def test_what_is_left_out_is_in_the_log_on_the_page_in_the_report_and_in_a_file(pipeline, monkeypatch):
    log = (pipeline.folder / FIRST_LOG).read_text()
    [counts] = re.findall(r"Left out: (.*); all in (s3://.*left-out\.csv)$", log, re.MULTILINE)
    for part in ("3 in a class that is too small", "2 in two classes", "2 undecodable", "2 no picture"):
        assert part in counts[0]
    assert "in two classes: 3/0000.png: the same picture as 4/copy.png; keep the right one" in log
    assert "'new' has 3 usable different pictures, [dataset] min_images_per_class is 15" in log

    [message] = [
        task["message"]
        for task in luigi_tasks(pipeline.scheduler).values()
        if task["name"] == "DatasetSnapshot"
        and task["params"]["pictures"] == str(pipeline.pictures)
        and "left out" in task["message"]
    ][:1]
    assert message.startswith("401 pictures of 10 classes; ")
    assert message.endswith(f"; left out: {counts[0]}, listed in {counts[1]}")

    store, _ = parts_of(pipeline, monkeypatch)
    [key] = [one.key for one in store.list_folder("work/snapshots/") if one.key.endswith("left-out.csv")][:1]
    rows = list(csv.DictReader(io.StringIO(store.read(key).decode("utf-8-sig"))))
    assert {row["path"]: row["reason"] for row in rows} == LEFT_OUT

    report = b"".join(read_all(pipeline, monkeypatch, "work/evaluations/", "report.html")).decode()
    assert all(path in report for path in LEFT_OUT)
    assert counts[1] in report
    assert "lost+found" not in report + log


def test_nothing_new_does_nothing_without_tensorflow(pipeline):
    run = pipeline.luigi("Deploy", report_imports=True)
    assert run.returncode == 0, run.stderr
    assert steps_run(run.stderr) == []
    assert "tensorflow imported: False" in run.stdout


def test_a_touched_picture_is_read_again_but_nothing_is_retrained(pipeline):
    next((pipeline.pictures / "0").iterdir()).touch()
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    # Its features are found by content hash and lie with its new shard.
    assert set(steps_run(run.stderr)) == {"ReadShard", "DatasetSnapshot", "BackboneFeatures"}


@pytest.mark.usefixtures("channel")
def test_two_overlapping_runs_do_each_step_once(pipeline):
    pipeline.configure(training={"mode": "finetune", "finetune_epochs": 1, "seed": 7, "epochs": 2})
    runs = [pipeline.start_luigi("Deploy") for _ in range(2)]
    logs = [run.communicate(timeout=600)[0] for run in runs]
    codes = sorted(run.returncode for run in runs)
    # 10: nothing left to do for this run, another run does the work.
    assert codes[0] == 0, "\n".join(logs)
    assert codes[1] in {0, 10}, "\n".join(logs)
    done = [step for log in logs for step in steps_run(log)]
    assert set(done) == {*EXPENSIVE, *LAST}, done
    # Features once a shard: pictures that other tests touched are in one of their own.
    assert {done.count(step) for step in set(done) - {"BackboneFeatures"}} == {1}, done


@pytest.mark.usefixtures("channel")
def test_two_worker_processes_see_what_each_other_published(pipeline):
    """Each step runs in a process of its own: none may remember what was published before the last one."""
    for share in (10, 20, 30):
        pipeline.configure(release={"share_percent": share})
        run = pipeline.luigi("Deploy", "--workers", "2")
        assert run.returncode == 0, run.stderr
        assert "Unfulfilled" not in run.stderr
        assert steps_run(run.stderr).count("PublishRelease") == 1


def test_going_back_to_earlier_settings_publishes_and_announces_in_one_run(pipeline, channel, monkeypatch):
    """The champion of a release that was published before is another one once it is published again."""
    released: list[str] = []
    for changes in ({}, {"weight_decay": 0.02}, {"weight_decay": 0.01}):
        pipeline.configure(training=changes, gate={"max_model_bytes": 8_000_000 + len(released)})
        run = pipeline.luigi("Deploy")
        assert run.returncode == 0, run.stderr
        released.append(state_of(pipeline, monkeypatch).channel(channel).release)
        assert announced(pipeline, channel) == released[-1]
    assert released[0] == released[2] != released[1]


def test_schemes_are_tried_until_one_holds_and_all_of_them_are_reported(pipeline, channel, monkeypatch):
    """No scheme gains 1000 points on float, so each is tried and the gate refuses the last."""
    pipeline.configure(gate={"max_float_drop_points": -1000.0})
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    assert steps_run(run.stderr).count("TrainModel") == 3  # the first is there
    assert "trying float16" in run.stderr
    assert "loss against the float model" in run.stderr
    assert state_of(pipeline, monkeypatch).channel(channel) is None
    reports = read_all(pipeline, monkeypatch, "work/evaluations/", "report.html")
    [report] = [text.decode() for text in reports if b">Quantization<" in text]
    assert re.findall(r'scope="row">(int8|int8_wide|mixed|float16)<', report) == [
        "int8",
        "int8_wide",
        "mixed",
        "float16",
    ]
    assert steps_run(pipeline.luigi("Deploy").stderr) == []


def read_all(pipeline, monkeypatch, folder: str, name: str) -> list[bytes]:
    """All objects of one name below a folder of the pipeline's bucket."""
    store, _ = parts_of(pipeline, monkeypatch)
    listed = store.client.list_objects_v2(Bucket=pipeline.store.bucket, Prefix=f"{pipeline.name}/{folder}")[
        "Contents"
    ]
    keys = [one["Key"].partition("/")[2] for one in listed if one["Key"].endswith(name)]
    return [store.read(key) for key in keys]


def test_a_broker_that_lost_the_announcement_gets_it_again(pipeline, monkeypatch):
    release = state_of(pipeline, monkeypatch).channel("stable").release
    pipeline.broker.stop()
    pipeline.broker.start()
    assert announced(pipeline, "stable") is None
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    assert not set(steps_run(run.stderr)) & {*EXPENSIVE, "PublishRelease"}
    assert announced(pipeline, "stable") == release


def test_broker_down_at_announce_is_finished_by_the_next_run(pipeline, channel, monkeypatch):
    pipeline.broker.stop()
    try:
        run = pipeline.luigi("Deploy")
    finally:
        pipeline.broker.start()
    assert run.returncode in {30, 35}
    assert "MQTT broker 127.0.0.1" in run.stderr
    assert "Traceback" not in run.stderr
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    assert not set(steps_run(run.stderr)) & set(EXPENSIVE)
    assert announced(pipeline, channel) == state_of(pipeline, monkeypatch).channel(channel).release


def test_a_refused_candidate_is_recorded_not_published_and_not_tried_again(pipeline, channel, monkeypatch):
    pipeline.configure(gate={"min_accuracy": 1.0, "max_model_bytes": 1000})
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    assert "the gate refused: " in run.stderr
    assert "EvaluateModel" in steps_run(run.stderr)
    state = state_of(pipeline, monkeypatch)
    assert state.channel(channel) is None
    assert announced(pipeline, channel) is None
    again = pipeline.luigi("Deploy")
    assert again.returncode == 0
    assert steps_run(again.stderr) == []
    pipeline.configure(gate={"min_accuracy": 0.0, "max_model_bytes": 8_000_000})
    allowed = pipeline.luigi("Deploy")
    assert not set(steps_run(allowed.stderr)) & set(EXPENSIVE)
    assert state_of(pipeline, monkeypatch).channel(channel) is not None


def test_a_larger_share_moves_the_channel_and_nothing_else(pipeline, channel, monkeypatch):
    pipeline.configure(release={"share_percent": 5})
    assert pipeline.luigi("Deploy").returncode == 0
    before = state_of(pipeline, monkeypatch)
    assert before.channel(channel).share_percent == 5
    pipeline.configure(release={"share_percent": 100})
    run = pipeline.luigi("Deploy")
    assert run.returncode == 0, run.stderr
    assert not set(steps_run(run.stderr)) & {*EXPENSIVE, "EvaluateModel"}
    after = state_of(pipeline, monkeypatch).channel(channel)
    assert (after.release, after.share_percent) == (before.channel(channel).release, 100)


def test_a_missing_key_publishes_nothing_and_the_next_run_finishes(pipeline, channel, monkeypatch):
    # The release is signed already; moving a channel to it needs the rollouts key, and not that of targets.
    key = pipeline.keys / "pipeline/rollouts.pem"
    aside = key.rename(pipeline.keys / "aside.pem")
    run = pipeline.luigi("Deploy")
    assert run.returncode == 30
    assert "rollouts.pem" in run.stderr
    assert state_of(pipeline, monkeypatch).channel(channel) is None
    aside.rename(key)
    assert pipeline.luigi("Deploy").returncode == 0
    assert state_of(pipeline, monkeypatch).channel(channel) is not None


def test_a_roll_back_holds_until_something_changes(pipeline, channel, monkeypatch):
    assert pipeline.luigi("Deploy").returncode == 0
    bad = state_of(pipeline, monkeypatch).channel(channel).release
    # Another release to go back to: the same network in another number format.
    pipeline.configure(quantization={"scheme": "float16"})
    assert pipeline.luigi("Deploy").returncode == 0
    newer = state_of(pipeline, monkeypatch).channel(channel).release
    assert newer != bad
    run = pipeline.luigi("RollBack", "--to", bad)
    assert run.returncode == 0, run.stderr
    assert announced(pipeline, channel) == bad
    assert state_of(pipeline, monkeypatch).channel(channel).withdrawn == (newer,)
    assert pipeline.luigi("Deploy").returncode == 0
    assert state_of(pipeline, monkeypatch).channel(channel).release == bad


@pytest.mark.usefixtures("channel")
def test_rolling_back_to_an_unknown_release_is_refused(pipeline):
    run = pipeline.luigi("RollBack", "--to", "feedbeef")
    assert run.returncode == 30
    assert "release feedbeef: not signed in" in run.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"store": {"url": "s3://no-such-bucket/x"}}, "the bucket does not exist; create it"),
        ({"training": {"epochs": 0}}, "[training] epochs: at least 1"),
        ({"dataset": {"url": "/nonexistent"}}, "/nonexistent"),
        ({"trust": {"root": "/nonexistent/root.json"}}, "edge-keys make"),
    ],
)
def test_faults_of_settings_are_named_and_the_exit_code_is_not_zero(pipeline, settings, message):
    before = pipeline.configuration.read_text()
    [(section, values)] = settings.items()
    text = before
    for name, value in values.items():
        text = re.sub(rf"(?ms)(^\[{section}\].*?^{name} = )[^\n]*", rf"\g<1>{value}", text, count=1)
    assert text != before
    pipeline.configuration.write_text(text)
    try:
        run = pipeline.luigi("Deploy")
    finally:
        pipeline.configuration.write_text(before)
    assert run.returncode != 0
    assert message in run.stderr


def test_wrong_credentials_are_named(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.store, "secret_key", "wrong")
    run = pipeline.luigi("Deploy")
    assert run.returncode != 0
    assert "refused the credentials" in run.stderr


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        ("empty", "no pictures"),
        ("one class", "class"),
        ("too few", "min_images_per_class"),
        ("broken", "5 undecodable (2/"),
        ("same in two classes", "6 in two classes (1/"),
    ],
)
def test_too_many_unusable_pictures_are_named_and_nothing_is_trained(pipeline, tmp_path, arrange, message):
    pictures = tmp_path / "pictures"
    shutil.copytree(pipeline.pictures / "1", pictures / "1")
    shutil.copytree(pipeline.pictures / "2", pictures / "2")
    if arrange == "empty":
        shutil.rmtree(pictures)
        (pictures / "1").mkdir(parents=True)
    elif arrange == "one class":
        shutil.rmtree(pictures / "2")
    elif arrange == "too few":
        for path in sorted((pictures / "2").iterdir())[3:]:
            path.unlink()
    elif arrange == "broken":
        for path in sorted((pictures / "2").iterdir())[:5]:
            path.write_bytes(b"not a picture")
    else:
        for number, path in enumerate(sorted((pictures / "1").iterdir())[:3]):
            shutil.copy(path, pictures / "2" / f"copy{number}.png")
    run = pipeline.luigi("Deploy", "--pictures", str(pictures))
    assert run.returncode != 0
    assert message in run.stderr
    assert not set(steps_run(run.stderr)) & {"DatasetSnapshot", *EXPENSIVE}


def test_two_processes_of_one_luigi_share_the_work(
    tmp_path, object_store, mqtt_broker, scheduler, small_weights
):
    settings = PipelineUnderTest.head_on(small_weights, dataset={"shard_pictures": 40})
    services = {"store": object_store, "broker": mqtt_broker, "scheduler": scheduler}
    with PipelineUnderTest(tmp_path, **services, settings=settings) as pipeline:
        pipeline.write_digits(per_class=20)
        run = pipeline.luigi("EvaluateModel", "--workers", "2")
        assert run.returncode == 0, run.stderr
        done = steps_run(run.stderr)
        assert (done.count("ReadShard"), done.count("BackboneFeatures"), done.count("EvaluateModel")) == (
            5,
            5,
            1,
        )


def test_two_cold_runs_in_different_folders_make_the_same_file(
    tmp_path, object_store, mqtt_broker, scheduler, monkeypatch
):
    made = []
    for name in ("one", "another place"):
        settings: dict[str, dict[str, object]] = {"training": {"finetune_epochs": 1, "epochs": 3}}
        services = {"store": object_store, "broker": mqtt_broker, "scheduler": scheduler}
        with PipelineUnderTest(tmp_path / name, **services, settings=settings) as pipeline:
            pipeline.write_digits(per_class=20)
            run = pipeline.luigi("QuantizeModel")
            assert run.returncode == 0, run.stderr
            assert "TuneBackbone" in steps_run(run.stderr)
            [model] = read_all(pipeline, monkeypatch, "work/candidates/", "model.tflite")
        made.append(hashlib.sha256(model).hexdigest())
    assert made[0] == made[1]


def test_store_killed_while_training_loses_nothing(tmp_path, scheduler, small_weights):
    """The first run dies at its upload; the next one, with the store back, finishes the work."""
    with (
        ObjectStore(tmp_path / "s3") as store,
        MqttBroker(tmp_path / "mqtt") as broker,
        PipelineUnderTest(
            tmp_path / "p",
            store=store,
            broker=broker,
            scheduler=scheduler,
            settings=PipelineUnderTest.head_on(small_weights),
        ) as pipeline,
    ):
        pipeline.write_digits(per_class=20)
        run = pipeline.start_luigi("Deploy")
        assert run.stdout is not None
        for line in run.stdout:
            if re.search(r"running\s+TrainModel", line):
                store.stop()
                break
        log = run.communicate(timeout=600)[0]
        assert run.returncode != 0, log
        assert re.search(r"TransportError: s3://\S+: .*run again", log), log
        store.start()
        again = pipeline.luigi("Deploy")
        assert again.returncode == 0, again.stderr
        assert "DatasetSnapshot" not in steps_run(again.stderr)
        assert announced(pipeline, "stable") is not None
