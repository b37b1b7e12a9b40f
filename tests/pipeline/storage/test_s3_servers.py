"""What the contract of stores does not say, on further S3 servers and with the bucket in the host name."""

from __future__ import annotations

import dataclasses
import datetime
import socket
import uuid
from urllib.parse import quote

import pytest

from edge_client.contract.errors import InputError, SettingsError
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.settings.update import StoreCredentials
from edge_client.settings.update import StoreSettings as DeviceStore
from luigi_tasks.dataset.bucket_source import BucketSource
from luigi_tasks.dataset.listing import listing_digest
from luigi_tasks.dataset.sources import open_source
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.s3_store import S3Store
from luigi_tasks.storage.store import ArchivedError
from tests.fakes.datasets import dataset_settings, zip_bytes
from tests.fakes.refusing_s3 import RefusingS3
from tests.fakes.s3_servers import SERVERS, Moto
from tests.fakes.trust import trust_settings

KEYS = (
    "with space",
    "grüße/日本",
    "a+b/c&d=e",
    "100%",
    "%41",
    "a#b?c",
    "a:b@c!d'(e)*f~g",
    "semi;colon,comma$",
)


@pytest.fixture(scope="module", params=[pytest.param(one, marks=pytest.mark.slow) for one in SERVERS])
def server(request):
    with SERVERS[request.param]() as started:
        yield started


@pytest.fixture(scope="module")
def moto():
    with Moto() as started:
        yield started


@pytest.fixture
def place(request, monkeypatch):
    """Return the settings of an empty prefix of a server."""

    def open_place(server, **changes):
        for name, value in server.credentials().items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.bucket}/{uuid.uuid4().hex}"
        settings = StoreSettings(url, server.endpoint_url, "us-east-1", "", conditional_writes=True)
        return dataclasses.replace(settings, **changes)

    return open_place


def pointing_to(release):
    at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    return lambda pointer: point_channel(pointer, "stable", release, share_percent=100.0, at=at)


# --- publishing and pulling -----------------------------------------------------------------------


def test_a_server_that_ignores_conditions_is_refused_and_one_publisher_alone_may_do_without(
    server, place, tmp_path
):
    make_keys(tmp_path / "keys")
    settings, trust = place(server), trust_settings(tmp_path / "keys")
    if not server.is_conditional:
        with pytest.raises(SettingsError, match=r"ignores If-None-Match:.*conditional_writes = false"):
            ReleaseRepository(S3Store(settings), trust).publish({}, pointing_to("r1"), "stable")
        assert not S3Store(settings).exists("metadata/timestamp.json")
        settings = dataclasses.replace(settings, conditional_writes=False)
    ReleaseRepository(S3Store(settings), trust).publish(
        {"releases/r1/release.json": b"{}"}, pointing_to("r1"), "stable"
    )
    assert S3Store(settings).exists("metadata/timestamp.json")


@pytest.fixture
def hosts_of_buckets(monkeypatch):
    """Let names below localhost lead to this machine, as most systems do."""
    resolve = socket.getaddrinfo

    def resolve_all(host, *rest, **options):
        return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_all)


@pytest.mark.usefixtures("hosts_of_buckets")
@pytest.mark.parametrize("style", ["path", "virtual"])
def test_pipeline_and_device_find_any_key_by_either_address(object_store, store_settings, style):
    port = object_store.endpoint_url.rpartition(":")[2]
    prefix = store_settings.url.rpartition("/")[2]
    settings = dataclasses.replace(
        store_settings, endpoint_url=f"http://localhost:{port}", addressing_style=style
    )
    base_url = {
        "path": f"http://localhost:{port}/{object_store.bucket}/{prefix}",
        "virtual": f"http://{object_store.bucket}.localhost:{port}/{prefix}",
    }[style]
    store = S3Store(settings)
    assert store.presign_url("key", 60).startswith(f"{base_url}/key")
    keys = StoreCredentials(object_store.device_access_key, object_store.device_secret_key)
    device = StoreFetcher(DeviceStore(base_url=base_url), keys)
    for key in KEYS:
        store.put(key, key.encode())
        assert b"".join(device.fetch(f"{base_url}/{quote(key)}")) == key.encode()


def test_a_device_pulls_signed_from_further_servers(server, place):
    settings = place(server)
    base_url = f"{server.endpoint_url}/{settings.url.removeprefix('s3://')}"
    keys = StoreCredentials(server.access_key, server.secret_key)
    device = StoreFetcher(DeviceStore(base_url=base_url), keys)
    for key in KEYS:
        S3Store(settings).put(key, key.encode())
        assert b"".join(device.fetch(f"{base_url}/{quote(key)}")) == key.encode()


# --- archived objects -----------------------------------------------------------------------------


@pytest.mark.slow
def test_archived_pictures_are_left_out_by_name_until_they_are_restored(moto, place):
    source = BucketSource(f"{(settings := place(moto)).url}/pictures", settings)

    def put(path, kind="STANDARD"):
        source.client.put_object(Bucket=source.bucket, Key=source.prefix + path, Body=b"x", StorageClass=kind)

    put("a/1.png")
    put("a/2.png", "GLACIER_IR")  # read at once
    put("b/3.png", "GLACIER")
    put("b/4.png", "DEEP_ARCHIVE")
    listing = source.listing()
    assert [one.path for one in listing.pictures] == ["a/1.png", "a/2.png"]
    assert [(one.path, one.reason) for one in listing.left_out] == [
        ("b/3.png", "archived"),
        ("b/4.png", "archived"),
    ]
    assert "archived (GLACIER); restore it (aws s3api" in listing.left_out[0].words
    source.client.restore_object(
        Bucket=source.bucket, Key=f"{source.prefix}b/3.png", RestoreRequest={"Days": 1}
    )
    restored = source.listing()
    assert [one.path for one in restored.pictures] == ["a/1.png", "a/2.png", "b/3.png"]
    assert source.read("b/3.png") == b"x"
    assert listing_digest(restored.pictures) != listing_digest(listing.pictures)  # a run has something to do


