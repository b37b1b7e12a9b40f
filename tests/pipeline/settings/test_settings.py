"""Settings: luigi.cfg holds every one with its default; faults stop the run, all of them at once."""

from __future__ import annotations

import configparser
import dataclasses
import io
from pathlib import Path

import luigi
import pytest

from edge_client.contract.errors import SettingsError
from luigi_tasks.settings import sections
from luigi_tasks.settings.checks import find_faults
from luigi_tasks.settings.given import Given
from luigi_tasks.settings.sections import KNOWN, RENAMED, load_settings
from luigi_tasks.settings.unknown import find_unknown
from luigi_tasks.settings.values import PipelineSettings

LUIGI_CFG = Path(__file__).resolve().parents[3] / "luigi.cfg"
NAMES = [*(field.name for field in dataclasses.fields(PipelineSettings)), "other_projects"]


@pytest.mark.parametrize("name", NAMES)
def test_luigi_cfg_has_every_setting_with_its_default(name):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(LUIGI_CFG)
    section = getattr(sections, name)
    in_code = {key: one for key, one in section.get_params() if (name, key) not in RENAMED}
    in_file = dict(parser[name])
    assert in_file.keys() == in_code.keys()
    for key, parameter in in_code.items():
        assert parameter.parse(in_file[key]) == parameter._default, key


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described(name):
    for key, parameter in getattr(sections, name).get_params():
        assert parameter.description, key


@pytest.mark.parametrize("name", NAMES)
def test_comments_of_luigi_cfg_are_the_help_texts(name):
    """Choices, which Luigi's help lists by itself, may follow the text."""
    comment, commented = "", {}
    _, _, section = LUIGI_CFG.read_text().partition(f"\n[{name}]\n")
    for line in section.partition("\n[")[0].splitlines():
        if line.startswith("#"):
            comment += line.removeprefix("#")
        elif line:
            commented[line.partition("=")[0].strip()], comment = comment.strip(), ""
    for key, parameter in getattr(sections, name).get_params():
        if (name, key) not in RENAMED:
            assert commented[key].startswith(parameter.description.partition(" Choices: ")[0]), key


def test_a_folder_may_be_the_store():
    settings = load_settings()
    folder = dataclasses.replace(settings.store, url="file:///srv/edge-models")
    assert find_faults(dataclasses.replace(settings, store=folder)) == []


def test_the_default_is_free_of_faults():
    assert find_faults(load_settings()) == []


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("dataset", {"holdout_percent": 0.0}, "holdout_percent"),
        ("training", {"epochs": 0}, "epochs"),
        ("model", {"weights": "none"}, "frozen backbone without weights"),
        ("store", {"url": "bucket"}, "s3://"),
        ("store", {"url": "s3:///prefix"}, "s3://bucket"),
        ("store", {"url": "file://models"}, "give file:///folder"),
        ("store", {"url": "file:models"}, "give file:///folder"),
        ("store", {"url": "file://C:/models"}, "give file:///folder"),
        ("store", {"url": "file:///"}, "give file:///folder"),
        ("store", {"endpoint_url": "minio:9000"}, "give http:// or https://"),
        ("store", {"endpoint_url": "http://minio:port"}, "give http:// or https://"),
        ("store", {"endpoint_url": "https://s3.example/edge-models/"}, "without the bucket"),
        (
            "store",
            {"endpoint_url": "https://edge-models.oss-cn-x.aliyuncs.com", "addressing_style": "virtual"},
            "without the bucket",
        ),
        ("release", {"channel": "a/b"}, "channel 'a/b'"),
        ("release", {"device_class": "pi 5"}, "[release] device_class 'pi 5'"),
        ("broker", {"fleet": "#"}, "fleet '#'"),
        ("gate", {"min_accuracy": 80.0}, "min_accuracy"),
        ("quantization", {"fallbacks": "int4"}, "fallbacks: some of int8"),
        ("quantization", {"calibration": "../x"}, "[quantization] calibration '../x'"),
        ("board", {"url": "example.org/fleet"}, "give http:// or https://"),
        ("board", {"url": "https://ann:secret@example.org/"}, "give http:// or https://"),
        ("board", {"url": "https://example.org:port/"}, "give http:// or https://"),
        ("board", {"url": "https://example.org/(.*)"}, "give http:// or https://"),
        ("board", {"hosts": "*"}, "names alone"),
        ("board", {"session_h": 0.0}, "session_h"),
        ("board", {"trusted_proxies": "proxy.example"}, "addresses or networks"),
        ("board", {"trusted_proxies": "10.0.0.0/8, ::/0"}, "everybody"),
        ("board", {"proxy_user_header": "X-User"}, "trusted_proxies"),
        ("board", {"trusted_proxies": "10.0.0.1", "proxy_user_header": "X User:"}, "the name of a header"),
        ("board", {"operators": "ann"}, "board-token"),
    ],
)
def test_each_fault_is_named(section, change, named):
    settings = load_settings()
    broken = dataclasses.replace(
        settings, **{section: dataclasses.replace(getattr(settings, section), **change)}
    )
    [fault] = find_faults(broken)
    assert named in fault


