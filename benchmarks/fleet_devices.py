"""Simulated devices of a fleet, hundreds in one process: the device's own code without its threads.

Of the device: `ChannelFollower` (update checks by `ReleaseUpdater` and `TrustedRepository` over HTTP, slots,
probation, status board), `DeviceReports` with figures and signatures, the MQTT client. One loop serves all
connections, and a few threads run the update checks, in this process and not in one of their own. The first
devices run real interpreters on real pictures, and real self-tests in a child process; the others replay
what these measured, with noise.

    python benchmarks/fleet_devices.py PLAN.json     # orders come as JSON lines through standard input
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import heapq
import itertools
import json
import logging
import queue
import random
import selectors
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

import msgspec  # noqa: E402 - found through the line above
import numpy as np  # noqa: E402
from paho.mqtt.enums import MQTTErrorCode  # noqa: E402

from edge_client.contract.errors import EdgeError, TransportError  # noqa: E402
from edge_client.contract.names import online_topic  # noqa: E402
from edge_client.contract.rollout import Member  # noqa: E402
from edge_client.daemon.channel import ChannelFollower  # noqa: E402
from edge_client.daemon.reports import DeviceReports  # noqa: E402
from edge_client.daemon.subscriptions import announcement_handlers, command_handlers  # noqa: E402
from edge_client.inference.classifier import Prediction  # noqa: E402
from edge_client.inference.runtime import runtime_name  # noqa: E402
from edge_client.releases import read_release_and_digest  # noqa: E402
from edge_client.reporting.broker import FIRST_RECONNECT_DELAY_S, LONGEST_RECONNECT_DELAY_S  # noqa: E402
from edge_client.reporting.mqtt_client import open_client  # noqa: E402
from edge_client.repository.opening import open_repository, sweep_scratch  # noqa: E402
from edge_client.serving import activation  # noqa: E402
from edge_client.settings.file import load_settings  # noqa: E402
from edge_client.sources.source import Frame  # noqa: E402
from edge_client.update.check import ReleaseUpdater, start_self_test  # noqa: E402
from edge_client.update.check_process import UpdateCheck  # noqa: E402
from edge_client.update.endings import Retry  # noqa: E402
from edge_client.update.slots import Slots  # noqa: E402
from edge_client.update.timing import MOVE_FILE, MoveTiming  # noqa: E402
from edge_client.update.triggers import UpdateTriggers  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from edge_client.reporting.mqtt_client import Client, Message
    from edge_client.repository.trusted import TrustedRepository
    from edge_client.settings.file import Settings
    from edge_client.update.decision import UpdateOutcome
    from edge_client.update.triggers import Trigger

logger = logging.getLogger(__name__)

CHECKS_AT_ONCE = 3
TICK_S = 0.2
# Frames: a burst where a release is new, as many as a probation asks for, then one at a time.
BURST, FRAME_EVERY_S = 25, 10.0
MISC_EVERY_S = 5.0


class Trace(msgspec.Struct, frozen=True):
    """What a real device measured of a release on its pictures.

    Attributes:
        labels: Labels of the release.
        scores: Score of each label, of each picture.
        latency_ms: Latency of each picture.
    """

    labels: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    latency_ms: tuple[float, ...]


class DevicePlan(msgspec.Struct, frozen=True):
    """One device.

    Attributes:
        name: Its id.
        site: Its site.
        tags: Its tags.
        is_real: Whether it runs a real interpreter.
        slower: Factor of its latency under a release, by release.
    """

    name: str
    site: str
    tags: tuple[str, ...]
    is_real: bool
    slower: dict[str, float] = {}


class ProcessPlan(msgspec.Struct, frozen=True):
    """The devices of one process.

    Attributes:
        settings: Settings file that all of them have.
        states: Folder with a folder for each device, which has its key.
        devices: The devices.
        traces: Traces by release.
        pictures: `.npy` file, (N, H, W, 3) uint8 RGB.
        start_s: Seconds over which the devices are switched on.
    """

    settings: str
    states: str
    devices: tuple[DevicePlan, ...]
    traces: dict[str, tuple[Trace, ...]]
    pictures: str
    start_s: float


class ReplayedClassifier:
    """Answers as a real interpreter did, with noise; the files of the release are read and verified."""

    def __init__(self, folder: Path, trace: Trace, slower: float, chance: random.Random) -> None:
        document, digest = read_release_and_digest(folder)
        self.release, self.labels = document.release, document.labels
        self.document_sha256, self.is_named_after_content = digest, True
        self.tells_strangers = False
        self.input_height, self.input_width = document.preprocessing.height, document.preprocessing.width
        self._trace, self._slower, self._chance = trace, slower, chance

    def warm(self) -> None:
        """Do nothing."""

    def classify(self, _pixels: NDArray[np.uint8]) -> Prediction:
        """Answer as one of the pictures was answered."""
        chance, place = self._chance, self._chance.randrange(len(self._trace.scores))
        scores = np.array(self._trace.scores[place], np.float32)
        index = int(scores.argmax())
        confidence = min(max(float(scores[index]) + chance.gauss(0, 0.01), 0.0), 1.0)
        latency_ms = self._trace.latency_ms[place] * self._slower * chance.lognormvariate(0, 0.05)
        return Prediction(self.labels[index], index, confidence, scores, latency_ms, self.labels)


class InProcessCheck(UpdateCheck):
    """Runs update checks as `check_child.py` does, in this process."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self._device = device

    def cancel(self) -> None:
        """Let a check end by itself."""

    def run(
        self,
        settings: Settings,
        software: str,
        on_install: Callable[[UpdateOutcome], None] = lambda _outcome: None,
        *,
        expecting: bool,
        requested: bool = False,
        retry: Retry = Retry.DUE,
    ) -> UpdateOutcome:
        """Check once."""
        del expecting
        self.signed, self.decided = {}, None
        device, own = settings.device, self._device
        sweep_scratch(device.state_dir)
        updater = ReleaseUpdater(
            device.id,
            device.channel,
            settings.update,
            Slots(device.state_dir),
            lambda: own.open_repository(settings),
            software=software,
            open_self_test=lambda: own.open_self_test(settings),
            device_class=device.device_class,
            member=Member(device.id, device.site, device.device_class, device.tags),
            timing=MoveTiming(device.state_dir / MOVE_FILE),
            requested=requested,
            retry=retry,
            on_install=on_install,
            on_signed=self.signed.__setitem__,
        )
        try:
            return updater.check()
        finally:
            self.decided = updater.decided
            own.count_check()


