"""AWS IoT's credentials provider behind mutual TLS, and the guard of a store that knows its tokens."""

from __future__ import annotations

import datetime
import http.server
import json
import ssl
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from tests.fakes.certificates import CertificateAuthority, KeyPair

ALIAS = "edge-store"


class CredentialsProvider:
    """Use in a `with` block.

    Attributes:
        life_s: For how long keys are valid.
        refusal: Status and body of each answer, if not keys.
        things: Thing names of the requests, in order.
        secrets: All secret keys and tokens that were given.
        clock_ahead: How far the time of day here is ahead of the device's.
        revoke_after: Requests to the store that one token survives; None: all.
    """

    def __init__(self, authority: CertificateAuthority) -> None:
        self.life_s = 3600.0
        self.refusal: tuple[int, bytes] | None = None
        self.things: list[str] = []
        self.secrets: list[str] = []
        self.clock_ahead = datetime.timedelta()
        self.revoke_after: int | None = None
        self._uses: dict[str, int] = {}
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                provider.things.append(self.headers["x-amzn-iot-thingname"])
                status, body = provider._answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def date_time_string(self, timestamp: float | None = None) -> str:
                ahead = provider.clock_ahead.total_seconds()
                return super().date_time_string((timestamp or provider._now().timestamp()) + ahead)

            def log_message(self, *_arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_request: object) -> None:
                """Say nothing: a client with a wrong certificate is cut off."""

        self._server = Server(("127.0.0.1", 0), Handler)
        pair = authority.issue("credentials-provider")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        context.load_verify_locations(authority.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        # In the thread of the connection: a client that says nothing must not keep others waiting.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    @property
    def endpoint(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def settings(self, authority: CertificateAuthority, device: KeyPair) -> dict[str, Any]:
        """Settings of [store] for a device with this certificate."""
        return {
            "credentials_endpoint": self.endpoint,
            "role_alias": ALIAS,
            "thing_name": "camera-1",
            "certificate_file": str(device.certificate),
            "key_file": str(device.key),
            "credentials_ca_file": str(authority.certificate),
        }

    def guard(self, headers: Mapping[str, str]) -> bytes | None:
        """Return S3's error code for a request to the store; None if its token is valid."""
        sent = {name.lower(): value for name, value in headers.items()}
        token = sent.get("x-amz-security-token", "")
        if token not in self._uses or "x-amz-security-token" not in sent.get("authorization", ""):
            return b"AccessDenied"
        self._uses[token] += 1
        if self.revoke_after is not None and self._uses[token] > self.revoke_after:
            return b"ExpiredToken"
        return None

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.timezone.utc)

    def _answer(self, path: str) -> tuple[int, bytes]:
        if self.refusal is not None:
            return self.refusal
        if path != f"/role-aliases/{ALIAS}/credentials":
            return 404, b'{"message":"Not Found","traceId":"c00be6b7"}'
        number = len(self._uses)
        secret, token = f"very-secret-{number}", f"token-{number}"
        self._uses[token] = 0
        self.secrets += [secret, token]
        expires = self._now() + self.clock_ahead + datetime.timedelta(seconds=self.life_s)
        keys = {
            "accessKeyId": f"ASIA{number:016}",
            "secretAccessKey": secret,
            "sessionToken": token,
            "expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return 200, json.dumps({"credentials": keys}).encode()


def write_encrypted_key(pair: KeyPair, file: Path) -> Path:
    """Write a device's key with a passphrase, as some tools do."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a passphrase"),
        )
    )
    return file
