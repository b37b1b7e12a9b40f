"""`edge-client doctor`: check everything that this device needs, and name the remedy of each fault."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING

from edge_client.commands.doctor.broker import check_broker
from edge_client.commands.doctor.camera import CAMERA_S, check_source
from edge_client.commands.doctor.inbox import check_inbox
from edge_client.commands.doctor.machine import check_clock_set, check_files, check_state
from edge_client.commands.doctor.model import check_own_model, check_release
from edge_client.commands.doctor.reports import check_reports
from edge_client.commands.doctor.results import check_action, check_json_lines, check_metrics
from edge_client.commands.doctor.store import check_keys, check_root, check_store
from edge_client.contract.addresses import without_secrets
from edge_client.contract.errors import EdgeError
from edge_client.contract.times import current_time
from edge_client.inference.runtime import runtime_name
from edge_client.reporting.reporter import wants_reports
from edge_client.settings.file import of_channels

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterator, Sequence

    from edge_client.settings.file import Settings

logger = logging.getLogger(__name__)

# Each may wait for an answer for seconds; the longest time for one.
_SLOW = {"store": 9.0, "store's keys": 9.0, "broker": 9.0, "source": CAMERA_S + 5}


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: Subject of the check.
        passed: Whether the check passed.
        detail: Finding; on a failure also the remedy.
    """

    name: str
    passed: bool
    detail: str


def examine(
    settings: Settings,
    clock: Callable[[], datetime.datetime] = current_time,
) -> tuple[Check, ...]:
    """Run all checks; writes nothing but a temporary file in the state folder."""
    checks: Sequence[tuple[str, Callable[[], str]]] = (
        ("runtime", runtime_name),
        ("clock", lambda: check_clock_set(clock())),
        ("state folder", lambda: check_state(settings)),
        ("files", lambda: check_files(settings)),
        *((name, functools.partial(check, settings)) for name, check in _of_origin(settings)),
        ("broker", lambda: check_broker(settings)),
        ("source", lambda: check_source(settings)),
        *_of_models(settings),
        ("inbox", lambda: check_inbox(settings)),
        *((name, functools.partial(check, settings)) for name, check in _wanted(settings)),
    )
    answers = [
        _in_thread(name, check) if name in _SLOW else functools.partial(_make, name, check)
        for name, check in checks
    ]
    return tuple(answer() for answer in answers)


def _in_thread(name: str, check: Callable[[], str]) -> Callable[[], Check]:
    """Start a check beside the others; return the function that waits for its result."""
    found: list[Check] = []
    until = time.monotonic() + _SLOW[name]
    # Ctrl-C need not wait for it.
    thread = threading.Thread(target=lambda: found.append(_make(name, check)), name=name, daemon=True)
    thread.start()

    def wait() -> Check:
        thread.join(max(until - time.monotonic(), 0))
        if not found:
            what = (
                f"no result within {_SLOW[name]:g} s: what it asks answers too slowly, or DNS does not answer"
            )
            return Check(name, passed=False, detail=what)
        return found[0]

    return wait


def _of_origin(settings: Settings) -> Iterator[tuple[str, Callable[[Settings], str]]]:
    """Yield the checks of where releases come from; a model file of one's own needs none."""
    if not settings.device.model:
        yield "root of trust", check_root
        if settings.store.credentials_endpoint:
            yield "store's keys", check_keys
        yield "store", check_store


def _of_models(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the checks of what serves: a model file, or each channel's release."""
    if settings.device.model:
        yield "model", functools.partial(check_own_model, settings)
        return
    for one in of_channels(settings):
        yield f"release of {one.device.channel}", functools.partial(check_release, one)


def _wanted(settings: Settings) -> Iterator[tuple[str, Callable[[Settings], str]]]:
    """Yield the checks of optional features that the settings enable."""
    if wants_reports(settings):
        yield "reports", check_reports
    if settings.sinks.json_lines not in {"", "-"}:
        yield "json lines", check_json_lines
    if settings.action.labels:
        yield "action", check_action
    if settings.metrics.port:
        yield "metrics", check_metrics


def _make(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, passed=True, detail=check())
    except EdgeError as e:
        return Check(name, passed=False, detail=without_secrets(str(e)))
    except Exception as e:
        # A bug in one check must not hide the others.
        logger.debug("%s", name, exc_info=True)
        what = without_secrets(f"unexpected {type(e).__name__}: {e}")
        return Check(name, passed=False, detail=f"{what}; please report it")