class PassedSelfTest:
    """In the place of a self-test in a child process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, _folder: Path) -> int:
        """Pass."""
        return 3


class ReportedTriggers(UpdateTriggers):
    """Triggers that tell the loop of themselves, in the place of a thread that waits for them."""

    def __init__(self, read: Callable[[bytes], str], tell: Callable[[], None]) -> None:
        super().__init__(read)
        self._tell = tell

    def announce(self, payload: bytes) -> None:
        """See `UpdateTriggers.announce`."""
        super().announce(payload)
        self._tell()

    def request(self, *, forgiving: bool = False) -> None:
        """See `UpdateTriggers.request`."""
        super().request(forgiving=forgiving)
        self._tell()

    def wake(self) -> None:
        """See `UpdateTriggers.wake`."""
        super().wake()
        self._tell()


class Always(threading.Event):
    """A stop that nobody waits for: `Reports.step` sends what is due and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.set()


class Never(threading.Event):
    """A stop that nobody waits for: the loop has other devices to serve."""

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once."""
        del timeout
        return False


ALWAYS, NEVER = Always(), Never()


class PolledReports(DeviceReports):
    """Reports that are asked whether they are due."""

    def due_in(self) -> float:
        """Return the seconds until a report is due."""
        [reporter] = self._reporters
        return reporter.schedule.due_in(self._clock())

    @property
    def has_no_news(self) -> bool:
        """Whether the next report is a heartbeat: nothing has changed, and nobody asks."""
        schedule, now = self._reporters[0].schedule, self._clock()
        return min(schedule._change_at, schedule._answer_at) > now  # noqa: SLF001 - no device asks for this


class SimulatedDevice:
    """A device; the loop's thread does all but `follow`.

    Attributes:
        checks: Update checks so far.
        bytes_pulled: Bytes from the store so far.
        newest: (start, sequence) of the newest report that the broker has acknowledged.
        acknowledged: Reports that the broker has acknowledged.
        connects: Connections that the broker has accepted.
        heartbeats: Reports that were sent without news.
        heartbeat_bytes: Their payloads.
        is_offline: Whether neither broker nor store can be reached.
    """

    def __init__(self, plan: DevicePlan, process: DeviceProcess) -> None:
        self.plan, self._process = plan, process
        self._chance = random.Random(plan.name)
        device = dataclasses.replace(
            process.settings.device,
            id=plan.name,
            site=plan.site,
            tags=plan.tags,
            state_dir=process.states / plan.name,
            key_file=str(process.states / plan.name / "key.pem"),
        )
        self.settings = dataclasses.replace(process.settings, device=device)
        self.checks = self.bytes_pulled = self.acknowledged = self.heartbeats = self.heartbeat_bytes = 0
        self.newest, self.connects = (0, 0), 0
        self.opened: TrustedRepository | None = None
        self.is_offline = self.is_on = False
        self.is_busy = self.is_triggered = self.is_heartbeat = False
        self.follow_at = self.frame_at = self.misc_at = 0.0
        self._mids: dict[int, tuple[int, int]] = {}
        self._client: Client | None = None
        self._failures = 0
        self._connected = False
        self.connect_at = float("inf")

    # Life

    def switch_on(self) -> None:
        """Start the daemon's code from what is on the disk."""
        self.follower = ChannelFollower(
            self.settings,
            stop=NEVER,
            may_serve=threading.Event(),
            publish_status=lambda _payload: True,
            chance=self._chance,
            check=InProcessCheck(self),
        )
        self.follower.triggers = ReportedTriggers(self.follower._announcements.read, self._note_trigger)  # noqa: SLF001
        self.reports = PolledReports(self.settings, {"": self.follower}, lambda: self)  # type: ignore[arg-type, return-value]
        self.follower.show_releases()
        self._rounds = self.follower.rounds()
        now = time.monotonic()
        self.follow_at = now + next(self._rounds)
        self.connect_at = now + self._chance.uniform(0, self.follower.pace.start_spread_s)
        self.frame_at = now + self._chance.uniform(0, FRAME_EVERY_S)
        self.is_on = True

    def switch_off(self) -> None:
        """Lose power: nothing is written, and nobody is told but by the last will."""
        self.is_on = False
        self._drop_connection()
        self.connect_at = float("inf")

    def go_offline(self) -> None:
        """Lose the network."""
        self.is_offline = True
        self._drop_connection()
        self.connect_at = float("inf")

    def come_back(self) -> None:
        """Have a network again."""
        self.is_offline = False
        self.connect_at = time.monotonic() + self._chance.uniform(0, FIRST_RECONNECT_DELAY_S)

    # Updates, in a thread of the pool

    def follow(self) -> float:
        """Do a round of updates; return the seconds until the next one."""
        trigger: Trigger = self.follower.triggers.wait(0)
        wait_s = self._rounds.send(trigger)
        self.follower.board.send_again()  # so that `step` does not wait for a change
        self.follower.board.step()
        return wait_s

    def open_repository(self, settings: Settings) -> TrustedRepository:
        """Open the store.

        Raises: TransportError while the device is offline; and as `opening.open_repository`.
        """
        if self.is_offline:
            msg = "no network"
            raise TransportError(msg)
        self.opened = open_repository(settings)
        return self.opened

    def count_check(self) -> None:
        """Count a check that has ended, and what it read."""
        opened, self.opened = self.opened, None
        self.checks += 1
        self.bytes_pulled += opened.bytes_pulled if opened is not None else 0

    def open_self_test(self, settings: Settings) -> Any:  # noqa: ANN401 - a self-test
        """Start the self-test; the replayed devices' passes."""
        return start_self_test(settings.update, 1) if self.plan.is_real else PassedSelfTest()

    def _note_trigger(self) -> None:
        self.is_triggered = True
        self._process.wake()

    # Frames

    def classify(self, now: float) -> None:
        """Answer frames: as many as a probation asks for while there is one."""
        board = self.follower.board
        few = board.frames < BURST or self.follower.board.plain.probation
        for _ in range(BURST if few else 1):
            self.follower.classify(self._process.frame(self._chance))
        self.follower.figures.keep_if_due()
        self.frame_at = now + (self._chance.uniform(0.3, 0.7) if few else FRAME_EVERY_S)

    # Broker

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._connected

    def report(self, topic: str, payload: bytes) -> bool:
        """Send a report, see `BrokerConnection.report`."""
        if self._client is None:
            return False
        sent = self._client.publish(topic, payload, qos=1)
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        if self.is_heartbeat:
            self.heartbeats += 1
            self.heartbeat_bytes += len(payload)
        [reporter] = self.reports._reporters  # noqa: SLF001 - the order of reports is asked for here alone
        self._mids[sent.mid] = (self.follower.figures.start, reporter._sequence)  # noqa: SLF001
        return True

    def connect(self) -> None:
        """Connect, as `BrokerConnection` does."""
        self.connect_at = float("inf")
        device = self.settings.device
        topic = online_topic(device.fleet, device.id)
        self._handlers = announcement_handlers(device, [self.follower]) | command_handlers(
            device, [self.follower], self.reports
        )
        client = open_client(self.settings.broker, device.id)
        client.suppress_exceptions = True
        client.will_set(topic, b"offline", qos=1, retain=True)
        client.on_connect = lambda *_: self._on_connect(topic)
        client.on_message = self._on_message
        client.on_publish = lambda _client, _data, mid, *_: self._on_publish(mid)
        self._client = client
        try:
            broker = self.settings.broker
            client.connect(broker.host, broker.port, broker.keepalive_s)
        except (OSError, ValueError):
            self._lost()
            return
        self._process.watch(self, client)
        self.misc_at = time.monotonic() + MISC_EVERY_S

    def serve(self) -> None:
        """Read and write what is due."""
        client = self._client
        if client is None:
            return
        client.loop_read()
        if client.want_write():
            client.loop_write()
        if client.socket() is None:
            self._lost()

    def flush(self) -> None:
        """Write what could not be written at once, and keep the connection alive."""
        client = self._client
        if client is None:
            return
        if client.want_write():
            client.loop_write()
        client.loop_misc()
        if client.socket() is None:
            self._lost()

    def _on_connect(self, topic: str) -> None:
        if self._client is None:
            return
        self._connected, self._failures = True, 0
        self.connects += 1
        self._client.subscribe([(one, 1) for one in self._handlers])
        self._client.publish(topic, b"online", qos=1, retain=True)
        self.reports.note_connection()

    def _on_message(self, _client: Client, _data: object, message: Message) -> None:
        if (handler := self._handlers.get(message.topic)) is not None:
            handler(bytes(message.payload))

    def _on_publish(self, mid: int) -> None:
        if (order := self._mids.pop(mid, None)) is not None:
            self.acknowledged += 1
            self.newest = max(self.newest, order)

    def _lost(self) -> None:
        self._drop_connection()
        self._failures += 1
        doubled = FIRST_RECONNECT_DELAY_S * 2.0 ** min(self._failures - 1, 10)
        longest_s = max(min(doubled, LONGEST_RECONNECT_DELAY_S), self.follower.pace.spread_s)
        self.connect_at = time.monotonic() + self._chance.uniform(0, longest_s)

    def _drop_connection(self) -> None:
        client, self._client = self._client, None
        self._connected = False
        self._mids.clear()
        if client is None:
            return
        self._process.forget(self)
        found = client.socket()
        if isinstance(found, socket.socket):
            with contextlib.suppress(OSError):
                found.close()


