"""Imports run one way, stay light, and the device needs nothing of the pipeline."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def imported_by(code: str) -> set[str]:
    """Top-level modules in memory after `code` ran in a fresh interpreter."""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return set(json.loads(answer.stdout.splitlines()[-1]))


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


def test_importing_the_pipeline_is_cheap():
    pytest.importorskip("luigi", reason="the device's environments have no Luigi")
    heavy = {"tensorflow", "tf_keras", "keras", "numpy", "PIL", "tuf", "boto3", "sklearn"}
    assert not imported_by(IMPORT_ONE.format(module="luigi_tasks")) & heavy


def test_the_device_never_imports_the_pipeline():
    """Also not inside a function, where importing the package would not show it."""
    for path in (REPOSITORY / "edge_client").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & (HEAVY | {"boto3"}), path


def test_each_outside_party_has_one_room():
    """boto3, paho, prometheus_client and tuf are each talked to in one place of each side."""
    rooms = {
        "boto3": {"luigi_tasks/storage/s3_store.py"},
        "prometheus_client": {"edge_client/reporting/metrics.py"},
        "paho": {"luigi_tasks/release/broker.py", "edge_client/reporting/broker.py"},
        "tuf": {
            "luigi_tasks/release/repository.py",
            "luigi_tasks/release/published.py",
            "luigi_tasks/release/signing.py",
            "luigi_tasks/release/keys.py",
            "edge_client/repository/trusted.py",
            "edge_client/repository/fetcher.py",
            "edge_client/repository/http_fetcher.py",
            "edge_client/repository/bundle_fetcher.py",
            "edge_client/repository/transfer.py",
        },
    }
    for package in ("edge_client", "luigi_tasks"):
        for path in (REPOSITORY / package).rglob("*.py"):
            room = str(path.relative_to(REPOSITORY))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                else:
                    continue
                for party in {name.split(".")[0] for name in names} & rooms.keys():
                    assert room in rooms[party], f"{room} imports {party}"
