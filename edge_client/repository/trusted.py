"""The store, verified against the provisioned root (The Update Framework, client side).

python-tuf decides; this module fills its gaps. python-tuf does not fsync its files, so it works in a scratch
copy, and metadata that it verified is written durably afterwards: a power cut never costs the memory of newer
metadata, which is the protection against older metadata. It trusts whatever root.json it finds on disk, so
the provisioned root is passed every time. One `Updater` refreshes once, so each update check builds a
`TrustedRepository` of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import Updater, UpdaterConfig

from edge_client import __version__
from edge_client.contract.addresses import shown_address, shown_below, without_secrets
from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError, TransportError, TrustError
from edge_client.contract.file_urls import is_file_url
from edge_client.contract.names import (
    METADATA_FOLDER,
    ROLLOUTS_ROLE,
    TARGETS_FOLDER,
    channel_target,
    rollout_target,
)
from edge_client.contract.release import CHANNEL_LIMIT_BYTES, ChannelDocument
from edge_client.contract.rollout import ROLLOUT_LIMIT_BYTES, RolloutDocument
from edge_client.contract.times import current_time
from edge_client.disk import SCRATCH_PREFIX, disk_errors, write_durably
from edge_client.repository.clock import check_clock, read_signing_time
from edge_client.repository.remembered import verified_digests
from edge_client.repository.transfer import download
from edge_client.settings.update import BUNDLE_SCHEME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from tuf.api.metadata import TargetFile

    from edge_client.repository.clock import Clock
    from edge_client.repository.fetcher import Fetcher

# Limits in bytes. Targets metadata takes about 1.5 kB a release; the pipeline keeps 50 of them.
_CONFIG = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=8,
    root_max_length=512_000,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
    app_user_agent=f"edge-client/{__version__}",
)
# Oldest memory last: the timestamp is what protects against a store that goes back in time. The snapshot
# protects the delegated role likewise: no newer one may name an older version of it, or leave it out.
METADATA_DIR = METADATA_FOLDER
_REMEMBERED = ("timestamp.json", "snapshot.json", "targets.json", f"{ROLLOUTS_ROLE}.json")


class NothingPublishedError(TransportError):
    """The store answers, but has no metadata, and this device never saw any."""


class NotSignedError(TrustError):
    """No metadata signs a file of this name."""


@dataclasses.dataclass(frozen=True)
class SignedFile:
    """A file that the metadata signs.

    Attributes:
        path: Signed target path.
        size_bytes: Signed length.
        sha256: Signed hex digest; empty if another kind of hash is signed.
    """

    path: str
    size_bytes: int
    sha256: str = ""


class TrustedRepository:
    """The repository during one update check. Close it after use, or use it in a `with` block."""

    def __init__(
        self,
        root: bytes,
        base_url: str,
        metadata_dir: Path,
        fetcher: Fetcher,
        *,
        remember: bool = True,
        clock: Clock = current_time,
    ) -> None:
        """Start from the root and the metadata that this device verified before.

        Args:
            root: The provisioned root metadata; the only thing trusted without proof.
            base_url: Address below which `metadata/` and `targets/` lie.
            metadata_dir: Keeps verified metadata from check to check.
            fetcher: Reads the store or a bundle.
            remember: False writes nothing to `metadata_dir` and next to it: a daemon may be writing there
                now.
            clock: This device's time. python-tuf judges expiry by a clock of its own.
        Raises: TrustError if `root` is no valid root metadata; DeviceError if the disk fails.
        """
        self._root = root
        self._base_url = base_url.rstrip("/")
        self._shown = shown_address(self._base_url)
        self._memory = metadata_dir
        self._remembers = remember
        self._fetcher = fetcher
        self._clock = clock
        describe_root(root, "[trust] root")  # else its fault would look like one of the store
        with disk_errors(metadata_dir):
            self._scratch = self._open_scratch()
        try:
            with disk_errors(metadata_dir):
                self._recall()
            with self._verdicts("[trust] root"):
                self._updater = Updater(
                    str(self._scratch_path),
                    f"{self._base_url}/{METADATA_FOLDER}/",
                    target_base_url=f"{self._base_url}/{TARGETS_FOLDER}/",
                    fetcher=fetcher,
                    config=_CONFIG,
                    bootstrap=root,
                )
        except BaseException:
            self._scratch.cleanup()
            raise

    def _open_scratch(self) -> tempfile.TemporaryDirectory[str]:
        if not self._remembers:
            return tempfile.TemporaryDirectory(prefix="edge-client-")
        self._memory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=self._memory.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the scratch copy and close connections."""
        self._fetcher.close()
        self._scratch.cleanup()

    @property
    def bytes_pulled(self) -> int:
        """Bytes read from the store so far."""
        return self._fetcher.bytes_pulled

    @property
    def is_bundle(self) -> bool:
        """Whether this is what somebody exported, with the files that one device wanted."""
        return self._base_url.startswith(BUNDLE_SCHEME)

    def refresh(self) -> None:
        """Fetch and verify the newest metadata, and store it durably.

        Raises: TrustError if it is forged, older than known, or expired; TransportError if the store
            cannot be read (NothingPublishedError if it never had anything) or this device's clock cannot be
            right (ClockError); DeviceError.
        """
        check_clock(self._clock())
        self._refresh()
        # The signing time of the metadata that was just verified, never of that on the disk: a revoked key
        # may have signed the latter, with any time, and only a refresh brings the newer root that revokes it.
        check_clock(self._clock(), read_signing_time((self._scratch_path / "timestamp.json").read_bytes()))

    def _refresh(self) -> None:
        try:
            with self._verdicts(shown_below(self._base_url, METADATA_FOLDER)):
                self._updater.refresh()
        except TransportError as e:
            cause = e.__cause__
            known = (self._memory / "timestamp.json").exists()
            if isinstance(cause, exceptions.DownloadHTTPError) and cause.status_code == 404 and not known:
                msg = (
                    f"{self._shown}: nothing is published there yet; "
                    f"if something is, {self._find_store}correct [store] base_url"
                )
                raise NothingPublishedError(msg) from e
            raise
        finally:
            # Also after a failure: each file that arrived was verified before python-tuf stored it.
            if self._remembers:
                self._remember()

    def channel(self, name: str) -> ChannelDocument:
        """Return the signed pointer of a channel.

        Raises: InputError if it is malformed; NotSignedError if there is none; and as `fetch`.
        """
        path = channel_target(name)
        target = self._find_pointer(path)
        if target is None:
            raise self._not_signed(path)
        if target.length > CHANNEL_LIMIT_BYTES:
            msg = f"{path}: signed length {target.length}, at most {CHANNEL_LIMIT_BYTES}; publish it again"
            raise TrustError(msg)
        document = decode_document(
            ChannelDocument, self._read_pointer(path), source=path, limit_bytes=CHANNEL_LIMIT_BYTES
        )
        if document.channel != name:
            # Signed, but for another channel: the pipeline is broken, or a key was misused.
            msg = f"{path}: is the pointer of channel {document.channel!r}; publish the channel again"
            raise TrustError(msg)
        return document

    def rollout(self, name: str) -> RolloutDocument | None:
        """Return the signed rollout document of a channel; None where none is signed, as by older pipelines.

        Raises: InputError if this version cannot use it, which must never widen a rollout; and as `fetch`.
        """
        path = rollout_target(name)
        target = self._find_pointer(path)
        if target is None:
            return None
        if target.length > ROLLOUT_LIMIT_BYTES:
            msg = f"{path}: signed length {target.length}, at most {ROLLOUT_LIMIT_BYTES}"
            raise InputError(msg)
        document = decode_document(
            RolloutDocument, self._read_pointer(path), source=path, limit_bytes=ROLLOUT_LIMIT_BYTES
        )
        if document.channel != name:
            msg = f"{path}: is the rollout document of channel {document.channel[:80]!r}"
            raise InputError(msg)
        return document

    def _find_pointer(self, path: str) -> TargetFile | None:
        """Return what is signed for a pointer, which a delegated role may sign; remember its metadata."""
        try:
            return self._seek(path)
        finally:
            if self._remembers:
                self._remember()

    def _read_pointer(self, path: str) -> bytes:
        """Fetch a pointer, unless the one that was fetched before is still signed.

        So a look without news costs two requests. The copy needs no care: it is compared with what is signed
        each time.
        """
        memory = self._memory if self._remembers else self._scratch_path
        folder = memory / path.partition("/")[0]  # a channel may be named as metadata is
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            return self.fetch(path, folder).read_bytes()

    def look_up(self, path: str) -> SignedFile:
        """Return what is signed for a file.

        Raises: TrustError if it is not signed.
        """
        target = self._find(path)
        return SignedFile(path, target.length, target.hashes.get("sha256", ""))

    def remembered_digests(self, releases: Iterable[str]) -> dict[str, str]:
        """Return what the metadata of earlier checks signs, see `verified_digests`; without a network."""
        return verified_digests(self._root, self._memory, releases)

    def holds(self, path: str, file: Path) -> bool:
        """Return whether `file` has the content that is signed under `path`."""
        return self._updater.find_cached_target(self._find(path), str(file)) is not None

    def fetch(self, path: str, destination_dir: Path) -> Path:
        """Fetch one signed file, unless it is there already with the signed content.

        A download that broke off resumes where it stopped, also after a restart.

        Args:
            path: Signed target path.
            destination_dir: Folder of the file, which gets the last part of `path` as its name.
        Returns: Path of the file; verified, not synced.
        Raises: TrustError if it is not signed or not what was signed; TransportError; DeviceError.
        """
        target = self._find(path)
        destination = destination_dir / path.rpartition("/")[2]
        if self._updater.find_cached_target(target, str(destination)):
            return destination
        # Names of release files never begin with a dot, so this one cannot clash.
        incoming = destination.with_name(f".{destination.name}.incoming")
        url = f"{self._base_url}/{TARGETS_FOLDER}/{target.get_prefixed_paths()[0]}"
        with (
            self._verdicts(shown_below(self._base_url, f"{TARGETS_FOLDER}/{path}")),
            disk_errors(destination),
        ):
            download(self._fetcher, url, target, incoming)
            incoming.replace(destination)
        return destination

    def verify(self, path: str, data: bytes) -> None:
        """Verify content that was not downloaded as a file of its own, against what is signed under `path`.

        Raises: TrustError.
        """
        with self._verdicts(path):
            self._find(path).verify_length_and_hashes(data)

    def _find(self, path: str) -> TargetFile:
        target = self._seek(path)
        if target is None:
            raise self._not_signed(path)
        return target

    def _seek(self, path: str) -> TargetFile | None:
        what = shown_below(self._base_url, METADATA_FOLDER)
        with self._verdicts(what):
            try:
                return self._updater.get_targetinfo(path)
            except TypeError as e:  # python-tuf takes any JSON value for the name of a delegated role
                msg = f"{what}: a delegation of the signed targets names no role ({e}). Nothing was changed"
                raise TrustError(msg) from e

    def _not_signed(self, path: str) -> NotSignedError:
        msg = f"{self._shown}: {path} is not among the signed files; publish it, or correct [device] channel"
        return NotSignedError(msg)

    def _http_way_out(self, status: int) -> str:
        if status in {401, 403}:
            return (
                "the store refuses this device: check [store] region and access_key_file (or "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; with role_alias, the role's policy), its right to "
                "read, and the clock"
            )
        if status == 404:
            return f"it is missing in the store: {self._find_store}publish again, or correct [store] base_url"
        return "will be tried again"

    @property
    def _way_to_store(self) -> str:
        """What to look at where the store cannot be reached."""
        if not self._base_url.startswith("http"):
            return "will be tried again"
        return "is the network up, the store running and [store] base_url right? It will be tried again"

    @property
    def _find_store(self) -> str:
        """Question for messages about missing files: the mount point of a disk that is away is empty."""
        return "is it mounted? Else " if is_file_url(self._base_url) else ""

    @property
    def _scratch_path(self) -> Path:
        return Path(self._scratch.name)

    def _recall(self) -> None:
        """Copy the stored metadata into the scratch folder."""
        for name in (*_REMEMBERED, *_root_names(self._memory)):
            source = self._memory / name
            if source.is_file():
                copy = self._scratch_path / name
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, copy)

    def _remember(self) -> None:
        """Store what changed in the scratch folder, durably; without news nothing is written."""
        for name in (*_root_names(self._scratch_path), *_REMEMBERED):
            source, copy = self._scratch_path / name, self._memory / name
            if source.is_file() and (data := source.read_bytes()) != _content(copy):
                write_durably(copy, data)

    @contextlib.contextmanager
    def _verdicts(self, what: str) -> Iterator[None]:
        """Turn python-tuf's two error hierarchies into TrustError and TransportError."""
        try:
            yield
        except exceptions.RepositoryError as e:
            msg = f"{what}: {explain(e)}. Nothing was changed"
            raise TrustError(msg) from e
        except exceptions.DownloadLengthMismatchError as e:
            msg = f"{what}: longer than signed or allowed ({without_secrets(str(e))}). Nothing was changed"
            raise TrustError(msg) from e
        except exceptions.DownloadHTTPError as e:
            msg = f"{without_secrets(str(e))}; {self._http_way_out(e.status_code)}"
            raise TransportError(msg) from e
        except exceptions.DownloadError as e:
            cause = f" ({e.__cause__})" if not str(e).startswith(("http", "file:")) and e.__cause__ else ""
            msg = f"{without_secrets(f'{e}{cause}') or 'the store is too slow'}; {self._way_to_store}"
            raise TransportError(msg) from e
        except OSError as e:
            with disk_errors(self._memory):
                raise e from None


