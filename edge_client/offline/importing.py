"""Imports a bundle by hand: through the daemon if it runs, else in its place."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.offline.handover import BUNDLE_FILE, claim_result, forget_bundle, hand_over, of_bundle
from edge_client.repository.bundle_fetcher import BundleFetcher, open_bundle
from edge_client.serving.activation import install
from edge_client.serving.holder import ClassifierHolder
from edge_client.settings.file import of_channel
from edge_client.state_folder import BUNDLE_SIGNAL, daemon_runs, hold_state, signal_daemon
from edge_client.update.check_process import UpdateCheck, build_error
from edge_client.update.endings import Retry
from edge_client.update.refusals import this_software
from edge_client.update.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from edge_client.offline.handover import BundleResult
    from edge_client.settings.file import Settings

_POLL_S = 0.1
# The daemon writes the result right after it removed the bundle.
_RESULT_S = 5.0


def import_bundle(settings: Settings, bundle: Path, channel: str = "", opened: BinaryIO | None = None) -> str:
    """Install the release of a bundle, with all checks that a release from the store passes.

    Args:
        settings: Settings of the device.
        bundle: A file of `edge-client export`.
        channel: One of the device's channels; empty: the main one.
        opened: The bundle, opened by a user who may read it; this process may not by now.
    Returns: The result, in one sentence.
    Raises: What an update check raises; SettingsError if the device does not follow the channel.
    """
    state_dir, one = settings.device.state_dir, of_channel(settings, channel)
    with contextlib.nullcontext(opened) if opened is not None else open_bundle(bundle) as file:
        BundleFetcher(bundle, file).close()
        if daemon_runs(state_dir):
            return _import_through_daemon(state_dir, one, file)
        with hold_state(state_dir) as lock:
            lock.refuse_signals()
            with _readable(bundle, file, one) as path:
                return _install(of_bundle(one, path), one)


@contextlib.contextmanager
def _readable(bundle: Path, file: BinaryIO, settings: Settings) -> Iterator[Path]:
    """Provide a path of the bundle that this user can open: a stick may be mounted for another user alone."""
    if os.access(bundle, os.R_OK):
        yield bundle
        return
    state_dir = settings.device.state_dir
    place = hand_over(file, state_dir, settings.update.min_free_bytes)
    try:
        yield place
    finally:
        forget_bundle(state_dir)


def _install(of_bundle: Settings, settings: Settings) -> str:
    """Check and install a release, as the daemon does; return the result, in one sentence."""
    slots, threads = Slots(settings.device.state_dir), settings.device.threads
    software, holder, installed = this_software(settings.device, settings.update), ClassifierHolder(), False
    for _ in range(2):  # the channel's release, and then its rollout's
        outcome = UpdateCheck().run(
            of_bundle, software, expecting=True, requested=True, retry=Retry.REQUESTED
        )
        slots.reload()
        installed = install(outcome, slots, holder, software=software, threads=threads)
        if not outcome.is_first_of_two:
            break
    if installed:
        return f"release {outcome.release} will serve"
    return f"release {outcome.release} {outcome.decision.value}. {outcome.reason}".rstrip(". ")


def _import_through_daemon(daemon_dir: Path, settings: Settings, bundle: BinaryIO) -> str:
    """Leave the bundle to the daemon and wait for the result.

    Args:
        daemon_dir: State folder of the daemon.
        settings: Settings of the channel.
        bundle: The opened file.
    Returns: The result, in one sentence.
    Raises: As an import without the daemon; DeviceError if the daemon does not read the bundle.
    """
    state_dir = settings.device.state_dir
    hand_over(bundle, state_dir, settings.update.min_free_bytes)
    try:
        signal_daemon(daemon_dir, BUNDLE_SIGNAL)
    except DeviceError:
        forget_bundle(state_dir)
        raise
    result = _wait_for_result(daemon_dir, state_dir, settings.update.check_timeout_s)
    if result.error:
        raise build_error(result.error, result.message)
    return result.message


def _wait_for_result(daemon_dir: Path, state_dir: Path, limit_s: float) -> BundleResult:
    place = state_dir / BUNDLE_FILE
    deadline = time.monotonic() + limit_s
    while place.exists():
        if not daemon_runs(daemon_dir) or time.monotonic() > deadline:
            msg = f"{place}: the daemon has not read it yet; it will at its next start. See its log"
            raise DeviceError(msg)
        time.sleep(_POLL_S)
    deadline = time.monotonic() + _RESULT_S
    while (result := claim_result(state_dir)) is None:
        if time.monotonic() > deadline:
            msg = f"{place}: the daemon read it, but could not write the result; see `edge-client status`"
            raise DeviceError(msg)
        time.sleep(_POLL_S)
    return result
