"""Settings that `scripts/install-device` writes: the daemon reads them, and a user's file keeps its lines."""

import dataclasses
from pathlib import Path

import pytest
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st
from installation import environment, machine, service, wishes
from installation.places import InstallError
from installation.settings import (
    broker_settings,
    camera_settings,
    change_settings,
    check_settings,
    differences,
)

from edge_client.settings.file import load_settings
from luigi_tasks.release.keys import make_keys

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = (REPOSITORY / "configs/device.toml").read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys")
    make_keys(keys)
    return keys / "device/root.json"


def test_all_flags_become_settings_that_the_daemon_reads(tmp_path, root):
    (tmp_path / "password").write_text("s3cret\nnot this\n")
    (tmp_path / "key").write_text('access_key_id = "id"\nsecret_access_key = "hidden"\n')
    options = wishes.parse(
        [
            *("--base-url", "https://s3.example.com/edge-models", "--root", str(root)),
            *("--fleet", "orchard", "--channel", "canary", "--device-id", "camera-1"),
            *("--broker", "192.168.1.5:1884", "--broker-user", "camera-1"),
            *(
                "--broker-password-file",
                str(tmp_path / "password"),
                "--access-key-file",
                str(tmp_path / "key"),
            ),
            *("--camera", "/dev/video0", "--metrics-port", "9100"),
            *("--set", 'action.labels=["a, b", "c"]', "--set", "action.on_command=pinctrl set 17 op dh"),
        ]
    )
    wanted = wishes.read_flags(options)
    file = tmp_path / "device.toml"
    file.write_text(change_settings(EXAMPLE, wanted.changes))
    loaded = load_settings(file)
    assert (loaded.device.id, loaded.device.fleet, loaded.device.channel) == ("camera-1", "orchard", "canary")
    assert loaded.store.base_url == "https://s3.example.com/edge-models"
    assert (loaded.broker.host, loaded.broker.port, loaded.broker.username) == (
        "192.168.1.5",
        1884,
        "camera-1",
    )
    assert (loaded.source.kind, loaded.source.path, loaded.metrics.port) == ("video", "/dev/video0", 9100)
    assert loaded.action.labels == ("a, b", "c")
    assert loaded.broker.password_file == "/etc/edge-client/broker-password"
    assert loaded.store.access_key_file == "/etc/edge-client/access-key.toml"
    assert wanted.files["broker-password"] == (b"s3cret\n", True)
    assert "s3cret" not in file.read_text()
    assert "hidden" not in file.read_text()


def test_all_other_lines_of_a_file_stay(tmp_path):
    text = """# mine
[device]
id = "a"   # the barn's

[action]
labels = [
    "one",  # comment
    "two",
]
hold_off_s = 1.5

[broker]
# host = "127.0.0.1"
"""
    changed = change_settings(
        text,
        {
            ("action", "labels"): ["three"],
            ("broker", "host"): "b",
            ("metrics", "port"): 1,
            ("device", "top"): 2,
        },
    )
    assert tomllib.loads(changed) == {
        "device": {"id": "a", "top": 2},
        "action": {"labels": ["three"], "hold_off_s": 1.5},
        "broker": {"host": "b"},
        "metrics": {"port": 1},
    }
    assert {"# mine", 'id = "a"   # the barn\'s', "hold_off_s = 1.5"} <= set(changed.splitlines())
    assert change_settings(changed, {("device", "id"): "a"}) == changed


