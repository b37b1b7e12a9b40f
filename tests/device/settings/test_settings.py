"""The device's settings file."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from edge_client.contract.errors import SettingsError
from edge_client.machine import machine_name
from edge_client.settings.file import RENAMED, SECTIONS, load_settings
from edge_client.settings.frames import read_region
from edge_client.settings.reporting import BrokerSettings, read_password
from edge_client.settings.update import StoreSettings, TrustSettings, read_credentials, read_root

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.runtime

EXAMPLE = Path(__file__).resolve().parents[3] / "configs/device.toml"
MINIMAL = (
    '[device]\nid = "camera-1"\n[store]\nbase_url = "https://s3.example/b"\n[source]\npath = "/camera"\n'
)


def write(tmp_path, text: str):
    path = tmp_path / "device.toml"
    path.write_text(text, encoding="utf-8")
    return path


def example_sections() -> dict[str, dict[str, object]]:
    """The example with every commented setting switched on."""
    switched_on = re.sub(r"(?m)^# (?=[a-z0-9_]+ = )", "", EXAMPLE.read_text())
    return tomllib.loads(switched_on)


def test_the_example_file_has_every_setting_and_no_other():
    expected = {name: [f.name for f in dataclasses.fields(kind)] for name, kind in SECTIONS.items()}
    assert {name: list(values) for name, values in example_sections().items()} == expected


def test_the_example_file_shows_the_defaults():
    edited = {("store", "base_url"), ("source", "path")}
    for name, values in example_sections().items():
        default = SECTIONS[name]()
        for key, value in values.items():
            if (name, key) not in edited:
                expected = getattr(default, key)
                if isinstance(expected, (Path, tuple)):
                    expected = str(expected) if isinstance(expected, Path) else list(expected)
                assert value == expected, f"[{name}] {key}"
                assert type(value) is type(expected), f"[{name}] {key}"


def test_every_setting_of_the_example_has_a_comment():
    lines = EXAMPLE.read_text().splitlines()
    for section in SECTIONS:
        start = lines.index(f"[{section}]")
        assert lines[start + 1].startswith("# "), section


def test_the_example_file_loads():
    settings = load_settings(EXAMPLE, "pi-1")
    assert settings.store.base_url.startswith("https://")
    assert settings.device.id == "pi-1"


def test_a_device_without_an_id_and_a_serial_number_needs_a_name():
    with pytest.raises(SettingsError, match=r"\[device\] id: .*give it a name"):
        load_settings(EXAMPLE)


def test_a_minimal_file_gets_the_defaults(tmp_path):
    settings = load_settings(write(tmp_path, MINIMAL))
    assert settings.device.id == "camera-1"
    assert settings.update.poll_s == 3600.0
    assert settings.broker == BrokerSettings()


def test_all_faults_are_reported_at_once(tmp_path):
    text = """