@pytest.fixture
def luigi_config():
    """Set values as a luigi.cfg would; they are gone after the test."""
    parser = luigi.configuration.get_config()
    before = io.StringIO()
    parser.write(before)  # as it is written: a % is no reference
    yield parser
    for name in parser.sections():
        parser.remove_section(name)
    parser.read_string(before.getvalue())


def test_every_renamed_setting_is_refused_with_its_new_name(luigi_config):
    for section, old in RENAMED:
        luigi_config.set(section, old, "1")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for (section, old), new in RENAMED.items():
        assert f"[{section}] {old}: renamed to {new}; use the new name" in str(caught.value)


def test_an_old_name_on_the_command_line_is_refused_with_the_new_one():
    # Loads the tasks whatever was imported before: luigi_tasks itself does only after luigi.
    arguments = ["--module", "luigi_tasks.pipeline", "Deploy", "--training-augmented-views", "1"]
    with (
        luigi.cmdline_parser.CmdlineParser.global_instance(arguments),
        pytest.raises(SettingsError, match="augmented_views: renamed to augmented_copies"),
    ):
        load_settings()


def test_misspelt_settings_are_refused_all_at_once(luigi_config):
    luigi_config.set("training", "epoch", "3")
    luigi_config.set("gate", "zzz", "3")
    luigi_config.set("datasets", "url", "digits")
    luigi_config.set("training", "epochs", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value).replace("set by the program: ", "")
    assert "[datasets]: no such section; did you mean [dataset]?" in message
    assert (
        "[gate] zzz: no such setting; remove it; [training] epoch: no such setting; did you mean epochs?"
        in message
    )
    assert message.endswith("[training] epochs: at least 1")


def test_dashes_and_sections_of_luigi_are_no_faults(luigi_config):
    luigi_config.set("training", "batch-size", "64")
    luigi_config.set("worker", "keep_alive", "true")
    load_settings()


def test_old_names_are_not_suggested():
    given = {"training": {"augmented_view": Given("1", "luigi.cfg")}}
    [fault] = find_unknown(given, KNOWN, RENAMED)
    assert "augmented_views" not in fault


def test_a_program_gives_settings_that_count_before_the_files():
    settings = load_settings("somewhere", model={"alpha": 0.5}, trust={"root": "a/root.json"})
    assert settings.dataset.url == "somewhere"
    assert settings.model.alpha == 0.5
    assert settings.trust.root == Path("a/root.json")
    assert load_settings().model.alpha == 1.0


def test_all_settings_that_a_program_misspells_are_named_at_once():
    with pytest.raises(SettingsError) as caught:
        load_settings(modell={}, model={"alfa": 0.5}, training={"epochs": 0})
    message = str(caught.value)
    assert "[modell]: no such section; there are dataset, model" in message
    assert "alfa" in message
    assert "alpha" in message
    assert "[training] epochs: at least 1" in message
