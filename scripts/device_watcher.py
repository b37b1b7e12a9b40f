"""A device daemon as a child process: its settings, and what any dashboard would see of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.documents import decode_document
from edge_client.contract.messages import STATUS_LIMIT_BYTES, DeviceStatus, Result
from edge_client.contract.names import results_topic, status_topic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from local_services import MqttBroker, ObjectStore


class DeviceWatcher:
    """Follows the device's status and results on the broker, as any dashboard would."""

    def __init__(self, broker: MqttBroker, fleet: str, device: str) -> None:
        from paho.mqtt import client as mqtt  # noqa: PLC0415
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

        self.results: deque[Result] = deque()
        self._results = results_topic(fleet, device)
        self.status: DeviceStatus | None = None
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"watcher-of-{device}")
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(status_topic(fleet, device), 1), (self._results, 1)]
        )
        self._client.on_message = lambda _c, _u, message: self._take(message.topic, bytes(message.payload))
        self._client.connect(broker.host, broker.port)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def clear(self) -> None:
        """Forget the results so far."""
        self.results.clear()

    def sources(self) -> set[str]:
        """Return the names of the pictures that were classified."""
        return {one.source for one in self.results.copy()}  # others come meanwhile

    def wait_for(self, condition: Any, what: str, limit_s: float = 60) -> DeviceStatus:  # noqa: ANN401
        """Wait until the device's status meets the condition.

        Raises: TimeoutError that names `what` and the last status.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: self.status is not None and condition(self.status), limit_s
            ):
                msg = f"waited {limit_s:.0f} s for {what}; last status: {self.status}"
                raise TimeoutError(msg)
            status = self.status
        if status is None:
            raise TimeoutError(what)
        return status

    def _take(self, topic: str, payload: bytes) -> None:
        if not payload:
            return  # of `edge-client doctor`, which tries the topic of results while no daemon runs
        if topic == self._results:
            self.results.append(
                decode_document(Result, payload, source=topic, limit_bytes=STATUS_LIMIT_BYTES)
            )
            return
        with self._changed:
            self.status = decode_document(DeviceStatus, payload, source=topic, limit_bytes=STATUS_LIMIT_BYTES)
            self._changed.notify_all()


def write_settings(path: Path, sections: Mapping[str, Mapping[str, object]]) -> Path:
    """Write the device's settings file and return it; TOML reads strings and numbers of JSON alike."""
    path.write_text(
        "".join(
            f"[{section}]\n"
            + "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
            for section, values in sections.items()
        ),
        encoding="utf-8",
    )
    return path


def device_settings(
    folder: Path, *, device: str, fleet: str, base_url: str, root: Path, broker: MqttBroker
) -> dict[str, dict[str, object]]:
    """Return settings of a device that keeps its state in `folder`.

    Args:
        folder: Of this device.
        device: Its id.
        fleet: Its fleet.
        base_url: Where the pipeline publishes.
        root: The root of trust, `root.json`.
        broker: Where releases are announced.
    """
    return {
        "device": {"id": device, "fleet": fleet, "state_dir": str(folder / "state")},
        "store": {"base_url": base_url},
        "trust": {"root": str(root)},
        "broker": {"host": broker.host, "port": broker.port},
    }


@contextlib.contextmanager
def running_device(
    settings: Path, log: Path, store: ObjectStore, edge_client: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the device daemon as systemd would.

    Args:
        settings: The device's one file.
        log: Gets its output.
        store: Whose key for devices is in its environment.
        edge_client: The command, if it is not this environment's.
    """
    program = edge_client or Path(sys.executable).with_name("edge-client")
    command = [str(program), "run", "--config", str(settings)]
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": store.device_access_key,
        "AWS_SECRET_ACCESS_KEY": store.device_secret_key,
    }
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        yield process
    finally:
        end_process(process)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and kill it if it has not after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
