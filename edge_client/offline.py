"""Takes a bundle by hand: through the daemon if one runs, else in its place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.inference.swap import ClassifierHolder
from edge_client.process import nudge, running_process, state_lock
from edge_client.settings import of_channel
from edge_client.telemetry import read_status
from edge_client.update.bundle import BundleFetcher
from edge_client.update.handover import forget_bundle, hand_over, of_bundle
from edge_client.update.look import look_in_child
from edge_client.update.slots import Slots
from edge_client.update.updater import Decision, let_serve, this_software

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.settings import Settings

_LOOK_S = 0.1


def import_bundle(settings: Settings, bundle: Path, channel: str = "") -> str:
    """Take the release of a bundle, with all checks of one from the store.

    Args:
        settings: The device's.
        bundle: A file of `edge-client export`.
        channel: Which of the device's channels; empty: the main one.
    Returns: What came of it, in one sentence.
    Raises: What a look raises; SettingsError if the device does not follow the channel.
    """
    state_dir, one = settings.device.state_dir, of_channel(settings, channel)
    BundleFetcher(bundle).close()
    if running_process(state_dir) is not None:
        return _through_daemon(state_dir, one, bundle)
    with state_lock(state_dir):
        slots, threads = Slots(one.device.state_dir), one.device.threads
        software = this_software(one.device.device_class)
        outcome = look_in_child(of_bundle(one, bundle), software, lambda: None, expecting=True)
        slots.reload()
        if outcome.decision is Decision.TAKE:
            let_serve(outcome.release, slots, ClassifierHolder(), software=software, threads=threads)
            return f"release {outcome.release} will serve"
        return f"release {outcome.release} {outcome.decision.value}. {outcome.reason}".rstrip(". ")


def _through_daemon(daemon_dir: Path, settings: Settings, bundle: Path) -> str:
    """Leave the bundle to the daemon and wait until it has dealt with it.

    Args:
        daemon_dir: State folder of the daemon.
        settings: Of the channel.
        bundle: The file.
    Raises: DeviceError if it does not, or took nothing.
    """
    state_dir = settings.device.state_dir
    place = hand_over(bundle, state_dir)
    try:
        nudge(daemon_dir)
    except DeviceError:
        forget_bundle(state_dir)
        raise
    deadline = time.monotonic() + settings.update.look_timeout_s
    while place.exists():
        if running_process(daemon_dir) is None or time.monotonic() > deadline:
            msg = f"the daemon has not dealt with {place}; it does at its next start. Its log says more"
            raise DeviceError(msg)
        time.sleep(_LOOK_S)
    status = read_status(state_dir)
    if status.last_error is not None:
        raise DeviceError(status.last_error)
    return f"release {status.release} serves: {status.why}"