class DeviceProcess:
    """All devices of this process."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.settings = load_settings(Path(plan.settings))
        self.states = Path(plan.states)
        self._pictures = np.load(plan.pictures)
        self._traces = plan.traces
        self._plan = plan
        self._selector = selectors.DefaultSelector()
        self._watched: dict[SimulatedDevice, socket.socket] = {}
        self._waker, self._woken = socket.socketpair()
        for one in (self._waker, self._woken):
            one.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._jobs: queue.SimpleQueue[SimulatedDevice | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[SimulatedDevice, float]] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._later: list[tuple[float, int, SimulatedDevice]] = []
        self._count = itertools.count()
        activation.open_slot = self._open_slot
        runtime_name()  # imports the runtime
        gc.collect()
        self._base_kb = memory_kb("VmRSS")
        self.devices = {one.name: SimulatedDevice(one, self) for one in plan.devices}

    def frame(self, chance: random.Random) -> Frame:
        """Return a picture."""
        return Frame("camera", self._pictures[chance.randrange(len(self._pictures))])

    def wake(self) -> None:
        """End the loop's waiting."""
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def watch(self, device: SimulatedDevice, client: Client) -> None:
        """Serve a device's connection from now on."""
        found = client.socket()
        if isinstance(found, socket.socket):
            self._watched[device] = found
            self._selector.register(found, selectors.EVENT_READ, device)

    def forget(self, device: SimulatedDevice) -> None:
        """Serve a device's connection no more."""
        found = self._watched.pop(device, None)
        if found is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(found)

    def run(self) -> None:
        """Serve until standard input ends."""
        for target in (self._read_orders, *[self._check] * CHECKS_AT_ONCE):
            threading.Thread(target=target, daemon=True).start()
        begun = time.monotonic()
        for place, device in enumerate(self.devices.values()):
            at = begun + self._plan.start_s * place / len(self.devices)
            heapq.heappush(self._later, (at, next(self._count), device))
        tick_at = 0.0
        while True:
            self._serve(max(tick_at - time.monotonic(), 0.0))
            while not self._done.empty():
                device, wait_s = self._done.get()
                device.is_busy = False
                device.follow_at = time.monotonic() + wait_s
            while not self._orders.empty():
                if not self._obey(self._orders.get()):
                    return
            if (now := time.monotonic()) >= tick_at:
                self._tick(now)
                tick_at = now + TICK_S

    def _serve(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            if key.data is None:
                with contextlib.suppress(OSError):
                    self._woken.recv(4096)
            else:
                key.data.serve()

    def _tick(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2].switch_on()
        for device in self.devices.values():
            if not device.is_on:
                continue
            if not device.is_busy and (device.is_triggered or device.follow_at <= now):
                device.is_busy, device.is_triggered = True, False
                self._jobs.put(device)
            if device.connect_at <= now and not device.is_offline:
                device.connect()
            if device.frame_at <= now and device.follower.serves:
                device.classify(now)
            if device.connected and device.reports.due_in() <= 0:
                device.is_heartbeat = device.reports.has_no_news
                device.reports.step(ALWAYS)
            if device.misc_at <= now:
                device.misc_at = now + MISC_EVERY_S
                device.flush()

    def _check(self) -> None:
        """Run rounds of updates, one device after the other."""
        while (device := self._jobs.get()) is not None:
            wait_s = 5.0
            try:
                wait_s = device.follow()
            except Exception:
                logger.exception("device %s", device.plan.name)
            self._done.put((device, wait_s))
            self.wake()

    def _read_orders(self) -> None:
        for line in sys.stdin:
            self._orders.put(json.loads(line))
            self.wake()
        self._orders.put({"do": "end"})
        self.wake()

    def _obey(self, order: Mapping[str, Any]) -> bool:
        """Carry out an order, and answer; return whether there may be others."""
        chosen = [self.devices[name] for name in order.get("devices", ()) if name in self.devices]
        what = order["do"]
        if what == "end":
            return False
        for device in chosen:
            if what == "kill" and device.is_on and not device.is_busy:
                device.switch_off()
                heapq.heappush(self._later, (time.monotonic() + order["for_s"], next(self._count), device))
            elif what == "offline":
                device.go_offline()
            elif what == "online":
                device.come_back()
        print(json.dumps(self._describe(with_devices=what == "devices")), flush=True)
        return True

    def _describe(self, *, with_devices: bool) -> dict[str, Any]:
        on = [one for one in self.devices.values() if one.is_on]
        releases: dict[str, int] = {}
        for one in on:
            release = one.follower.release or ""
            releases[release] = releases.get(release, 0) + 1
        devices = self.devices.values()
        told: dict[str, Any] = {
            "on": len(on),
            "connected": sum(one.connected for one in on),
            "busy": sum(one.is_busy for one in on),
            "releases": releases,
            "checks": sum(one.checks for one in devices),
            "bytes_pulled": sum(one.bytes_pulled for one in devices),
            "connects": sum(one.connects for one in devices),
            "heartbeats": sum(one.heartbeats for one in devices),
            "heartbeat_bytes": sum(one.heartbeat_bytes for one in devices),
            "acknowledged": sum(one.acknowledged for one in devices),
            "base_kb": self._base_kb,
            "peak_kb": memory_kb("VmHWM"),
            "cpu_s": time.process_time(),
        }
        if with_devices:
            told["newest"] = {name: one.newest for name, one in self.devices.items()}
        return told

    def _open_slot(self, folder: Path, threads: int) -> Any:  # noqa: ANN401 - a classifier
        device = self.devices[folder.parent.parent.name]
        if device.plan.is_real:
            return OPEN_SLOT(folder, threads)
        release = folder.name
        traces = self._traces[release]
        chance = random.Random(device.plan.name)
        trace = traces[chance.randrange(len(traces))]
        return ReplayedClassifier(folder, trace, device.plan.slower.get(release, 1.0), chance)


OPEN_SLOT = activation.open_slot


def memory_kb(what: str, pid: int | str = "self") -> int:
    """Return `VmRSS` or `VmHWM`, the peak, of a process.

    getrusage(2) tells the peak of the process that forked it, where that was larger.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1])
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the devices of a plan."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    plan = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=ProcessPlan)
    try:
        DeviceProcess(plan).run()
    except EdgeError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
