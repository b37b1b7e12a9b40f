"""Somebody who can write the store, has the public source, and has none of the keys."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from edge_client.contract.documents import decode_document, encode_document
from luigi_tasks.evidence.statement import Resource, Statement, sign_statement, statement_key
from luigi_tasks.gate.records import Evaluation
from luigi_tasks.quantization.candidate import make_candidate

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.backbone.records import Backbone
    from luigi_tasks.quantization.records import Candidate
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.training.records import TrainedHead


class Attacker:
    """Writes into a store's folder.

    Args:
        store: The folder.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.signer = CryptoSigner.generate_ed25519()

    def alter(self, key: str) -> None:
        """Change the bytes of an object, not its meaning: JSON stays JSON."""
        path = self.store / key
        path.write_bytes(path.read_bytes() + b" ")

    def damage(self, key: str) -> None:
        """Flip a bit in the middle of an object."""
        path = self.store / key
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def drop(self, key: str) -> None:
        """Remove the statement of a record."""
        (self.store / statement_key(key)).unlink()

    def sign(self, key: str) -> None:
        """Sign the record and files that lie there with a key of the attacker's own."""
        place = self.store / statement_key(key)
        envelope = Envelope.from_dict(msgspec.json.decode(place.read_bytes()))
        statement = msgspec.json.decode(envelope.payload, type=Statement)
        folder = (self.store / key).parent
        subject = tuple(
            Resource(name=one, digest={"sha256": hashlib.sha256((folder / one).read_bytes()).hexdigest()})
            for one in statement.files
        )
        place.write_bytes(sign_statement(msgspec.structs.replace(statement, subject=subject), self.signer))

    def copy(self, source: str, key: str, other: Path | None = None) -> None:
        """Put the result of another place, or of another store, in the place of this one."""
        folder, target = (other or self.store) / source, self.store / key
        for path in folder.parent.iterdir():
            if path.is_file() and path.parent != target.parent:
                shutil.copy(path, target.parent / path.name)
        for name in (lambda one: one, statement_key):
            shutil.copy((other or self.store) / name(source), self.store / name(key))

    def forge(
        self,
        candidate: str,
        evaluation: str,
        settings: PipelineSettings,
        backbone: Backbone,
        head: TrainedHead,
    ) -> Candidate:
        """Put a model that always gives one answer in the place of the candidate, with a good evaluation.

        Four objects: candidate.json, model.tflite, evaluation.json and report.html.
        """
        last = head.layers[-1]
        bias = np.zeros_like(last.bias)
        bias[0] = 50
        layers = (*head.layers[:-1], dataclasses.replace(last, weights=last.weights * 0, bias=bias))
        labels = decode_labels(self.store / candidate)
        made = make_candidate(
            "forged",
            labels,
            [backbone],
            [dataclasses.replace(head, layers=layers)],
            settings.model,
            settings.release,
        )
        (self.store / candidate).write_bytes(encode_document(made.record))
        (self.store / candidate).with_name("model.tflite").write_bytes(made.model)
        path = self.store / evaluation
        found = decode_document(Evaluation, path.read_bytes(), source="", limit_bytes=1 << 24)
        verdict = msgspec.structs.replace(found.verdict, passed=True, outcome="passed", reasons=())
        passed = msgspec.structs.replace(found, release=made.record.release, verdict=verdict)
        path.write_bytes(encode_document(passed))
        path.with_name("report.html").write_bytes(b"<p>all is well")
        return made


def decode_labels(record: Path) -> tuple[str, ...]:
    """Return the labels that a candidate's record names."""
    return tuple(msgspec.json.decode(record.read_bytes())["labels"])
