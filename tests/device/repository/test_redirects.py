"""A store that redirects the device to an address of its choice."""

from __future__ import annotations

import dataclasses

import pytest

from edge_client.contract.errors import TransportError
from edge_client.repository.redirects import may_redirect
from edge_client.settings.checks import split_names
from edge_client.settings.update import StoreSettings
from tests.fakes.raw_server import RawServer

STORE = "https://store.example.com/models/metadata/timestamp.json"
FOLLOWED = {
    "elsewhere in the store": (STORE, "https://store.example.com/x", ""),
    "the store in capitals": (STORE, "https://STORE.example.com.:443/x", ""),
    "http to https": ("http://store.example.com/x", "https://store.example.com/x", ""),
    "a port of the store": ("http://10.0.0.5:9000/x", "http://10.0.0.5:9000/y", ""),
    "S3, the bucket's region": (
        "https://models.s3.amazonaws.com/x",
        "https://models.s3.eu-central-1.amazonaws.com/x",
        "",
    ),
    "S3, the older name": (
        "https://s3.amazonaws.com/models/x",
        "https://models.s3-us-west-2.amazonaws.com/x",
        "",
    ),
    "a host of the settings": (STORE, "https://cdn.example.com/x", "cdn.example.com"),
    "a port of the settings": (STORE, "https://cdn.example.com:8443/x", "a, cdn.example.com:8443"),
    "a domain of the settings": (STORE, "https://a.b.example.net/x", "*.example.net"),
    "an IPv6 address of the settings": (
        "http://[::1]:8000/x",
        "http://[fd00::5]:9000/x",
        "[fd00::5]:9000",
    ),
}
NOT_FOLLOWED = {
    "the router": (STORE, "https://192.168.0.1/reboot", ""),
    "this device": (STORE, "https://localhost/", ""),
    "another port of the store": ("http://10.0.0.5:9000/x", "http://10.0.0.5:22/x", ""),
    "https to http": (STORE, "http://store.example.com/x", ""),
    "https to http, of the settings": (STORE, "http://cdn.example.com/x", "cdn.example.com"),
    "a file": (STORE, "file:///etc/passwd", ""),
    "no host": (STORE, "https:///x", ""),
    "a password": (STORE, "https://store.example.com@192.168.0.1/x", ""),
    "a name that begins alike": (STORE, "https://store.example.com.evil.net/x", ""),
    "S3 to a virtual machine": (
        "https://models.s3.amazonaws.com/x",
        "https://ec2-10-0-0-1.eu-central-1.compute.amazonaws.com/x",
        "",
    ),
    "S3 to an endpoint in somebody's network": (
        "https://models.s3.amazonaws.com/x",
        "https://b.vpce-1.s3.eu-central-1.vpce.amazonaws.com/x",
        "",
    ),
    "S3 to a port": ("https://models.s3.amazonaws.com/x", "https://s3.amazonaws.com:22/x", ""),
    "from elsewhere to S3": (STORE, "https://models.s3.amazonaws.com/x", ""),
    "another port of the settings": (STORE, "https://cdn.example.com:22/x", "cdn.example.com"),
    "the domain of the settings itself": (STORE, "https://example.net/x", "*.example.net"),
    "a name that ends alike": (STORE, "https://evilexample.net/x", "*.example.net"),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_redirects_to_the_store_itself_and_to_hosts_of_the_settings_are_followed(name):
    store, target, hosts = FOLLOWED[name]
    listed = split_names(hosts)
    assert StoreSettings(base_url=store, redirect_hosts=listed).faults() == ()
    assert may_redirect(store, target, listed)


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_other_redirects_are_not_followed(name):
    store, target, hosts = NOT_FOLLOWED[name]
    assert not may_redirect(store, target, [host for host in hosts.split(",") if host])


@pytest.mark.parametrize(
    "wrong", ["https://cdn.example.com", "a b", "*", "host:99999", "[::1", "a/b", "*.*.de"]
)
def test_hosts_that_are_none_are_reported(wrong):
    assert len(StoreSettings(base_url=STORE, redirect_hosts=(wrong,)).faults()) == 1


def test_a_store_cannot_make_a_device_ask_its_own_network(device, repository):
    release = repository.publish_tiny(0).release
    base_url = repository.url.replace("127.0.0.1", "localhost")  # another host, as far as names say
    with RawServer(b"") as store:
        store.answer = (
            f"HTTP/1.1 307 Temporary\r\nLocation: {base_url}/metadata/timestamp.json?X-Amz=S3CRET\r\n"
            "Content-Length: 0\r\n\r\n"
        ).encode()
        device.store = dataclasses.replace(device.store, base_url=store.url)
        with pytest.raises(TransportError, match=r"\[store\] redirect_hosts names localhost:\d+") as told:
            device.check()
        assert "S3CRET" not in str(told.value)
    assert repository.requests == []
    device.store = dataclasses.replace(device.store, base_url=repository.url)
    device.check()
    device.assert_serves(release)
