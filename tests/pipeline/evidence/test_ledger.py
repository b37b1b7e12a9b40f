"""Results in the store: signed when saved, believed only where they lie as they were signed."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from typing import TYPE_CHECKING

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from edge_client.contract.errors import SettingsError, TrustError
from luigi_tasks import artifacts
from luigi_tasks.dataset.records import Plan
from luigi_tasks.evidence import ledger as ledger_module
from luigi_tasks.evidence.chain import walk_chain
from luigi_tasks.evidence.ledger import EvidenceError, Ledger, WorkTrust
from luigi_tasks.evidence.records import StoredDocument
from luigi_tasks.evidence.release import Evidence
from luigi_tasks.evidence.statement import statement_key, step_of, verify_statement
from luigi_tasks.release.keys import make_keys
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.folder_store import FolderStore
from luigi_tasks.training.records import Lineage
from luigi_tasks.workspace import open_workspace
from tests.fakes.trust import trust_settings
from tests.fault_table import Kind

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER = "work/heads/1/training.json", "work/heads/2/training.json"
BACKBONE = "work/backbones/b/backbone.json"
RECORD = Lineage(tuned="of any kind")


class Machine:
    """A process of the pipeline: its store, and a ledger that signs with the key that all of them have."""

    def __init__(self, folder: Path, signer: CryptoSigner, trusted: CryptoSigner | None = None) -> None:
        self.folder = folder
        key = (trusted or signer).public_key
        store = FolderStore(load_settings(store={"url": folder.as_uri()}).store)
        self.ledger = Ledger(store, WorkTrust(lambda: {key.keyid: key}, lambda: signer))

    def document(self, key: str = KEY, *inputs: str) -> StoredDocument:
        return StoredDocument(self.ledger, key, lambda: inputs)

    def save(self, key: str = KEY, *inputs: str, file: bytes = b"layers") -> None:
        document = self.document(key, *inputs)
        document.put("head.npz", file)
        document.save(RECORD)


@pytest.fixture
def signer():
    return CryptoSigner.generate_ed25519()


@pytest.fixture
def machine(tmp_path, signer):
    """The machine that saved a result."""
    machine = Machine(tmp_path / "store", signer)
    machine.save()
    return machine


@pytest.fixture
def reader(machine, signer):
    """Another machine."""
    return Machine(machine.folder, signer)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Nobody else writes at the same moment here."""
    monkeypatch.setattr(ledger_module, "PAUSE_S", 0.001)


