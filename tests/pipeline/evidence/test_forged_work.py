"""Somebody writes the bucket between two runs: no candidate is signed that this pipeline did not make."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, NamedTuple

import luigi
import msgspec
import pytest
from luigi.task_register import Register

from edge_client.contract.documents import encode_document
from edge_client.contract.names import release_target
from edge_client.releases import needed_files
from luigi_tasks import provenance, steps, task
from luigi_tasks.edge_keys import main as edge_keys
from luigi_tasks.evidence.chain import walk_chain
from luigi_tasks.evidence.ledger import File
from luigi_tasks.evidence.release import EVIDENCE_FILE
from luigi_tasks.evidence.statement import statement_key, step_of
from luigi_tasks.inference import model_process
from luigi_tasks.pipeline import ConvertBackbone, Deploy, EvaluateModel, QuantizeModel, TrainModel
from luigi_tasks.quantization.records import CandidateRecord
from luigi_tasks.release.verify import verify_release
from luigi_tasks.workspace import open_workspace
from tests.fakes.attacker import Attacker
from tests.fakes.bad_models import crashing_model, endless_model
from tests.fakes.datasets import write_tree
from tests.fakes.site import Site, plain
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FIRST = {**plain("red", "red", 20), **plain("blue", "blue", 20)}
# Steps that nothing slow stands on.
CHEAP = {"TrainModel", "QuantizeModel", "EvaluateModel"}
SECOND = FIRST | plain("red", "red", 8, start=20)


class Work:
    """A site with one release, and a second candidate that passed and is not published yet.

    Attributes:
        site: The site.
        keys: Records of the chain of the second candidate, inputs first, by step.
        others: Records of the first release's chain that are not in it.
        older: A store with the same results by other versions of the packages.
        honest: Hex digests of the models that this pipeline made.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.base, self.older = site.folder / "base", site.folder / "older"
        site.deploy(FIRST)
        self.others = self.chain()
        write_tree(site.pictures, SECOND)
        shutil.copytree(site.store, self.older)
        site.store, now = self.older, site.store
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(provenance, "package_versions", lambda: {"python": "an older one", "code": "0"})
            self.build(EvaluateModel)
        honest = {self.model_sha256()}
        site.store = now
        self.build(EvaluateModel)
        self.honest = honest | {self.model_sha256()}
        self.keys = self.chain()
        self.others = [one for one in self.others if one not in self.keys]
        site.store.rename(self.base)

    def build(self, kind: type[Deploy | EvaluateModel]) -> bool:
        """Run a task; return whether it succeeded."""
        Register.clear_instance_cache()
        self.site.messages.clear()
        wanted = kind(pictures=str(self.site.pictures))
        return bool(luigi.build([wanted], local_scheduler=True, log_level="WARNING"))

    def key(self, kind: type[QuantizeModel | EvaluateModel | TrainModel]) -> str:
        Register.clear_instance_cache()
        return kind(pictures=str(self.site.pictures)).of_now().own_target().key

    def chain(self) -> list[str]:
        """Keys of the chain of the candidate, and of the inventory, plan and shards behind the snapshot."""
        ledger = open_workspace(self.site.load_settings()).ledger
        found = walk_chain(ledger.find, [self.key(QuantizeModel), self.key(EvaluateModel)])
        assert not found.faults
        behind = [
            path.relative_to(self.site.store).as_posix()
            for folder in ("plans", "inventories", "batches")
            for path in sorted((self.site.store / "work" / folder).rglob("*.json"))
            if not path.name.endswith(".intoto.json")
        ]
        return [*dict.fromkeys([*behind, *found.entries])]

    def model_sha256(self) -> str:
        path = self.site.store / self.key(QuantizeModel)
        return hashlib.sha256(path.with_name("model.tflite").read_bytes()).hexdigest()

    def attacked(self, number: int) -> Attacker:
        """Give the site a copy of the base; return somebody who can write it."""
        self.site.store = self.site.folder / f"store-{number}"
        shutil.copytree(self.base, self.site.store)
        return Attacker(self.site.store)

    def published(self) -> str:
        """Check that the release is what this pipeline made, all of it proven; return the model's digest."""
        workspace = open_workspace(self.site.load_settings())
        release = steps.current_release(workspace)
        assert release is not None
        proof = verify_release(workspace.repository.load(), release)
        assert proof.faults == ()
        assert proof.model_sha256 in self.honest
        return release


