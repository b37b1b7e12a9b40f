"""Statements that somebody else wrote: accepted, or refused with the declared error."""

from __future__ import annotations

import contextlib

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from edge_client.contract.errors import TrustError
from luigi_tasks.evidence.statement import (
    PAYLOAD_TYPE,
    Statement,
    make_statement,
    open_statement,
    sign_statement,
)
from tests.fuzz.test_parsers import QUICK, changed_json, mutated

SIGNER = CryptoSigner.generate_ed25519()
KEYS = {SIGNER.public_key.keyid: SIGNER.public_key}
KEY, SHA = "work/heads/1/training.json", "0" * 64
INPUTS, VERSIONS, SETTINGS = {"work/a/b.json": SHA}, {"code": "1"}, {"a": "b"}
STATEMENT = make_statement(
    "TrainModel", KEY, {"training.json": SHA}, INPUTS, VERSIONS, SETTINGS, "then", "now"
)
PAYLOADS = (msgspec.json.encode(STATEMENT),)
FEW = settings(QUICK, max_examples=40)
SIGNED = sign_statement(STATEMENT, SIGNER)


def test_evidence_has_the_names_of_the_specifications():
    """Tools of others read it: in-toto Statement v1, SLSA provenance v1."""
    envelope = Envelope.from_dict(msgspec.json.decode(SIGNED))
    found = msgspec.json.decode(envelope.payload)
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert found["subject"] == [{"name": "training.json", "digest": {"sha256": SHA}}]
    definition = found["predicate"]["buildDefinition"]
    assert definition["buildType"] == "urn:edge-fleet:step:TrainModel"
    assert definition["externalParameters"] == {"address": KEY, "settings": {"a": "b"}}
    assert definition["internalParameters"] == {"code": "1"}
    assert definition["resolvedDependencies"] == [{"uri": "work/a/b.json", "digest": {"sha256": SHA}}]
    details = found["predicate"]["runDetails"]
    assert details["builder"]["id"]
    assert details["metadata"] == {"startedOn": "then", "finishedOn": "now"}


@FEW
@given(st.one_of(mutated((SIGNED,)), changed_json((SIGNED,), 0)))
def test_evidence_that_was_changed_is_never_another_statement(data):
    with contextlib.suppress(TrustError):
        assert open_statement(data, KEYS)[0] == STATEMENT


@FEW
@given(
    st.one_of(mutated((msgspec.json.encode(STATEMENT),)), changed_json((msgspec.json.encode(STATEMENT),), 0))
)
def test_evidence_under_the_right_key_is_a_statement_or_refused(payload):
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(SIGNER)
    with contextlib.suppress(TrustError):
        assert isinstance(open_statement(msgspec.json.encode(envelope.to_dict()), KEYS)[0], Statement)
