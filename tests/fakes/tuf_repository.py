"""A real signed repository behind a real HTTP server on loopback, that lies when told to.

It signs with the same library as the pipeline, records what it was asked, and serves whatever stands
in `objects`: a test attacks by changing that, or with the methods named for the attacks.
"""

from __future__ import annotations

import datetime
import hashlib
import http.server
import socket
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_client.contract.documents import encode_document
from edge_client.contract.names import (
    ROLLOUTS_ROLE,
    SIGNED_AT_FIELD,
    channel_target,
    release_target,
    rollout_target,
)
from edge_client.contract.release import ChannelDocument
from edge_client.contract.rollout import RolloutDocument
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from typing import Self

    from edge_client.contract.release import ReleaseDocument

SignedT = TypeVar("SignedT", Targets, Snapshot, Timestamp)

ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


class TufRepository:
    """Use in a `with` block; `url` is what a device gets as `[store] base_url`.

    Attributes:
        objects: What is served, by path below `url`.
        requests: Paths that were asked for, in order.
        ranges: Offsets that were asked for, by path, in order.
        knows_ranges: Whether range requests are supported; a plain web server may not.
        content_range: Value of the header Content-Range in place of the true one.
        root: The provisioned root metadata.
        break_off_after: Object path to the number of bytes after which the connection is cut.
        trickle: Object paths that are served one byte at a time, slowly.
        trickle_headers: Send the headers of every answer one byte at a time, slowly.
        status: Answer every request with this status instead; 0: do not.
        guard: Returns the error code of S3 for a request with such headers; None: it may pass.
        signed_at: What the next timestamps say of the time of signing; None: the truth.
        signers: The key of each role.
        co_signers: More keys of a role, see `share`.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: dict[str, list[int]] = {}
        self.knows_ranges = True
        self.content_range: str | None = None
        self.break_off_after: dict[str, int] = {}
        self.trickle: set[str] = set()
        self.trickle_headers = False
        self.status = 0
        self.guard: Callable[[Mapping[str, str]], bytes | None] = lambda _headers: None
        self.expiry = {role: _in_days(30) for role in ROLES}
        self.signed_at: str | None = None
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        self.co_signers: dict[str, list[CryptoSigner]] = {role: [] for role in ROLES}
        self._targets = Targets()
        self._targets.version = 0
        self._pointers: Targets | None = None
        self._snapshot_version = self._timestamp_version = 0
        self._root = Root(consistent_snapshot=True, expires=self.expiry[Root.type])
        for role, signer in self.signers.items():
            self._root.add_key(signer.public_key, role)
        work = CryptoSigner.generate_ed25519().public_key  # the pipeline's; devices have no use for it
        self._root.keys[work.keyid] = work
        self._root.unrecognized_fields["work"] = {"keyids": [work.keyid], "threshold": 1}
        self.root = self._sign_root([self.signers[Root.type]])
        self._port = 0
        self._server: http.server.ThreadingHTTPServer | None = None

    # Serving

    @property
    def url(self) -> str:
        """Address below which `metadata/` and `targets/` lie."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}/bucket/prefix"

    def start(self) -> None:
        """Serve; again on the same port after `stop`."""
        server = _Server(("127.0.0.1", self._port), _Handler)
        server.repository = self
        if self._tls is not None:
            server.socket = self._tls.wrap_socket(server.socket, server_side=True)
        self._port = server.server_address[1]
        self._server = server
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    # Publishing, as the pipeline does it

    def publish_tiny(self, bias: int = 0, channel: str = "stable", **options: object) -> ReleaseDocument:
        """Publish `tiny_release(bias)` and point the channel to it."""
        document, files = tiny_release(bias, **options)  # type: ignore[arg-type]
        self.publish(document.release, files, channel)
        return document

    def publish(
        self, release: str, files: Mapping[str, bytes], channel: str = "stable", share_percent: float = 100.0
    ) -> None:
        """Sign a release's files and point the channel to it."""
        self.add({release_target(release, name): data for name, data in files.items()})
        self.point(channel, release, share_percent)

    def point(self, channel: str, release: str, share_percent: float = 100.0, retry_since: str = "") -> None:
        """Move a channel."""
        document = ChannelDocument(
            channel=channel, release=release, share_percent=share_percent, retry_since=retry_since
        )
        self.add({channel_target(channel): encode_document(document)})
        self.sign()

    def delegate(self) -> None:
        """Let a role of its own sign pointers and rollout documents, as newer pipelines do."""
        signer = CryptoSigner.generate_ed25519()
        self.signers[ROLLOUTS_ROLE], self.co_signers[ROLLOUTS_ROLE] = signer, []
        self.expiry[ROLLOUTS_ROLE] = _in_days(30)
        role = DelegatedRole(
            ROLLOUTS_ROLE,
            [signer.public_key.keyid],
            1,
            terminating=True,
            paths=["channels/*.json", "rollouts/*.json"],
        )
        self._targets.delegations = Delegations(
            {signer.public_key.keyid: signer.public_key}, {ROLLOUTS_ROLE: role}
        )
        self._pointers = Targets()
        self._pointers.version = 0
        for path in [path for path in self._targets.targets if _is_pointer(path)]:
            self._pointers.targets[path] = self._targets.targets.pop(path)
        self.sign()

    def roll_out(self, channel: str = "stable", **fields: object) -> RolloutDocument:
        """Sign a rollout document; nothing is done for the targets role."""
        document = RolloutDocument(channel=channel, **fields)  # type: ignore[arg-type]
        self.add({rollout_target(channel): encode_document(document)})
        self.sign_pointers()
        return document

    def add(self, files: Mapping[str, bytes]) -> None:
        """Store files and have them signed by the next `sign`."""
        for path, data in files.items():
            self._role_of(path).targets[path] = TargetFile.from_data(path, data)
            self.objects[object_path(path, data)] = data

    def forget(self, path: str) -> None:
        """Sign the file no more."""
        del self._role_of(path).targets[path]

    def _role_of(self, path: str) -> Targets:
        return self._pointers if self._pointers is not None and _is_pointer(path) else self._targets

    def sign(self) -> None:
        """Publish new metadata over all that was added."""
        self._targets.version += 1
        self._targets.expires = self.expiry[Targets.type]
        version = self._targets.version
        self.objects[f"metadata/{version}.targets.json"] = self._signed(self._targets, Targets.type)
        self.sign_pointers()

    def sign_pointers(self) -> None:
        """Publish new metadata over the pointers alone."""
        meta = {"targets.json": MetaFile(self._targets.version)}
        if self._pointers is not None:
            self._pointers.version += 1
            self._pointers.expires = self.expiry[ROLLOUTS_ROLE]
            name = f"{self._pointers.version}.{ROLLOUTS_ROLE}.json"
            self.objects[f"metadata/{name}"] = self._signed(self._pointers, ROLLOUTS_ROLE)
            meta[f"{ROLLOUTS_ROLE}.json"] = MetaFile(self._pointers.version)
        self._snapshot_version += 1
        snapshot = Snapshot(version=self._snapshot_version, expires=self.expiry[Snapshot.type], meta=meta)
        self.objects[f"metadata/{snapshot.version}.snapshot.json"] = self._signed(snapshot, Snapshot.type)
        self.stamp()

    def stamp(self) -> None:
        """Publish a new timestamp, and nothing else."""
        self._timestamp_version += 1
        timestamp = Timestamp(
            version=self._timestamp_version,
            expires=self.expiry[Timestamp.type],
            snapshot_meta=MetaFile(self._snapshot_version),
        )
        timestamp.unrecognized_fields[SIGNED_AT_FIELD] = self.signed_at or _in_days(0).isoformat()
        self.objects["metadata/timestamp.json"] = self._signed(timestamp, Timestamp.type)

    def rotate(self, role: str, *, old_root_signs: bool = True, new_root_signs: bool = True) -> None:
        """Replace the keys of a role by a new root version."""
        old_root, old = self._signers(Root.type), self._signers(role)
        self.signers[role] = CryptoSigner.generate_ed25519()
        self.co_signers[role] = [CryptoSigner.generate_ed25519() for _ in self.co_signers[role]]
        for signer in old:
            self._root.revoke_key(signer.public_key.keyid, role)
        for signer in self._signers(role):
            self._root.add_key(signer.public_key, role)
        signers = [
            *(old_root if old_root_signs else []),
            *(self._signers(Root.type) if new_root_signs else []),
        ]
        self.publish_root(signers)

    def publish_root(self, signers: list[CryptoSigner] | None = None) -> None:
        """Publish the root as it stands as a new version; signed by its own keys, unless by others."""
        self._root.version += 1
        self._root.expires = self.expiry[Root.type]
        unique = {signer.public_key.keyid: signer for signer in signers or self._signers(Root.type)}
        self.objects[f"metadata/{self._root.version}.root.json"] = self._sign_root([*unique.values()])

    def share(self, role: str, keys: int, threshold: int) -> None:
        """Share a role among several keys in the provisioned root: before a device gets it."""
        self.co_signers[role] = [CryptoSigner.generate_ed25519() for _ in range(keys - 1)]
        for signer in self.co_signers[role]:
            self._root.add_key(signer.public_key, role)
        self._root.roles[role].threshold = threshold
        self.root = self._sign_root(self._signers(Root.type))

    # Lying

    def change_byte(self, path: str) -> None:
        """Flip the lowest bit of an object's middle byte."""
        data = bytearray(self.objects[path])
        data[len(data) // 2] ^= 1
        self.objects[path] = bytes(data)

    def truncate(self, path: str) -> None:
        """Store only the first half of an object."""
        self.objects[path] = self.objects[path][: len(self.objects[path]) // 2]

    def steal(self, role: str) -> None:
        """From now on, sign a role with a key that no root lists."""
        self.signers[role] = CryptoSigner.generate_ed25519()

    def expire(self, role: str) -> None:
        """From now on, sign a role with an expiry in the past."""
        self.expiry[role] = _in_days(-1)

    def go_back_to(self, objects: Mapping[str, bytes]) -> None:
        """Serve what was served before: `before = dict(repository.objects)`."""
        self.objects = dict(objects)

    def find(self, part: str) -> str:
        """Path of the only object whose path contains `part`."""
        [path] = [path for path in self.objects if part in path]
        return path

    def _signed(self, signed: SignedT, role: str) -> bytes:
        metadata = Metadata(signed)
        for signer in self._signers(role):
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _signers(self, role: str) -> list[CryptoSigner]:
        return [self.signers[role], *self.co_signers[role]]

    def _sign_root(self, signers: list[CryptoSigner]) -> bytes:
        metadata = Metadata(self._root)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()


def object_path(path: str, data: bytes) -> str:
    """Where a signed file lies: its hash stands before its name."""
    folder, _, name = path.rpartition("/")
    return f"targets/{folder}/{hashlib.sha256(data).hexdigest()}.{name}"


def _is_pointer(path: str) -> bool:
    return path.startswith(("channels/", "rollouts/"))


def _in_days(days: int) -> datetime.datetime:
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    return now + datetime.timedelta(days=days)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    repository: TufRepository

    def handle_error(self, *_request: object) -> None:
        """Say nothing: devices that are killed or give up close connections."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        repository = self.server.repository
        path = self.path.removeprefix("/bucket/prefix/")
        repository.requests.append(path)
        data = repository.objects.get(path)
        if (code := repository.guard(dict(self.headers))) is not None:
            self._answer(403 if code == b"AccessDenied" else 400, b"<Error><Code>%s</Code></Error>" % code)
        elif repository.status:
            self._answer(repository.status, b"<Error><Code>SlowDown</Code></Error>")
        elif data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer_range(data, path)

    def do_PUT(self) -> None:
        repository = self.server.repository
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if (code := repository.guard(dict(self.headers))) is not None:
            self._answer(403 if code == b"AccessDenied" else 400, b"<Error><Code>%s</Code></Error>" % code)
        else:
            repository.objects[self.path.removeprefix("/bucket/prefix/")] = body
            self._answer(200, b"")

    def _answer_range(self, data: bytes, path: str) -> None:
        repository = self.server.repository
        offset = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        if offset:
            repository.ranges.setdefault(path, []).append(offset)
        if not offset or not repository.knows_ranges:
            self._answer(200, data, path)
        elif offset >= len(data):
            self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
        else:
            self._answer(206, data[offset:], path, f"bytes {offset}-{len(data) - 1}/{len(data)}")

    def _answer(self, status: int, data: bytes, path: str = "", content_range: str = "") -> None:
        repository = self.server.repository
        self.send_response(status)
        if content_range:
            truth = repository.content_range is None
            self.send_header("Content-Range", content_range if truth else repository.content_range or "")
        self.send_header("Content-Length", str(len(data)))
        if repository.trickle_headers:
            self._trickle(b"HTTP/1.1 200 OK\r\n" + b"X-More: x\r\n" * 90)
            return
        self.end_headers()
        if path in repository.trickle:
            self._trickle(data)
        elif path in repository.break_off_after:
            self.wfile.write(data[: repository.break_off_after[path]])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(data)

    def _trickle(self, data: bytes) -> None:
        for byte in data:
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                return
            time.sleep(0.05)  # being slow is what this is about

    def log_message(self, _format: str, *args: object) -> None:
        """Say nothing; `requests` knows."""
