"""Names that both sides must agree on: signed target paths, object keys and MQTT topics."""

from __future__ import annotations

import re

from edge_client.contract.errors import InputError

# One path or topic segment: no separators, no wildcards, no leading dot.
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAG = re.compile(r"(?=.{1,64}$)[A-Za-z0-9][A-Za-z0-9._-]*(=[A-Za-z0-9][A-Za-z0-9._-]*)?", re.ASCII)
# What a rollout's condition `name=…` means besides tags, see `contract.rollout.selects`.
_NO_TAGS = frozenset({"site", "class", "device"})
TAG_RULE = (
    "a word of A-Z a-z 0-9 . _ - or name=word, at most 64 characters; site, device_class and id are "
    "settings of their own"
)

# In the store, and below a device's state folder.
METADATA_FOLDER = "metadata"
TARGETS_FOLDER = "targets"
# Role, delegated by the targets role, that signs the pointers of channels and the rollout documents.
ROLLOUTS_ROLE = "rollouts"
# Frames that devices kept for labelling; the only folder that devices write to.
INBOX_FOLDER = "inbox"

MODEL_FILE = "model.tflite"
COMPRESSED_MODEL_FILE = f"{MODEL_FILE}.zst"
LABELS_FILE = "labels.txt"
RELEASE_FILE = "release.json"
REPORT_FILE = "report.html"
# Devices do not download it: 200 pictures are 13 kB.
CALIBRATION_FILE = "calibration.json"
# What the gate found, for people; devices do not download it either.
GATE_FILE = "gate.json"

# Name of a model's second output, (1, 1) in [0, 1]: whether the picture shows something of the classes.
KNOWN_OUTPUT = "known"

# Field of the signed timestamp: time of signing, UTC, ISO 8601. Devices check their clock against it.
SIGNED_AT_FIELD = "x-edge-signed-at"


def check_name(name: str, what: str) -> str:
    """Return `name` if it is safe as one segment of a path, key and topic.

    Args:
        name: 1-64 characters of A-Z a-z 0-9 . _ - that start with a letter or digit.
        what: Kind of name, for the message ("channel", "device id", ...).
    Raises: InputError otherwise.
    """
    if not _SEGMENT.fullmatch(name):
        msg = (
            f"{what} {name[:80]!r}: use 1 to 64 characters of A-Z a-z 0-9 . _ - "
            "that start with a letter or a digit"
        )
        raise InputError(msg)
    return name


def is_tag(text: str) -> bool:
    """Whether a text can be a tag of a device, see `TAG_RULE`."""
    return bool(_TAG.fullmatch(text)) and text.partition("=")[0] not in _NO_TAGS


def check_tag(tag: str) -> str:
    """Return a tag; raises InputError if it cannot be one."""
    if not is_tag(tag):
        msg = f"tag {tag[:80]!r}: {TAG_RULE}"
        raise InputError(msg)
    return tag


def release_target(release_id: str, file: str) -> str:
    """Return the signed target path of a release's file."""
    return f"releases/{check_name(release_id, 'release id')}/{check_name(file, 'release file')}"


def patch_file(base: str) -> str:
    """Return the name, within a release, of the patch from the model of release `base` to its own."""
    return f"{MODEL_FILE}.from-{check_name(base, 'release id')}.zst"


def is_patch(file: str) -> bool:
    """Whether a file of a release is a patch from another release."""
    return file.startswith(f"{MODEL_FILE}.from-")


def channel_target(channel: str) -> str:
    """Return the signed target path of a channel's pointer."""
    return f"channels/{check_name(channel, 'channel')}.json"


def rollout_target(channel: str) -> str:
    """Return the signed target path of a channel's rollout document."""
    return f"rollouts/{check_name(channel, 'channel')}.json"


def inbox_key(device_id: str, file: str) -> str:
    """Return the object key of a frame that a device kept, or of its record."""
    return f"{INBOX_FOLDER}/{check_name(device_id, 'device id')}/{check_name(file, 'inbox file')}"


def announcement_topic(fleet: str, channel: str) -> str:
    """Return the topic of a channel's retained announcement."""
    return f"edge/{check_name(fleet, 'fleet')}/channels/{check_name(channel, 'channel')}"


def status_topic(fleet: str, device_id: str, channel: str = "") -> str:
    """Return the topic of a device's retained status; its last will goes to `online_topic`.

    `channel` is empty for the device's main channel; each extra channel has a topic of its own.
    """
    return f"{_device(fleet, device_id)}/status{_suffix(channel)}"


def report_topic(fleet: str, device_id: str, channel: str = "") -> str:
    """Return the topic of a device's reports (not retained); `channel` is as for `status_topic`."""
    return f"{_device(fleet, device_id)}/report{_suffix(channel)}"


def report_request_topic(fleet: str) -> str:
    """Return the topic of the request to all devices of a fleet to report now; not retained."""
    return f"edge/{check_name(fleet, 'fleet')}/report"


def events_topic(fleet: str) -> str:
    """Return the topic of what happens in a fleet's rollouts, for people and programs; not retained."""
    return f"edge/{check_name(fleet, 'fleet')}/events"


def rollout_topic(fleet: str, channel: str) -> str:
    """Return the topic of the retained state of a channel's rollout, for people and programs."""
    return f"edge/{check_name(fleet, 'fleet')}/rollouts/{check_name(channel, 'channel')}"


def online_topic(fleet: str, device_id: str) -> str:
    """Return the topic of the retained `online` or `offline`; the last will is `offline`."""
    return f"{_device(fleet, device_id)}/online"


def command_topic(fleet: str, device_id: str, channel: str = "") -> str:
    """Return the topic of the command to install a channel's release now.

    `channel` is as for `status_topic`.
    """
    return f"{_device(fleet, device_id)}/update{_suffix(channel)}"


def probe_topic(fleet: str, device_id: str) -> str:
    """Return the topic on which `edge-client doctor` tests whether the broker lets the device publish."""
    return f"{_device(fleet, device_id)}/doctor"


def results_topic(fleet: str, device_id: str, channel: str = "") -> str:
    """Return the topic of a device's results (not retained); `channel` as for `status_topic`."""
    return f"{_device(fleet, device_id)}/results{_suffix(channel)}"


def _suffix(channel: str) -> str:
    return f"/{check_name(channel, 'channel')}" if channel else ""


def _device(fleet: str, device_id: str) -> str:
    return f"edge/{check_name(fleet, 'fleet')}/devices/{check_name(device_id, 'device id')}"