@given(st.text(), st.sampled_from(["", "[store]\n", '[store]\nbase_url = "old"\n', EXAMPLE]))
@settings(max_examples=60, deadline=None)
def test_a_value_of_any_text_is_read_back_or_refused(value, text):
    try:
        changed = change_settings(text, {("store", "base_url"): value})
    except InstallError:
        assert any(ord(letter) < 32 or ord(letter) == 127 for letter in value)
    else:
        assert tomllib.loads(changed)["store"]["base_url"] == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('store.base_url = "x"\n', "base_url by hand"),
        ('store = { base_url = "x" }\n', "base_url by hand"),
        ("[store\n", "no TOML"),
    ],
)
def test_a_file_that_single_lines_cannot_change_is_refused(text, told):
    with pytest.raises(InstallError, match=told):
        change_settings(text, {("store", "base_url"): "y"})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("source", "path", "/home/pi/pictures"),
        ("source", "path", "/tmp/pictures"),  # noqa: S108
        ("store", "base_url", "file:///root/edge%20models"),
        ("device", "state_dir", "/home/pi/state"),
    ],
)
def test_a_folder_that_the_unit_hides_is_refused(section, key, value):
    with pytest.raises(InstallError, match="the service does not see"):
        service.check_visible({section: {key: value}})


def test_the_unit_lets_the_service_write_where_the_settings_say():
    assert service.drop_in({"source": {"path": "/srv/pictures"}}) == ""
    text = service.drop_in(
        {
            "device": {"state_dir": "/mnt/ssd/state"},
            "source": {"path": "/srv/pictures", "after": "move"},
            "sinks": {"json_lines": "/srv/results/all.jsonl"},
            "store": {"base_url": "file:///srv/models"},
            "inbox": {"upload": True},
        }
    )
    written = '"-/mnt/ssd/state" "-/srv/pictures" "-/srv/results" "-/srv/models/inbox"'
    assert f"[Service]\nReadWritePaths={written}\n" in text


def test_a_model_of_the_users_own_needs_no_store(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"model")
    wanted = wishes.read_flags(wishes.parse(["--model", str(tmp_path / "m.tflite")]))
    wishes.is_complete(wanted)
    assert wanted.files == {"model.tflite": (b"model", False)}
    assert wanted.changes == {("device", "model"): "/etc/edge-client/model.tflite"}


@dataclasses.dataclass(frozen=True)
class Camera:
    given: str
    kind: str
    path: str


@pytest.mark.parametrize(
    "camera",
    [
        Camera("picamera", "picamera", ""),
        Camera("picamera:1", "picamera", "1"),
        Camera("0", "video", "0"),
        Camera("/dev/v4l/by-id/usb-cam", "video", "/dev/v4l/by-id/usb-cam"),
        Camera("rtsp://user:word@cam/1", "video", "rtsp://user:word@cam/1"),
        Camera("/srv/pictures", "folder", "/srv/pictures"),
        Camera("folder", "folder", "/var/lib/edge-client/camera"),
        Camera("files:/data/*.jpg", "files", "/data/*.jpg"),
        Camera("pipe:/run/frames", "pipe", "/run/frames"),
        Camera(__file__, "video", __file__),
    ],
    ids=lambda camera: camera.given,
)
def test_cameras(camera):
    assert camera_settings(camera.given) == {
        ("source", "kind"): camera.kind,
        ("source", "path"): camera.path,
    }


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("broker.local", "broker.local", 1883),
        ("10.0.0.1:1884", "10.0.0.1", 1884),
        ("[::1]:1884", "::1", 1884),
        ("mqtts://broker.local", "broker.local", 8883),
        ("broker.local:8883", "broker.local", 8883),
        ("mqtt://broker.local:1", "broker.local", 1),
    ],
)
def test_brokers(text, host, port):
    found = broker_settings(text, tls=False)
    assert (found["broker", "host"], found["broker", "port"]) == (host, port)
    assert found.get(("broker", "tls"), False) == (port == 8883)


