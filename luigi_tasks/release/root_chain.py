"""The chain of roots: beside `[trust] root`, and in the bucket, where devices follow it one by one."""

from __future__ import annotations

import datetime
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import TrustError
from edge_client.contract.names import METADATA_FOLDER
from luigi_tasks.release.published import METADATA_LIMIT_BYTES, root_key
from luigi_tasks.release.signing import check_successor, load_roots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tuf.api.metadata import Metadata, Root

    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store

logger = logging.getLogger(__name__)

MAX_ROOT_ROTATIONS = 256
# Renewing the root needs a person and the root keys from a safe: time to plan that.
ROOT_NOTICE = datetime.timedelta(days=180)


class RootChain:
    """The roots, oldest first."""

    def __init__(self, store: Store, settings: TrustSettings, now: Callable[[], datetime.datetime]) -> None:
        self.store = store
        self.settings = settings
        self.now = now

    def read(self) -> list[Metadata[Root]]:
        """Return the roots next to `[trust] root`, then those in the bucket, each signed by the one before.

        Raises: As `load_roots`; TrustError if the bucket has a next root that is none.
        """
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
        from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

        roots = load_roots(self.settings.root)
        for _ in range(MAX_ROOT_ROTATIONS):
            key = root_key(roots[-1].signed.version + 1)
            found = self.store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
            if found is None:
                return roots
            try:
                newer = Metadata[Root].from_bytes(found.data)
                check_successor(roots[-1], newer, self.store.url(key))
            except (RepositoryError, TrustError) as e:
                way_out = ". If nobody rotated keys, somebody else put it there: remove this object"
                raise distrust(self.store, self.settings, key, e, way_out) from e
            roots = [*roots, newer]
        msg = f"{self.store.url(METADATA_FOLDER)}: over {MAX_ROOT_ROTATIONS} root rotations; refused"
        raise TrustError(msg)

    def publish(self, roots: Sequence[Metadata[Root]]) -> None:
        """Write the roots that are missing in the bucket, the oldest first: devices follow them one by one.

        Raises: TrustError if the bucket has another root signed by our keys, which some devices may follow.
        """
        for root in self.check(roots):
            key = root_key(root.signed.version)
            self.store.put(key, root.to_bytes(), content_type="application/json")
        left = roots[-1].signed.expires - self.now()
        if left < ROOT_NOTICE:
            logger.warning(
                "%s: the root expires in %d days, and then no device installs a release any more: "
                "run `edge-keys renew` with the root keys, then Deploy",
                self.settings.root,
                left.days,
            )

    def check(self, roots: Sequence[Metadata[Root]]) -> list[Metadata[Root]]:
        """Return the roots that are missing or damaged in the bucket; raises as `publish`."""
        lacking = []
        for before, root in zip([None, *roots], roots, strict=False):
            key = root_key(root.signed.version)
            found = self.store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
            if found is None or not self._is_root(found.data, before, root, key):
                lacking.append(root)
        return lacking

    def _is_root(self, data: bytes, before: Metadata[Root] | None, root: Metadata[Root], key: str) -> bool:
        """Whether `data` is this root; False if no device would follow it."""
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
        from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

        try:
            found = Metadata[Root].from_bytes(data)
            if found.signed == root.signed:
                return True
            (before or root).verify_delegate(Root.type, found)
        except RepositoryError:
            return False
        msg = (
            f"{self.store.url(key)}: another root of this version, signed by the same keys: two people "
            f"rotated keys. Decide which one counts, and put it next to [trust] root ({self.settings.root})"
        )
        raise TrustError(msg)


def distrust(
    store: Store, settings: TrustSettings, key: str, reason: Exception, way_out: str = ""
) -> TrustError:
    """Return the error of an object that our keys did not sign."""
    return TrustError(
        f"{store.url(key)}: not signed by our keys ({reason}). It was changed in the bucket, or "
        f"[trust] root ({settings.root}) belongs to another repository, or the other roots of its folder are "
        f"not next to it. Nothing was published{way_out}"
    )
