"""What the metadata on this disk signs: its signatures are verified again, without a network.

Expiry does not matter here: the question is not whether something newer is out, but whether a release on the
disk is what the keys signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from edge_client.contract.names import RELEASE_FILE, release_target

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def verified_digests(root: bytes, metadata_dir: Path, releases: Iterable[str]) -> dict[str, str]:
    """Return the digest of the document of each release, as far as the metadata on this disk signs it.

    Nothing for metadata that is missing, damaged, or signed by keys that a newer root has replaced.

    Args:
        root: The provisioned root metadata.
        metadata_dir: Metadata that earlier update checks stored.
        releases: Release ids.
    """
    try:
        targets = _read_targets(_newest_root(root, metadata_dir), metadata_dir)
    except (OSError, RepositoryError):
        return {}
    signed = {release: targets.targets.get(release_target(release, RELEASE_FILE)) for release in releases}
    digests = {release: file.hashes.get("sha256") for release, file in signed.items() if file is not None}
    return {release: digest for release, digest in digests.items() if digest is not None}


def _read_targets(root: Root, metadata_dir: Path) -> Targets:
    metadata = Metadata[Targets].from_bytes((metadata_dir / "targets.json").read_bytes())
    root.verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
    return metadata.signed


def _newest_root(root: bytes, metadata_dir: Path) -> Root:
    """Follow the chain of roots from the provisioned one, as far as the disk has it."""
    newest = Metadata[Root].from_bytes(root).signed
    while True:
        path = metadata_dir / "root_history" / f"{newest.version + 1}.root.json"
        if not path.exists():
            return newest
        following = Metadata[Root].from_bytes(path.read_bytes())
        for judge in (newest, following.signed):
            judge.verify_delegate(Root.type, following.signed_bytes, following.signatures)
        newest = following.signed