@pytest.mark.slow
def test_an_archived_object_of_the_store_and_an_archived_archive_are_named(moto, place, tmp_path):
    store = S3Store(place(moto))
    for key in ("metadata/timestamp.json", "pictures.zip"):
        store.client.put_object(
            Bucket=store.bucket,
            Key=store.prefix + key,
            Body=zip_bytes({"a/1.png": b""}),
            StorageClass="GLACIER",
        )
    with pytest.raises(ArchivedError, match=r"timestamp.json: archived.*restore-object"):
        store.get("metadata/timestamp.json")
    with pytest.raises(ArchivedError, match=r"pictures.zip: archived"):
        open_source(dataset_settings(tmp_path, store.url("pictures.zip")), place(moto))


@pytest.mark.slow
def test_a_deleted_object_of_a_bucket_with_versions_is_gone_and_may_be_written_again(moto, place):
    settings = place(moto)
    store = S3Store(settings)
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    try:
        store.put_if_unchanged("pointer", b"1", None)
        store.delete("pointer")
        assert not store.exists("pointer")
        assert store.get("pointer") is None
        assert store.list_folder("") == ()
        store.put_if_unchanged("pointer", b"2", None)
        assert store.read("pointer") == b"2"
    finally:
        store.client.put_bucket_versioning(
            Bucket=store.bucket, VersioningConfiguration={"Status": "Suspended"}
        )


LISTING = """<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>"""
LISTED = """<Contents><Key>{key}</Key><Size>1</Size><ETag>"1"</ETag><StorageClass>{kind}</StorageClass>{more}
</Contents>"""
RESTORED = "<RestoreStatus><IsRestoreInProgress>{}</IsRestoreInProgress></RestoreStatus>"


@pytest.fixture(scope="module")
def endpoint():
    with RefusingS3().running() as fake:
        yield fake


@pytest.fixture
def source(endpoint, monkeypatch):
    endpoint.reset()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    settings = StoreSettings("s3://models", endpoint.url, "us-east-1", "", conditional_writes=True)
    return BucketSource("s3://bucket/p", settings, requester_pays=True)


def list_(endpoint, *objects):
    some = [LISTED.format(key=f"p/{key}", kind=kind, more=more) for key, kind, more in objects]
    endpoint.listing = LISTING.format("".join(some)).encode()


def test_what_amazon_lists_as_restored_is_read_and_the_reader_pays(endpoint, source):
    endpoint.refuse(403, "InvalidObjectState", "GET", header="Range")
    list_(
        endpoint,
        ("a/1.png", "GLACIER", RESTORED.format("false")),
        ("a/2.png", "GLACIER", RESTORED.format("true")),
        ("a/3.png", "DEEP_ARCHIVE", ""),
    )
    listing = source.listing()
    assert [one.path for one in listing.pictures] == ["a/1.png"]
    assert [one.path for one in listing.left_out] == ["a/2.png", "a/3.png"]
    source.read("a/1.png")
    asked = [headers for _, path, headers in endpoint.requests if path != "/"]  # whether anybody is there
    assert {headers.get("x-amz-request-payer") for headers in asked} == {"requester"}


def test_a_store_that_reads_its_archive_at_once_has_all_pictures(endpoint, source):
    list_(endpoint, *((f"a/{number}.png", "GLACIER", "") for number in range(60)))
    assert len(source.listing().pictures) == 60


def test_what_archives_itself_unseen_is_an_error_that_counts(endpoint, source):
    list_(endpoint, ("a/1.png", "INTELLIGENT_TIERING", ""), ("a/2.png", "INTELLIGENT_TIERING", ""))
    source.listing()
    endpoint.refuse(403, "InvalidObjectState", "GET", more="<AccessTier>ARCHIVE_ACCESS</AccessTier>")
    with pytest.raises(InputError, match=r"a/1.png: archived \(ARCHIVE_ACCESS\).*2 of the listed objects"):
        source.read("a/1.png")


def test_all_pictures_archived_say_so(endpoint, source):
    endpoint.refuse(403, "InvalidObjectState", "GET", header="Range")
    list_(endpoint, ("a/1.png", "GLACIER", ""), ("b/2.png", "GLACIER", ""))
    with pytest.raises(InputError, match=r"no pictures found \(but 2 archived, such as a/1.png\): archived"):
        source.listing().find_layout("s3://bucket/p")


# --- keys -----------------------------------------------------------------------------------------


def test_keys_that_are_no_paths_are_left_out_by_name_and_marks_of_folders_are_passed_over(endpoint, source):
    keys = ("", "a/", "a/1.png", "a_$folder$", "a//2.png", "/3.png", "a/../4.png", "b/._5.png", "b/6.png")
    list_(endpoint, *((key, "STANDARD", "") for key in keys))
    listing = source.listing()
    assert [one.path for one in listing.pictures] == ["a/1.png", "b/6.png"]
    assert [one.path for one in listing.left_out] == ["/3.png", "a/../4.png", "a//2.png"]
    assert listing.folders == ("a", "b")
