"""What an S3 store, boto3 or the AWS configuration says when it refuses, as one paragraph with the way out.

Codes: Amazon S3 API Reference, "Error responses"; those of other stores stand with their owner's name. An
answer to HEAD has no body, so its code is the HTTP status.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
from typing import TYPE_CHECKING, Any, NoReturn

from edge_client.contract.errors import EdgeError, SettingsError, TransportError
from edge_client.contract.text import one_line
from edge_client.contract.times import current_time
from luigi_tasks.storage.store import ArchivedError, StoreConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
CONFLICT = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "OperationAborted", "409"})
MESSAGE_CHARACTERS = 300
# S3 refuses signatures that are older or newer.
MAX_SKEW_S = 15 * 60

# Right that an operation needs, as policies name it.
RIGHTS = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
}
_UNKNOWN_KEY = (
    "it does not know the access key; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile, and "
    "[store] endpoint_url"
)
_LOG_IN = "log in again (aws sso login), or take new ones from where they came from, and run again"
_EXPIRED = f"the temporary credentials have expired; {_LOG_IN}"
_CLOCK = "the clock of this machine is wrong{skew}: set it (timedatectl set-ntp true), and run again"
_REGION = "the bucket lies in another region{region}; set [store] region, or the endpoint of that region"
_VIRTUAL = "the bucket must stand in the host name: set [store] addressing_style = virtual"
_NO_S3 = "is [store] endpoint_url an S3 endpoint, without a path or a bucket?"
_FULL = "its disk is full; make room there"

# Way out by code. {region} and {skew} stand for what the answer tells of them, or nothing.
_WAYS_OUT = {
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidSecurity": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": (
        "the secret key is not that of the access key, or a proxy changes requests on their way (Host, "
        "path); check AWS_SECRET_ACCESS_KEY and the profile"
    ),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": (
        "AWS_SESSION_TOKEN is not that of the access key; unset it if the key is no temporary one, else log "
        "in again (aws sso login)"
    ),
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "307": _REGION,
    "SecondLevelDomainForbidden": _VIRTUAL,  # Alibaba OSS
    "PathStyleDomainForbidden": _VIRTUAL,  # Tencent COS
    "InvalidPathAccess": _VIRTUAL,  # Volcengine TOS
    "NoSuchBucket": (
        "the bucket does not exist; create it or correct the s3:// url; pictures at another endpoint than "
        "the store's need [dataset] profile"
    ),
    "InvalidBucketName": "the name of the bucket in the s3:// url cannot be one; correct it",
    "MethodNotAllowed": _NO_S3,
    "405": _NO_S3,
    "QuotaExceeded": "its quota is used up; delete work/ there, or raise it",
    "XMinioStorageFull": _FULL,  # MinIO
    "InsufficientStorage": _FULL,
    "507": _FULL,
}
_LATER = {
    "SlowDown": "it is asked too often; run again later, or with fewer --workers",
    "503": "it is overloaded or down; run again later",
    "ServiceUnavailable": "it is overloaded or down; run again later",
}
# What S3 says with a word of its own, but for a HEAD.
_NO_WORD = frozenset({"400", "401", "404", "410"})
_DENIED = frozenset({"403", "AccessDenied", "Forbidden", "AllAccessDisabled"})
# Operations by which boto3 gets credentials.
_OF_CREDENTIALS = ("AssumeRole", "GetRoleCredentials", "GetSessionToken", "CreateToken")
_CONDITIONS_UNKNOWN = (
    "it does not take conditional writes ({header}), by which two publishers cannot undo each other. Use a "
    "store with conditional writes; or let one machine alone publish, and set [store] conditional_writes = "
    "false. Nothing was written"
)


@contextlib.contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Turn boto3's exceptions inside the block into ours.

    Args:
        what: The object or prefix concerned, as an s3:// URL.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    try:
        yield
    except ClientError as e:
        raise _translate_answer(what, e) from e
    except BotoCoreError as e:
        raise _translate_failure(what, e) from e
    except ResponseParserError as e:
        msg = f"{what}: the answer is none of an S3 store; {_NO_S3}"
        raise SettingsError(msg) from e
    except RecursionError as e:  # botocore asks again and again, where a redirect names no region
        msg = f"{what}: the store redirects elsewhere: {_REGION.format(region='')}"
        raise SettingsError(msg) from e
    except EOFError as e:  # the profile's role wants a code, and there is no terminal
        msg = f"{what}: no credentials: the profile asks for an MFA code, and nobody is there to type it"
        raise SettingsError(msg) from e
    except (ValueError, OSError) as e:  # no address, or a file that the AWS configuration names is none
        msg = (
            f"{what}: {one_line(str(e))}; check [store] endpoint_url and ca_file, and what the AWS "
            "configuration (AWS_..., ~/.aws/config) names: numbers, certificates, token files, programs"
        )
        raise SettingsError(msg) from e


def error_code(error: Any) -> str:  # noqa: ANN401 - a ClientError of botocore, which has no types
    """Return the store's code, or the HTTP status of an answer without a body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: Any) -> int:  # noqa: ANN401 - as above
    """Return the HTTP status of a refusal; 0: there was no answer in HTTP."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def refuse_condition(what: str, header: str, error: Any) -> NoReturn:  # noqa: ANN401 - as above
    """Raise what names the setting, for a store that answers a conditional write as if it knew none.

    Raises: SettingsError.
    """
    answer = f"the store answered {_describe(error)}: " if error is not None else ""
    msg = f"{what}: {answer}{_CONDITIONS_UNKNOWN.format(header=header)}"
    raise SettingsError(msg) from error


def archived_words(storage_class: str = "") -> str:
    """Return what is the matter with an archived object, and the way out."""
    named = f" ({storage_class})" if storage_class else ""
    return f"archived{named}; restore it (aws s3api restore-object; minutes to days), then run again"


def _translate_answer(what: str, error: Any) -> EdgeError:  # noqa: ANN401 - as above
    """Return our error for a refusal of the store, or of who gives the credentials."""
    code, operation = error_code(error), str(getattr(error, "operation_name", ""))
    if operation.startswith(_OF_CREDENTIALS):
        return SettingsError(
            f"{what}: no credentials: {operation} was refused ({_describe(error)}); check the role of the "
            "profile, or log in again (aws sso login)"
        )
    if code in CONFLICT:
        return StoreConflictError(f"{what}: changed by another process meanwhile ({code})")
    if code == "InvalidObjectState":
        return ArchivedError(f"{what}: {archived_words(_archive_class(error))}")
    answered = f"{what}: the store answered {_describe(error)}: "
    if code in _LATER:
        return TransportError(answered + _LATER[code])
    words = _find_way_out(code, operation, error)
    return SettingsError(answered + words) if words else _translate_unknown(what, error)


def _find_way_out(code: str, operation: str, error: Any) -> str:  # noqa: ANN401 - as above
    """Return the way out of a refusal that does not pass by itself; empty: none is known."""
    skew = _skew(error)
    if code in _DENIED and not skew:
        return f"it refused the credentials: {_missing_right(operation)}"
    code = "RequestTimeTooSkewed" if code in _DENIED else code
    words = _WAYS_OUT.get(code, "").format(region=_region_in(error), skew=skew)
    return f"it refused the credentials: {words}" if words and status_of(error) in {401, 403} else words


def _translate_unknown(what: str, error: Any) -> EdgeError:  # noqa: ANN401 - as above
    """Return our error for a code without a way out of its own: it may be a passing one."""
    said = _describe(error)
    msg = f"{what}: the store answered {said}; "
    if "md5" in said.lower() or "checksum" in said.lower():
        return SettingsError(
            f"{msg}a bucket with Object Lock demands checksums: set [store] checksums = when_supported"
        )
    if "trailer" in said.lower() or "aws-chunked" in said.lower() or "ContentSHA256" in said:
        return SettingsError(f"{msg}it lacks boto3's checksums: set [store] checksums = when_required")
    if error_code(error) in _NO_WORD and not str(error.operation_name).startswith("Head"):
        return SettingsError(f"{msg}without a word of S3: {_NO_S3}")
    return TransportError(f"{msg}run again, and look there if it stays so")


def _translate_failure(what: str, error: Exception) -> EdgeError:
    """Return our error for what boto3 met before there was an answer."""
    from botocore import exceptions as e  # noqa: PLC0415

    if isinstance(error, (e.NoCredentialsError, e.PartialCredentialsError)):
        return SettingsError(
            f"{what}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE, "
            "[store] profile), or give this machine a role"
        )
    if isinstance(error, (e.SSOError, e.TokenRetrievalError, e.NoAuthTokenError)):
        return SettingsError(f"{what}: {error}; {_LOG_IN}")
    if isinstance(error, (e.CredentialRetrievalError, e.RefreshWithMFAUnsupportedError)):
        return SettingsError(
            f"{what}: no credentials: {one_line(str(error))}; mend the profile that names them"
        )
    passing = (e.ConnectionError, e.HTTPClientError, e.IncompleteReadError, e.ChecksumError)
    if not isinstance(error, (*passing, e.FlexibleChecksumError, e.PaginationError)):
        return SettingsError(
            f"{what}: {one_line(str(error))}; check [store] endpoint_url, profile and region, AWS_PROFILE "
            "and ~/.aws/config"
        )
    if isinstance(error, e.SSLError):
        return TransportError(
            f"{what}: {one_line(str(error))}; for a certificate of your own authority set [store] ca_file "
            "(or AWS_CA_BUNDLE); where the endpoint speaks no TLS, [store] endpoint_url begins with http://"
        )
    hint = ""
    if f"//{what.partition('://')[2].partition('/')[0]}." in str(error):
        hint = " (is there a host for each bucket? if not, set [store] addressing_style = path)"
    return TransportError(
        f"{what}: {one_line(str(error))}; check [store] endpoint_url and the network, then run again{hint}"
    )


def _missing_right(operation: str) -> str:
    right = RIGHTS.get(operation, "")
    words = f"they lack {right}; " if right else ""
    if operation in {"GetObject", "HeadObject"}:
        words += "an object that does not exist is refused too where s3:ListBucket is missing; "
    return (
        f"{words}configs/iam-pipeline.json has all rights that are needed. A policy of the bucket or of its "
        "encryption key may refuse as well, and a bucket whose readers pay ([dataset] requester_pays)"
    )


def _archive_class(error: Any) -> str:  # noqa: ANN401 - as above
    told = error.response.get("Error", {})
    headers: Mapping[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(told.get("AccessTier") or told.get("StorageClass") or headers.get("x-amz-storage-class", ""))


def _region_in(error: Any) -> str:  # noqa: ANN401 - as above
    told = error.response.get("Error", {})
    headers: Mapping[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    named = told.get("Region") or headers.get("x-amz-bucket-region") or told.get("Endpoint")
    return f", {one_line(str(named))}" if named else ""


def _skew(error: Any) -> str:  # noqa: ANN401 - as above
    """Return how far this machine's clock is from the store's, in words; empty: not far, or unknown."""
    headers: Mapping[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        there = email.utils.parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return ""
    if there.tzinfo is None:
        there = there.replace(tzinfo=datetime.timezone.utc)
    seconds = (current_time() - there).total_seconds()
    if abs(seconds) < MAX_SKEW_S:
        return ""
    return f", {abs(seconds) / 60:.0f} minutes {'ahead of' if seconds > 0 else 'behind'} the store's"


def _describe(error: Any) -> str:  # noqa: ANN401 - as above
    """Return e.g. `403 AccessDenied, PutObject: Access Denied.`."""
    status, code = status_of(error), error_code(error)
    operation = str(getattr(error, "operation_name", ""))
    message = one_line(str(error.response.get("Error", {}).get("Message") or ""))[:MESSAGE_CHARACTERS]
    named = code if code == str(status) else f"{status or ''} {code}".strip()
    return f"{named}, {operation}{f': {message}' if message else ''}"
