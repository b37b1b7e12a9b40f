"""S3, MQTT broker and luigid on free loopback ports, for the demo, the tests and the benchmarks.

Each service is a context manager around a child process, keeps its data in a folder, and can be
stopped and started again on the same port. None is meant for production.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

LOOPBACK = "127.0.0.1"
# Factor for the limits within which tests wait: EDGE_TEST_PATIENCE=10 where a device is emulated.
PATIENCE = float(os.environ.get("EDGE_TEST_PATIENCE", "1"))
# SeaweedFS now and then comes up half and stays so: it is ended and started again.
START_LIMIT_S = 60.0
START_ATTEMPTS = 3
# SeaweedFS takes over 8 s to end by itself.
STOP_LIMIT_S = 3.0
# Buckets are also found at http://bucket.localhost, where a system resolves that name.
VIRTUAL_HOSTS = "localhost"
PROBE_KEY = "is-the-store-ready"


# Sockets that keep drawn ports from other processes until this one ends; see `free_ports`.
_RESERVATIONS: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Reserve ports that nothing listens on, all different, until this process ends.

    Each port stays bound to a socket that never listens: the kernel gives it to no other process, neither to
    another test process nor to an outgoing connection, while a server that sets SO_REUSEADDR, as all of
    them do, may bind it and listen. Connections are refused until then.
    """
    sockets = [socket.socket() for _ in range(count)]
    _RESERVATIONS.extend(sockets)
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((LOOPBACK, 0))
    return [one.getsockname()[1] for one in sockets]


