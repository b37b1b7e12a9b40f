"""Imports run one way, stay light, and the device needs nothing of the pipeline."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection

pytestmark = pytest.mark.runtime

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = {"tensorflow", "tf_keras", "keras", "luigi", "luigi_tasks", "sklearn"}

IMPORT_ONE = """
import json, sys, {module}
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


# Wing (or module of the top level) -> what it may import; lazy imports and those for types count too.
# The arrows run down: a wing stands below those that name it. Reasons: `docs/decisions/0008-wings.md`.
EDGE_CLIENT = {
    "__init__": "",
    "contract": "",
    "settings": "contract permissions",
    "disk": "contract",
    "machine": "contract",
    "rate_limit": "",
    "children": "__init__",
    "permissions": "",
    "owner": "__init__ contract permissions",
    "releases": "contract disk",
    "state_folder": "contract settings disk machine",
    "last_picture": "contract disk",
    "inference": "contract settings disk releases",
    "reporting": "__init__ contract settings disk machine permissions rate_limit",
    "sources": "contract settings disk machine permissions last_picture",
    "sinks": "contract settings disk inference",
    "repository": "__init__ contract settings disk",
    "inbox": "contract settings disk machine children inference repository",
    "update": "__init__ contract settings disk machine children releases inference reporting repository",
    "serving": "contract settings disk machine children releases inference update",
    "offline": "contract settings disk releases state_folder repository update serving",
    "daemon": "contract settings disk children rate_limit state_folder last_picture inference reporting "
    "sources sinks inbox update serving offline",
    "commands": "__init__ contract settings disk machine permissions releases state_folder inference "
    "reporting sources sinks inbox repository update serving offline",
    "cli": "__init__ contract settings machine owner state_folder reporting repository serving offline "
    "daemon commands",
}
LUIGI_TASKS = {
    "progress": "",
    "pages": "",
    "settings": "",
    "logs": "",
    "luigid": "",
    "command_line": "logs luigid settings",
    "cells": "",
    "provenance": "settings",
    "storage": "settings",
    "evidence": "logs provenance settings storage",
    "inference": "dataset progress",
    "backbone": "inference progress settings storage",
    "dataset": "cells logs progress settings storage evidence",
    "training": "progress provenance settings storage dataset inference backbone",
    "quantization": "progress provenance settings dataset inference backbone training",
    "gate": "progress pages settings dataset inference training quantization",
    "release": "provenance progress settings storage evidence dataset backbone quantization gate",
    "fleet": "cells progress pages logs luigid settings storage release",
    "labelling": "cells progress pages logs luigid settings storage dataset training",
    "board": "cells progress pages logs luigid settings storage evidence gate release fleet labelling",
    "addresses": "settings storage dataset backbone training",
    "workspace": "logs progress addresses settings storage evidence dataset backbone release fleet",
    "artifacts": "addresses workspace storage evidence dataset backbone training quantization gate labelling",
    "steps": "progress logs provenance workspace settings evidence dataset backbone training quantization "
    "gate labelling release fleet",
    "refusals": "logs workspace gate fleet",
    "targets": "workspace storage evidence release",
    "task": "progress logs luigid settings addresses workspace evidence dataset targets",
    "pipeline": "progress logs settings evidence dataset backbone training quantization addresses workspace "
    "artifacts steps refusals targets task",
    "roll_back": "logs luigid settings workspace steps targets",
    "doubtful_labels": "progress workspace addresses artifacts steps labelling task pipeline",
    "label_listing": "settings storage workspace evidence dataset labelling",
    "edge_fleet": "settings fleet board",
    "edge_keys": "settings release workspace steps",
    "heartbeat": "",
    "edge_tune": "settings evidence training addresses workspace artifacts steps",
    "__init__": "labelling pipeline doubtful_labels roll_back fleet command_line",
}
# What the pipeline may use of the device's package.
SHARED = "__init__ children contract disk inference settings update"
# Luigi is the wiring: the steps run without it.
WITH_LUIGI = {
    "__init__",
    "pipeline",
    "task",
    "targets",
    "settings/board_section",
    "settings/fleet_section",
    "settings/rollout_section",
    "settings/given",
    "settings/luigi_names",
    "settings/reading",
    "settings/sections",
    "command_line",
    "labelling/tasks",
    "fleet/tasks",
    "luigid",
    "roll_back",
    "doubtful_labels",
}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, known: Collection[str]) -> set[str]:
    """All that a file imports, wherever in it: modules of `known`, and others by the name in the import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; the tables know full names"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else module for name in names}
    return found


def wing(module: str) -> str:
    """`luigi_tasks.gate.verdict` is in `gate`, `luigi_tasks.steps` is a module of the top level."""
    return [*module.split("."), "__init__"][1]


def imported_by(code: str) -> set[str]:
    """Top-level modules in memory after `code` ran in a fresh interpreter."""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return set(json.loads(answer.stdout.splitlines()[-1]))


def modules_loaded_by(module: str) -> set[str]:
    """All modules in memory after an import in a fresh interpreter."""
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return set(json.loads(answer.stdout))


def test_no_module_of_the_device_imports_tensorflow_luigi_or_boto3():
    # securesystemslib imports boto3 where it is installed, for keys in AWS KMS; devices do without it.
    without_boto3 = 'import sys\nsys.modules["boto3"] = None\n'
    assert not imported_by(without_boto3 + IMPORT_ALL.format(package="edge_client")) & HEAVY


def test_the_contract_imports_no_transport_either():
    imported = imported_by(IMPORT_ALL.format(package="edge_client.contract"))
    assert not imported & (HEAVY | {"boto3", "botocore", "paho", "tuf", "urllib3"})


def test_starting_the_daemon_loads_neither_tuf_nor_a_signature_library():
    """What is only needed to update does not stay in memory of a device that serves."""
    assert not imported_by(IMPORT_ONE.format(module="edge_client.daemon.daemon")) & {
        "tuf",
        "securesystemslib",
        "cryptography",
        "botocore",
        "prometheus_client",
    }


def test_starting_the_daemon_loads_no_part_of_a_check_that_only_its_child_needs():
    loaded = modules_loaded_by("edge_client.daemon.daemon")
    only_the_child = {
        "edge_client.update.check",
        "edge_client.update.check_child",
        "edge_client.update.patches",
    }
    assert not loaded & (
        only_the_child | {f"edge_client.repository.{name}" for name in ("trusted", "opening")}
    )


def test_the_child_of_an_update_check_starts_without_any_library():
    """It first starts the self-test's process; every import before that delays the update."""
    heavy = {
        "numpy",
        "paho",
        "PIL",
        "tuf",
        "securesystemslib",
        "cryptography",
        "urllib3",
        "msgspec",
        "logging",
    }
    assert not imported_by(IMPORT_ONE.format(module="edge_client.update.check_child")) & heavy


