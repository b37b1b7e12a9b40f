"""luigi.cfg at the top holds every setting with its default, and nothing else."""

from __future__ import annotations

import configparser
import dataclasses
from pathlib import Path

import pytest

from luigi_tasks.settings import sections
from luigi_tasks.settings.checks import find_faults
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.settings.values import PipelineSettings

LUIGI_CFG = Path(__file__).resolve().parents[3] / "luigi.cfg"
NAMES = [field.name for field in dataclasses.fields(PipelineSettings)]


@pytest.mark.parametrize("name", NAMES)
def test_luigi_cfg_has_every_setting_with_its_default(name):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(LUIGI_CFG)
    section = getattr(sections, name)
    in_code = dict(section.get_params())
    in_file = dict(parser[name])
    assert in_file.keys() == in_code.keys()
    for key, parameter in in_code.items():
        assert parameter.parse(in_file[key]) == parameter._default, key


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described(name):
    for key, parameter in getattr(sections, name).get_params():
        assert parameter.description, key


def test_the_default_is_free_of_faults():
    assert find_faults(load_settings()) == []


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("dataset", {"holdout_percent": 0.0}, "holdout_percent"),
        ("training", {"epochs": 0}, "epochs"),
        ("model", {"weights": "none"}, "frozen backbone without weights"),
        ("store", {"url": "bucket"}, "s3://"),
        ("release", {"channel": "a/b"}, "channel 'a/b'"),
        ("release", {"device_class": "pi 5"}, "[release] device_class 'pi 5'"),
        ("broker", {"fleet": "#"}, "fleet '#'"),
        ("gate", {"min_accuracy": 80.0}, "min_accuracy"),
        ("quantization", {"fallbacks": "int4"}, "fallbacks: some of int8"),
        ("quantization", {"calibration": "../x"}, "[quantization] calibration '../x'"),
    ],
)
def test_each_fault_is_named(section, change, named):
    settings = load_settings()
    broken = dataclasses.replace(
        settings, **{section: dataclasses.replace(getattr(settings, section), **change)}
    )
    [fault] = find_faults(broken)
    assert named in fault