def warnings(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_evidence_names_the_files_the_inputs_the_place_and_the_versions(machine, reader):
    reader.save(OTHER, KEY)
    found = reader.ledger.find(OTHER)
    assert found is not None
    assert found.statement is not None
    assert found.statement.files == {
        "head.npz": hashlib.sha256(b"layers").hexdigest(),
        "training.json": hashlib.sha256((machine.folder / OTHER).read_bytes()).hexdigest(),
    }
    assert found.statement.inputs == {KEY: hashlib.sha256((machine.folder / KEY).read_bytes()).hexdigest()}
    assert (found.statement.address, found.statement.step) == (OTHER, "TrainModel")
    definition = found.statement.predicate.build_definition
    assert definition.internal_parameters.keys() >= {"code", "numpy", "python"}
    outer = msgspec.json.decode(found.envelope)
    assert outer["payloadType"] == "application/vnd.in-toto+json"


def test_evidence_of_a_whole_result_is_believed(reader):
    assert reader.document().find(Lineage) == RECORD
    assert reader.document().read("head.npz") == b"layers"


def _alter_record(folder: Path, signer: CryptoSigner) -> None:
    (folder / KEY).write_bytes((folder / KEY).read_bytes() + b" ")


def _remove_record(folder: Path, signer: CryptoSigner) -> None:
    (folder / KEY).unlink()


def _remove_statement(folder: Path, signer: CryptoSigner) -> None:
    (folder / statement_key(KEY)).unlink()


def _write_nonsense(folder: Path, signer: CryptoSigner) -> None:
    (folder / statement_key(KEY)).write_bytes(b'{"payload": "e30=", "payloadType": "x", "signatures": []}')


def _write_no_json(folder: Path, signer: CryptoSigner) -> None:
    (folder / statement_key(KEY)).write_bytes(b"\xff[")


def _sign_with_another_key(folder: Path, signer: CryptoSigner) -> None:
    (folder / statement_key(KEY)).unlink()
    Machine(folder, CryptoSigner.generate_ed25519()).save()


def _claim_the_key(folder: Path, signer: CryptoSigner) -> None:
    """Another key's signature under the id of the right one."""
    _sign_with_another_key(folder, signer)
    path = folder / statement_key(KEY)
    outer = msgspec.json.decode(path.read_bytes())
    outer["signatures"][0]["keyid"] = signer.public_key.keyid
    path.write_bytes(msgspec.json.encode(outer))


def _move_another_here(folder: Path, signer: CryptoSigner) -> None:
    Machine(folder, signer).save(OTHER, file=b"others")
    for name in ("training.json", "training.intoto.json", "head.npz"):
        (folder / KEY).with_name(name).write_bytes((folder / OTHER).with_name(name).read_bytes())


def _name_keys_at_length(folder: Path, signer: CryptoSigner) -> None:
    signatures = [{"keyid": f"{number:064x}", "sig": ""} for number in range(10_000)]
    _sign_nothing(folder, signatures)


def _name_one_long_key_twice(folder: Path, signer: CryptoSigner) -> None:
    _sign_nothing(folder, [{"keyid": "a" * 1_000_000, "sig": ""}] * 2)


def _sign_nothing(folder: Path, signatures: list[dict[str, str]]) -> None:
    envelope = {"payload": "e30=", "payloadType": "x", "signatures": signatures}
    (folder / statement_key(KEY)).write_bytes(msgspec.json.encode(envelope))


def _write_gigabytes(folder: Path, signer: CryptoSigner) -> None:
    os.truncate(folder / KEY, 1 << 30)


FORGERIES = {
    "a record of a gigabyte": (_write_gigabytes, "it was not read"),
    "another record": (_alter_record, "not the record that was signed"),
    "no record": (_remove_record, "the record is gone"),
    "no statement": (_remove_statement, "no statement of this pipeline"),
    "a statement nobody signed": (_write_nonsense, "not signed by a trusted work key"),
    "a statement that is none": (_write_no_json, "no signed envelope"),
    "another key": (_sign_with_another_key, "not signed by a trusted work key"),
    "another key under the right id": (_claim_the_key, "not signed by a trusted work key"),
    "ten thousand keys": (_name_keys_at_length, "not signed by a trusted work key"),
    "a key of a megabyte": (_name_one_long_key_twice, "no signed envelope"),
    "a result of another place": (_move_another_here, f"is that of {OTHER}"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_evidence_that_does_not_fit_makes_a_result_absent_with_one_warning(
    machine, reader, signer, caplog, faults, forgery
):
    forge, reason = FORGERIES[forgery]
    with faults.injected(Kind.EVIDENCE, "any record", forgery):
        forge(machine.folder, signer)
        caplog.clear()
        for _ in range(2):
            reader.ledger.begin()
            assert not reader.document().exists()
            assert reader.document().find(Lineage) is None
        with pytest.raises(EvidenceError):
            reader.document().read("head.npz")
        [said] = warnings(caplog)
        assert f"{KEY}: " in said
        assert reason in said
        assert len(said) < 1000, "a log is read by people"
        reader.save(file=b"made again")
        assert Machine(machine.folder, signer).document().read("head.npz") == b"made again"


@pytest.mark.parametrize("fault", ["gone", "damaged", "endless"])
def test_evidence_of_a_file_that_is_damaged_is_given_up_for_all_machines(
    machine, reader, signer, caplog, fault
):
    path = (machine.folder / KEY).with_name("head.npz")
    if fault == "gone":
        path.unlink()
    elif fault == "damaged":
        path.write_bytes(b"Layers")
    else:
        os.truncate(path, 3 << 30)
    assert reader.document().exists(), "no file is read to see whether a step is done"
    with pytest.raises(EvidenceError, match=r"head\.npz is (gone|not the file)"):
        reader.document().read("head.npz")
    assert not reader.document().exists()
    assert not Machine(machine.folder, signer).document().exists()
    assert f"{KEY}: head.npz" in warnings(caplog)[0]


def test_evidence_of_a_machine_that_was_faster_counts(machine, reader):
    """Two runs compute the same step: what was signed first stays, so that nobody reads a mixture."""
    reader.save(file=b"a moment later")
    assert machine.document().read("head.npz") == b"layers"
    assert reader.document().read("head.npz") == b"layers"


def test_evidence_is_read_again_while_another_machine_writes_a_record_that_changes(machine, reader, caplog):
    document = reader.document()
    assert document.load(Lineage) == RECORD
    changed = machine.document()
    changed.save(Lineage(tuned="newer"), replace=True)
    assert document.load(Lineage) == Lineage(tuned="newer")
    assert warnings(caplog) == []


def test_evidence_of_a_result_that_is_written_just_now_is_waited_for(machine, reader, caplog, monkeypatch):
    """Workers share the steps; signing may take a call to a KMS."""
    place = machine.folder / statement_key(KEY)
    written = place.read_bytes()
    place.unlink()
    monkeypatch.setattr("luigi_tasks.evidence.ledger.time.sleep", lambda _: place.write_bytes(written))
    assert reader.document().exists()
    assert warnings(caplog) == []


def test_evidence_by_a_stolen_key_is_named_once_as_such(machine, signer, caplog):
    """After a theft all results are: a site of a million pictures has two thousand of them."""
    machine.save(OTHER)
    new = CryptoSigner.generate_ed25519().public_key
    stolen = frozenset({signer.public_key.keyid})
    trust = WorkTrust(lambda: {new.keyid: new}, lambda: signer, lambda: stolen)
    ledger = Ledger(machine.ledger.store, trust)
    caplog.set_level(logging.INFO, logger="luigi-interface")
    for key in (KEY, OTHER):
        assert not StoredDocument(ledger, key).exists()
        assert f"{key}: its statement is not signed by a trusted work key" in caplog.text
    [said] = warnings(caplog)
    assert "edge-keys rotate --stolen" in said


def test_evidence_of_results_by_an_earlier_version_is_missed_once(machine, reader, signer, caplog):
    machine.save(OTHER)
    for key in (KEY, OTHER):
        (machine.folder / statement_key(key)).unlink()
    caplog.set_level(logging.INFO, logger="luigi-interface")
    assert not reader.document(KEY).exists()
    assert not reader.document(OTHER).exists()
    [said] = warnings(caplog)
    assert f"{KEY}: no statement" in said
    assert f"{OTHER}: no statement" in caplog.text, "named, but not warned of"


def test_evidence_is_needed_once_others_sign(machine):
    """A machine without the root would neither check what others signed, nor be believed by them."""
    without = Ledger(machine.ledger.store)
    with pytest.raises(SettingsError, match=r"device/root\.json and pipeline/work\.pem"):
        StoredDocument(without, KEY).exists()


def test_evidence_is_not_made_without_any_root(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="luigi-interface")
    ledger = Ledger(FolderStore(load_settings(store={"url": (tmp_path / "s").as_uri()}).store))
    StoredDocument(ledger, KEY).save(RECORD)
    assert StoredDocument(ledger, KEY).load(Lineage) == RECORD
    assert "results stay unsigned, and nothing can be published" in caplog.text
    assert not list((tmp_path / "s").rglob("*.intoto.json"))


def test_evidence_needs_the_work_key_before_anything_is_computed(tmp_path):
    make_keys(tmp_path / "keys")
    (tmp_path / "keys/pipeline/work.pem").unlink()
    trust = trust_settings(tmp_path / "keys")
    settings = load_settings(
        store={"url": (tmp_path / "store").as_uri()}, trust={"root": trust.root, "keys": trust.keys}
    )
    with pytest.raises(SettingsError, match=r"cannot sign its results.*work\.pem"):
        open_workspace(settings).ledger.check_signer()


def test_evidence_is_not_looked_at_under_a_root_that_is_none(tmp_path, caplog, faults):
    """A root that somebody put into the bucket is named as such: no result is at fault, or made again."""
    make_keys(tmp_path / "keys")
    trust = trust_settings(tmp_path / "keys")
    settings = load_settings(
        store={"url": (tmp_path / "store").as_uri()}, trust={"root": trust.root, "keys": trust.keys}
    )
    StoredDocument(open_workspace(settings).ledger, KEY).save(RECORD)
    with faults.injected(Kind.EVIDENCE, "root", "put into the bucket"):
        root = tmp_path / "store/metadata/2.root.json"
        root.parent.mkdir()
        root.write_bytes(b'{"signed": {"_type": "root"}}')
        with pytest.raises(TrustError, match=r"2\.root\.json: not signed by our keys.*remove this object"):
            StoredDocument(open_workspace(settings).ledger, KEY).exists()
        assert warnings(caplog) == []
        root.unlink()
        assert StoredDocument(open_workspace(settings).ledger, KEY).exists()


def test_evidence_lets_no_forged_checkpoint_be_resumed(machine, reader, caplog, faults):
    target = machine.document("work/tuned/t/tuned.json")
    artifacts.StoredCheckpoint(target).save(b"epoch 3")
    resumed = artifacts.StoredCheckpoint(reader.document("work/tuned/t/tuned.json"))
    assert resumed.load() == b"epoch 3"
    with faults.injected(Kind.EVIDENCE, "checkpoint", "altered"):
        (machine.folder / "work/tuned/t/checkpoint.npz").write_bytes(b"epoch 9")
        assert resumed.load() is None
    artifacts.StoredCheckpoint(target).save(b"epoch 4")
    assert resumed.load() == b"epoch 4"
    artifacts.StoredCheckpoint(target).save(b"")
    reader.ledger.begin()
    assert resumed.load() is None
    assert len(warnings(caplog)) == 1


def test_evidence_lets_nobody_choose_the_start_of_a_training(machine, signer, faults):
    """The lineage of a release names the weights that the next training goes on from."""
    tuned = machine.document("work/tuned/t/tuned.json")
    tuned.put("weights.npz", b"honest")
    tuned.save(RECORD)
    artifacts.save_lineage(machine.ledger, "r1", tuned)
    settings = load_settings(store={"url": machine.folder.as_uri()})

    def start() -> tuple[str, bytes] | None:
        workspace = open_workspace(settings)
        workspace.ledger = Machine(machine.folder, signer).ledger
        workspace.find_start = lambda: "r1"  # type: ignore[method-assign]
        return artifacts.find_parent(workspace)

    assert start() == ("r1", b"honest")
    with faults.injected(Kind.EVIDENCE, "start of a training", "weights altered"):
        (machine.folder / "work/tuned/t/weights.npz").write_bytes(b"chosen")
        assert start() is None
    with faults.injected(Kind.EVIDENCE, "start of a training", "lineage altered"):
        (machine.folder / "work/lineage/r1.json").write_bytes(b'{"tuned": "work/tuned/evil/"}')
        assert start() is None


def test_evidence_lets_no_plan_or_inventory_be_put_in(machine, reader):
    key = "work/plans/p.json"
    machine.document(key).save_list(Plan(inventory="", gone=(), new=(), shards=("s",)))
    (machine.folder / key).write_bytes(msgspec.json.encode(Plan(inventory="i", gone=(), new=(), shards=())))
    assert not reader.document(key).exists()


def test_evidence_chain_ends_where_an_input_is_not_what_it_was(machine, signer, reader):
    machine.save(BACKBONE)
    machine.save(OTHER, BACKBONE)
    candidate = "work/candidates/c/candidate.json"
    machine.save(candidate, OTHER)
    found = walk_chain(reader.ledger.find, [candidate])
    assert found.faults == (f"{BACKBONE}: names nothing that it was made of",)
    assert found.stale == (BACKBONE, OTHER, candidate)

    snapshot = "work/snapshots/s/summary.json"
    machine.save(snapshot)
    machine.ledger.withdraw(BACKBONE)
    machine.save(BACKBONE, snapshot)
    reader.ledger.begin()
    found = walk_chain(reader.ledger.find, [candidate])
    assert found.faults == ()
    assert list(found.entries) == [snapshot, BACKBONE, OTHER, candidate]

    machine.ledger.withdraw(OTHER)
    other = machine.document(OTHER, BACKBONE)
    other.save(Lineage(tuned="by a newer version"))
    reader.ledger.begin()
    found = walk_chain(reader.ledger.find, [candidate])
    [fault] = found.faults
    assert fault.startswith(f"{OTHER}: not the one that {candidate} was made of")
    assert found.stale == (candidate,)


def test_evidence_that_stands_on_itself_stands_on_nothing(machine, reader):
    """Somebody with the work key: the digest of an input is nowhere to be compared with in a circle."""
    candidate, evaluation = "work/candidates/c/candidate.json", "work/evaluations/e/evaluation.json"
    machine.save(candidate)
    machine.save(evaluation)
    chain = [f"work/heads/{number}/training.json" for number in range(40)]
    for key in chain:
        machine.save(key)

    def stand(key: str, on: str) -> None:
        entry = machine.ledger.entry(key)
        _, envelope, _ = machine.ledger.sign(step_of(key), key, entry.files, {on: "0" * 64})
        (machine.folder / statement_key(key)).write_bytes(envelope)

    stand(candidate, candidate)
    stand(evaluation, candidate)
    found = walk_chain(reader.ledger.find, [candidate, evaluation])
    assert found.faults == (f"{candidate}: stands on itself",)
    assert found.stale == (candidate, evaluation)
    with pytest.raises(EvidenceError, match="stands on itself"):
        Evidence(reader.ledger, [candidate, evaluation])
    assert not reader.document(candidate).exists()

    for key, on in itertools.pairwise(chain):
        stand(key, on)
    [fault] = walk_chain(reader.ledger.find, chain[:1]).faults
    assert fault.startswith(f"{chain[32]}: stands below 32 others")


def test_evidence_that_is_published_has_nothing_that_nobody_signed(machine, reader, faults):
    """An envelope is signed in part: lines, fields and signatures can be added to it in the store."""
    snapshot, candidate = "work/snapshots/s/summary.json", "work/candidates/c/candidate.json"
    machine.save(snapshot)
    document = machine.document(candidate, snapshot)
    document.put("model.tflite", b"model")
    document.put("labels.txt", b"labels")
    document.save(RECORD)
    honest = [(machine.folder / statement_key(one)).read_bytes() for one in (snapshot, candidate)]
    with faults.injected(Kind.EVIDENCE, "any record", "statement padded"):
        for key in (snapshot, candidate):
            path = machine.folder / statement_key(key)
            padded = msgspec.json.decode(path.read_bytes())
            padded["signatures"].insert(0, {"keyid": "f" * 64, "sig": "QUJD", "more": "<script>"})
            padded |= {"payload": padded["payload"].replace("+", "-").replace("/", "_"), "note": "x" * 1000}
            path.write_bytes(msgspec.json.format(msgspec.json.encode(padded), indent=1))
        files = machine.ledger.entry(candidate).files
        lines = Evidence(reader.ledger, [candidate]).write("r1", files).splitlines()
    assert lines[:-1] == honest
    assert len(lines) == 3


def test_evidence_of_another_step_is_refused(machine, signer):
    data = (machine.folder / statement_key(KEY)).read_bytes()
    keys = {signer.public_key.keyid: signer.public_key}
    assert verify_statement(data, keys, KEY, "TrainModel")[1] == signer.public_key.keyid
    with pytest.raises(TrustError, match="is of step TrainModel, EvaluateModel was expected"):
        verify_statement(data, keys, KEY, "EvaluateModel")
