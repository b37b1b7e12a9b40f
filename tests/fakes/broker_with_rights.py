"""Mosquitto with configs/mosquitto.acl and passwords, and clients that note what gets through."""

from __future__ import annotations

import getpass
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from local_services import MqttBroker
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Self

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LIMIT_S = 60.0
AUDITOR = "auditor"  # may do all


class BrokerWithRights(MqttBroker):
    """Mosquitto as in configs/, without TLS.

    Args:
        folder: Its own.
        passwords: Its password file.
    """

    def __init__(self, folder: Path, passwords: Path) -> None:
        super().__init__(folder)
        self._passwords = passwords

    def command(self) -> list[str]:
        assert self.mosquitto is not None
        acl, file = self.folder / "acl", self.folder / "mosquitto.conf"
        acl.touch(mode=0o600)
        acl.write_text((CONFIGS / "mosquitto.acl").read_text() + f"\nuser {AUDITOR}\ntopic readwrite #\n")
        file.write_text(
            f"listener {self.port} {self.host}\nuser {getpass.getuser()}\nallow_anonymous false\n"
            f"password_file {self._passwords}\nacl_file {acl}\n"
        )
        return [self.mosquitto, "-c", str(file)]


class Client:
    """A client of the broker that notes the topics of what it receives."""

    def __init__(self, broker: MqttBroker, user: str, password: str, *filters: str) -> None:
        self._received: list[str] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._filters = [(one, 1) for one in filters]
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"{user}-{id(self)}")
        self._client.username_pw_set(user, password)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._note
        self._client.connect(broker.host, broker.port)

    def __enter__(self) -> Self:
        self._client.loop_start()
        assert self._subscribed.wait(LIMIT_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(
        self, client: mqtt.Client, _data: object, _flags: object, reason: object, _p: object
    ) -> None:
        client.subscribe(self._filters or [("nothing", 1)])

    def _note(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self._received.append(message.topic)
            self._changed.notify_all()

    def publish(self, topics: Collection[str]) -> None:
        """Publish a message on each topic, and wait until the broker acknowledged all."""
        for sent in [self._client.publish(topic, b"x", qos=1) for topic in topics]:
            sent.wait_for_publish(LIMIT_S)

    def received_until(self, last: Collection[str]) -> set[str]:
        """Return the topics received until one of some topics came."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(one in self._received for one in last), LIMIT_S)
            found = {one for one in self._received if one not in last}
            self._received.clear()
            return found
