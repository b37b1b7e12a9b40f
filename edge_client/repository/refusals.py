"""What a device's user can do about the refusal of an S3 store, by its error code.

Codes: Amazon S3 API Reference, "Error responses"; those of other stores stand with their owner's name. The
pipeline has its own words for them (`luigi_tasks.storage.s3_errors`): other settings are the way out there.
"""

from __future__ import annotations

_IN_HOST = "the bucket must stand in the host name of base_url, not in its path"
_CLOCK = "this device's clock is wrong: timedatectl"
_REGION = "another [store] region, or the address of the bucket's region"

_WAYS_OUT = {
    "SecondLevelDomainForbidden": _IN_HOST,  # Alibaba OSS
    "PathStyleDomainForbidden": _IN_HOST,  # Tencent COS
    "InvalidPathAccess": _IN_HOST,  # Volcengine TOS
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "InvalidAccessKeyId": "the store does not know the access key",
    "SignatureDoesNotMatch": "the secret key is not that of the access key, or a proxy changes requests",
    "ExpiredToken": "the temporary keys have expired",
    "InvalidToken": "the session token is not that of the access key",
    "NoSuchBucket": "base_url names a bucket that does not exist",
    "InvalidObjectState": "archived by a lifecycle rule of the bucket: restore it, and except this prefix",
}


def find_way_out(code: str) -> str:
    """Return the way out of a refusal; empty: the code says it all, or is not known."""
    return _WAYS_OUT.get(code, "")
