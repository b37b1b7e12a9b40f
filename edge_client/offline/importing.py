"""Takes a bundle by hand: through the daemon if one runs, else in its place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.offline.handover import BUNDLE_FILE, forget_bundle, hand_over, of_bundle, take_result
from edge_client.repository.bundle_fetcher import BundleFetcher
from edge_client.serving.activation import let_serve
from edge_client.serving.holder import ClassifierHolder
from edge_client.settings.file import of_channel
from edge_client.state_folder import BUNDLE_SIGNAL, daemon_runs, hold_state, nudge
from edge_client.update.check import Decision
from edge_client.update.check_process import error_named, look_in_child
from edge_client.update.refusals import this_software
from edge_client.update.slots import Slots

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.offline.handover import BundleResult
    from edge_client.settings.file import Settings

_LOOK_S = 0.1
# The daemon says what came of a bundle right after it removed it.
_RESULT_S = 5.0


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
    if daemon_runs(state_dir):
        return _through_daemon(state_dir, one, bundle)
    with hold_state(state_dir) as lock:
        lock.take_no_signals()
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
    Returns: What came of it.
    Raises: As if it was taken without the daemon; DeviceError if that does not deal with it.
    """
    state_dir = settings.device.state_dir
    hand_over(bundle, state_dir)
    try:
        nudge(daemon_dir, BUNDLE_SIGNAL)
    except DeviceError:
        forget_bundle(state_dir)
        raise
    result = _wait_for_result(daemon_dir, state_dir, settings.update.look_timeout_s)
    if result.error:
        raise error_named(result.error, result.message)
    return result.message


def _wait_for_result(daemon_dir: Path, state_dir: Path, limit_s: float) -> BundleResult:
    place = state_dir / BUNDLE_FILE
    deadline = time.monotonic() + limit_s
    while place.exists():
        if not daemon_runs(daemon_dir) or time.monotonic() > deadline:
            msg = f"the daemon has not dealt with {place}; it does at its next start. Its log says more"
            raise DeviceError(msg)
        time.sleep(_LOOK_S)
    deadline = time.monotonic() + _RESULT_S
    while (result := take_result(state_dir)) is None:
        if time.monotonic() > deadline:
            msg = (
                f"the daemon dealt with {place}, but could not say what came of it; ask `edge-client status`"
            )
            raise DeviceError(msg)
        time.sleep(_LOOK_S)
    return result
