"""`edge-fleet doctor`: what this machine needs to look at the fleet and to decide, with the way out."""

from __future__ import annotations

import dataclasses
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import (
    EdgeError,
    InputError,
    SettingsError,
    TransportError,
    TrustError,
)
from edge_client.contract.times import seconds_until
from luigi_tasks.fleet.commands.command import Subparsers, new_command, read_settings, to_json
from luigi_tasks.fleet.commands.faults import FoundFaultsError
from luigi_tasks.fleet.tables import age_in_words, shown

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings

# Clocks that differ by more spoil ages and the expiry of signatures.
_CLOCK_S = 60.0
_ROOT_DAYS = 30
_DAY_S = 86400.0
_WORDS = 600
# Written over each time: a role may lack the right to delete.
PROBE_KEY = "fleet/told/doctor.json"
_CODES: dict[type[EdgeError], int] = {SettingsError: 2, TrustError: 3, TransportError: 4}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: Subject of the check.
        passed: Whether all is well; None: the check does not apply here.
        detail: What was found; on a failure also the way out.
        code: Exit code of a failure.
    """

    name: str
    passed: bool | None
    detail: str
    code: int = 0


class NotAskedError(Exception):
    """A check does not apply on this machine; its text says why."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    new_command(
        subparsers, "doctor", run, "check keys, bucket, registry, rollouts, collector, clock, broker, rights"
    )


def run(options: argparse.Namespace) -> str:
    """Return the findings; those that are not well end the command with an error."""
    findings = examine(read_settings())
    if options.json:
        text = to_json({"checks": findings})
    else:
        marks = {True: "ok  ", False: "FAIL", None: "-   "}
        text = "".join(
            f"{marks[one.passed]} {one.name:<10} {shown(one.detail, _WORDS)}\n" for one in findings
        )
    failed = [one for one in findings if one.passed is False]
    if failed:
        message = f"{len(failed)} of {len(findings)} checks failed: {', '.join(one.name for one in failed)}"
        raise FoundFaultsError(message, text, failed[0].code)
    return text


def examine(settings: PipelineSettings) -> list[Finding]:
    """Run all checks; one that fails does not stop the others."""
    from luigi_tasks.fleet.opening import documents_of  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - as above
    from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - as above

    repository = ReleaseRepository(open_store(settings.store), settings.trust)
    documents = documents_of(repository)
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("bucket", lambda: _check_bucket(repository)),
        ("signatures", lambda: _check_signatures(repository)),
        ("key", lambda: _check_key(documents)),
        ("registry", lambda: _check_registry(documents)),
        ("rollouts", lambda: _check_rollouts(documents)),
        ("collector", lambda: _check_collector(settings, documents)),
        ("clock", lambda: _check_clock(settings, repository, documents)),
        ("rights", lambda: _check_rights(documents)),
        ("broker", lambda: _check_broker(settings)),
        ("webhooks", lambda: _check_webhooks(settings)),
    )
    return [_examine(name, check) for name, check in checks]


def _examine(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, passed=True, detail=check())
    except NotAskedError as e:
        return Finding(name, passed=None, detail=str(e))
    except EdgeError as e:
        code = next((code for kind, code in _CODES.items() if isinstance(e, kind)), 1)
        return Finding(name, passed=False, detail=str(e), code=code)


def _check_bucket(repository: ReleaseRepository) -> str:
    keys = repository.store.list_folder("metadata/")
    if not keys:
        msg = (
            f"{repository.store.url('')}: answers, and nothing is published in it: [store] url may name "
            "another bucket; the first Deploy publishes"
        )
        raise InputError(msg)
    return f"{repository.store.url('')}: answers"


def _check_signatures(repository: ReleaseRepository) -> str:
    from luigi_tasks.release.renewal import explain_late, measure_freshness  # noqa: PLC0415 - as above

    state = repository.load()
    ages = measure_freshness(state.published, repository.settings, repository.now())
    if not ages:
        raise NotAskedError("nothing is published yet")
    root_left = (state.root.signed.expires - repository.now()).total_seconds() / _DAY_S
    if late := [one for one in ages if one.is_late]:
        raise TrustError(explain_late(late, repository.store.url("metadata/")))
    if root_left < _ROOT_DAYS:
        msg = (
            f"the root ends in {root_left:.0f} days, and then no device installs a release: run `edge-keys "
            "renew` with the root keys, then `edge-keys publish`"
        )
        raise TrustError(msg)
    left = ", ".join(one.in_words() for one in ages)
    return f"trusted by root version {state.root.signed.version}; left: {left}, root {root_left:.0f} days"


def _check_key(documents: SignedDocuments) -> str:
    trusted = documents.keys.trusted()
    try:
        signer = documents.keys.signer()
    except SettingsError as e:
        msg = f"this machine can look, and decide nothing: {e}"
        raise NotAskedError(msg) from e
    keyid = signer.public_key.keyid
    if keyid not in trusted:
        msg = (
            f"this machine's rollouts key {keyid[:12]} is not the one that the targets name: copy "
            "the current pipeline/rollouts.pem here, or run `edge-keys publish` where it was made"
        )
        raise TrustError(msg)
    return f"rollouts key {keyid[:12]}: this machine can decide"


