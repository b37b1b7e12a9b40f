"""Our signatures are botocore's, for the two requests that a device makes."""

from __future__ import annotations

import datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.repository.sigv4 import sign_get, sign_put
from edge_client.settings.update import StoreCredentials

ABSENT = "botocore is not among the device's packages"
auth = pytest.importorskip("botocore.auth", reason=ABSENT)
awsrequest = pytest.importorskip("botocore.awsrequest", reason=ABSENT)
keyring = pytest.importorskip("botocore.credentials", reason=ABSENT)

SEGMENT = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs", "Cc"]), min_size=1)


def signed_by_botocore(
    url: str, region: str, keys: StoreCredentials, body: bytes | None = None
) -> dict[str, str]:
    request = awsrequest.AWSRequest(method="GET" if body is None else "PUT", url=url, data=body)
    request.context["payload_signing_enabled"] = True  # over plain HTTP it does so in any case
    token = keys.session_token or None
    signer = auth.S3SigV4Auth(
        keyring.Credentials(keys.access_key_id, keys.secret_access_key, token), "s3", region
    )
    signer.add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@given(
    host=st.sampled_from(
        [
            "http://127.0.0.1:8333",
            "https://s3.eu-central-1.amazonaws.com",
            "https://b.s3:443",
            "https://models.oss-cn-hangzhou.aliyuncs.com",
            "http://[::1]:8333",
        ]
    ),
    path=st.lists(SEGMENT, min_size=1, max_size=4),
    region=st.sampled_from(["us-east-1", "eu-central-1"]),
    secret=st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1),
    token=st.sampled_from(["", "FwoGZXIvYXdzEA//token=="]),
    body=st.none() | st.binary(),
)
def test_signatures_equal_those_of_botocore(host, path, region, secret, token, body):
    url = f"{host}/{quote('/'.join(path), safe='/-_.~')}"
    keys = StoreCredentials("AKIDEXAMPLE", secret, token)
    theirs = signed_by_botocore(url, region, keys, body)
    at = datetime.datetime.strptime(f"{theirs['x-amz-date']}+0000", "%Y%m%dT%H%M%SZ%z")
    signed = sign_get(url, region, keys, at) if body is None else sign_put(url, region, keys, body, at)
    ours = {name.lower(): value for name, value in signed.items()}
    assert ours == {name: theirs[name] for name in ours}
    assert set(theirs) == set(ours)