@pytest.fixture(scope="module")
def work(tmp_path_factory, small_weights, mqtt_broker) -> Iterator[Work]:
    site = Site(tmp_path_factory.mktemp("site"), small_weights, (mqtt_broker.host, mqtt_broker.port))
    lenient = {
        "min_accuracy": 0.3,
        "max_float_drop_points": 100.0,
        "max_class_drop_points": 100.0,
        "max_champion_drop_points": 100.0,
        "min_class_recall": 0.0,
        "thin_evidence": "publish",
    }
    with pytest.MonkeyPatch.context() as patched, site.listening():
        load = site.load_settings

        def lenient_settings(pictures: str = "", **changes):
            return load(pictures, **{**changes, "gate": {**lenient, **changes.get("gate", {})}})

        site.load_settings = lenient_settings  # type: ignore[method-assign]
        patched.setattr(task, "load_settings", site.load_settings)
        yield Work(site)


class Case(NamedTuple):
    """One record and what is done to it."""

    key: str
    fault: str


def cases(work: Work) -> list[Case]:
    """Every record of the chain with every fault that it can have."""
    found = []
    for key in work.keys:
        faults = ["altered", "unsigned", "foreign key", "dropped", "file altered"]
        faults += ["moved"] * any(step_of(one) == step_of(key) for one in work.others)
        faults += ["replayed"] * (work.older / statement_key(key)).exists()
        found += [Case(key, fault) for fault in faults]
    return found


def inject(work: Work, attacker: Attacker, case: Case) -> None:
    key = case.key
    if case.fault in {"altered", "unsigned", "foreign key"}:
        attacker.alter(key)
    if case.fault in {"unsigned", "dropped"}:
        attacker.drop(key)
    elif case.fault == "foreign key":
        attacker.sign(key)
    elif case.fault == "file altered":
        folder = (attacker.store / key).parent
        for path in folder.glob("*"):
            if path.suffix != ".json" or path.name == "pictures.json":
                attacker.damage(path.relative_to(attacker.store).as_posix())
    elif case.fault == "moved":
        other = next(one for one in work.others if step_of(one) == step_of(key))
        attacker.copy(other, key)
    elif case.fault == "replayed":
        attacker.copy(key, key, work.older)


def test_evidence_a_link_that_is_forged_dropped_moved_or_replayed_is_made_again(work, faults):
    possible = [one for one in cases(work) if faults.every or step_of(one.key) in CHEAP]
    for number, case in enumerate(faults.sample(possible, by_default=4)):
        with faults.injected(Kind.EVIDENCE, step_of(case.key), case.fault):
            attacker = work.attacked(number)
            inject(work, attacker, case)
            assert work.build(Deploy), work.site.messages
            work.published()
            shutil.rmtree(work.site.store)


def forge(work: Work, attacker: Attacker) -> tuple[str, str]:
    """Put a model that always gives one answer in the candidate's place; return the records' keys."""
    candidate, evaluation = work.key(QuantizeModel), work.key(EvaluateModel)
    trained = QuantizeModel(pictures=str(work.site.pictures)).of_now().requires()
    backbone, head = trained.clone(ConvertBackbone).load(), trained.load()
    made = attacker.forge(candidate, evaluation, work.site.load_settings(), backbone, head)
    assert made.record.model_sha256 not in work.honest
    return candidate, evaluation


@pytest.mark.parametrize("signed", ["unsigned", "by another key"])
def test_evidence_four_forged_objects_get_nothing_signed(work, faults, signed):
    """The attack of the review: candidate, model, evaluation and report, all where the pipeline looks."""
    with faults.injected(Kind.EVIDENCE, "candidate and evaluation", f"forged, {signed}"):
        attacker = work.attacked(1000 + len(signed))
        candidate, evaluation = forge(work, attacker)
        for key in (candidate, evaluation):
            attacker.sign(key) if signed == "by another key" else attacker.drop(key)
        assert work.build(Deploy)
        release = work.published()
        said = "\n".join(work.site.messages)
        assert f"{candidate}: " in said
        assert said.count(candidate) == 1, "one warning that names it"

        # Again, under a release that is deployed: the owner's next Deploy has nothing new.
        for key in forge(work, attacker):
            attacker.sign(key)
        assert work.build(Deploy)
        assert work.published() == release