def test_an_update_check_needs_neither_numpy_nor_the_broker_nor_pictures():
    parts = "edge_client.update.check_child, edge_client.update.check, edge_client.update.check_process"
    imported = imported_by(IMPORT_ONE.format(module=f"{parts}, edge_client.repository.opening"))
    assert "tuf" in imported
    assert not imported & {"numpy", "paho", "PIL", "ai_edge_litert", "tflite_runtime", "tarfile", "zstandard"}


def test_importing_the_pipeline_is_cheap():
    pytest.importorskip("luigi", reason="the device's environments have no Luigi")
    heavy = {"tensorflow", "tf_keras", "keras", "numpy", "PIL", "tuf", "boto3", "sklearn"}
    assert not imported_by(IMPORT_ONE.format(module="luigi_tasks")) & (heavy | {"luigi"})
    assert not imported_by(IMPORT_ONE.format(module="luigi, luigi_tasks")) & heavy, "as luigi --module does"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("edge_client", EDGE_CLIENT), ("luigi_tasks", LUIGI_TASKS)],
    ids=["edge_client", "luigi_tasks"],
)
def test_wings_import_only_what_the_table_allows(package, allowed):
    found = modules(package)
    assert {wing(module) for module in found} == allowed.keys(), "each wing has a row"
    wrong = []
    for module, path in found.items():
        for other in imports_of(path, found) & found.keys():
            own, used = wing(module), wing(other)
            if own != used and used not in allowed[own].split():
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_the_pipeline_uses_few_wings_of_the_device():
    device = modules("edge_client")
    used = {
        wing(other)
        for path in modules("luigi_tasks").values()
        for other in imports_of(path, device) & device.keys()
    }
    assert used <= set(SHARED.split())


