"""Statements: what a step made, of what, with which settings, code and packages, signed with the work key.

A statement is an in-toto Statement v1 with a SLSA provenance v1 predicate, in a DSSE envelope. Its subjects
are the files of one result, named relative to the folder of the record. It contains the record's address, so
that a copy of it proves nothing at another place.

Sources: in-toto attestation framework v1.1, SLSA v1.0 "Provenance", DSSE v1.0.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decoder_of
from edge_client.contract.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from securesystemslib.signer import Key, Signer

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STEP_URI = "urn:edge-fleet:step:"
BUILDER_URI = "urn:edge-fleet:luigi_tasks"
STATEMENT_SUFFIX = ".intoto.json"
# A head on the features of a million pictures has 1,000 inputs: 0.2 MB.
STATEMENT_LIMIT_BYTES = 16 << 20
# Of what others wrote, in a message.
SHOWN_CHARACTERS, SHOWN_KEYS = 200, 3

# Folder of the results -> step that makes them.
STEPS = {
    "batches": "ReadShard",
    "plans": "DatasetSnapshot",
    "inventories": "DatasetSnapshot",
    "snapshots": "DatasetSnapshot",
    "tuned": "TuneBackbone",
    "lineage": "QuantizeModel",
    "backbones": "ConvertBackbone",
    "features": "BackboneFeatures",
    "heads": "TrainModel",
    "candidates": "QuantizeModel",
    "evaluations": "EvaluateModel",
    "doubtful": "DoubtfulLabels",
}
PUBLICATION_STEP = "PublishRelease"


class ForeignKeyError(TrustError):
    """No trusted key signed a statement.

    Attributes:
        keyids: Ids of the keys that it says it is signed with.
    """

    def __init__(self, keyids: frozenset[str]) -> None:
        shown = [*(one[:12] for one in sorted(keyids)[:SHOWN_KEYS]), *["..."] * (len(keyids) > SHOWN_KEYS)]
        super().__init__(
            f"its statement is not signed by a trusted work key (signed by {', '.join(shown) or 'nobody'})"
        )
        self.keyids = keyids


class _Camel(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of the parts of a statement, whose JSON has the names of the specifications."""


class Resource(_Camel, frozen=True, kw_only=True, omit_defaults=True):
    """A file: a subject has a name, an input an address."""

    digest: dict[str, str]
    name: str = ""
    uri: str = ""

    @property
    def sha256(self) -> str:
        """Hex digest; empty where the resource has none."""
        return self.digest.get("sha256", "")


class External(_Camel, frozen=True, kw_only=True):
    """What the caller of a step chose: where its record lies, and the settings."""

    address: str
    settings: dict[str, str] = {}


class BuildDefinition(_Camel, frozen=True, kw_only=True):
    """The step, its settings and inputs."""

    build_type: str
    external_parameters: External
    internal_parameters: dict[str, str]
    resolved_dependencies: tuple[Resource, ...]


class Builder(_Camel, frozen=True, kw_only=True):
    """What ran the step."""

    id: str = BUILDER_URI


class RunMetadata(_Camel, frozen=True, kw_only=True):
    """When the step ran: UTC, ISO 8601."""

    started_on: str
    finished_on: str


class RunDetails(_Camel, frozen=True, kw_only=True):
    """Who ran the step, and when."""

    builder: Builder
    metadata: RunMetadata


class Predicate(_Camel, frozen=True, kw_only=True):
    """SLSA provenance."""

    build_definition: BuildDefinition
    run_details: RunDetails


class Statement(_Camel, frozen=True, kw_only=True):
    """An in-toto statement about one result."""

    type_: str = msgspec.field(name="_type", default=STATEMENT_TYPE)
    subject: tuple[Resource, ...]
    predicate_type: str = PREDICATE_TYPE
    predicate: Predicate

    @property
    def address(self) -> str:
        """Key of the record."""
        return self.predicate.build_definition.external_parameters.address

    @property
    def step(self) -> str:
        """Name of the step, e.g. `TrainModel`."""
        return self.predicate.build_definition.build_type.removeprefix(STEP_URI)

    @property
    def files(self) -> dict[str, str]:
        """Hex SHA-256 of each file of the result, by name."""
        return {one.name: one.sha256 for one in self.subject}

    @property
    def record_sha256(self) -> str:
        """Hex SHA-256 of the record itself; empty if it is no subject."""
        return self.files.get(self.address.rpartition("/")[2], "")

    @property
    def inputs(self) -> dict[str, str]:
        """Hex SHA-256 of each input, by key."""
        return {one.uri: one.sha256 for one in self.predicate.build_definition.resolved_dependencies}


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


