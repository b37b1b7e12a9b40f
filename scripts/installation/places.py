"""Places of an installation, which the unit, README and doctor name too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "configs/device.toml"
SERVICE = "edge-client"
USER = "edge-client"
# Camera devices belong to `video`, relays ([action], pinctrl) to `gpio`; a machine may lack either.
GROUPS = ("video", "gpio")

SETTINGS_FOLDER = Path("/etc/edge-client")
SETTINGS_FILE = SETTINGS_FOLDER / "device.toml"
ENVIRONMENT_FILE = SETTINGS_FOLDER / "environment"
STATE_FOLDER = Path("/var/lib/edge-client")
CAMERA_FOLDER = STATE_FOLDER / "camera"
# A link to one of the environments below ENVIRONMENTS: an upgrade takes effect with one rename.
PROGRAM = Path("/opt/edge-client")
ENVIRONMENTS = Path("/opt/edge-client.d")
COMMAND = Path("/usr/local/bin/edge-client")
UNIT = Path("/etc/systemd/system/edge-client.service")
DROP_IN = Path("/etc/systemd/system/edge-client.service.d/installed.conf")
LOCK = Path("/run/edge-client-install.lock")


@dataclasses.dataclass
class InstallError(Exception):
    """What keeps an installation from going on, and the way out; `code` is the command's exit code."""

    message: str
    code: int = 1

    def __str__(self) -> str:
        return self.message
