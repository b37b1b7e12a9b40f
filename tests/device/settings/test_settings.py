"""The device's settings file."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from edge_client.contract.errors import SettingsError
from edge_client.contract.file_urls import folder_of_url
from edge_client.machine import machine_name
from edge_client.settings.file import RENAMED, SECTIONS, load_settings
from edge_client.settings.frames import read_region
from edge_client.settings.reporting import BrokerSettings, read_password
from edge_client.settings.update import StoreSettings, TrustSettings, read_credentials, read_root
from edge_client.sources.files import find_pictures

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


def toml(sections: dict[str, dict[str, object]]) -> str:
    """Texts, numbers and truth values as JSON writes them are TOML, too."""
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for name, values in sections.items()
    )


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


def paths_of_settings() -> list[tuple[str, str]]:
    """Each setting that names a file or folder whatever its value is."""
    return [
        (name, field.name)
        for name, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if field.type == "Path" or field.name.endswith(("_file", "_dir"))
    ]


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        ("keys/a", "{folder}/keys/a"),
        ("./keys/a", "{folder}/keys/a"),
        ("../a", "{above}/a"),
        ("~/a", "{home}/a"),
        ("/keys/a", "/keys/a"),
        ("100% a#b?c", "{folder}/100% a#b?c"),
    ],
)
def test_paths_are_relative_to_the_file_and_may_begin_with_the_home(tmp_path, monkeypatch, value, whole):
    home, folder = tmp_path / "home", tmp_path / "etc"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir("/")
    expected = whole.format(folder=folder, above=tmp_path, home=home)
    keys = ("store", "access_key_file")  # without temporary ones, see below
    paths = {*paths_of_settings(), ("source", "path"), ("sinks", "json_lines")}
    temporary = {"credentials_endpoint": "c1.credentials.iot.eu-west-1.amazonaws.com", "role_alias": "a"}
    for named, given in ((paths - {keys}, temporary), ({keys}, {})):
        sections: dict[str, dict[str, object]] = {name: {} for name in SECTIONS} | tomllib.loads(MINIMAL)
        sections["broker"]["tls"] = True
        sections["store"] |= given
        for section, key in named:
            sections[section][key] = value
        settings = load_settings(write(folder, toml(sections)))
        for section, key in named:
            assert str(getattr(getattr(settings, section), key)) == expected, f"[{section}] {key}"


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("./models", "{folder}/models"),
        ("../models", "{above}/models"),
        ("~/models", "{home}/models"),
        ("/srv/a b#c%", "/srv/a b#c%"),
        ("file://./models", "{folder}/models"),
        ("file://~/my%20models", "{home}/my models"),
        ("file:///srv/a%23b", "/srv/a#b"),
    ],
)
def test_a_store_in_a_folder_is_an_address_or_a_path(tmp_path, monkeypatch, value, folder):
    home, here = tmp_path / "home", tmp_path / "etc"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    sections = tomllib.loads(MINIMAL)
    sections["store"]["base_url"] = value
    sections["inbox"] = {"base_url": value}
    settings = load_settings(write(here, toml(sections)))
    expected = folder.format(folder=here, above=tmp_path, home=home)
    assert folder_of_url(settings.store.base_url) == folder_of_url(settings.inbox.base_url) == Path(expected)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://models/stable", "https://s3.<region>.amazonaws.com/<bucket>/<prefix>"),
        ("models", "./folder for one beside this file"),
        ("file://models", "./folder for one beside this file"),
        ("file:///srv/a?b", "write ? as %3F"),
        ("https://s3.example/a?b", "write ? as %3F"),
        ("https://s3.example/a#b", "# as %23"),
        ("https://s3.example/100%", "% as %25"),
        ("https://s3.example/my models", "a space as %20"),
        ("https://me:secret@s3.example/b", "user or password"),
        ("https://s3.example:99999/b", "give http(s)://"),
        ("https://[::1/b", "give http(s)://"),
        ("/", "give http(s)://"),
    ],
)
def test_an_address_that_would_be_misread_is_refused_with_what_to_write(tmp_path, url, told):
    for section in ("store", "inbox"):
        sections = tomllib.loads(MINIMAL)
        sections.setdefault(section, {})["base_url"] = url
        with pytest.raises(SettingsError) as caught:
            load_settings(write(tmp_path, toml(sections)))
        assert f"[{section}] base_url" in str(caught.value)
        assert told in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("./siren.sh --loud", "{folder}/siren.sh"),
        ("bin/siren 'two words'", "{folder}/bin/siren"),
        ("~/siren", "{home}/siren"),
        ("/usr/bin/siren x/y", "/usr/bin/siren"),
        ("siren ./x ~/y", "siren"),
    ],
)
def test_the_program_of_a_command_is_a_path_or_looked_up(tmp_path, monkeypatch, command, program):
    monkeypatch.setenv("HOME", "/home/pi")
    settings = load_settings(write(tmp_path, MINIMAL + f'[action]\nlabels = "a"\non_command = "{command}"\n'))
    words = shlex.split(settings.action.on_command)
    assert words[0] == program.format(folder=tmp_path, home="/home/pi")
    assert words[1:] == shlex.split(command)[1:], "arguments are the program's own business"


def test_a_pattern_beside_the_file_matches_though_the_folder_looks_like_one(tmp_path):
    folder = tmp_path / "camera [1]*"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    text = MINIMAL.replace('path = "/camera"', 'kind = "files"\npath = "*.jpg"')
    settings = load_settings(write(folder, text))
    assert find_pictures(settings.source.path) == (folder / "a.jpg", folder / "b.jpg")


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("clip.mp4", True),
        ("~/clip.mp4", True),
        ("0", False),
        ("rtsp://camera/1", False),
        ("/dev/video0", False),
    ],
)
def test_a_video_is_a_file_beside_the_settings_a_camera_or_an_address(tmp_path, monkeypatch, path, resolved):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = MINIMAL.replace('path = "/camera"', f'kind = "video"\npath = "{path}"')
    expected = str(tmp_path / "clip.mp4") if resolved else path
    assert load_settings(write(tmp_path, text)).source.path == expected


def test_a_home_that_is_not_known_and_an_empty_folder_are_named(tmp_path):
    text = MINIMAL.replace(
        "[store]", 'state_dir = ""\n[trust]\nroot = "~nobody-of-that-name/root.json"\n[store]'
    )
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text))
    assert "[device] state_dir: is empty" in str(caught.value)
    assert "[trust] root: '~nobody-of-that-name/root.json': " in str(caught.value)


def test_settings_that_are_not_paths_are_not_resolved(tmp_path):
    text = MINIMAL.replace('path = "/camera"', 'kind = "video"\npath = "rtsp://camera/1"')
    settings = load_settings(write(tmp_path, text + '[sinks]\njson_lines = "-"\n'))
    assert settings.source.path == "rtsp://camera/1"
    assert settings.sinks.json_lines == "-"


MALFORMED = {
    "no section header": (b"[device", "(at line 1, the end)"),
    "a text without quotes": (b"[device]\nid = camera\n", "line 2, column 6"),
    "Python's truth": (b"[broker]\ntls = True\n", "line 2, column 7"),
    "a path of Windows": (b'[device]\nid = "C:\\new\\x"\n', "line 2"),
    "a setting twice": (b'[device]\nid = "a"\nid = "b"\n', "line 3"),
    "an old Mac's line ends": (b'[device]\rid = "a"\r', "line 1"),
    "Latin-1": (b'[device]\nid = "K\xfcche"\n', "not UTF-8 (at line 2, column 8); save it as UTF-8"),
    "UTF-16": ('[device]\nid = "a"\n'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "a picture": (b"\xff\xd8\xff\xe0", "not UTF-8 (at line 1, column 1)"),
    "a huge file": (b"#" * 2_000_000, "no settings file"),
    "a section that is a value": (b"device = 1\n", "write it as a section, [device]"),
    "a section that is a list": (b"[[device]]\n", "write it as a section, [device]"),
    "a setting above all sections": (
        b"poll_s = 60\n[device]\n",
        "poll_s: stands above all sections; write it below [update]",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_settings_file_is_named_with_the_place(tmp_path, name):
    content, told = MALFORMED[name]
    path = tmp_path / "device.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"device\.toml") as caught:
        load_settings(path)
    assert told in str(caught.value)


def test_a_file_of_a_windows_editor_is_read(tmp_path):
    path = tmp_path / "device.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_settings(path).device.id == "camera-1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[stroe]\n", "[stroe]: no such section; did you mean store?"),
        ("[brokers]\n", "did you mean broker?"),
        ("[Device]\n", "did you mean device?"),
        ("[home_assistant]\n", "did you mean homeassistant?"),
        ("[mqtt]\n", "[mqtt]: no such section; configs/device.toml shows all settings"),
        ('[store]\nbase-url = "x"\n', "[store] base-url: no such setting; did you mean base_url?"),
        ('[store]\nurl = "x"\n', "did you mean base_url?"),
        ('[store]\npassword_file = "x"\n', "[store] password_file: no such setting; it belongs to [broker]"),
        ("[update]\npoll = 1\n", "did you mean poll_s?"),
        (
            "[device]\ncolour = 1\n",
            "[device] colour: no such setting; configs/device.toml shows all settings",
        ),
        (
            '[source]\nkind = "vidoe"\n',
            "files, pipe, video, picamera; did you mean video?",
        ),
        ('[source]\nkind = "RTSP"\n', "; did you mean video?"),
        ('[source]\nkind = "usb"\n', "; did you mean video?"),
        ('[source]\nkind = "libcamera"\n', "; did you mean picamera?"),
        ('[source]\nafter = "deleted"\n', "; did you mean delete?"),
        ('[action]\nwhen_unsure = "Wait"\n', "; did you mean wait?"),
        ('[store]\ncertificate_file = "device.crt"\n', "certificate_file: give credentials_endpoint, too"),
        ("[update]\npoll_s = 1e300\n", "[update] poll_s: 1e+300 is too large"),
        ("[update]\nmax_release_bytes = 9999999999999999999999\n", "is too large"),
        ("[store]\ntimeout_s = 90000\n", "timeout_s: above 0, at most 3600"),
        ('[device]\nid = "a\\u0000b"\n', "null character"),
        ('[broker]\ntls = "true"\n', "neither true nor false; write it without quotes"),
    ],
)
def test_a_wrong_name_or_value_is_told_with_what_was_probably_meant(tmp_path, text, told):
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text))
    assert told in str(caught.value)
    assert len(str(caught.value)) < 600, "one paragraph"


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
    ("device", "tags"): ["outdoor", "line=3"],
    ("store", "redirect_hosts"): ["cdn.example.com", "*.example.net:8443"],
    ("action", "labels"): ["cat", "dog"],
    ("inbox", "never_labels"): ["person", "face"],
    ("broker", "alpn"): ["x-amzn-mqtt-ca", "mqtt"],
}


@pytest.mark.parametrize(("section", "key"), LISTS)
def test_a_list_is_a_toml_list_or_one_text_with_commas(tmp_path, section, key):
    sections = {
        "action": {"on_command": "true"},
        "inbox": {},
        "broker": {"tls": True},
        **tomllib.loads(MINIMAL),
    }

    def read(value: object) -> object:
        changed = {**sections, section: {**sections[section], key: value}}
        return getattr(getattr(load_settings(write(tmp_path, toml(changed))), section), key)

    names = LISTS[section, key]
    assert read(names) == read(", ".join(names)) == tuple(names)
    assert read([]) == read("") == ()
    wrongs: list[object] = [[1], 1, ["a", ""], [[]], True]
    for wrong in wrongs:
        with pytest.raises(SettingsError, match=rf"\[{section}\] {key}: "):
            read(wrong)


@pytest.mark.parametrize(
    ("section", "line", "told"),
    [
        ("device", 'tags = ["site=shop-7"]', r"tags 'site=shop-7': .*settings of their own"),
        ("device", 'tags = ["class=zero"]', "tags 'class=zero'"),
        ("device", 'tags = ["a b"]', "tags 'a b'"),
        ("device", 'tags = ["a=b=c"]', "tags 'a=b=c'"),
        ("device", 'tags = ["x\\n"]', "tags"),
        ("device", 'tags = ["a", "a"]', "tags: name each once"),
        ("device", f"tags = {json.dumps([f't{n}' for n in range(33)])}", "tags: at most 32"),
        ("device", 'site = "shop/7"', "site 'shop/7'"),
        ("status", "report_interval_s = -1", "report_interval_s: 0 to 86400"),
        ("status", "report_interval_s = 1e6", "report_interval_s: 0 to 86400"),
        ("status", "retain = false\n[homeassistant]\ndiscovery = true", "Home Assistant reads the retained"),
    ],
)
def test_what_a_fleet_could_not_use_is_refused(tmp_path, section, line, told):
    text = MINIMAL.replace(f"[{section}]\n", f"[{section}]\n{line}\n")
    if f"[{section}]" not in text:
        text += f"[{section}]\n{line}\n"
    with pytest.raises(SettingsError, match=rf"(?s)\[.*\] .*{told}"):
        load_settings(write(tmp_path, text))


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
