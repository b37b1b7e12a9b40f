"""A store that is not there, or says nothing, is told before boto3's patience of minutes."""

from __future__ import annotations

import dataclasses
import socket

import pytest
from local_services import free_ports

from edge_client.contract.errors import TransportError
from luigi_tasks.storage import reachable
from luigi_tasks.storage.s3_store import S3Store


@pytest.fixture(autouse=True)
def short_limit(monkeypatch):
    monkeypatch.setattr(reachable, "LIMIT_S", 0.2)


def store_at(settings, scheme: str, port: int) -> S3Store:
    return S3Store(dataclasses.replace(settings, endpoint_url=f"{scheme}://127.0.0.1:{port}"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_store_that_accepts_and_says_nothing_is_told_once(store_settings, scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = store_at(store_settings, scheme, silent.getsockname()[1])
        for _ in range(2):
            with pytest.raises(
                TransportError, match=r"the store at https?://127\.0\.0\.1:\d+ does not answer"
            ):
                store.exists("a")
        silent.setblocking(False)
        silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_store_that_is_not_there_is_told_with_the_setting(store_settings):
    with pytest.raises(TransportError, match=r"Connection refused\); check \[store\] endpoint_url"):
        store_at(store_settings, "http", free_ports(1)[0]).exists("a")


def test_a_store_behind_a_proxy_is_not_looked_for(store_settings, monkeypatch):
    [port] = free_ports(1)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = S3Store(dataclasses.replace(store_settings, endpoint_url="http://store.invalid:9000"))
    with pytest.raises(TransportError, match="proxy"):
        store.exists("a")