[device]
id = "a/b"
threads = "four"
colour = 1
[store]
base_url = "s3://bucket"
timeout_s = true
[brokers]
host = "x"
[update]
poll_s = nan
"""
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text))
    message = str(caught.value)
    for part in (
        "device.toml",
        "[device] threads: 'four' is not an integer",
        "[device] colour: no such setting",
        "[store] timeout_s: True is not a number",
        "[brokers]: no such section",
        "[update] poll_s: nan",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("section", "line", "fault"),
    [
        ("device", 'id = "a/b"', "[device] id"),
        ("device", 'fleet = "#"', "[device] fleet"),
        ("device", 'channel = ""', "[device] channel"),
        ("device", "threads = 0", "[device] threads: 1 to 64"),
        ("device", "top = 0", "[device] top"),
        ("store", 'base_url = "s3://bucket"', "give http(s)://"),
        ("store", 'base_url = ""', "give http(s)://"),
        ("store", 'base_url = "file://server/models"', "or file:///folder"),
        ("store", 'base_url = "file:models"', "or file:///folder"),
        ("inbox", 'base_url = "file:models"', "[inbox] base_url"),
        ("store", "timeout_s = 0", "[store] timeout_s"),
        ("store", "min_bytes_per_s = -1", "[store] min_bytes_per_s"),
        ("broker", "port = 0", "[broker] port"),
        ("broker", "keepalive_s = 0", "[broker] keepalive_s"),
        ("broker", 'ca_file = "ca.pem"', "need tls = true"),
        ("broker", 'tls = true\ncertificate_file = "c.pem"', "both or none"),
        ("update", "poll_s = 0", "[update] poll_s"),
        ("update", "self_test_timeout_s = -1", "[update] self_test_timeout_s"),
        ("update", "max_release_bytes = 0", "[update] max_release_bytes"),
        ("update", "min_free_bytes = -1", "[update] min_free_bytes"),
        ("status", "interval_s = 0", "[status] interval_s"),
        ("source", 'kind = "eyes"', "[source] kind"),
        ("source", 'path = ""', "[source] path is empty"),
        ("sinks", "json_lines_max_bytes = 1", "[sinks] json_lines_max_bytes"),
    ],
)
def test_a_setting_that_cannot_work_is_named(tmp_path, section, line, fault):
    sections = tomllib.loads(MINIMAL)
    key = line.split(" = ")[0]
    sections.get(section, {}).pop(key, None)
    text = "".join(
        f"[{name}]\n"
        + "".join(f'{k} = "{v}"\n' for k, v in sections.get(name, {}).items())
        + (line + "\n" if name == section else "")
        for name in SECTIONS
    )
    with pytest.raises(SettingsError, match=re.escape(fault)):
        load_settings(write(tmp_path, text))


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    text = (
        '[device]\nid = "c"\nstate_dir = "state"\n[store]\nbase_url = "http://s/b"\n'
        'access_key_file = "k.toml"\n[trust]\nroot = "root.json"\n'
        '[source]\npath = "camera"\n[sinks]\njson_lines = "out.jsonl"\n'
    )
    file = write(tmp_path, text)
    monkeypatch.chdir("/")
    settings = load_settings(file)
    assert settings.device.state_dir == tmp_path / "state"
    assert settings.trust.root == tmp_path / "root.json"
    assert settings.store.access_key_file == str(tmp_path / "k.toml")
    assert settings.source.path == str(tmp_path / "camera")
    assert settings.sinks.json_lines == str(tmp_path / "out.jsonl")


def test_settings_that_are_not_paths_are_not_resolved(tmp_path):
    text = MINIMAL.replace('path = "/camera"', 'kind = "video"\npath = "rtsp://camera/1"')
    settings = load_settings(write(tmp_path, text + '[sinks]\njson_lines = "-"\n'))
    assert settings.source.path == "rtsp://camera/1"
    assert settings.sinks.json_lines == "-"


@pytest.mark.parametrize("text", ["device = 1", "[device", "id = camera", "\xff"])
def test_a_malformed_settings_file_is_named(tmp_path, text):
    path = tmp_path / "device.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"device\.toml"):
        load_settings(path)


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(SettingsError, match="--config"):
        load_settings(tmp_path / "none.toml")


def test_the_id_comes_from_the_serial_number_so_that_cloned_cards_differ(tmp_path):
    serial, machine = tmp_path / "serial", tmp_path / "machine-id"
    serial.write_bytes(b"10000000a1b2c3d4\0")
    machine.write_text("0123456789abcdef\n")
    assert machine_name(serial, machine) == "pi-10000000a1b2c3d4"
    serial.write_bytes(b"0000000000000000\0")
    name = machine_name(serial, machine)
    assert name is not None
    assert name.startswith("device-")
    assert "0123456789abcdef" not in name
    machine.write_text("")
    assert machine_name(serial, machine) is None


def test_credentials_come_from_the_file_before_the_environment(tmp_path):
    environment = {"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "s"}
    assert read_credentials(StoreSettings(), {}) is None
    found = read_credentials(StoreSettings(), environment)
    assert found is not None
    assert found.access_key_id == "env"
    file = tmp_path / "keys.toml"
    file.write_text('access_key_id = "file"\nsecret_access_key = "t"\n')
    found = read_credentials(StoreSettings(access_key_file=str(file)), environment)
    assert found is not None
    assert (found.access_key_id, found.session_token) == ("file", "")


@pytest.mark.parametrize(
    "content",
    ["", 'access_key_id = "a"', 'access_key_id = 1\nsecret_access_key = "b"', 'x = "y"', "nonsense"],
)
def test_a_faulty_key_file_is_named_and_not_shown(tmp_path, content):
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"keys\.toml"):
        read_credentials(StoreSettings(access_key_file=str(file)))


def test_a_missing_root_names_the_remedy(tmp_path):
    with pytest.raises(SettingsError, match="edge-keys make"):
        read_root(TrustSettings(root=tmp_path / "root.json"))


def test_the_password_is_the_first_line(tmp_path):
    file = tmp_path / "password"
    file.write_text("secret\nmore\n")
    assert read_password(BrokerSettings(password_file=str(file))) == "secret"
    assert read_password(BrokerSettings()) is None
    file.write_text("")
    with pytest.raises(SettingsError, match="password_file"):
        read_password(BrokerSettings(password_file=str(file)))


def test_a_renamed_setting_is_refused_with_its_new_name(tmp_path):
    for (section, old), new in RENAMED.items():
        assert new in {field.name for field in dataclasses.fields(SECTIONS[section])}
        with pytest.raises(SettingsError, match=rf"\[{section}\] {old}: renamed to {new}"):
            load_settings(write(tmp_path, f"[{section}]\n{old} = 1\n"))


@pytest.mark.parametrize(
    ("host", "tls", "password_file", "exposed"),
    [
        ("192.0.2.7", False, "password", True),
        ("broker.example", False, "password", True),
        ("2001:db8::7", False, "password", True),
        ("broker.example", True, "password", False),
        ("broker.example", False, "", False),
        ("127.0.0.1", False, "password", False),
        ("::1", False, "password", False),
        ("localhost", False, "password", False),
        ("", False, "password", False),
    ],
)
def test_a_password_that_goes_to_another_machine_in_the_clear_is_warned_of(host, tls, password_file, exposed):
    broker = BrokerSettings(host=host, tls=tls, username="camera-1", password_file=password_file)
    assert bool(broker.exposure) == exposed
    assert not exposed or f"the password of camera-1 and all results go to {host} in the clear" in str(
        broker.exposure
    )


LISTS = {
    ("device", "more_channels"): ["doors", "stock"],
    ("store", "redirect_hosts"): ["cdn.example.com", "*.example.net:8443"],
    ("action", "labels"): ["cat", "dog"],
    ("inbox", "never_labels"): ["person", "face"],
}


@pytest.mark.parametrize(("section", "key"), LISTS)
def test_a_list_is_a_toml_list_or_one_text_with_commas(tmp_path, section, key):
    sections = {**tomllib.loads(MINIMAL), "action": {"on_command": "true"}}

    def read(value: str) -> object:
        text = "".join(
            f"[{name}]\n"
            + "".join(f'{k} = "{v}"\n' for k, v in sections.get(name, {}).items())
            + (f"{key} = {value}\n" if name == section else "")
            for name in SECTIONS
        )
        return getattr(getattr(load_settings(write(tmp_path, text)), section), key)

    names = LISTS[section, key]
    assert read(json.dumps(names)) == read(json.dumps(", ".join(names))) == tuple(names)
    assert read("[]") == read('""') == ()
    for wrong in ("[1]", "1", '["a", ""]', "[[]]", "{}"):
        with pytest.raises(SettingsError, match=rf"\[{section}\] {key}: "):
            read(wrong)


def test_every_list_of_the_settings_is_tried():
    found = {
        (name, field.name)
        for name, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if "tuple" in str(field.type)
    }
    assert found == LISTS.keys()


def test_a_label_with_a_comma_and_a_command_are_lists(tmp_path):
    text = MINIMAL + (
        'region = [0.25, 0, 0.75, 1]\n[inbox]\nnever_labels = ["face, near"]\n[action]\n'
        'labels = ["screw, M3", "nut"]\non_command = ["logger", "a label"]\n'
        "off_command = \"logger 'a label'\"\n"
    )
    settings = load_settings(write(tmp_path, text))
    assert settings.action.labels == ("screw, M3", "nut")
    assert settings.inbox.never_labels == ("face, near",)
    assert settings.action.on_command == settings.action.off_command
    assert read_region(settings.source.region) == read_region("0.25, 0, 0.75, 1")
