"""The device daemon: serves frames, follows its channels, reports.

Threads: `frames` classifies and never waits for anything else; for each channel, `updates` checks the store
and `status` sends the status; paho has its own. The main thread waits for signals. A release on the disk
serves before any network is touched.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from edge_client.children import exit_now, hide_from_others
from edge_client.contract.addresses import without_secrets
from edge_client.contract.errors import DeviceError, EdgeError
from edge_client.contract.names import online_topic, results_topic, status_topic
from edge_client.daemon.channel import ChannelFollower
from edge_client.daemon.crash_report import crash_report
from edge_client.daemon.labels import LabelWatch
from edge_client.daemon.metrics_port import MetricsPort, open_metrics
from edge_client.daemon.reports import open_reports
from edge_client.daemon.signals import end_requests
from edge_client.daemon.subscriptions import announcement_handlers, command_handlers
from edge_client.daemon.watchdog import Watchdog
from edge_client.inbox.selection import INBOX_DIR, is_needed
from edge_client.last_picture import LastPicture
from edge_client.reporting.broker import BrokerConnection
from edge_client.reporting.discovery import DISCOVERY_FILE, Discovery
from edge_client.reporting.homeassistant import discovery_messages, sensor_messages
from edge_client.reporting.systemd import SystemdNotifier
from edge_client.serving.probation import LastEnd
from edge_client.settings.file import of_channels
from edge_client.settings.update import read_root
from edge_client.sinks.delivery import Delivery, Receipt
from edge_client.sinks.kept import UNSENT_FOLDER, KeptResults
from edge_client.sinks.opening import open_sinks
from edge_client.sinks.outbox import Outbox
from edge_client.sources.driver import SLOW_READING_S, DriverWatch
from edge_client.sources.opening import open_source
from edge_client.sources.passed_over import PassedOver
from edge_client.state_folder import (
    BUNDLE_SIGNAL,
    hold_state,
    sweep_channels,
    was_asked_to_forget_refusals,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_client.daemon.follower import Follower
    from edge_client.daemon.reports import DeviceReports
    from edge_client.daemon.watchdog import Hang
    from edge_client.inbox.selection import ChannelAnswer
    from edge_client.inbox.service import Inbox
    from edge_client.settings.file import Settings
    from edge_client.sources.source import Frame, Source

logger = logging.getLogger(__name__)

SOURCE_RETRY_S = (1.0, 60.0)
# Of the 30 s that systemd gives (TimeoutStopSec): for frames and updates, then for the last status. The rest
# is for the sinks (5 s at most), the broker (3 s) and the inbox (4 s).
STOP_S, STATUS_S = 4.0, 1.0
# Between two renewals of the process: other channels of this device may serve meanwhile.
RENEWAL_S = 600.0
_RENEWED_AT = "EDGE_CLIENT_RENEWED_AT"
# Names of threads, before their channel's.
_UPDATES, _STATUS = "updates of ", "status of "


def run(settings: Settings) -> NoReturn:
    """Run until SIGTERM or SIGINT, or until a finite source ends; end the process then, with 0.

    Raises: SettingsError, DeviceError if it cannot start.
    """
    hide_from_others()
    state_dir = settings.device.state_dir
    renewal = threading.Event()
    with (
        hold_state(state_dir) as lock,
        crash_report(state_dir) as report,
        end_requests() as (wait_for_end, request_end),
    ):

        def renew() -> None:
            if time.monotonic() - float(os.environ.get(_RENEWED_AT, "-inf")) > RENEWAL_S:
                renewal.set()
                request_end()

        try:
            daemon = Daemon(
                settings,
                on_end=request_end,
                last_end=report.last_end,
                on_renewal=renew,
                on_hang=report.note_hang,
            )
            daemon.start()
        except RuntimeError as e:
            msg = f"cannot start: {e}; where the machine has no more threads, end programs or free memory"
            raise DeviceError(msg) from e
        actions: dict[int, Callable[[], None]] = {
            signal.SIGHUP: daemon.hang_up,
            signal.SIGUSR1: daemon.keep_status,
            BUNDLE_SIGNAL: daemon.import_bundles,
        }
        with lock.accepting_signals():
            reason = wait_for_end(actions)
        renewed = renewal.is_set()
        logger.info("%s: stopping", "new process" if renewed else reason)
        if not renewed:
            daemon.say_stopping()
        daemon.stop()
    if renewed:
        # The same process id: for systemd the service goes on.
        os.environ[_RENEWED_AT] = str(time.monotonic())
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this program
    # A driver's thread may wait for its next frame: OpenCV's would abort in a shutdown of the interpreter.
    exit_now(0)


class Daemon:
    """The daemon of one device: source, channels, sinks and inbox."""

    def __init__(
        self,
        settings: Settings,
        on_end: Callable[[], None],
        last_end: LastEnd = LastEnd.UNKNOWN,
        on_renewal: Callable[[], None] = lambda: None,
        on_hang: Callable[[Hang], None] = lambda _hang: None,
    ) -> None:
        """Load the releases on the disk; touch no network.

        Args:
            settings: Settings of the device.
            on_end: Called when a finite source has no more frames.
            last_end: How the last run of the daemon ended, if nobody requested it.
            on_renewal: Called if a new process can serve a release that this one cannot.
            on_hang: Told when model or source begin to hang, and when they go on.
        Raises: SettingsError, DeviceError.
        """
        self._settings = settings
        self._on_end, self._on_hang = on_end, on_hang
        sweep_channels(settings)
        self._stop = threading.Event()
        self._may_serve = threading.Event()
        self._broker: BrokerConnection | None = None
        self._reports: DeviceReports | None = None
        self._outbox: Outbox | None = None
        self._delivery = Delivery(())
        self._metrics = MetricsPort()
        self._source_fault: str | None = None
        self._source: Source | None = None
        self._driver, self._passed_over = DriverWatch(), PassedOver()
        self._last_picture = LastPicture(settings.device.state_dir)
        self._inbox = self._open_inbox()
        self._followers = self._open_followers(
            LastEnd.PICTURE if self._last_picture.died_at else last_end, on_renewal
        )
        self._labels = LabelWatch(settings, lambda: [one.labels for one in self._followers.values()])
        if not any(follower.has_release for follower in self._followers.values()):
            read_root(settings.trust)  # without a release and without a root, waiting is useless
        try:
            self._open_rest()
        except BaseException:
            # A setting is wrong: not a crash of a release.
            for follower in self._followers.values():
                follower.close()
            raise

    def _open_followers(self, last_end: LastEnd, on_renewal: Callable[[], None]) -> dict[str, Follower]:
        """Load what is to serve: the model file that the settings name, else each channel's release."""
        settings, stop, may_serve = self._settings, self._stop, self._may_serve
        if settings.device.model:
            from edge_client.daemon.own_model import ModelFollower  # noqa: PLC0415 - most devices have none

            publish, fields = functools.partial(self._publish_status, ""), self._live_fields
            return {"": ModelFollower(settings, stop, may_serve, publish_status=publish, live_fields=fields)}
        return {
            one.device.channel: ChannelFollower(
                one,
                stop=stop,
                may_serve=may_serve,
                publish_status=functools.partial(self._publish_status, self._extra(one.device.channel)),
                live_fields=self._live_fields if one is settings else dict,
                last_end=last_end,
                on_renewal=on_renewal,
            )
            for one in of_channels(settings)
        }

    def _open_rest(self) -> None:
        settings = self._settings
        self._reports = open_reports(settings, self._followers, lambda: self._broker)
        self._broker = self._open_broker()
        self._discovery = self._open_discovery()
        boards = [follower.board for follower in self._followers.values()]
        self._metrics = open_metrics(settings.metrics, boards)
        if exposure := settings.broker.exposure:
            logger.warning("%s", exposure)
        kept = KeptResults(settings.device.state_dir / UNSENT_FOLDER, settings.sinks.unsent_max_bytes)
        if self._broker and settings.sinks.mqtt:
            self._outbox = self._open_outbox(self._broker, kept)
        elif kept.results:
            logger.warning(
                "%d results wait for a broker; none is set ([broker] host, [sinks] mqtt)", kept.results
            )
        self._delivery = Delivery(
            open_sinks(settings.sinks, outbox=self._outbox, action=settings.action),
            self._metrics.counters,
        )
        self._systemd = SystemdNotifier()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True) for name, target in self._targets()
        ]
        self._watchdog = Watchdog(
            self._systemd,
            self._driver,
            lambda: all(one.is_alive() for one in self._threads) and (not self._inbox or self._inbox.alive),
            self._on_hang,
        )

    def _targets(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "frames", self._serve_frames
        yield "watchdog", lambda: self._watchdog.run(self._stop, self._show_source_fault)
        for name, follower in self._followers.items():
            yield f"{_UPDATES}{name}", follower.follow
            yield f"{_STATUS}{name}", functools.partial(self._send_status, follower)
        if self._reports:
            yield "reports", functools.partial(self._reports.run, self._stop)

    def start(self) -> None:
        """Start all threads."""
        for follower in self._followers.values():
            follower.show_releases()
            logger.info("%s: %s", self._settings.device.id, follower.describe())
        if self._broker:
            self._broker.start()
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # no more threads: no crash of a release
            for follower in self._followers.values():
                follower.close()
            raise
        self._labels.warnings()  # and log them
        self._systemd.ready()

    def say_stopping(self) -> None:
        """Tell systemd that this process ends."""
        self._systemd.stopping()

    def stop(self) -> None:
        """End all threads; a running update is abandoned, which is as safe as a power cut."""
        self._stop.set()
        self._may_serve.set()
        if self._reports:
            self._reports.end()
        for follower in self._followers.values():
            follower.end()
        reporting = [thread for thread in self._threads if thread.name.startswith(_STATUS)]
        _join([thread for thread in self._threads if thread not in reporting], STOP_S)
        for name, follower in self._followers.items():
            if not any(thread.is_alive() for thread in self._threads if thread.name == f"{_UPDATES}{name}"):
                follower.close()
            follower.figures.close()
        self._delivery.close()
        for follower in self._followers.values():
            follower.board.close()  # after the sinks: the last status counts what is not sent
        _join(reporting, STATUS_S)
        if self._broker:
            self._broker.stop()  # before what may take its time: the fleet is told
        if self._metrics.server:
            self._metrics.server.stop()
        if self._inbox:
            self._inbox.close()
        self._last_picture.close(hangs=self._driver.waiting_s() > SLOW_READING_S)

    def hang_up(self) -> None:
        """Install the releases of all channels now, and open the files of results anew: logrotate asks so.

        Where somebody asked for it (`edge-client update --retry`), all refusals are forgotten first.
        """
        self._delivery.reopen()
        forgiving = was_asked_to_forget_refusals(self._settings.device.state_dir)
        for follower in self._followers.values():
            follower.request_update(forgiving=forgiving)

    def import_bundles(self) -> None:
        """Read a bundle that was left for one of the channels."""
        for follower in self._followers.values():
            follower.wake()

    def keep_status(self) -> None:
        """Write the status to the disk now, for `edge-client status`."""
        for follower in self._followers.values():
            follower.board.keep()

    def _open_broker(self) -> BrokerConnection | None:
        device, broker = self._settings.device, self._settings.broker
        if not broker.host:
            return None
        return BrokerConnection(
            broker,
            device.id,
            handlers=announcement_handlers(device, self._followers.values()),
            commands=command_handlers(device, self._followers.values(), self._reports),
            online_topic=online_topic(device.fleet, device.id),
            on_connection=self._on_connection,
            on_acknowledged=self._on_acknowledged,
            start_spread_s=max(one.pace.start_spread_s for one in self._followers.values()),
            spread_s=lambda: max(one.pace.spread_s for one in self._followers.values()),
        )

    def _open_outbox(self, broker: BrokerConnection, kept: KeptResults) -> Outbox:
        device = self._settings.device
        return Outbox(
            kept,
            send=broker.send,
            connected=lambda: broker.connected,
            topic_of=lambda channel: results_topic(device.fleet, device.id, self._extra(channel)),
        )

    def _open_inbox(self) -> Inbox | None:
        if not is_needed(self._settings.inbox, self._settings.device.state_dir / INBOX_DIR):
            return None
        from edge_client.inbox.service import Inbox  # noqa: PLC0415 - most devices keep no frames

        return Inbox(self._settings)

    def _live_fields(self) -> dict[str, Any]:
        """Status fields of the device, not of one channel, that are read at the time of sending."""
        kept = self._inbox.live_fields() if self._inbox is not None and self._settings.inbox.keeps else {}
        died_at = self._last_picture.died_at
        picture = f"{died_at}: the last run died of this picture; it is set aside" if died_at else None
        faults = (
            self._settings.broker.exposure,
            *(self._broker.warnings if self._broker else ()),
            *(self._reports.warnings if self._reports else ()),
            self._metrics.fault,
            picture,
            *self._delivery.warnings(),
            *self._labels.warnings(),
        )
        warnings = [warning for warning in faults if warning is not None]
        counts = {"sinks": self._delivery.metrics(), "passed_over": self._passed_over.describe()}
        return {"warning": "; ".join(warnings) or None, **counts, **kept}

    def _extra(self, channel: str) -> str:
        """Return the name that an extra channel has in topics; empty for the main channel."""
        return "" if channel == self._settings.device.channel else channel

    def _on_connection(self) -> None:
        """Publish retained messages again: the broker may have lost them."""
        for follower in self._followers.values():
            follower.board.send_again()
        if self._broker:
            self._discovery.publish(self._broker.retain)
        if self._reports:
            self._reports.note_connection()
        if self._outbox:
            self._outbox.wake()

    def _open_discovery(self) -> Discovery:
        home, device = self._settings.homeassistant, self._settings.device
        messages: dict[str, bytes] = {}
        for name in self._followers if home.discovery else ():
            describe = discovery_messages if name else sensor_messages  # a model file has no updates
            messages |= describe(home.prefix, device.fleet, device.id, self._extra(name))
        return Discovery(device.state_dir / DISCOVERY_FILE, messages)

    def _on_acknowledged(self, number: int) -> None:
        self._discovery.acknowledged(number)
        if self._outbox:
            self._outbox.acknowledged(number)

    def _send_status(self, follower: Follower) -> None:
        going = True
        while going:
            try:
                going = follower.board.step()
                follower.keep_drift()
                follower.figures.keep_if_due()
                if self._broker and going:
                    self._broker.revive()
                    self._discovery.settle()
            except Exception:
                # Serving does not depend on the status; the next change tries again.
                logger.exception("the status could not be sent")

    def _publish_status(self, channel: str, payload: bytes) -> bool:
        device = self._settings.device
        if not self._settings.status.retain:
            return True
        topic = status_topic(device.fleet, device.id, channel)
        return self._broker is not None and self._broker.publish_state(topic, payload)

    # Frames

    def _serve_frames(self) -> None:
        """Classify until the daemon stops; a source that fails is opened again."""
        self._may_serve.wait()
        delay_s = SOURCE_RETRY_S[0]
        while not self._stop.is_set():
            frames = self._frames
            try:
                self._classify_all()
            except EdgeError as e:
                self._show_source_fault(str(e))
            except Exception as e:
                # Whatever a camera's driver raises, the source is opened again.
                logger.exception("the source failed")
                self._show_source_fault(f"the source failed: {without_secrets(f'{type(e).__name__}: {e}')}")
            else:
                if not self._stop.is_set():
                    logger.info("the source has no more frames")
                    self._on_end()
                return
            if self._frames > frames:
                delay_s = SOURCE_RETRY_S[0]
            self._stop.wait(delay_s)
            delay_s = min(delay_s * 2, SOURCE_RETRY_S[1])

    def _show_source_fault(self, fault: str) -> None:
        if fault != self._source_fault:
            logger.error("%s", fault)
        self._source_fault = fault
        for follower in self._followers.values():
            follower.show_source_fault(fault)

    @property
    def _frames(self) -> int:
        return sum(follower.board.frames for follower in self._followers.values())

    def _classify_all(self) -> None:
        if self._source is None:
            self._source = open_source(
                self._settings.source, self._driver, self._last_picture, self._passed_over
            )  # kept: it records which frames it has delivered
        for frame in self._source.frames(self._stop):
            self._watchdog.classifying_since = time.monotonic()
            try:
                self._serve(frame)
            except Exception:
                # Whatever one frame does, the next ones do not wait for it. Its file stays where it is.
                logger.exception("%s: the frame could not be served", frame.source)
            finally:
                self._watchdog.classifying_since = None
            del frame  # a large picture is not kept while the next one is decoded

    def _serve(self, frame: Frame) -> None:
        """Let all channels answer a frame; comparing and keeping it come after publishing the results."""
        answered: list[tuple[Follower, ChannelAnswer]] = []
        receipt = Receipt(frame.done)
        for follower in self._followers.values():
            if (answer := follower.classify(frame)) is not None:
                self._delivery.write(answer.result, answer.prediction, receipt)
                answered.append((follower, answer))
        receipt.close()
        if answered:
            self._source_fault = None
        answers = []
        for follower, answer in answered:
            follower.results_published(answer)
            answers.append(dataclasses.replace(answer, shadow=follower.compare(frame, answer)))
        # Where one release did not answer, the frame may show what only that release knows to be private.
        if self._inbox and len(answers) == sum(follower.serves for follower in self._followers.values()):
            self._inbox.consider(frame.pixels, answers)


def _join(threads: Sequence[threading.Thread], limit_s: float) -> None:
    """Wait until threads have ended, together for a limited time."""
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
