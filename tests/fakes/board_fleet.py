"""A fleet to look at: releases, rollouts with verdicts, snapshots, frames to label; plain or hostile names.

Real parts: a signed repository, registry, snapshots and rollouts in a folder. Devices are reports. The last
moment is now.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import random
import time
import uuid
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from PIL import Image

from edge_client.contract.report import DeviceReport, MachineFacts, ReleaseFigures, latency_bin
from luigi_tasks.board.access.tokens import Tokens
from luigi_tasks.fleet.marks import Mark
from luigi_tasks.fleet.records import EnrolledDevice, Sighting, SnapshotHead
from luigi_tasks.fleet.registry import RegistryChange, change_registry
from luigi_tasks.fleet.snapshots import StoredRow, write_snapshot
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.rollout import RolloutSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.gated_releases import GatedReleases
from tests.fakes.inbox import hand_in
from tests.fakes.rollout_fleet import COLLECTOR, RolloutFleet
from tests.fakes.tiny_model import plain_picture

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from playwright.sync_api import Page

    from luigi_tasks.settings.values import PipelineSettings

HOSTILE = (
    "\"><img src=x onerror=alert(1)>' {{7*7}} \u202egnp.exe\r\n\x1b[31m\x00\u200b&amp;"
    "<script>alert(2)</script>" + "x" * 300
)
# The longest names that a registry takes.
LONG = "camera-" + "0123456789" * 5 + ".shop-1"
MODELS = ("Raspberry Pi 4 Model B Rev 1.4", "Raspberry Pi 5 Model B Rev 1.0", "Raspberry Pi Zero 2 W Rev 1.0")
# Pages of the navigation by name.
MAIN_PAGES = {
    "fleet": "",
    "rollouts": "rollouts",
    "releases": "releases",
    "label": "label",
    "try": "try",
    "pipeline": "pipeline",
}
_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Words:
    """What devices, people and releases say.

    Attributes:
        warning: A device's own fault.
        reason: Why a release was sent back.
        person: Who acts.
        why: Why they do.
        labels: Of the releases.
        device: The first device.
    """

    warning: str = "the picture is dark since three hours"
    reason: str = "median latency 61.2 ms, more than 1.5 times the 31.0 ms of the release before"
    person: str = "ann"
    why: str = "the shops are open"
    labels: tuple[str, str, str] = ("apple", "pear", "plum")
    device: str = "camera-00"


HOSTILE_LABELS = ("<img src=x onerror=alert(1)>" + "x" * 60, "gr\u202eeen", "blue'\"&amp;")
HOSTILE_WORDS = Words(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE_LABELS, LONG)


class BoardFleet(RolloutFleet):
    """Devices of two classes in shops.

    Args:
        folder: Where bucket and keys lie.
        devices: Their number, at least 12.
        words: What is said.

    Attributes:
        bucket: The bucket.
        releases: What was published, oldest first.
    """

    def __init__(self, folder: Path, devices: int = 24, words: Words = Words()) -> None:
        self.words = words
        self.releases: list[str] = []
        self._gated: GatedReleases | None = None
        self._chance = random.Random(7)
        self._places: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, 0)
        self.now = time.time() - 9.5 * _HOUR
        names = [words.device, *(f"camera-{number:02}" for number in range(1, devices))]
        self.enroll(names)

    @property
    def bucket(self) -> Path:
        """The bucket."""
        return self.folder / "bucket"

    def pages(self) -> dict[str, str]:
        """Return the address of each page by name, after `live_a_day`."""
        _, second, third = self.releases
        current = self.machine().rollouts.current("stable")
        rollout = f"rollouts/stable/{current.document.rollout if current is not None else 'none'}"
        return {
            **MAIN_PAGES,
            "device": f"devices/{self.words.device}",
            "release": f"releases/{third}",
            "releases-beside": f"releases/{second}/beside/{third}",
            "rollout": rollout,
            "approve": f"{rollout}/approve",
            "rollouts-past": "rollouts/stable/all",
            "label-doubtful": "label/doubtful",
            "label-take": "label/take",
            "start": "pipeline/start?task=Deploy",
            "history": "audit",
            "nowhere": "nowhere",
        }

    def live_a_day(self) -> BoardFleet:
        """Publish three releases, roll two out, and let the last stop half-way; return itself."""
        self._let_pass(3)
        self._roll_out(1, stages="1d,25%,100%")
        self._let_pass(4)
        self._roll_out(2, stages="2d,25%,50%,100%", errors="60%|9d", success="50%", approve="3")
        self.machine().pause("stable", self.words.person, self.words.why)
        self.machine().resume("stable", self.words.person, self.words.why)
        for name, number in self._places.items():
            if number % 9 == 4:
                self.silent.add(name)
        self.now = time.time() - 40
        self.report(20)
        self._publish_night()
        self.hand_in_frames()
        self._write_dataset()
        return self

    def publish(self, bias: int, *, move: bool = True) -> str:  # type: ignore[override]
        """Have a candidate judged by the gate, and sign it, for `stable` or, not to move it, for `next`."""
        if self._gated is None:
            at_once = dataclasses.replace(self.settings, rollout=RolloutSettings(stages=""))
            self._gated = GatedReleases(at_once, self.words.labels)
        channel = "stable" if move else "next"
        release = self._gated.publish(bias, 7 - 2 * bias, epochs=20 + 10 * bias, channel=channel)
        self.releases.append(release)
        return release

    def hand_in_frames(self, count: int = 18) -> None:
        """Put frames into the inbox, as devices do."""
        store = FolderStore(self.settings.store)
        for number, name in enumerate(list(self._places)[:count]):
            word = ("red", "green", "blue")[number % 3]
            pixels = plain_picture(word, 64, 64)
            pixels[:, number : number + 6] = 255 - pixels[:, number : number + 6]
            at = datetime.datetime.fromtimestamp(self.now - 600 * number, datetime.timezone.utc)
            hand_in(
                store,
                name,
                f"{1700000000 + number}.jpg",
                _jpeg(pixels),
                label=self.words.labels[number % 3],
                confidence=0.31 + 0.02 * number,
                top={self.words.labels[number % 3]: 0.31 + 0.02 * number, "another": 0.3},
                release=self.releases[-1],
                at=at.isoformat(timespec="milliseconds"),
            )

    def _make_bucket(self) -> PipelineSettings:
        settings = super()._make_bucket()
        return dataclasses.replace(settings, broker=dataclasses.replace(settings.broker, fleet="shops"))

    def _write_dataset(self) -> None:
        """Write the pictures that the labels are known from."""
        for label, colour in zip(self.words.labels, ("red", "green", "blue"), strict=True):
            folder = self.folder / "dataset" / label
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_bytes(_jpeg(plain_picture(colour, 64, 64)))

    def enroll(self, names: Iterable[str]) -> None:
        """Put devices into the registry with sites, classes and tags, and the collector's key."""
        at = datetime.datetime.fromtimestamp(self.now, datetime.timezone.utc).isoformat()
        rows = tuple(
            EnrolledDevice(
                device=name,
                site=f"shop-{place % 4}",
                device_class=("wide", "zoom")[place % 3 == 0],
                tags=(f"line={place % 5}",),
                key=self.device_key,
                enrolled_at=at,
                enrolled_by="ann",
            )
            for name in names
            for place in (self._places.setdefault(name, len(self._places)),)
        )
        pem = self.signer._private_key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        change_registry(
            self.machine().documents,
            [row.device for row in rows],
            lambda _: RegistryChange(rows, {COLLECTOR: pem.decode()}),
            who="ann",
            begin=True,
        )
        self.serving.update(dict.fromkeys((row.device for row in rows), self.steady))
        self.signing |= {row.device for row in rows}

    def report(self, seconds: float = 600.0) -> None:
        """Let time pass and the devices report; the collector writes a snapshot with all its facts."""
        self.now += seconds
        rows = [self._row(device) for device in sorted(self.serving)]
        head = SnapshotHead(
            fleet=self.settings.broker.fleet,
            taken_at=self.now - 1,
            collector=COLLECTOR,
            listening_since=self.now - 90 * _HOUR,
            devices=len(rows),
            registered=len(self.serving),
            heard=len(self.serving) - len(self.silent),
            rejected={"unknown_device": 2},
        )
        write_snapshot(FolderStore(self.settings.store), head, rows, self.signer)

    def _let_pass(self, hours: int) -> None:
        for _ in range(hours):
            self.follow()
            self.report(_HOUR)

    def _roll_out(self, bias: int, **plan: object) -> None:
        release = self.publish(bias, move=False)
        self.machine().start("stable", release, self.plan(**plan), self.words.person)
        for look in range(6):
            self.look()
            if bias == 2 and look == 2:
                having = [name for name in self._places if self.serving[name] == release]
                wide = [name for name in having if self._places[name] % 3]
                self.verdicts.update(dict.fromkeys(wide[:2], "sent_back"))

    def _publish_night(self) -> None:
        release = self.releases[0]
        ReleaseRepository(FolderStore(self.settings.store), self.settings.trust).publish(
            {}, lambda now: point_channel(now, "night", release, share_percent=100.0, at=""), "night"
        )

    def _row(self, device: str) -> StoredRow:
        release, place = self.serving[device], self._places[device]
        is_back = self.verdicts.get(device) == "sent_back" and release == self.releases[-1]
        latency_ms = (31.0, 24.0, 88.0)[place % 3] * self._chance.uniform(0.95, 1.05)
        figures = [self._figures(release, latency_ms, "sent_back" if is_back else "passed")]
        if is_back:
            release = self.releases[-2]
            figures.insert(0, self._figures(release, latency_ms, "passed"))
        seen = self.now - 5 - 7200 * (device in self.silent)
        report = DeviceReport(
            fleet=self.settings.broker.fleet,
            device=device,
            channel="stable",
            reported_at=datetime.datetime.fromtimestamp(seen, datetime.timezone.utc).isoformat(),
            start=int(self.now - 40 * _HOUR),
            sequence=int(self.now) % 100000,
            interval_s=600.0,
            client="0.1.0",
            runtime=("litert 2.1.0", "tflite-runtime 2.14.0")[place % 2],
            machine=MachineFacts(
                model=MODELS[place % 3],
                architecture="aarch64",
                cores=4,
                memory_bytes=(4 << 30, 8 << 30, 512 << 20)[place % 3],
                system="Debian GNU/Linux 12",
                fingerprint=f"{place:04x}",
            ),
            site=f"shop-{place % 4}",
            device_class=("wide", "zoom")[place % 3 == 0],
            tags=(f"line={place % 5}",),
            state="serving",
            decision="sent_back" if is_back else "current",
            release=release,
            previous=self.releases[0],
            offered=release,
            steady=self.steady,
            rollout="",
            releases=tuple(figures),
            drift_alarm=place == 7,
            warning=self.words.warning if place in {0, 5} else "",
            last_error=self.words.reason if is_back else "",
        )
        return StoredRow(
            device=device,
            channel="stable",
            enrolled=True,
            is_signed=True,
            online=device not in self.silent,
            first_seen=self.now - 40 * _HOUR,
            last_seen=seen,
            start=report.start,
            sequence=report.sequence,
            report=msgspec.Raw(msgspec.json.encode(report)),
            sightings=self._sightings(release, is_back),
            marks=tuple(self._marks(release, latency_ms)),
        )

    def _sightings(self, release: str, is_back: bool) -> tuple[Sighting, ...]:
        if not is_back:
            return ()
        return (
            Sighting(
                rollout="",
                state="sent_back",
                at=self.now - 60,
                release=release,
                reason=self.words.reason,
                reason_code="slower",
            ),
        )

    def _figures(self, release: str, latency_ms: float, probation: str) -> ReleaseFigures:
        frames = 7200
        counts = {str(latency_bin(latency_ms)): frames - 400, str(latency_bin(latency_ms * 1.4)): 400}
        return ReleaseFigures(
            release=release,
            activated_at=datetime.datetime.fromtimestamp(
                self.now - 2 * _HOUR, datetime.timezone.utc
            ).isoformat(),
            seconds=7200.0,
            frames=frames,
            failed=3,
            unsure=self._chance.randrange(200, 600),
            latency_ms=frames * latency_ms,
            latency=counts,
            confidence=(0, 20, 60, 120, 200, 300, 500, 900, 1500, 3600),
            labels=dict(zip(self.words.labels, (3000, 2600, 1600), strict=True)),
            probation=probation,
            reason=self.words.reason if probation == "sent_back" else "",
            reason_code="slower" if probation == "sent_back" else "",
            failed_stage="probation" if probation == "sent_back" else "",
        )

    def _marks(self, release: str, latency_ms: float) -> Iterable[Mark]:
        """Return a day of totals, an hour each."""
        hour = int(self.now // _HOUR * _HOUR)
        for hours in range(1, 26):
            unsure = hours * 180 + self._chance.randrange(60)
            usual, slow = (str(latency_bin(one)) for one in (latency_ms, latency_ms * 1.4))
            yield Mark(
                period=hour - (25 - hours) * 3600,
                release=release,
                activated_at="2026-11-01T00:00:00Z",
                start=1,
                sequence=hours,
                is_whole=True,
                seconds=hours * _HOUR,
                frames=hours * 3600,
                failed=hours,
                unsure=unsure,
                latency_ms=hours * 3600 * latency_ms,
                latency={usual: hours * 3400, slow: hours * 200},
                confidence=tuple(hours * count for count in (0, 10, 30, 60, 100, 150, 250, 450, 750, 1800)),
                labels=dict(zip(self.words.labels, (hours * 1500, hours * 1300, hours * 800), strict=True)),
            )


def sign_in(page: Page, url: str, fleet: BoardFleet) -> None:
    """Sign an operator in on a board."""
    token, _ = Tokens(fleet.folder / "board").issue(f"ann-{uuid.uuid4().hex[:4]}", "operator", 1)
    page.goto(f"{url}sign-in")
    page.locator("#token").fill(token)
    page.locator("#token").press("Enter")
    page.wait_for_url(url)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_board_settings(fleet: BoardFleet, file: Path, *lines: str) -> Path:
    """Write a luigi.cfg for a board over the fleet, with further lines of [board]."""
    folder = fleet.folder
    file.write_text(
        # Port 9 discards: no luigid of this machine is looked at.
        "[core]\ndefault-scheduler-url = http://127.0.0.1:9/\n"
        f"[store]\nurl = {fleet.bucket.as_uri()}\n"
        f"[dataset]\nurl = {folder / 'dataset' if (folder / 'dataset').is_dir() else ''}\n"
        f"[trust]\nroot = {folder}/keys/device/root.json\nkeys = {folder}/keys/pipeline\n"
        f"[broker]\nhost =\nfleet = {fleet.settings.broker.fleet}\n[rollout]\nstages = 1d,25%,100%\n"
        f"[board]\nstate_dir = {folder}/board\n" + "".join(f"{one}\n" for one in lines)
    )
    return file