def test_a_ca_or_a_certificate_of_the_broker_means_tls(tmp_path):
    (tmp_path / "ca.crt").write_text("\ufeff-----BEGIN CERTIFICATE-----\n", encoding="utf-8")
    flags = ("--broker", "broker.local", "--broker-ca-file", str(tmp_path / "ca.crt"))
    wanted = wishes.read_flags(wishes.parse(flags))
    assert wanted.changes["broker", "tls"] is True
    assert wanted.changes["broker", "port"] == 8883
    assert wanted.files["broker-ca.pem"] == (b"-----BEGIN CERTIFICATE-----\n", False)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--set", "sinks.on_changed=true"), r"on_changed: .*did you mean on_change\?"),
        (("--set", "sink.on_change=true"), r"\[sink\]: .*did you mean sinks\?"),
        (("--set", "status.interval_s=often"), r"\[status\] interval_s"),
        (("--device-id", "camera 1"), r"\[device\] id 'camera 1'"),
        (("--broker", "host", "--broker-key-file", __file__), "certificate_file and key_file: give both"),
        (("--base-url", "s3://bucket"), "base_url"),
        (("--channel", "canary"), ""),
    ],
)
def test_settings_that_the_daemon_refuses_are_refused_before_anything_is_installed(flags, told):
    text = change_settings(EXAMPLE, wishes.read_flags(wishes.parse(flags)).changes)
    if not told:
        check_settings(text)
        return
    with pytest.raises(InstallError, match=told) as refused:
        check_settings(text)
    assert "/etc/edge-client/device.toml" in str(refused.value)
    assert "edge-client-settings-" not in str(refused.value)


def test_a_password_of_a_windows_editor_is_read_and_one_in_latin_1_refused(tmp_path):
    file = tmp_path / "password"
    flags = wishes.parse(["--broker-password-file", str(file)])
    file.write_bytes("\ufeffpässword\r\n".encode())
    assert wishes.read_flags(flags).files["broker-password"] == ("pässword\n".encode(), True)
    file.write_bytes("pässword\r\n".encode("latin-1"))
    with pytest.raises(InstallError, match="save it as UTF-8"):
        wishes.read_flags(flags)


@pytest.mark.parametrize("text", ["", "a b", "host:0", "host:65536", "user:word@host", "host:port"])
def test_what_is_no_broker_is_refused(text):
    with pytest.raises(InstallError, match="HOST:PORT"):
        broker_settings(text, tls=False)


def test_differences_hide_the_password_of_a_camera():
    after = change_settings(EXAMPLE, camera_settings("rtsp://user:word@cam/1?token=abc"))
    shown = "\n".join(differences(EXAMPLE, after))
    assert "cam" in shown
    assert "word" not in shown
    assert "abc" not in shown


def test_a_faulty_key_file_is_refused_without_its_content(tmp_path):
    (tmp_path / "key").write_text("AKIA123 = = topsecret\n")
    with pytest.raises(InstallError, match="access_key_id") as refused:
        wishes.read_flags(wishes.parse(["--access-key-file", str(tmp_path / "key")]))
    assert "topsecret" not in str(refused.value)


def test_another_file_is_no_root(tmp_path):
    (tmp_path / "root.json").write_text('{"signed": {"_type": "targets"}}')
    with pytest.raises(InstallError, match="edge-keys make"):
        wishes.read_flags(wishes.parse(["--root", str(tmp_path / "root.json")]))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "df -h"),
        (
            "Retry after connection broken by 'SSLError(CERTIFICATE_VERIFY_FAILED)'\nERROR: No numpy",
            "numpy .connection broken by 'SSLError.*timedatectl",
        ),
        ("ERROR: No matching distribution found for numpy", "--wheels FOLDER"),
    ],
)
def test_what_pip_says_is_told_with_what_helps(tmp_path, monkeypatch, said, told):
    def ask(*command, **_options):
        if "pip" in command:
            machine.ask("sh", "-c", 'printf %s "$1" >&2; exit 1', "pip", said)

    monkeypatch.setattr(environment, "ask", ask)
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path)
    wanted = environment.Environment(machine.Machine(dry_run=False), "", None, set(), system_camera=False)
    with pytest.raises(InstallError, match=told):
        wanted.build(anew=True)
    assert not list(tmp_path.iterdir())