def _check_registry(documents: SignedDocuments) -> str:
    from luigi_tasks.fleet.registry import load_registry  # noqa: PLC0415 - as above

    registry = load_registry(documents)
    if not registry.collectors:
        msg = f"{len(registry.devices)} devices, and no collector's key: `edge-fleet collector-key` adds one"
        raise InputError(msg)
    keyless = sum(1 for one in registry.devices.values() if not one.key)
    text = f"{len(registry.devices)} devices, collectors: {', '.join(registry.collectors)}"
    return text + (f"; {keyless} devices have no key, and their reports are not signed" if keyless else "")


def _check_rollouts(documents: SignedDocuments) -> str:
    from luigi_tasks.fleet.reading import find_channels  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.rollouts import Rollouts  # noqa: PLC0415 - as above

    rollouts, texts = Rollouts(documents), []
    for channel in find_channels(documents.store):
        current = rollouts.current(channel)
        name = current.document.rollout if current is not None else ""
        state = rollouts.load(channel, name).document.state if name else "no rollout runs"
        texts.append(f"{channel}: {state}")
    if not texts:
        raise NotAskedError("none was started yet")
    return "; ".join(texts)


def _check_collector(settings: PipelineSettings, documents: SignedDocuments) -> str:
    from luigi_tasks.fleet.registry import load_registry  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.snapshots import read_newest_heads  # noqa: PLC0415 - as above

    trusted = load_registry(documents).collectors
    heads = read_newest_heads(documents.store, settings.broker.fleet, trusted)
    if not heads:
        msg = "no snapshot of a collector that the registry names: start `edge-fleet collect`"
        raise InputError(msg)
    texts, late = [], []
    for head in heads.values():
        age_s = time.time() - head.taken_at
        words = f"{head.collector}: snapshot {age_in_words(age_s)}, heard {head.heard} of {head.registered}"
        texts.append(words)
        if age_s > 2 * settings.fleet.snapshot_s + _CLOCK_S:
            late.append(words)
    if late:
        msg = (
            f"{'; '.join(late)}: older than two of [fleet] snapshot_s ({settings.fleet.snapshot_s:g} s). No "
            "rollout moves meanwhile: look at `systemctl status edge-fleet-collect` there"
        )
        raise TransportError(msg)
    return "; ".join(texts)


def _check_clock(
    settings: PipelineSettings, repository: ReleaseRepository, documents: SignedDocuments
) -> str:
    """Compare this machine's clock with those that signed last: none of them can be in the future."""
    from edge_client.contract.names import SIGNED_AT_FIELD  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.registry import load_registry  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.snapshots import read_newest_heads  # noqa: PLC0415 - as above

    ahead: dict[str, float] = {}
    timestamp = repository.load().published.timestamp
    if timestamp is not None and (at := str(timestamp.signed.unrecognized_fields.get(SIGNED_AT_FIELD, ""))):
        ahead["the machine that published last"] = seconds_until(at)
    try:
        trusted = load_registry(documents).collectors
        for head in read_newest_heads(documents.store, settings.broker.fleet, trusted).values():
            ahead[f"collector {head.collector}"] = head.taken_at - time.time()
    except (InputError, TrustError):
        pass  # told by the checks of registry and collector
    if not ahead:
        raise NotAskedError("nothing was signed yet that it could be compared with")
    who, most = max(ahead.items(), key=lambda item: item[1])
    if most > _CLOCK_S:
        msg = f"{who} is {most:.0f} s ahead of this machine: set both clocks by NTP (`timedatectl`)"
        raise InputError(msg)
    return f"not behind {', '.join(ahead)}"


def _check_rights(documents: SignedDocuments) -> str:
    """Write a small object under a condition, and try a condition that does not hold."""
    from luigi_tasks.storage.store import StoreConflictError  # noqa: PLC0415 - as above

    try:
        documents.keys.signer()
    except SettingsError:
        raise NotAskedError("this machine has no rollouts key, so it writes nothing") from None
    store, data = documents.store, secrets.token_hex(8).encode()
    found = store.get(PROBE_KEY, limit_bytes=1024)
    store.put_if_unchanged(PROBE_KEY, data, found.etag if found is not None else None)
    if not store.is_conditional:
        msg = "[store] conditional_writes is off: two machines can undo each other's decisions; set it true"
        raise SettingsError(msg)
    try:
        store.put_if_unchanged(PROBE_KEY, data, None)
    except StoreConflictError:
        return f"reads and writes below {store.url('fleet/')}, and conditions hold"
    msg = f"{store.url(PROBE_KEY)}: the store ignores If-None-Match, so two machines can undo each other"
    raise InputError(msg)


def _check_broker(settings: PipelineSettings) -> str:
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415 - as above

    broker = BrokerClient(settings.broker)
    if not broker.is_set:
        raise NotAskedError(
            "[broker] host is empty: no report is heard, and devices find releases by polling"
        )
    broker.check()
    return f"{broker.address}: answers, and accepts this machine"


def _check_webhooks(settings: PipelineSettings) -> str:
    from luigi_tasks.fleet.webhooks import read_webhooks  # noqa: PLC0415 - as above

    path = settings.fleet.webhooks_file
    webhooks = read_webhooks(path)
    if not webhooks:
        raise NotAskedError("[fleet] webhooks_file names none: events go to the broker alone")
    if Path(path).expanduser().stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        msg = f"[fleet] webhooks_file {path}: other users can read the secrets in it: chmod 600 {path}"
        raise SettingsError(msg)
    return f"{len(webhooks)}: {', '.join(one.shown for one in webhooks)}; nothing is sent for a test"
