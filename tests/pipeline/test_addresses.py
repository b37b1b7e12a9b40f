"""Where results lie: equal input has equal keys for ever, or every store is computed again.

The keys below were recorded with the first release of the pipeline. A test that fails here means that
results in the stores of users are not found any more: raise the step's version and say so in the changelog,
or keep the key. `candidate`, `evaluation`, `head` and `tuned` were raised since. The keys of `evaluation`
were recorded again when [gate] got more settings, all of which decide the verdict; those of `plan` and
`snapshot` when more pictures became readable, [dataset] max_broken_pictures became max_left_out_percent, and
groups came; those of `candidate`, and of `evaluation` after it, when [release] precision began to decide
what is sure.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from luigi_tasks import addresses
from luigi_tasks.backbone.records import BackboneRecord
from luigi_tasks.dataset.presets import name_of_pictures
from luigi_tasks.dataset.records import SnapshotSummary
from luigi_tasks.settings.sections import load_settings

LISTING = "0123456789abcdef0123"
DIGEST = "d" * 20


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings that differ from the defaults, the size of the training split, and the keys."""

    name: str
    settings: dict[str, dict[str, str]]
    train_pictures: int
    keys: dict[str, str]


CASES = (
    Case(
        "default",
        {},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/3519acc92781812bec68/backbone.json",
            "calibrated_backbone": "1ab5b121a983f06b3ae2",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/7ddbb968bc778e2e07f1/training.json",
            "candidate": "work/candidates/a4d59f9fc54b41a30f72/candidate.json",
            "evaluation_None": "work/evaluations/b6646a1b03c460384bcb/evaluation.json",
            "evaluation_old": "work/evaluations/727936898a68e9fa70da/evaluation.json",
        },
    ),
    Case(
        "digits_from_scratch",
        {"model": {"weights": "none"}, "training": {"mode": "finetune"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "tuned": "work/tuned/9867a7ad16cfb3c729ad/tuned.json",
            "backbone": "work/backbones/9169e38bc91f2a3470bc/backbone.json",
            "calibrated_backbone": "9169e38bc91f2a3470bc",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/60c57b775ada8ec2566f/training.json",
            "candidate": "work/candidates/28457c13d76c1aaf57ea/candidate.json",
            "evaluation_None": "work/evaluations/de02a6fe61b27aec2285/evaluation.json",
            "evaluation_old": "work/evaluations/ed8c1eccaacda955fdd3/evaluation.json",
        },
    ),
    Case(
        "finetune",
        {"training": {"mode": "finetune"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "tuned": "work/tuned/0e526b4e0f53280cbfd3/tuned.json",
            "backbone": "work/backbones/6676630dfaced364be18/backbone.json",
            "calibrated_backbone": "6676630dfaced364be18",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/60c57b775ada8ec2566f/training.json",
            "candidate": "work/candidates/28457c13d76c1aaf57ea/candidate.json",
            "evaluation_None": "work/evaluations/de02a6fe61b27aec2285/evaluation.json",
            "evaluation_old": "work/evaluations/ed8c1eccaacda955fdd3/evaluation.json",
        },
    ),
    Case(
        "finetune_cluster",
        {"training": {"mode": "finetune", "cluster": "a:1,b:1"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "tuned": "work/tuned/46ca60acb371706cbb1b/tuned.json",
            "backbone": "work/backbones/7236eb3dcfd680bb1fb7/backbone.json",
            "calibrated_backbone": "7236eb3dcfd680bb1fb7",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/3ab5827d312b214892fe/training.json",
            "candidate": "work/candidates/a290c8fb0e043aa28abc/candidate.json",
            "evaluation_None": "work/evaluations/d8d9d249c147e77ee673/evaluation.json",
            "evaluation_old": "work/evaluations/da086cc61360ed8705a4/evaluation.json",
        },
    ),
    Case(
        "head_cluster",
        {"training": {"cluster": "a:1,b:1"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/3519acc92781812bec68/backbone.json",
            "calibrated_backbone": "1ab5b121a983f06b3ae2",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/7ddbb968bc778e2e07f1/training.json",
            "candidate": "work/candidates/a4d59f9fc54b41a30f72/candidate.json",
            "evaluation_None": "work/evaluations/b6646a1b03c460384bcb/evaluation.json",
            "evaluation_old": "work/evaluations/727936898a68e9fa70da/evaluation.json",
        },
    ),
    Case(
        "wide_first",
        {"quantization": {"scheme": "int8_wide"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/0d550d8bd6177797cffb/backbone.json",
            "calibrated_backbone": "c5f8cb25ed55819ad42e",
            "features": "work/features/801066c4f958d3d58fd0/b1.json",
            "head": "work/heads/d7c8267be921dc5559f0/training.json",
            "candidate": "work/candidates/278a9f7a9ac31d92dd52/candidate.json",
            "evaluation_None": "work/evaluations/0d672f20660b17299bec/evaluation.json",
            "evaluation_old": "work/evaluations/32fd06b1a7de67e14bc1/evaluation.json",
        },
    ),
    Case(
        "float16",
        {"quantization": {"scheme": "float16"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/3f588e5fb9c76d572f9a/backbone.json",
            "calibrated_backbone": "8aac98c7bf14e865c03a",
            "features": "work/features/ed89471f8180e7b8ddfb/b1.json",
            "head": "work/heads/66fda024f943b3468a1e/training.json",
            "candidate": "work/candidates/c47ba24074fdcd7f0990/candidate.json",
            "evaluation_None": "work/evaluations/92666a5b019fd3fcfb87/evaluation.json",
            "evaluation_old": "work/evaluations/e46f73fb10968da9e1cc/evaluation.json",
        },
    ),
    Case(
        "named_calibration",
        {"quantization": {"calibration": "abc"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/e9e68d95886c811864cc/backbone.json",
            "calibrated_backbone": "1ab5b121a983f06b3ae2",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/7ddbb968bc778e2e07f1/training.json",
            "candidate": "work/candidates/a4d59f9fc54b41a30f72/candidate.json",
            "evaluation_None": "work/evaluations/b6646a1b03c460384bcb/evaluation.json",
            "evaluation_old": "work/evaluations/727936898a68e9fa70da/evaluation.json",
        },
    ),
    Case(
        "device_class",
        {"release": {"device_class": "pi4"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/3519acc92781812bec68/backbone.json",
            "calibrated_backbone": "1ab5b121a983f06b3ae2",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/7ddbb968bc778e2e07f1/training.json",
            "candidate": "work/candidates/b93884e405c7f57e2e98/candidate.json",
            "evaluation_None": "work/evaluations/d8ace6230876e8393648/evaluation.json",
            "evaluation_old": "work/evaluations/0540264c29fc5577bd35/evaluation.json",
        },
    ),
    Case(
        "small_set",
        {},
        500,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/3519acc92781812bec68/backbone.json",
            "calibrated_backbone": "1ab5b121a983f06b3ae2",
            "features": "work/features/d7f2c3e23d8b06f044b0/b1.json",
            "head": "work/heads/7ddbb968bc778e2e07f1/training.json",
            "candidate": "work/candidates/a4d59f9fc54b41a30f72/candidate.json",
            "evaluation_None": "work/evaluations/b6646a1b03c460384bcb/evaluation.json",
            "evaluation_old": "work/evaluations/727936898a68e9fa70da/evaluation.json",
        },
    ),
    Case(
        "gate",
        {"gate": {"min_accuracy": "0.9"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/3519acc92781812bec68/backbone.json",
            "calibrated_backbone": "1ab5b121a983f06b3ae2",
            "features": "work/features/8c4ccf358819529f3fa5/b1.json",
            "head": "work/heads/7ddbb968bc778e2e07f1/training.json",
            "candidate": "work/candidates/a4d59f9fc54b41a30f72/candidate.json",
            "evaluation_None": "work/evaluations/19ada7c4098f827d7b9f/evaluation.json",
            "evaluation_old": "work/evaluations/29b6b0b14da16e1abff3/evaluation.json",
        },
    ),
    Case(
        "alpha",
        {"model": {"alpha": "0.5"}, "training": {"seed": "7", "horizontal_flip": "false"}},
        2000,
        {
            "plan": "work/plans/448e14cfec517a249f5f.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/914bc4ec10212b083d81/summary.json",
            "backbone": "work/backbones/208debfdf14799110e3f/backbone.json",
            "calibrated_backbone": "de19c1914fdca744886f",
            "features": "work/features/2c8f36b2a1643f92cd01/b1.json",
            "head": "work/heads/d41916d2c71f8c1220b3/training.json",
            "candidate": "work/candidates/4317d89fdaefd6ab8202/candidate.json",
            "evaluation_None": "work/evaluations/d89f8632b42984cf5ded/evaluation.json",
            "evaluation_old": "work/evaluations/3c68ce3ff8473af6e6ae/evaluation.json",
        },
    ),
    Case(
        "split",
        {"dataset": {"holdout_percent": "25", "shard_pictures": "500"}},
        2000,
        {
            "plan": "work/plans/767088703a57e4cbe865.json",
            "batch": "work/batches/b1/batch.json",
            "snapshot": "work/snapshots/ae73786d850eb8f53159/summary.json",
            "backbone": "work/backbones/3519acc92781812bec68/backbone.json",
            "calibrated_backbone": "1ab5b121a983f06b3ae2",
            "features": "work/features/3c1c26aef31746b9fff9/b1.json",
            "head": "work/heads/7ddbb968bc778e2e07f1/training.json",
            "candidate": "work/candidates/a4d59f9fc54b41a30f72/candidate.json",
            "evaluation_None": "work/evaluations/b6646a1b03c460384bcb/evaluation.json",
            "evaluation_old": "work/evaluations/727936898a68e9fa70da/evaluation.json",
        },
    ),
)


def with_settings(changes: dict[str, dict[str, str]]) -> Any:
    """The defaults with some settings changed, as luigi.cfg would give them."""
    settings = load_settings()
    for section, values in changes.items():
        before = getattr(settings, section)
        typed = {
            name: value == "true" if isinstance(old := getattr(before, name), bool) else type(old)(value)
            for name, value in values.items()
        }
        settings = dataclasses.replace(settings, **{section: dataclasses.replace(before, **typed)})
    return settings


def keys_of(identity: addresses.Identity, train_pictures: int) -> dict[str, str | None]:
    """All keys of a run whose steps are done."""
    settings = identity.settings
    scheme = settings.quantization.scheme
    converted = BackboneRecord(
        variants={"float": "1" * 64, scheme: "2" * 64}, width=1280, calibration=("3" * 64,), made_with={}
    )
    tuned = addresses.tuned(identity, DIGEST) if identity.tunes else None
    head = addresses.head(identity, DIGEST, converted)
    assert head is not None
    candidate = addresses.candidate(identity, [head])
    portions = settings.training.portions(train_pictures)
    found = {
        "plan": addresses.plan(identity),
        "batch": addresses.shard("b1"),
        "snapshot": addresses.snapshot(identity),
        "tuned": tuned,
        "backbone": addresses.backbone(identity, scheme, tuned),
        "calibrated_backbone": addresses.calibrated_backbone(identity, scheme, tuned),
        "features": addresses.features(identity, converted, portions, "b1"),
        "head": head,
        "candidate": candidate,
        "evaluation_None": addresses.evaluation(identity, candidate, None),
        "evaluation_old": addresses.evaluation(identity, candidate, "old"),
    }
    return {name: key for name, key in found.items() if key is not None}


def identity_of(changes: dict[str, dict[str, str]]) -> addresses.Identity:
    settings = with_settings(changes)
    return addresses.Identity("s3://bucket/orchard", LISTING, settings, settings.model.weights)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keys_of_the_first_release_are_still_valid(case, monkeypatch):
    for step, version in (("candidate", 4), ("evaluation", 3), ("head", 4), ("tuned", 2)):
        monkeypatch.setitem(addresses.VERSIONS, step, version)
    # Its default is another one since.
    settings = case.settings | {"training": {"finetune_rate": "0.001", **case.settings.get("training", {})}}
    assert keys_of(identity_of(settings), case.train_pictures) == case.keys


def test_the_name_of_a_preset_in_keys_is_that_of_before_it_had_a_scheme():
    assert [name_of_pictures(one) for one in ("preset:digits", "preset:flowers")] == ["digits", "flowers"]
    assert name_of_pictures("s3://bucket/orchard") == "s3://bucket/orchard"


def test_a_result_is_pending_while_what_decides_it_does_not_exist():
    head, tunes = identity_of({}), identity_of({"training": {"mode": "finetune"}})
    assert addresses.tuned(tunes, None) is None
    assert addresses.backbone(tunes, "int8", None) is None
    assert addresses.features(head, None, head.settings.training.portions(1), "b1") is None
    assert addresses.head(head, DIGEST, None) is None
    assert addresses.head(head, None, None) is None


def test_a_class_folder_that_goes_makes_another_evaluation_of_the_same_pictures():
    """What was held because a class fell out is judged anew once a person removed its folder."""
    identity = identity_of({})
    with_folder, without = (
        SnapshotSummary(
            digest=DIGEST, labels=("a", "b"), train_pictures=8, holdout_pictures=2, left_out_classes=classes
        )
        for classes in (("c",), ())
    )
    held = addresses.evaluation(identity, "work/candidates/1", "old", with_folder)
    assert held != addresses.evaluation(identity, "work/candidates/1", "old", without)
    assert addresses.evaluation(identity, "x", None, with_folder) == addresses.evaluation(identity, "x", None)


@pytest.mark.parametrize("constant", ["PREPROCESSING_ID", "AUGMENTATION_VERSION"])
def test_results_of_other_pixels_are_other_results(monkeypatch, constant):
    before = keys_of(identity_of({}), 2000)
    monkeypatch.setattr(addresses, constant, "another")
    after = keys_of(identity_of({}), 2000)
    assert after["features"] != before["features"]
    assert after["head"] != before["head"]
    assert (after["backbone"] != before["backbone"]) == (constant == "PREPROCESSING_ID")


@pytest.mark.parametrize(
    ("mode", "machines", "same"),
    [
        ("head", "", True),
        ("head", "x:9,y:9,z:9", True),
        ("finetune", "x:9,y:9", True),
        ("finetune", "x:9,y:9,z:9", False),
        ("finetune", "", False),
    ],
)
def test_renaming_a_machine_trains_nothing_again(mode, machines, same):
    """How many machines tune together decides what each sees; in mode `head` one machine trains."""

    def key(cluster):
        return addresses.tuned(identity_of({"training": {"mode": mode, "cluster": cluster}}), DIGEST)

    assert (key(machines) == key("a:1,b:1")) == same


def test_another_class_of_devices_is_another_candidate():
    keys = {
        addresses.candidate(identity_of({"release": {"device_class": one}}), ["head"])
        for one in ("", "a", "b")
    }
    assert len(keys) == 3


def test_the_cache_folder_decides_nothing():
    settings = load_settings()
    moved = dataclasses.replace(settings.dataset, cache_dir=settings.dataset.cache_dir / "elsewhere")
    assert addresses.recipe(dataclasses.replace(settings, dataset=moved)) == addresses.recipe(settings)


def test_the_features_of_a_shard_are_those_of_its_split():
    """A shard without moved pictures keeps the key that it has always had."""
    identity = identity_of({})
    converted = BackboneRecord(variants={"float": "1" * 64}, width=1280, calibration=(), made_with={})
    portions = identity.settings.training.portions(2000)
    keys = [addresses.features(identity, converted, portions, "b1", one) for one in ("", "aa", "bb")]
    assert keys[0] == addresses.features(identity, converted, portions, "b1")
    assert len(set(keys)) == 3