class LocalService:
    """A child process that is ready when `start` returns and gone when `stop` returns."""

    name = "service"

    def __init__(self, folder: Path | None = None) -> None:
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.host = LOOPBACK
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Output of the service."""
        return self.folder / f"{self.name}.log"

    def command(self) -> list[str]:
        """Return the command line of the child."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether the service answers now; a connection error counts as no answer."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the child's environment."""
        return dict(os.environ)

    def start(self) -> None:
        """Start the child and wait until it answers; one that does not is started again.

        Raises: RuntimeError with the end of its log if no attempt answers in time.
        """
        for _ in range(START_ATTEMPTS):
            if self._start_once():
                return
            self.stop()
        tail = self.log.read_text(errors="replace")[-2000:]
        msg = f"{self.name} did not start in {START_ATTEMPTS} attempts; its log ends:\n{tail}"
        raise RuntimeError(msg)

    def _start_once(self) -> bool:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.ready():
                    return True
            time.sleep(0.05)  # a foreign process offers no event to wait for
        return False

    def stop(self) -> None:
        """End the child with everything it started; it may be started again."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C too leaves no process behind
            self._end(signal.SIGKILL)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end(signal.SIGKILL)  # what it did not write yet is of no use to anybody
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


class ObjectStore(LocalService):
    """SeaweedFS with its S3 door: real signatures, ranges and conditional writes.

    Two identities: the pipeline may do all, the device may only read the bucket. Further ones have policies.

    Args:
        folder: Keeps its data.
        bucket: Name of the bucket.
        policies: IAM policies, JSON, by the access key of who has them; see `secret_of`.
    """

    name = "object-store"

    def __init__(
        self,
        folder: Path | None = None,
        bucket: str = "edge-models",
        policies: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.bucket = bucket
        self._policies = dict(policies or {})
        self._secrets = {name: secrets.token_hex(16) for name in self._policies}
        names = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(names))
        self._ports = dict(zip(names, ports[:4], strict=True))
        self._grpc_ports = dict(zip(names, ports[4:], strict=True))
        self.access_key, self.secret_key = "PIPELINE", secrets.token_hex(16)
        self.device_access_key, self.device_secret_key = "DEVICE", secrets.token_hex(16)

    @property
    def endpoint_url(self) -> str:
        """S3 endpoint."""
        return f"http://{self.host}:{self._ports['s3']}"

    def command(self) -> list[str]:
        identities = self.folder / "identities.json"
        policies = [{"name": name, "content": text} for name, text in self._policies.items()]
        identities.write_text(json.dumps({"identities": self._identities(), "policies": policies}))
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        ports += [f"-{name}.port.grpc={port}" for name, port in self._grpc_ports.items()]
        return [
            str(Path(sys.executable).with_name("weed")),
            "-logtostderr=true",
            "server",
            f"-ip={self.host}",
            f"-ip.bind={self.host}",
            f"-dir={self.folder}",
            "-s3",
            f"-s3.config={identities}",
            f"-s3.domainName={VIRTUAL_HOSTS}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.resumeState=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=30",
            "-volume.preStopSeconds=0",
            *ports,
        ]

    def ready(self) -> bool:
        """Whether an object can be written and read back, so that no user meets a cold volume."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        client = self.client()
        try:
            known = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
            with contextlib.suppress(*known):
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key=PROBE_KEY, Body=b"ready?")
            return bool(client.get_object(Bucket=self.bucket, Key=PROBE_KEY)["Body"].read() == b"ready?")
        except (BotoCoreError, ClientError):
            return False

    def _end(self, number: signal.Signals) -> None:
        super()._end(number)
        # It is killed, so its Unix sockets are left to remove here.
        for port in (*self._ports.values(), *self._grpc_ports.values()):
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - SeaweedFS' own choice
                path.unlink(missing_ok=True)

    def client(self) -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
        """Return a boto3 client with the pipeline's rights."""
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def credentials(self) -> dict[str, str]:
        """Return the environment that gives boto3 the pipeline's rights."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def secret_of(self, access_key: str) -> str:
        """Return the secret key of an identity with a policy."""
        return self._secrets[access_key]

    def _identities(self) -> list[dict[str, object]]:
        def identity(name: str, key: str, secret: str, *actions: str) -> dict[str, object]:
            return {
                "name": name,
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": list(actions),
            }

        everything = ("Admin", "Read", "Write", "List", "Tagging")
        return [
            identity("pipeline", self.access_key, self.secret_key, *everything),
            identity(
                "device",
                self.device_access_key,
                self.device_secret_key,
                f"Read:{self.bucket}",
                f"Write:{self.bucket}/*/inbox/*",  # below any store prefix
            ),
            *(identity(name, name, key) | {"policyNames": [name]} for name, key in self._secrets.items()),
        ]


class MqttBroker(LocalService):
    """Mosquitto where it is installed, else rumqttd from the `iotcore` wheel."""

    name = "mqtt-broker"

    def __init__(self, folder: Path | None = None, *, mosquitto: bool | None = None) -> None:
        super().__init__(folder)
        self.port = free_ports(1)[0]
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        found = shutil.which("mosquitto", path=path)
        self.mosquitto = found if mosquitto is not False else None

    @property
    def product(self) -> str:
        """Which broker this is."""
        return "mosquitto" if self.mosquitto else "iotcore (rumqttd)"

    def command(self) -> list[str]:
        if self.mosquitto is None:
            code = (
                "import sys; from iotcore import IotCoreBroker; IotCoreBroker(listen=sys.argv[1], "
                "port=int(sys.argv[2]), max_payload_size=1 << 20).run_forever()"
            )
            return [sys.executable, "-c", code, self.host, str(self.port)]
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text(f"listener {self.port} {self.host}\nallow_anonymous true\n")
        return [self.mosquitto, "-c", str(configuration)]

    def ready(self) -> bool:
        with socket.create_connection((self.host, self.port), timeout=1):
            return True


class Scheduler(LocalService):
    """`luigid`, Luigi's central scheduler with its web page.

    Args:
        folder: Keeps its state.
        settings: Of section `[scheduler]`, where they differ from luigi.cfg.
    """

    name = "luigid"

    def __init__(self, folder: Path | None = None, settings: dict[str, str] | None = None) -> None:
        super().__init__(folder)
        self._settings = settings or {}
        self.port = free_ports(1)[0]

    @property
    def url(self) -> str:
        """Address of its web page."""
        return f"http://{self.host}:{self.port}"

    def command(self) -> list[str]:
        luigid = str(Path(sys.executable).with_name("luigid"))
        state = str(self.folder / "state.pickle")
        return [luigid, "--address", self.host, "--port", str(self.port), "--state-path", state]

    def environment(self) -> dict[str, str]:
        configuration = configparser.RawConfigParser()
        configuration.read(Path(__file__).resolve().parents[1] / "luigi.cfg")
        configuration["scheduler"].update(self._settings)
        path = self.folder / "luigi.cfg"
        with path.open("w") as file:
            configuration.write(file)
        return {**os.environ, "LUIGI_CONFIG_PATH": str(path)}

    def ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/api/task_list?data=%7B%7D", timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 60.0 * PATIENCE) -> None:
    """Poll a foreign process that offers no event.

    Raises: TimeoutError that names `what`.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            msg = f"waited {limit_s:.0f} s for {what}"
            raise TimeoutError(msg)
        time.sleep(0.02)
