"""What files, environment and command line give: nothing is passed over, and nothing read otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import luigi
import pytest

from edge_client.contract.errors import SettingsError
from luigi_tasks import edge_keys, edge_tune
from luigi_tasks.command_line import check_command
from luigi_tasks.labelling.tasks import ListInbox
from luigi_tasks.pipeline import Deploy
from luigi_tasks.roll_back import RollBack
from luigi_tasks.settings.sections import SECTIONS, load_settings
from tests.fakes.settings_files import SettingsFiles

TASKS = [one.__name__ for one in (Deploy, RollBack, ListInbox)]
PLACES = ("/etc/luigi/client.cfg", "/etc/luigi/luigi.cfg", "client.cfg", "luigi.cfg", "LUIGI_CONFIG_PATH")
# Settings that name a path, with a value that is one.
PATHS = {
    "dataset.url": "pictures",
    "dataset.cache_dir": "cache",
    "dataset.group": "groups.csv",
    "model.weights": "weights.h5",
    "store.ca_file": "ca.pem",
    "trust.root": "keys/root.json",
    "trust.keys": "keys/pipeline",
    "trust.memory_dir": "memory",
    "trust.passphrase_file": "passphrase",
    "fleet.collector_key_file": "keys/collector.pem",
    "fleet.database_file": "collector.sqlite",
    "board.state_dir": "board",
    "broker.password_file": "password",
    "broker.ca_file": "ca.pem",
    "broker.certificate_file": "pipeline.pem",
    "broker.key_file": "pipeline.key",
    "fleet.webhooks_file": "webhooks",
}
# Settings whose name or text speaks of a file or folder, and that are no path of this machine.
NO_PATHS = {
    "store.url",
    "store.profile",
    "store.endpoint_url",
    "store.addressing_style",
    "broker.alpn",
    "board.url",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    return SettingsFiles(tmp_path, monkeypatch)


def refusal() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_misspelt_setting_stops_the_run_whichever_file_it_stands_in(files, place):
    files.start(**{place: "[gate]\nmin_acuracy = 0.99\n"})
    message = refusal()
    assert f"{files.places[place].name}: [gate] min_acuracy: no such setting" in message
    assert "did you mean min_accuracy?" in message


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[gates]\nmin_accuracy = 1\n", "[gates]: no such section; did you mean [gate]?"),
        ("[Gate]\nmin_accuracy = 1\n", "[Gate]: no such section; did you mean [gate]?"),
        ("[gate]\nMin_Acuracy = 1\n", "[gate] Min_Acuracy: no such setting; did you mean min_accuracy?"),
        ("[gate]\nmin-acuracy = 1\n", "min_acuracy: no such setting; did you mean min_accuracy?"),
        (
            "[DEFAULT]\nmin_acuracy = 1\n",
            "[DEFAULT] min_acuracy: no section has such a setting; did you mean",
        ),
        ("[scheduler]\nwroker_disconnect_delay = 3\n", "did you mean worker_disconnect_delay?"),
        ("[core]\nrpc-conect-timeout = 3\n", "did you mean rpc_connect_timeout?"),
        ("[retcode]\ntask_fail = 30\n", "did you mean task_failed?"),
        ("[Deploy]\nreplace_clases = true\n", "did you mean replace_classes?"),
        ("[task_history]\ndb_conection = x\n", "did you mean db_connection?"),
        ("[training]\n[gate]\nx = 1\n", "[gate] x: no such setting; remove it"),
        ("[their_task]\nx = 1\n", "[other_projects] sections"),
    ],
)
def test_a_name_that_nothing_reads_is_refused_with_the_nearest_one(files, content, named):
    files.start(**{"luigi.cfg": content})
    assert named in refusal()


def test_what_luigi_and_other_projects_read_is_no_fault(files):
    files.start(
        **{
            "/etc/luigi/luigi.cfg": "[core]\ndefault-scheduler-host = h\nrpc-retry-wait = 3\nworkers = 2\n"
            "[worker]\nkeep-alive = true\n[resources]\ngpu = 1\n[spark]\nmaster = yarn\n"
            "[email]\nformat = html\n"
            "[cors]\nenabled = true\n[task_history]\ndb_connection = sqlite://\n[Deploy]\npictures = /x\n"
            "[their_task]\nx = 1\n[Other]\ny = 2\n",
            "luigi.cfg": "[other_projects]\nsections = their_task, Other\n",
        }
    )
    load_settings()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("no/such.cfg", "LUIGI_CONFIG_PATH=no/such.cfg: no such file"),
        (".", "Is a directory"),
        ("", "LUIGI_CONFIG_PATH is empty"),
        ("loop.cfg", "cannot be read"),
        ("latin.cfg", "not a readable settings file"),
        ("nothing.cfg", "not a readable settings file"),
        ("mine.toml", "set LUIGI_CONFIG_PARSER=toml"),
    ],
)
def test_a_file_that_is_named_and_not_read_stops_every_command(files, monkeypatch, capsys, value, named):
    files.start()
    (files.here / "loop.cfg").symlink_to("loop.cfg")
    (files.here / "latin.cfg").write_bytes(b"[broker]\nusername = M\xfcller\n")
    (files.here / "nothing.cfg").write_text("epochs = 3\n")
    (files.here / "mine.toml").write_text("[training]\nepochs = 3\n")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", value)
    assert named in refusal()
    assert edge_keys.main(["publish"]) == 1
    with pytest.raises(SystemExit) as tune:
        edge_tune.main(["--index", "1"])
    with pytest.raises(SystemExit) as deploy:
        check_command(["--module", "luigi_tasks", "Deploy"], TASKS)
    assert (tune.value.code, deploy.value.code) == (2, 40)
    assert capsys.readouterr().err.count(named) == 3


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[training]\nepochs = many", "[training] epochs = many: give a whole number, such as 30"),
        ("[training]\nepochs =", "[training] epochs = : give a whole number"),
        ("[training]\nepochs = 12.5", "give a whole number"),
        ("[training]\nepochs = 12 # nights", "a comment needs a line of its own"),
        ("[training]\nepochs = -1", "[training] epochs: at least 1"),
        ("[training]\nmode = Head", "did you mean head?"),
        ("[training]\nhorizontal_flip = maybe", "give true or false"),
        ("[gate]\nmin_accuracy = 80%", "[gate] min_accuracy = 80%: give a number, such as 0.8"),
        ("[gate]\nmin_accuracy = nan", "give a number"),
        ("[gate]\nmax_float_drop_points = nan", "give a number"),
        ("[gate]\nmax_model_bytes = 0", "[gate] max_model_bytes: at least 1"),
        ("[broker]\nport = 0", "[broker] port"),
        ("[broker]\ntimeout_s = 0", "[broker] timeout_s: above 0"),
        ("[dataset]\nurl = /data\n  sha256 = ab", "[dataset] url: the line below it begins with a space"),
        ("[dataset]\ncache_dir =", "[dataset] cache_dir: is empty; remove the line for ~/.cache"),
        ("[trust]\nkeys =", "[trust] keys: is empty"),
        ('[dataset]\nurl = "/data/orchard"', "[dataset] url: a .cfg takes quotes for part of the value"),
        ("[broker]\nusername = a%%b", "[broker] username: a % is written once"),
        (
            "[store]\nurl = s3://${NO_SUCH_VARIABLE}/x",
            "[store] url: the environment has no variable NO_SUCH_VARIABLE",
        ),
        ("[store]\nurl = s3://", "give s3://bucket"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_with_its_file(files, content, named):
    files.start(LUIGI_CONFIG_PATH=f"{content}\n")
    message = refusal()
    assert named in message
    assert f"{files.own}: " in message


def test_values_mean_what_is_written(files, monkeypatch):
    monkeypatch.setenv("FLEET", "north%20")
    files.start(
        **{
            "luigi.cfg": r"""