@pytest.mark.parametrize("package", ["edge_client", "luigi_tasks"])
def test_no_circle_of_imports(package):
    """Lazy imports and those for types count: two modules that need each other are one, or three."""
    found = modules(package)
    graph = {module: imports_of(path, found) & found.keys() - {module} for module, path in found.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        pytest.fail(" -> ".join(e.args[1]))


def test_luigi_is_imported_by_the_wiring_alone():
    found = modules("luigi_tasks")
    using = {
        str(path.relative_to(REPOSITORY / "luigi_tasks").with_suffix(""))
        for path in found.values()
        if any(name.split(".")[0] == "luigi" for name in imports_of(path, found))
    }
    assert using <= WITH_LUIGI


def test_the_pipeline_fits_on_a_page():
    assert len((REPOSITORY / "luigi_tasks/pipeline.py").read_text().splitlines()) <= 420


def test_the_python_api_loads_neither_luigi_nor_tensorflow_nor_boto3():
    heavy = {"luigi", "tensorflow", "tf_keras", "keras", "boto3", "numpy", "tuf"}
    assert not imported_by(IMPORT_ONE.format(module="luigi_tasks.steps")) & heavy


def test_the_fleets_command_starts_without_what_its_commands_need():
    """Help, completion and a slip of the pen are answered at once; a command loads what it needs."""
    heavy = {"luigi", "tensorflow", "boto3", "numpy", "scipy", "tuf", "paho", "rich", "sqlite3", "jinja2"}
    assert not imported_by(IMPORT_ONE.format(module="luigi_tasks.edge_fleet")) & heavy


def test_the_device_never_imports_the_pipeline():
    """Also not inside a function, where importing the package would not show it."""
    for module, path in modules("edge_client").items():
        assert not {name.split(".")[0] for name in imports_of(path, ())} & (HEAVY | {"boto3"}), module


def test_each_outside_party_has_one_room():
    """boto3, paho, prometheus_client and tuf are each talked to in one place of each side."""
    rooms = {
        "boto3": {"luigi_tasks/storage/s3_client.py"},
        "prometheus_client": {"edge_client/reporting/metrics.py"},
        "paho": {"luigi_tasks/release/broker.py", "edge_client/reporting/mqtt_client.py"},
        "tuf": {
            "luigi_tasks/release/repository.py",
            "luigi_tasks/release/published.py",
            "luigi_tasks/release/reading.py",
            "luigi_tasks/release/retention.py",
            "luigi_tasks/release/rollouts_key.py",
            "luigi_tasks/release/recovery.py",
            "luigi_tasks/release/root_chain.py",
            "luigi_tasks/release/writer.py",
            "luigi_tasks/release/signing.py",
            "luigi_tasks/release/keys.py",
            "edge_client/repository/trusted.py",
            "edge_client/repository/remembered.py",
            "edge_client/repository/fetcher.py",
            "edge_client/repository/http_fetcher.py",
            "edge_client/repository/bundle_fetcher.py",
            "edge_client/repository/transfer.py",
        },
    }
    for package in ("edge_client", "luigi_tasks"):
        for path in modules(package).values():
            room = str(path.relative_to(REPOSITORY))
            for party in {name.split(".")[0] for name in imports_of(path, ())} & rooms.keys():
                assert room in rooms[party], f"{room} imports {party}"