def test_evidence_is_shown_to_anybody_with_the_root(work, capsys, monkeypatch):
    attacker = work.attacked(2000)
    assert work.build(Deploy)
    release = work.published()
    monkeypatch.chdir(work.site.folder)  # no [trust] keys there
    asked = ["verify", release, "--store", attacker.store.as_uri()]
    asked += ["--root", str(work.site.folder / "keys/device/root.json")]
    assert edge_keys(asked) == 0
    shown = capsys.readouterr().out
    for key in (
        *work.keys[-3:],
        "PublishRelease",
        "DatasetSnapshot",
        "ConvertBackbone",
        provenance.code_version(),
    ):
        assert key in shown
    assert edge_keys([*asked, "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["ok"]
    assert {one["step"] for one in proof["steps"]} >= {"TrainModel", "QuantizeModel", "EvaluateModel"}
    assert all(one["settings"]["training.learning_rate"] == "0.01" for one in proof["steps"])

    # Each link that is missing is named.
    repository = open_workspace(work.site.load_settings()).repository
    path = release_target(release, EVIDENCE_FILE)
    lines = repository.load().read(path).splitlines(keepends=True)
    for number in (0, len(lines) - 2, len(lines) - 1):
        repository.publish({path: b"".join(lines[:number] + lines[number + 1 :])})
        assert edge_keys(asked) == 1
        said = capsys.readouterr().err
        address = proof["steps"][number]["address"]
        assert f"{address}: " in said

    # The file is signed like any other.
    repository.publish({path: b"".join(lines)})
    assert edge_keys(asked) == 0
    [place] = (attacker.store / "targets/releases" / release).glob(
        f"{repository.load().files[path].hashes['sha256']}.*"
    )
    attacker.alter(place.relative_to(attacker.store).as_posix())
    assert edge_keys(asked) == 1
    assert "not the signed content" in capsys.readouterr().err


def test_evidence_is_not_what_a_device_downloads(work):
    work.attacked(3000)
    assert work.build(Deploy)
    document = open_workspace(work.site.load_settings()).repository.load().release(work.published())
    assert document is not None
    assert EVIDENCE_FILE not in needed_files(document)


def test_evidence_of_an_earlier_version_is_asked_for_with_one_warning(work):
    """Its results have no statements."""
    attacker = work.attacked(4000)
    for key in work.keys:
        if step_of(key) in CHEAP:  # the others are the same, but take seconds
            attacker.drop(key)
    assert work.build(Deploy)
    work.published()
    assert len([one for one in work.site.messages if "no statement of this pipeline" in one]) == 1
    assert len(work.site.messages) == 1


@pytest.mark.parametrize(
    ("model", "said"), [(crashing_model, "SIGSEGV"), (endless_model, "no answer within 2 s")]
)
def test_a_signed_candidate_that_crashes_or_hangs_the_runtime_ends_no_run(
    work, monkeypatch, faults, model, said
):
    """A worker whose key was stolen, or whose memory is bad: the machine with the keys survives it."""
    monkeypatch.setattr(model_process, "ANSWER_LIMIT_S", 2.0)
    work.attacked(5000 + len(said))
    before = work.site.released
    key, content = work.key(QuantizeModel), model()
    ledger = open_workspace(work.site.load_settings()).ledger
    folder = key.removesuffix("candidate.json")
    record = msgspec.structs.replace(
        msgspec.json.decode(ledger.load(key), type=CandidateRecord),
        model_sha256=hashlib.sha256(content).hexdigest(),
        labels=("a", "b", "c"),
    )
    statement = ledger.entry(key).statement
    assert statement is not None
    ledger.save(
        File("candidate.json", encode_document(record)),
        folder,
        [File("model.tflite", content), File("labels.txt", b"a\nb\nc\n")],
        [one for one in work.keys if one in statement.inputs],
        replace=True,
    )
    with faults.injected(Kind.EVIDENCE, "candidate", f"signed, {said}"):
        assert not work.build(Deploy)
        messages = "\n".join(work.site.messages)
        assert f"the candidate {record.release}" in messages
        assert said in messages
        assert work.site.released == before