[DEFAULT]
data = /data
[dataset]
url = s3://a_bucket.of-mine/50% off/ä b#c?d%20e
group = (\d+)%_(?P<s>x)
max_unpacked_bytes = 20_000_000
cache_dir = %(data)s/%cache
[training]
horizontal_flip = Yes
batch-size = 64
[broker]
username = p%w ${FLEET} %(nobody)s %
tls = 0
[release]
channel =
""".replace("channel =\n", ""),
        }
    )
    settings = load_settings()
    assert settings.dataset.url == "s3://a_bucket.of-mine/50% off/ä b#c?d%20e"
    assert settings.dataset.group == r"(\d+)%_(?P<s>x)"
    assert settings.dataset.max_unpacked_bytes == 20_000_000
    assert settings.dataset.cache_dir == Path("/data/%cache")
    assert (settings.training.horizontal_flip, settings.training.batch_size) == (True, 64)
    assert (settings.broker.username, settings.broker.tls) == ("p%w north%20 %(nobody)s %", False)


def test_toml_has_the_same_names_and_values(files, monkeypatch):
    monkeypatch.setenv("FLEET", "north")
    written: dict[str, dict[str, object]] = {
        "dataset": {"url": "pictures 50% %20 %%", "max_unpacked_bytes": 20_000_000},
        "quantization": {"fallbacks": ["int8_wide", "float16"]},
        "gate": {"min_accuracy": 1, "replace_classes": True},
        "broker": {"fleet": "${FLEET}"},
    }
    lines = [
        f"[{section}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        for section, values in written.items()
    ]
    files.start_toml("".join(lines))
    settings = load_settings()
    assert settings.dataset.url == "pictures 50% %20 %%"
    assert settings.quantization.schemes_in_order() == ("int8", "int8_wide", "float16")
    assert (settings.gate.min_accuracy, settings.gate.replace_classes) == (1.0, True)
    assert settings.broker.fleet == "north"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            "[gate]\nmin_acuracy = 1",
            "luigi.toml: [gate] min_acuracy: no such setting; did you mean min_accuracy?",
        ),
        ("[gates]\nmin_accuracy = 1", "did you mean [gate]?"),
        ("[training]\nepochs = 12.0", "[training] epochs = 12.0: give a whole number"),
        ("[training]\nepochs = true", "give a whole number"),
        ("[dataset]\nurl = 5", "[dataset] url: give a text"),
        ("[dataset]\nurl = ['a', 'b']", "[dataset] url: give a text"),
        ("[training]\nhorizontal_flip = 1", "give true or false"),
    ],
)
def test_toml_that_cannot_be_read_is_named(files, content, named):
    files.start_toml(content)
    assert named in refusal()


# --- paths ------------------------------------------------------------------------------------------


def values_of(settings) -> dict[str, str]:
    return {one: str(getattr(getattr(settings, one.split(".")[0]), one.split(".")[1])) for one in PATHS}


def write_paths(prefix: str = "") -> str:
    sections: dict[str, str] = {}
    for one, value in PATHS.items():
        section, name = one.split(".")
        sections[section] = sections.get(section, f"[{section}]\n") + f"{name} = {prefix}{value}\n"
    return "".join(sections.values()) + "tls = true\n"


def test_every_setting_that_names_a_path_is_in_the_table():
    speaking = {
        f"{section}.{name}"
        for section, config in SECTIONS.items()
        for name, parameter in config.get_params()
        if type(parameter) is luigi.Parameter
        and (
            name.endswith(("_file", "_dir"))
            or re.search(r"\b(file|folder|path)\b", parameter.description or "")
        )
    }
    assert speaking - NO_PATHS - PATHS.keys() == set()


def test_a_relative_path_is_relative_to_the_file_that_it_stands_in(files):
    files.start(LUIGI_CONFIG_PATH=write_paths())
    assert values_of(load_settings()) == {one: str(files.own.parent / value) for one, value in PATHS.items()}


def test_a_relative_path_in_the_current_folder_stays_as_it_is_written(files):
    """It is part of keys in the store, and of the ids of tasks that machines share."""
    files.start(**{"luigi.cfg": write_paths()})
    assert values_of(load_settings()) == PATHS


def test_addresses_and_words_are_no_paths(files):
    files.start(
        LUIGI_CONFIG_PATH="[dataset]\nurl = s3://a/b\ngroup = (.*)_\n[model]\nweights = imagenet\n"
        "[trust]\nkeys = gcpkms:projects/p/{role}\nroot = ~/root.json\n[store]\nurl = file:///srv/a\n"
    )
    settings = load_settings()
    assert (settings.dataset.url, settings.dataset.group) == ("s3://a/b", "(.*)_")
    assert (settings.model.weights, settings.trust.keys) == ("imagenet", "gcpkms:projects/p/{role}")
    assert settings.trust.root == Path.home() / "root.json"
    assert settings.store.url == "file:///srv/a"


def test_a_path_on_the_command_line_or_from_a_program_is_relative_to_the_current_folder(files):
    files.start(LUIGI_CONFIG_PATH=write_paths())
    arguments = ["--module", "luigi_tasks.pipeline", "Deploy", "--trust-keys", "k", "--broker-host", ""]
    with luigi.cmdline_parser.CmdlineParser.global_instance(arguments):
        settings = load_settings("p", trust={"root": "r/root.json"})
    assert (settings.dataset.url, settings.trust.keys) == ("p", "k")
    assert settings.trust.root == Path("r/root.json")
    assert settings.broker.host == "", "empty on the command line, too"


# --- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "no task is named; there are Deploy, RollBack"),
        (["deploy"], "deploy: no such task; did you mean Deploy?"),
        (["Deploi"], "did you mean Deploy?"),
        (
            ["Deploy", "--trainig-epochs", "3"],
            "--trainig-epochs: no such option of Deploy; did you mean --training-epochs?",
        ),
        (["Deploy", "--trainig-epochs=3"], "did you mean --training-epochs?"),
        (["Deploy", "--picture", "x", "--zzz"], "--zzz: no such option of Deploy"),
        (["Deploy", "--training-epochs", "many"], "--training-epochs = many: give a whole number"),
        (["Deploy", "--training-epochs"], "--training-epochs: expected one argument"),
        (["Deploy", "--workers", "x"], "--workers = x: give a whole number"),
        (["ListInbox", "--to", "x", "--most", "all"], "--most = all: give a whole number"),
        (["Deploy", "Deploy"], "only one task is run"),
        (["RollBack"], "RollBack needs --to: release id to go back to"),
        (["Deploy", "--scheduler-port", "1"], "luigid at http://localhost:1 does not answer"),
    ],
)
def test_a_command_that_luigi_would_not_take_ends_with_one_paragraph(
    files, capsys, monkeypatch, arguments, named
):
    monkeypatch.setattr("luigi_tasks.luigid.START_LIMIT_S", 0.0)
    files.start()
    with pytest.raises(SystemExit) as caught:
        check_command(["--module", "luigi_tasks", *arguments], TASKS)
    assert caught.value.code == 40
    [line] = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("preset:digit", "did you mean preset:digits"),
        ("gs://bucket/pictures", "give a folder"),
        ("https://host/x.zip", "sha256"),
        ("file://host/x", "file:///folder"),
        ("", "--pictures"),
    ],
)
def test_an_address_of_pictures_that_cannot_be_one_makes_no_task(files, url, named):
    """Luigi ends with 40 then; what a task finds out later is 35 or 30."""
    files.start(LUIGI_CONFIG_PATH=f"[dataset]\nurl = {url}\n")
    with pytest.raises(SettingsError, match=named):
        Deploy()


def test_exit_codes_are_those_of_the_readme_where_no_file_says_otherwise(files, capsys):
    files.start(**{"luigi.cfg": "[retcode]\nnot_run = 7\n[core]\nlog_level = LOUD\n"})
    with pytest.raises(SystemExit) as caught:
        check_command(["--module=luigi_tasks", "Deploy"], TASKS)
    assert caught.value.code == 40
    assert "luigi.cfg: [core] log_level = LOUD" in capsys.readouterr().err
    codes = luigi.retcodes.retcode()
    assert (codes.not_run, codes.task_failed, codes.scheduling_error) == (7, 30, 35)


def test_a_help_text_needs_neither_settings_nor_luigid(files):
    files.start(**{"luigi.cfg": "[gates]\nx = 1\n"})
    check_command(["--module", "luigi_tasks", "Deploy", "--help"], TASKS)
    check_command(["--module", "of_others", "Task"], TASKS)
