"""Names that both sides must agree on: signed target paths, object keys and MQTT topics."""

from __future__ import annotations

import re

from edge_client.contract.errors import InputError

# One path or topic segment: no separators, no wildcards, no leading dot.
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

METADATA_FOLDER = "metadata"
TARGETS_FOLDER = "targets"
# Frames that devices kept for labelling; unlike the other two, devices write here.
INBOX_FOLDER = "inbox"

MODEL_FILE = "model.tflite"
COMPRESSED_MODEL_FILE = f"{MODEL_FILE}.zst"
LABELS_FILE = "labels.txt"
RELEASE_FILE = "release.json"
EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"

# Field of the signed timestamp: when it was signed, UTC, ISO 8601. Devices judge their clock by it.
SIGNED_AT_FIELD = "x-edge-signed-at"


def check_name(name: str, what: str) -> str:
    """Return `name` if it is safe as one segment of a path, key and topic.

    Args:
        name: 1-64 characters of A-Z a-z 0-9 . _ - that start with a letter or digit.
        what: What it names, for the message ("channel", "device id", ...).
    Raises: InputError otherwise.
    """
    if not _SEGMENT.fullmatch(name):
        msg = (
            f"{what} {name[:80]!r}: use 1 to 64 characters of A-Z a-z 0-9 . _ - "
            "that start with a letter or a digit"
        )
        raise InputError(msg)
    return name


def release_target(release_id: str, file: str) -> str:
    """Signed target path of one file of a release."""
    return f"releases/{check_name(release_id, 'release id')}/{check_name(file, 'release file')}"


def patch_file(base: str) -> str:
    """Name, within a release, of the patch that makes its model from the one of release `base`."""
    return f"{MODEL_FILE}.from-{check_name(base, 'release id')}.zst"


def is_patch(file: str) -> bool:
    """Whether a file of a release is a patch on another release."""
    return file.startswith(f"{MODEL_FILE}.from-")


def channel_target(channel: str) -> str:
    """Signed target path of a channel's pointer."""
    return f"channels/{check_name(channel, 'channel')}.json"


def inbox_key(device_id: str, file: str) -> str:
    """Object key of a frame that a device kept, or of the record beside it."""
    return f"{INBOX_FOLDER}/{check_name(device_id, 'device id')}/{check_name(file, 'inbox file')}"


def announcement_topic(fleet: str, channel: str) -> str:
    """Topic of the retained announcement of a channel."""
    return f"edge/{check_name(fleet, 'fleet')}/channels/{check_name(channel, 'channel')}"


def status_topic(fleet: str, device_id: str, channel: str = "") -> str:
    """Topic of a device's retained status; its last will goes to `online_topic`.

    A channel that is served beside the device's main one has a topic of its own.
    """
    return f"{_device(fleet, device_id)}/status{_beside(channel)}"


def online_topic(fleet: str, device_id: str) -> str:
    """Topic of the retained `online` / `offline`; the last will writes `offline`."""
    return f"{_device(fleet, device_id)}/online"


def command_topic(fleet: str, device_id: str, channel: str = "") -> str:
    """Topic on which somebody may ask a device to take a channel's release now.

    `channel` is as for `status_topic`.
    """
    return f"{_device(fleet, device_id)}/update{_beside(channel)}"


def probe_topic(fleet: str, device_id: str) -> str:
    """Topic on which a device tries whether the broker lets it publish (`edge-client doctor`)."""
    return f"{_device(fleet, device_id)}/doctor"


def results_topic(fleet: str, device_id: str, channel: str = "") -> str:
    """Topic of a device's classifications (not retained); `channel` as for `status_topic`."""
    return f"{_device(fleet, device_id)}/results{_beside(channel)}"


def _beside(channel: str) -> str:
    return f"/{check_name(channel, 'channel')}" if channel else ""


def _device(fleet: str, device_id: str) -> str:
    return f"edge/{check_name(fleet, 'fleet')}/devices/{check_name(device_id, 'device id')}"


# Devices do not fetch it: 200 pictures are 13 kB.
CALIBRATION_FILE = "calibration.json"