_COPY_ROOT = "copy device/root.json, which `edge-keys make` wrote, to this device again"


def describe_root(root: bytes, source: str) -> str:
    """Describe a provisioned root for people.

    Raises: TrustError if it is no valid root metadata. An expired root is still usable: a device follows
        the chain of newer roots from it.
    """
    try:
        metadata = Metadata[Root].from_bytes(root)
        metadata.verify_delegate(Root.type, metadata)
    except exceptions.RepositoryError as e:
        msg = f"{source}: no root of trust ({e}); {_COPY_ROOT}"
        raise TrustError(msg) from e
    return f"{source}: version {metadata.signed.version}, until {metadata.signed.expires:%Y-%m-%d}"


def explain(error: exceptions.RepositoryError) -> str:
    """Explain a refusal by python-tuf, with the way out."""
    if isinstance(error, exceptions.ExpiredMetadataError):
        now = current_time().isoformat(timespec="seconds")
        return (
            f"{error}. This device's clock says {now}: if that is wrong, set it (timedatectl); if not, the "
            "store shows old metadata, or none was signed since: run the pipeline, it renews signatures"
        )
    if isinstance(error, exceptions.BadVersionNumberError):
        return (
            f"older than what this device has seen, refused ({error}). Old metadata was put back, "
            "or the store was restored from a backup: publish again"
        )
    if isinstance(error, exceptions.UnsignedMetadataError):
        return (
            f"not signed by the keys that this device trusts ({error}). Somebody else wrote to the store, or "
            "[trust] root belongs to another repository"
        )
    altered = "The copy in the store was altered, or its upload was damaged"
    if isinstance(error, exceptions.LengthOrHashMismatchError):
        return f"not the content that was signed ({error}). {altered}"
    return f"not usable as signed metadata ({error}). {altered}"


def _root_names(folder: Path) -> tuple[str, ...]:
    """Return the names of stored roots, relative to `folder`."""
    return tuple(
        f"root_history/{path.name}" for path in sorted((folder / "root_history").glob("*.root.json"))
    )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
