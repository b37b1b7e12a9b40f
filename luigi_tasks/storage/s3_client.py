"""boto3's S3 client, as the user's AWS configuration makes it; our settings count where they are given.

Environment (`AWS_...`), `~/.aws/config` with its profiles, services and single sign-on, roles of machines and
containers: boto3 finds them, and nothing of it is read here. What is added are defaults that other endpoints
than AWS need, where neither says anything.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import SettingsError
from luigi_tasks.settings.urls import split_bucket_url
from luigi_tasks.storage.reachable import check_before_first_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.settings.values import StoreSettings

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
ATTEMPTS = 4
# boto3's CRC trailers, which many endpoints other than AWS lack, only where an operation demands them.
CHECKSUMS = "when_required"


def open_client(settings: StoreSettings) -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
    """Return a boto3 S3 client.

    Raises: SettingsError if `ca_file` or `endpoint_url` cannot be one; botocore's errors for the AWS
        configuration, which `s3_errors` tells.
    """
    import boto3  # noqa: PLC0415 - 0.2 s that a listing of a local folder need not pay
    import botocore.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    # A session of its own: the default one would keep the first credentials that it ever saw.
    configured = botocore.session.Session(profile=settings.profile or None)
    configured.register_component("data_loader", _open_models(configured.get_config_variable("data_path")))
    given = _Given(configured.get_scoped_config())
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, **_options(settings, given)
    )
    try:
        client = boto3.session.Session(botocore_session=configured).client(
            "s3",
            endpoint_url=settings.endpoint_url or None,
            region_name=settings.region or _region_of_environment(),
            verify=_checked_ca_file(settings.ca_file),
            config=config,
        )
    except (AttributeError, TypeError) as e:  # botocore takes a text for a section
        msg = f"~/.aws/config: a section is not as AWS tools expect it ({e}); correct it"
        raise SettingsError(msg) from e
    check_before_first_request(client)
    return client


@functools.cache
def _open_models(folders: str | None) -> Any:  # noqa: ANN401 - botocore has no types
    """Return the descriptions of services, which take 0.1 s to read, for all clients of the process."""
    from botocore.loaders import create_loader  # noqa: PLC0415

    return create_loader(folders)


class _Given:
    """What environment and profile say."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        self._profile = profile

    def names(self, name: str) -> bool:
        """Whether a general setting is given, such as `retry_mode`."""
        return f"AWS_{name.upper()}" in os.environ or name in self._profile

    def names_s3(self, name: str) -> bool:
        """Whether a setting in the profile's section `s3` is given."""
        section = self._profile.get("s3")
        return isinstance(section, dict) and name in section


def _options(settings: StoreSettings, given: _Given) -> dict[str, Any]:
    """Return the options of a client that settings or defaults of ours decide."""
    options: dict[str, Any] = {"retries": {}}
    if not given.names("retry_mode"):
        options["retries"]["mode"] = "standard"
    if not given.names("max_attempts"):
        options["retries"]["total_max_attempts"] = ATTEMPTS
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        if settings.checksums or not given.names(name):
            options[name] = settings.checksums or CHECKSUMS
    if settings.addressing_style != "auto":
        options["s3"] = {"addressing_style": settings.addressing_style}
    if not given.names_s3("signature_version"):
        options["signature_version"] = "s3v4"
    return options


def _region_of_environment() -> str | None:
    """Return the region that other AWS tools read; boto3 reads AWS_DEFAULT_REGION alone, and before."""
    if os.environ.get("AWS_DEFAULT_REGION"):
        return None
    return os.environ.get("AWS_REGION") or None


def _checked_ca_file(ca_file: str) -> str | None:
    if not ca_file:
        return None  # AWS_CA_BUNDLE, the profile's ca_bundle, or the public authorities
    path = Path(ca_file).expanduser()
    if not path.is_file():
        msg = f"[store] ca_file {path}: no such file; give the PEM file of the endpoint's authority"
        raise SettingsError(msg)
    return str(path)


def split_url(url: str) -> tuple[str, str]:
    """Split s3://bucket/some/prefix into bucket and prefix ("" or ending in /).

    All after the bucket is the prefix, also # and ?: they are characters of keys.

    Raises: SettingsError for anything else.
    """
    parts = split_bucket_url(url)
    if parts is None:
        msg = f"{url!r}: give s3://bucket or s3://bucket/prefix"
        raise SettingsError(msg)
    return parts
