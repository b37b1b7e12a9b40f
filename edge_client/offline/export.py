"""Export of offline bundles: all that a device reads from the store for its channel, in one tar file.

A bundle is as little trusted as the store: the same metadata is verified, and it expires likewise. Members
are named by the store's keys; nothing is ever unpacked to a path.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.names import METADATA_FOLDER, RELEASE_FILE, TARGETS_FOLDER, release_target
from edge_client.disk import disk_errors, sync_folder
from edge_client.releases import needed_files, read_release
from edge_client.repository.fetcher import Fetcher
from edge_client.repository.opening import open_fetcher
from edge_client.repository.trusted import TrustedRepository
from edge_client.settings.update import read_root
from edge_client.update.documents import read_documents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.settings.file import Settings


def export_bundle(settings: Settings, path: Path) -> tuple[str, ...]:
    """Write all that a device needs to install a release of its channel to `path`.

    Which release that is depends on the device: while a rollout is under way, all that the signed documents
    name are in the bundle.

    Returns: The releases, the one that the channel points to first.
    Raises: What an update check raises; nothing is written then.
    """
    recorder = _Recorder(open_fetcher(settings.store), settings.store.base_url)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        root, store = read_root(settings.trust), settings.store.base_url
        with TrustedRepository(root, store, here / METADATA_FOLDER, recorder) as repository:
            repository.refresh()
            documents = read_documents(repository, settings.device.channel)
            steady = documents.channel.release if documents.channel is not None else ""
            releases = tuple(sorted(documents.named, key=lambda release: (release != steady, release)))
            for release in releases:
                _record(repository, release, here / release)
    with disk_errors(path):
        partial = path.with_name(f".{path.name}.partial")
        try:
            _write(partial, recorder.objects)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)
    return releases


def _record(repository: TrustedRepository, release: str, folder: Path) -> None:
    """Fetch the files of a release once."""
    folder.mkdir()
    repository.fetch(release_target(release, RELEASE_FILE), folder)
    for name in needed_files(read_release(folder)):
        repository.fetch(release_target(release, name), folder)


class _Recorder(Fetcher):
    """Fetcher that keeps every object another fetcher reads, by key."""

    def __init__(self, fetcher: Fetcher, base_url: str) -> None:
        self.objects: dict[str, bytes] = {}
        self._fetcher = fetcher
        self._prefix = f"{base_url.rstrip('/')}/"

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.fetch_from(url, 0)[1]

    def fetch_from(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """See `Fetcher.fetch_from`; always from the beginning, since all of it is kept."""
        del offset
        return 0, self._recorded(url)

    def _recorded(self, url: str) -> Iterator[bytes]:
        chunks = []
        for chunk in self._fetcher.fetch(url):
            chunks.append(chunk)
            yield chunk
        self.objects[url.removeprefix(self._prefix)] = b"".join(chunks)

    def close(self) -> None:
        """Close the other one."""
        self._fetcher.close()


def _write(path: Path, objects: dict[str, bytes]) -> None:
    path.unlink(missing_ok=True)
    # Never through a link: the folder may be one where others write, as /tmp is.
    with path.open("xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted(objects, key=lambda name: (name.startswith(TARGETS_FOLDER), name)):
                member = tarfile.TarInfo(name)
                member.size = len(objects[name])
                tar.addfile(member, io.BytesIO(objects[name]))
        file.flush()
        os.fsync(file.fileno())
