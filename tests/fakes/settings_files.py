"""The files that Luigi reads its configuration from, in folders of the test's own."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

from luigi.configuration import LuigiConfigParser, LuigiTomlParser, toml_parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class SettingsFiles:
    """Luigi, as it starts in a folder with files of settings.

    Attributes:
        places: Each file that Luigi's .cfg parser reads, in its order.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        etc, here = folder / "etc", folder / "here"
        self.here, self.own = here, folder / "own" / "mine.cfg"
        for one in (etc, here, self.own.parent):
            one.mkdir()
        monkeypatch.chdir(here)
        self.places = {
            "/etc/luigi/client.cfg": etc / "client.cfg",
            "/etc/luigi/luigi.cfg": etc / "luigi.cfg",
            "client.cfg": here / "client.cfg",
            "luigi.cfg": here / "luigi.cfg",
            "LUIGI_CONFIG_PATH": self.own,
        }

    def start(self, **files: str) -> None:
        """Write files by their place, as in `places`, and let Luigi read them."""
        for place, content in files.items():
            self.places[place].write_text(content)
        paths = [str(self.places["/etc/luigi/client.cfg"]), str(self.places["/etc/luigi/luigi.cfg"])]
        paths += ["client.cfg", "luigi.cfg"]
        if self.own.exists():
            self._monkeypatch.setenv("LUIGI_CONFIG_PATH", str(self.own))
            paths.append(str(self.own))
        self._reset(LuigiConfigParser, paths)

    def start_toml(self, content: str) -> None:
        """Let Luigi read a luigi.toml in the current folder."""
        (self.here / "luigi.toml").write_text(content)
        reader = types.SimpleNamespace(load=_load_toml)
        self._monkeypatch.setattr(toml_parser, "toml", reader, raising=False)
        self._monkeypatch.setattr(LuigiTomlParser, "enabled", True)
        self._monkeypatch.setenv("LUIGI_CONFIG_PARSER", "toml")
        self._reset(LuigiTomlParser, ["luigi.toml"])

    def _reset(self, parser: Any, paths: list[str]) -> None:
        self._monkeypatch.setattr(parser, "_config_paths", paths)
        self._monkeypatch.setattr(parser, "_instance", None)


def _load_toml(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:  # noqa: PTH123 - as Luigi's own
        return tomllib.load(file)
