"""`edge-client` at its door: exit codes and one paragraph on standard error."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edge_client import cli
from edge_client.cli import main
from edge_client.contract.documents import encode_document
from edge_client.contract.errors import (
    DeviceError,
    EdgeError,
    InputError,
    SettingsError,
    TransportError,
    TrustError,
)
from edge_client.contract.messages import DeviceStatus, UpdateMetrics
from edge_client.settings.file import hurried, load_settings
from edge_client.state_folder import hold_state
from tests.fakes.raw_server import RawServer
from tests.fakes.tiny_model import plain_picture, tiny_labels, tiny_model
from tests.fakes.tiny_release import png
from tests.fakes.tuf_repository import TufRepository

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 1),
        (SettingsError("x"), 2),
        (TrustError("x"), 3),
        (TransportError("x"), 4),
        (DeviceError("x"), 5),
        (EdgeError("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(monkeypatch, capsys, error, code):
    def fail(_file, _machine_name):
        raise error

    monkeypatch.setattr(cli, "load_settings", fail)
    assert main(["status"]) == code
    assert capsys.readouterr() == ("", "edge-client: x\n")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["classify"], ["run", "--colour"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_lists_commands_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("run", "classify", "status", "doctor", "Exit codes", "3 signatures"):
        assert word in text


def test_classify_prints_the_best_labels(tmp_path, capsys):
    (tmp_path / "m.tflite").write_bytes(tiny_model())
    (tmp_path / "labels.txt").write_text("\n".join(tiny_labels()) + "\n")
    (tmp_path / "p.png").write_bytes(png(plain_picture("green")))
    files = ["--model", str(tmp_path / "m.tflite"), "--labels", str(tmp_path / "labels.txt")]
    assert main(["classify", *files, "--json", str(tmp_path / "p.png")]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "green"


@pytest.fixture
def settings_file(tmp_path):
    file = tmp_path / "device.toml"
    file.write_text(
        '[device]\nid = "c"\nstate_dir = "state"\n[store]\nbase_url = "http://s/b"\n[source]\npath = "x"\n'
    )
    status = DeviceStatus(
        device="c",
        channel="stable",
        state="serving",
        release="r2",
        previous="r1",
        latency_ms=1.5,
        update=UpdateMetrics(release="r2", bytes_pulled=1234, seconds=0.5),
    )
    (tmp_path / "state").mkdir()
    (tmp_path / "state/status.json").write_bytes(encode_document(status))
    return file


def test_status_shows_the_last_state_of_a_daemon_that_is_down(settings_file, capsys):
    assert main(["status", "--config", str(settings_file)]) == 0
    text = capsys.readouterr().out
    for part in ("not running", "r2", "r1", "1.50 ms", "1234 bytes"):
        assert part in text


def test_status_shows_probation_and_rollout_share(settings_file, tmp_path, capsys):
    status = DeviceStatus(
        device="c",
        channel="stable",
        state="serving",
        release="r2",
        probation=True,
        refused="r3",
        share_percent=12.5,
        warning="does another device use the id c?",
    )
    (tmp_path / "state/status.json").write_bytes(encode_document(status))
    assert main(["status", "--config", str(settings_file)]) == 0
    text = capsys.readouterr().out
    for part in ("on probation", "12.5% of the devices", "r3", "does another device use the id c?"):
        assert part in text


def test_status_of_a_new_extra_channel(settings_file, capsys):
    text = settings_file.read_text()
    settings_file.write_text(text.replace("[device]\n", '[device]\nmore_channels = "doors"\n'))
    assert main(["status", "--config", str(settings_file)]) == 0
    text = capsys.readouterr().out
    for part in ("r2", "doors", "not started yet"):
        assert part in text
    assert main(["status", "--json", "--config", str(settings_file)]) == 0
    [doors] = json.loads(capsys.readouterr().out)["more_channels"]
    assert (doors["channel"], doors["state"]) == ("doors", "not started yet")


def test_status_of_an_unresponsive_daemon_is_marked_as_out_of_date(settings_file, tmp_path, capsys):
    with hold_state(tmp_path / "state"):
        assert main(["status", "--config", str(settings_file)]) == 0
        assert "running, but did not refresh its status" in capsys.readouterr().out
        assert main(["status", "--json", "--config", str(settings_file)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["running"], told["fresh"]) == (True, False)


def test_status_as_json(settings_file, capsys):
    assert main(["status", "--json", "--config", str(settings_file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["running"], answer["release"], answer["update"]["bytes_pulled"]) == (False, "r2", 1234)


DOORS = {
    "run": [],
    "doctor": [],
    "status": [],
    "update": [],
    "export": ["bundle.tar"],
}
WRONG_FILES = {
    "none": "name yours with --config",
    "a folder": "Is a directory",
    "not TOML": "not TOML",
    "a misspelt setting": "did you mean base_url?",
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_a_wrong_settings_file_in_one_paragraph(tmp_path, capsys, door, wrong):
    file = tmp_path / "device.toml"
    if wrong == "a folder":
        file.mkdir()
    elif wrong != "none":
        file.write_text("[store" if wrong == "not TOML" else '[store]\nbase_ulr = "http://s/b"\n')
    assert main([door, "--config", str(file), *DOORS[door]]) == 2
    told = capsys.readouterr().err
    assert WRONG_FILES[wrong] in told
    assert told.startswith("edge-client: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "example"),
    [
        ("[store]\nbase_url = 's3://bucket/S3CRET'", "https://s3.<region>.amazonaws.com/<bucket>/<prefix>"),
        (
            "[source]\nkind = 'video'\npath = 'rtsp:/u:S3CRET@cam/x'",
            "rtsp://user:password@camera/stream",
        ),
    ],
)
def test_an_example_of_an_address_is_shown_whole_and_what_was_written_is_not(
    tmp_path, capsys, section, example
):
    file = tmp_path / "device.toml"
    file.write_text(f'[device]\nid = "c"\n{section}\n')
    assert main(["doctor", "--config", str(file)]) == 2
    told = capsys.readouterr().err
    assert example in told
    assert "S3CRET" not in told


@pytest.mark.parametrize("model", ["", "/srv/m.tflite"])
def test_files_that_are_passed_over_are_shown(settings_file, tmp_path, capsys, model):
    status = DeviceStatus(device="c", channel="", state="serving", model=model, passed_over="2 hidden (.a)")
    (tmp_path / "state/status.json").write_bytes(encode_document(status))
    assert main(["status", "--config", str(settings_file)]) == 0
    assert "passed over  2 hidden (.a)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("door", "code", "told"),
    [
        ("export", 4, "no answer in time ([store] timeout_s); is the network up, the store running"),
        ("status", 5, "no daemon ran with this [device] state_dir yet"),
        ("update", 5, "no daemon runs; start `edge-client run`"),
    ],
)
def test_doors_of_a_new_device_whose_store_is_silent(tmp_path, capsys, door, code, told):
    repository = TufRepository()
    (tmp_path / "root.json").write_bytes(repository.root)
    file = tmp_path / "device.toml"
    with RawServer(b"") as store, store.silent():
        file.write_text(
            f'[device]\nid = "c"\nstate_dir = "state"\n[store]\nbase_url = "{store.url}"\ntimeout_s = 0.2\n'
            '[trust]\nroot = "root.json"\n[source]\npath = "x"\n'
        )
        assert main([door, "--config", str(file), *DOORS[door]]) == code
        assert len(store.requests) == (1 if door == "export" else 0), "silence is waited for once"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_somebody_who_waits_for_a_silent_store_waits_less_than_a_daemon(settings_file):
    patient = load_settings(settings_file)
    assert patient.store.timeout_s == 20.0
    assert hurried(patient).store.timeout_s < 10
    quick = dataclasses.replace(patient, store=dataclasses.replace(patient.store, timeout_s=1.0))
    assert hurried(quick) == quick
