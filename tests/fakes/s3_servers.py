"""More S3 servers than SeaweedFS, as their packages ship them: moto's, rclone's, and MinIO's code in JuiceFS.

A test that asks for one that is not installed is skipped; the extra `dev` has them.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_services import LocalService, free_ports


class S3Server(LocalService):
    """An S3 server on a loopback port with one bucket.

    Attributes:
        is_conditional: Whether it respects If-Match and If-None-Match.
    """

    is_conditional = False

    def __init__(self) -> None:
        super().__init__()
        self.bucket = "edge-models"
        self.access_key, self.secret_key = "PIPELINE", secrets.token_hex(16)
        [self.port] = free_ports(1)

    @property
    def endpoint_url(self) -> str:
        """S3 endpoint."""
        return f"http://{self.host}:{self.port}"

    def credentials(self) -> dict[str, str]:
        """Return the environment that gives boto3 all rights."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def client(self) -> Any:
        """Return a boto3 client."""
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(retries={"max_attempts": 0}, request_checksum_calculation="when_required"),
        )

    def ready(self) -> bool:
        """Whether the bucket is there."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            client = self.client()
            if self.bucket not in [one["Name"] for one in client.list_buckets().get("Buckets", ())]:
                client.create_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError):
            return False
        return True


class Moto(S3Server):
    """moto: Amazon's answers, archives and conditions among them, without a check of signatures."""

    name = "moto"
    is_conditional = True

    def command(self) -> list[str]:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask_cors") is None:
            pytest.skip("moto's server is not installed; pip install 'edge-fleet[dev]'")
        return [sys.executable, "-m", "moto.server", "-H", self.host, "-p", str(self.port)]


class Rclone(S3Server):
    """rclone serve s3 over a folder; it checks signatures, and ignores conditions without a word."""

    name = "rclone"

    def command(self) -> list[str]:
        (self.folder / "data" / self.bucket).mkdir(parents=True, exist_ok=True)
        keys = f"{self.access_key},{self.secret_key}"
        place = [f"--addr={self.host}:{self.port}", f"--auth-key={keys}", str(self.folder / "data")]
        return [find_program("rclone"), "serve", "s3", "--config=", *place]


class JuiceFS(S3Server):
    """Gateway of JuiceFS, which is MinIO's code; it checks signatures, and ignores conditions likewise."""

    name = "juicefs"

    def __init__(self) -> None:
        super().__init__()
        [self._metrics_port] = free_ports(1)

    def command(self) -> list[str]:
        program, metadata = find_program("juicefs"), f"sqlite3://{self.folder / 'metadata.db'}"
        storage = ["--storage=file", f"--bucket={self.folder / 'data'}"]
        if not (self.folder / "metadata.db").exists():
            subprocess.run(
                [program, "format", *storage, "--no-agent", metadata, "edge"], check=True, capture_output=True
            )
        options = ["--multi-buckets", "--keep-etag", "--no-usage-report", "--no-agent", "--no-banner"]
        places = [f"--cache-dir={self.folder / 'cache'}", f"--metrics={self.host}:{self._metrics_port}"]
        return [program, "gateway", *options, *places, metadata, f"{self.host}:{self.port}"]

    def environment(self) -> dict[str, str]:
        keys = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        return dict(os.environ) | keys


SERVERS: dict[str, type[S3Server]] = {one.name: one for one in (Moto, Rclone, JuiceFS)}


def find_program(name: str) -> str:
    """Return the program that a package of that name installs; without it the test is skipped."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed; pip install 'edge-fleet[dev]'")
    return found