def statement_key(record: str) -> str:
    """Return the key of the statement of a record: `a/b.json` has `a/b.intoto.json`."""
    return record.rpartition(".")[0] + STATEMENT_SUFFIX


def step_of(record: str) -> str:
    """Return the step that makes the record at a key; empty if none does."""
    kind, _, rest = record.removeprefix("work/").partition("/")
    return STEPS.get(kind, "") if rest and record.startswith("work/") else ""


def make_statement(
    step: str,
    address: str,
    files: Mapping[str, str],
    inputs: Mapping[str, str],
    made_with: Mapping[str, str],
    settings: Mapping[str, str],
    started: str,
    finished: str,
) -> Statement:
    """Return the statement of a result.

    Args:
        step: Name of the step.
        address: Key of the record.
        files: Hex SHA-256 of each file of the result by name, the record's too.
        inputs: Hex SHA-256 of each input by key.
        made_with: Versions of code and packages.
        settings: Settings of the step; no secrets.
        started: UTC, ISO 8601.
        finished: UTC, ISO 8601.
    """
    return Statement(
        subject=tuple(Resource(name=name, digest={"sha256": files[name]}) for name in sorted(files)),
        predicate=Predicate(
            build_definition=BuildDefinition(
                build_type=STEP_URI + step,
                external_parameters=External(address=address, settings=dict(settings)),
                internal_parameters=dict(made_with),
                resolved_dependencies=tuple(
                    Resource(uri=uri, digest={"sha256": inputs[uri]}) for uri in sorted(inputs)
                ),
            ),
            run_details=RunDetails(
                builder=Builder(), metadata=RunMetadata(started_on=started, finished_on=finished)
            ),
        ),
    )


def sign_statement(statement: Statement, signer: Signer) -> bytes:
    """Return the statement in a signed envelope: one line of JSON."""
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - a run with nothing new signs nothing

    envelope = Envelope(msgspec.json.encode(statement, order="deterministic"), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return msgspec.json.encode(envelope.to_dict(), order="deterministic")


def strip_envelope(data: bytes, keyid: str) -> bytes:
    """Return a verified envelope as `sign_statement` writes it: one line, with the signature of one key.

    Whoever can write the store can add to an envelope what nobody signed: fields, spaces, signatures.
    """
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - as above

    envelope = Envelope.from_dict(msgspec.to_builtins(decoder_of(_Envelope).decode(data)))
    envelope.signatures = {keyid: envelope.signatures[keyid]}
    return msgspec.json.encode(envelope.to_dict(), order="deterministic")


def verify_statement(data: bytes, keys: Mapping[str, Key], address: str, step: str) -> tuple[Statement, str]:
    """Return a statement that one of the keys signed for this address and step, and the key's id.

    Args:
        data: The envelope.
        keys: Trusted keys by id.
        address: Where the record lies.
        step: The step that makes such records.
    Raises: TrustError with the reason in one sentence.
    """
    statement, keyid = open_statement(data, keys)
    if statement.address != address:
        msg = f"its statement is that of {statement.address[:200]}"
        raise TrustError(msg)
    if statement.step != step:
        msg = f"its statement is of step {statement.step[:80]}, {step} was expected"
        raise TrustError(msg)
    return statement, keyid


def open_statement(data: bytes, keys: Mapping[str, Key]) -> tuple[Statement, str]:
    """Return a statement that one of the keys signed, and the key's id; whatever its address.

    Raises: TrustError with the reason in one sentence.
    """
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - as above
    from securesystemslib.exceptions import Error  # noqa: PLC0415 - as above

    if len(data) > STATEMENT_LIMIT_BYTES:
        msg = f"its statement has {len(data)} bytes, at most {STATEMENT_LIMIT_BYTES} are read"
        raise TrustError(msg)
    try:
        outer = decoder_of(_Envelope).decode(data)
        envelope = Envelope.from_dict(msgspec.to_builtins(outer))
        signed_by = envelope.verify(list(keys.values()), 1)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, ValueError, TypeError) as e:
        msg = f"its statement is no signed envelope ({str(e)[:SHOWN_CHARACTERS]})"
        raise TrustError(msg) from e
    except Error as e:
        raise ForeignKeyError(frozenset(one.keyid for one in outer.signatures)) from e
    return _decode(envelope.payload, envelope.payload_type), next(iter(signed_by))


def _decode(payload: bytes, payload_type: str) -> Statement:
    try:
        statement = decoder_of(Statement).decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        msg = f"its statement cannot be read ({e})"
        raise TrustError(msg) from e
    found = (payload_type, statement.type_, statement.predicate_type)
    if found != (PAYLOAD_TYPE, STATEMENT_TYPE, PREDICATE_TYPE):
        msg = f"its statement is of another kind ({', '.join(found)[:200]})"
        raise TrustError(msg)
    return statement
