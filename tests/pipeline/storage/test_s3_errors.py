"""What S3 refuses, in one paragraph that names the way out; the endpoint answers what real stores do."""

from __future__ import annotations

import dataclasses
import email.utils
import time

import pytest

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.s3_store import S3Store
from luigi_tasks.storage.store import ArchivedError, StoreConflictError
from tests.fakes.refusing_s3 import RefusingS3


@pytest.fixture(scope="module")
def server():
    with RefusingS3().running() as fake:
        yield fake


@pytest.fixture
def endpoint(server):
    server.reset()
    return server


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "KEY")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield patch


@pytest.fixture(scope="module")
def store(server, environment):
    """One client for all, whose service model takes a while to load."""
    return S3Store(StoreSettings("s3://models/fleet", server.url, "us-east-1", "", conditional_writes=True))


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An answer of a store, and what the message must say."""

    status: int
    code: str
    says: str
    error: type[Exception] = SettingsError
    words: str = "No."
    more: str = ""


REFUSALS = {
    "key of another store": Refusal(403, "InvalidAccessKeyId", "does not know the access key.*endpoint_url"),
    "wrong secret": Refusal(403, "SignatureDoesNotMatch", "secret key is not that of.*AWS_SECRET_ACCESS_KEY"),
    "expired": Refusal(400, "ExpiredToken", "have expired; log in again"),
    "token of another login": Refusal(400, "InvalidToken", "AWS_SESSION_TOKEN"),
    "clock": Refusal(403, "RequestTimeTooSkewed", "clock of this machine.*timedatectl"),
    "region": Refusal(
        400,
        "AuthorizationHeaderMalformed",
        r"another region, eu-west-3; set \[store\] region",
        more="<Region>eu-west-3</Region>",
    ),
    "Alibaba": Refusal(403, "SecondLevelDomainForbidden", "addressing_style = virtual"),
    "Tencent": Refusal(403, "PathStyleDomainForbidden", "addressing_style = virtual"),
    "no bucket": Refusal(404, "NoSuchBucket", "bucket does not exist; create it"),
    "no right": Refusal(403, "AccessDenied", "refused the credentials: they lack s3:PutObject"),
    "quota": Refusal(403, "QuotaExceeded", "quota is used up"),
    "full": Refusal(507, "XMinioStorageFull", "disk is full"),
    "a web server": Refusal(404, "404", "without a word of S3: is .*endpoint_url an S3 endpoint"),
    "busy": Refusal(503, "SlowDown", "asked too often; run again later", TransportError),
    "down": Refusal(503, "ServiceUnavailable", "run again later", TransportError),
    "fault": Refusal(500, "InternalError", "500 InternalError, PutObject: No.; run again", TransportError),
    "Object Lock": Refusal(
        400,
        "InvalidRequest",
        "checksums = when_supported",
        words="Content-MD5 OR x-amz-checksum- HTTP header is required",
    ),
    "trailers": Refusal(
        501,
        "NotImplemented",
        "checksums = when_required",
        words="aws-chunked with a trailer is not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_refusal_names_its_way_out(endpoint, store, name):
    one = REFUSALS[name]
    endpoint.refuse(one.status, one.code, words=one.words, more=one.more)
    with pytest.raises(one.error, match=one.says) as caught:
        store.put("key", b"")
    text = str(caught.value)
    assert text.startswith("s3://models/fleet/key: ")
    assert "\n" not in text
    assert one.code in text


def test_a_redirect_that_leads_nowhere_ends(endpoint, store):
    endpoint.refuse(301, "PermanentRedirect", more="<Endpoint>models.s3.eu</Endpoint>")
    with pytest.raises(SettingsError, match=r"redirects elsewhere: .*set \[store\] region"):
        store.put("key", b"")


def test_a_head_that_is_refused_is_asked_again_so_that_the_store_says_why(endpoint, store):
    endpoint.refuse(400, "ExpiredToken")
    with pytest.raises(SettingsError, match="have expired"):
        store.exists("key")


def test_a_missing_object_without_the_right_to_list_is_told_from_a_missing_bucket(endpoint, store):
    endpoint.refuse(404, "NoSuchKey", "GET")
    endpoint.refuse(403, "AccessDenied", "HEAD")
    assert store.get("key") is None


def test_a_refused_read_says_that_the_object_may_not_exist(endpoint, store):
    endpoint.refuse(403, "AccessDenied")
    with pytest.raises(SettingsError, match=r"lack s3:GetObject; an object that .*s3:ListBucket"):
        store.exists("key")


def test_a_clock_that_is_wrong_is_seen_where_the_store_does_not_say_it(endpoint, store):
    hour_ago = email.utils.formatdate(time.time() - 3700, usegmt=True)
    endpoint.refuse(403, "AccessDenied", headers={"Date": hour_ago})
    with pytest.raises(SettingsError, match=r"clock of this machine is wrong, 6[12] minutes ahead of"):
        store.read("key")


def test_a_busy_store_is_asked_again_and_conditions_are_not_sent_where_settings_say_so(endpoint, environment):
    environment.delenv("AWS_MAX_ATTEMPTS")
    endpoint.refuse(503, "SlowDown", times=1)
    endpoint.refuse(501, "NotImplemented", header="If-None-Match")
    url = "s3://models/fleet"
    S3Store(StoreSettings(url, endpoint.url, "us-east-1", "", conditional_writes=False)).put_if_unchanged(
        "key", b"", None
    )
    assert len(endpoint.requests) == 2
    environment.setenv("AWS_MAX_ATTEMPTS", "1")


def test_an_archived_object_is_named_with_the_way_out(endpoint, store):
    endpoint.refuse(403, "InvalidObjectState", more="<StorageClass>DEEP_ARCHIVE</StorageClass>")
    with pytest.raises(ArchivedError, match=r"fleet/key: archived \(DEEP_ARCHIVE\).*restore-object"):
        store.read("key")


# Conditional writes


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (400, "InvalidArgument"), (400, "InvalidRequest"), (405, "MethodNotAllowed")],
)
@pytest.mark.parametrize(("etag", "header"), [(None, "If-None-Match"), ('"1"', "If-Match")])
def test_a_store_that_knows_no_conditions_is_named_with_the_setting(
    endpoint, store, status, code, etag, header
):
    endpoint.refuse(status, code, "PUT", header=header, words="A header you provided is not implemented")
    with pytest.raises(SettingsError, match=rf"{code}.*\({header}\).*conditional_writes = false"):
        store.put_if_unchanged("key", b"", etag)


@pytest.mark.parametrize(("etag", "header"), [(None, "If-None-Match"), ('"0"', "If-Match")])
def test_a_store_whose_conditions_never_hold_is_named_with_the_setting(endpoint, store, etag, header):
    endpoint.refuse(412, "PreconditionFailed", "PUT", header=header)
    if etag is None:
        endpoint.refuse(404, "NoSuchKey", "HEAD")
    with pytest.raises(SettingsError, match=rf"412.*\({header}\).*conditional_writes = false"):
        store.put_if_unchanged("key", b"", etag)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (412, "PreconditionFailed"),
        (409, "ConditionalRequestConflict"),
        (409, "FileAlreadyExists"),
        (304, "NotModified"),
        (404, "NoSuchKey"),
    ],
)
def test_a_condition_that_does_not_hold_is_a_conflict(endpoint, store, status, code):
    endpoint.refuse(status, code, "PUT")
    for etag in (None, '"1"'):
        with pytest.raises(StoreConflictError):
            store.put_if_unchanged("key", b"", etag)


def test_another_fault_of_a_conditional_write_is_not_blamed_on_the_condition(endpoint, store):
    endpoint.refuse(400, "ExpiredToken", "PUT")
    with pytest.raises(SettingsError, match="expired") as caught:
        store.put_if_unchanged("key", b"", None)
    assert "conditional_writes" not in str(caught.value)
