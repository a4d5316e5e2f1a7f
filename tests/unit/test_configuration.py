from dataclasses import dataclass, fields
from typing import Literal

import pytest
import yaml

from pipelines.training.config import FormationEnergyConfig
from pipelines.training.federation_file import read_federation
from ray_fed.config import coerce, field_documentation, from_mapping
from ray_fed.errors import ConfigError


@dataclass(frozen=True)
class Small:
    count: int = 3
    """How many."""
    rate: float | None = None
    """How fast, in 1/s,
    on average."""
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)


def test_the_string_under_a_field_is_its_documentation():
    assert field_documentation(Small) == {"count": "How many.", "rate": "How fast, in 1/s, on average."}


def test_every_option_of_the_pipeline_is_documented():
    documented = field_documentation(FormationEnergyConfig)
    assert [field.name for field in fields(FormationEnergyConfig) if field.name not in documented] == []


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("2.5", float | None, 2.5),
        ("none", float | None, None),
        ("1,2,3", tuple[int, ...], (1, 2, 3)),
        ([1, 2], tuple[int, ...], (1, 2)),
        ("b", Literal["a", "b"], "b"),
        ("batch", float | Literal["batch"], "batch"),
        ("0.25", float | Literal["batch"], 0.25),
        ("yes", bool, True),
        (False, bool, False),
        (4.0, int, 4),
    ],
)
def test_values_from_yaml_and_command_line_become_the_fields_type(text, annotation, value):
    assert coerce(text, annotation, "x") == value


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("many", int, "x='many' must be a whole number"),
        (2.5, int, "x=2.5 must be a whole number"),
        (True, int, "x=True must be a whole number"),
        ("1,b", tuple[int, ...], "x='1,b' must be a comma-separated list, each a whole number"),
        ("c", Literal["a", "b"], "x='c' must be 'a' | 'b'"),
        ("often", float | Literal["batch"], "x='often' must be a number or 'batch'"),
        ({"a": 1}, str, "x={'a': 1} must be text"),
        (None, int, "x=None must be a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_value_and_what_it_must_be(value, annotation, message):
    with pytest.raises(ConfigError) as raised:
        coerce(value, annotation, "x")
    assert str(raised.value) == message


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key 'cuont'; did you mean 'count'\?"):
        from_mapping(Small, {"cuont": 1}, "run.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate=-0.1 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be positive"),
        ({"epochs": 0}, "epochs=0 must be positive"),
        ({"communication_frequency": 1.5}, "communication_frequency=1.5 must lie in"),
        ({"silos": ()}, r"silos=\(\) must be"),
        ({"silos": (5, -1)}, r"silos=\(5, -1\) must be"),
        ({"partition": "alphabet"}, "partition='alphabet' must be one of"),
        ({"where": ("source",)}, "where='source' must be COLUMN=VALUE"),
        ({"optimizer": "sgd", "optimizer_state": "average"}, "optimizer_state=average needs optimizer=adam"),
        ({"seed": -1}, "seed=-1"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_value(changes, message):
    with pytest.raises(ConfigError, match=message):
        FormationEnergyConfig(**changes)


@pytest.mark.parametrize(
    ("frequency", "rounds"), [(0.01, 1), (0.02, 2), (0.04, 4), (0.05, 5), (0.1, 10), (0.25, 25), (0.5, 50), (1.0, 100)]
)
def test_the_papers_frequencies_give_its_numbers_of_communications(frequency, rounds):
    assert FormationEnergyConfig(communication_frequency=frequency).num_rounds(50) == rounds


def test_exchange_after_every_batch_makes_the_papers_5000_communications():
    assert FormationEnergyConfig(communication_frequency="batch").num_rounds(50) == 5000


@pytest.fixture
def federation_file(tmp_path):
    def write(content):
        path = tmp_path / "federation.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


GOOD = {
    "silos": [{"name": "mit", "data": "mit.csv", "site": "boston"}, {"name": "eth", "data": "embedded", "num_gpus": 1}],
    "training": {"epochs": 7},
}


def test_a_federation_file_names_silos_sites_sources_and_gpus(federation_file):
    file = read_federation(federation_file(GOOD))
    assert [(silo.name, silo.site, silo.data, silo.num_gpus) for silo in file.silos] == [
        ("mit", "boston", "mit.csv", None),
        ("eth", "", "embedded", 1.0),
    ]
    assert dict(file.training) == {"epochs": 7}


def test_every_field_of_a_federation_file_can_be_overridden(federation_file):
    overrides = ["silos.mit.data=/new.csv", "silos.eth.num_gpus=0", "silos.mit.where={source: OQMD}", "test.data=t.csv"]
    file = read_federation(federation_file(GOOD), overrides)
    assert file.silos[0].data == "/new.csv"
    assert file.silos[0].conditions == (("source", "OQMD"),)
    assert file.silos[1].num_gpus == 0.0
    assert file.test.data == "t.csv"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("silos: [", "not the YAML it should be"),
        ("- a\n- b", "must be a mapping"),
        ({"silo": []}, "unknown key 'silo'; did you mean 'silos'?"),
        ({"silos": []}, "'silos' must be a list with at least one silo"),
        ({"silos": [{"name": "a"}]}, "silos[0] (a): key 'data' is missing"),
        ({"silos": [{"data": "x.csv"}]}, "silos[0]: key 'name' is missing"),
        ({"silos": [{"name": "a", "data": "x", "num_gpu": 1}]}, "unknown key 'num_gpu'; did you mean 'num_gpus'?"),
        ({"silos": [{"name": "a", "data": "x", "num_gpus": "two"}]}, "num_gpus='two' must be a number or none"),
        ({"silos": [{"name": "a", "data": "x"}] * 2}, "silo name 'a' occurs 2 times"),
        ({"silos": [{"name": "a b", "data": "x"}]}, "silo name 'a b' must be letters"),
        ({"silos": [{"name": "test", "data": "x"}]}, "silo name 'test' must be letters"),
        ({"silos": ["mit"]}, "silos[0]: must be a mapping"),
        ({**GOOD, "training": {"epoch": 5}}, "training: unknown key 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_wrong_federation_file_is_refused_in_one_line_with_file_and_key(federation_file, content, message):
    path = federation_file(content)
    with pytest.raises(ConfigError) as raised:
        read_federation(path)
    assert message in str(raised.value)
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("override", ["silos.mit", "silos.mit.dat=1", "silos.mti.data=x", "other.x=1"])
def test_a_wrong_override_is_refused(federation_file, override):
    with pytest.raises(ConfigError):
        read_federation(federation_file(GOOD), [override])


def test_the_example_federation_file_is_valid():
    file = read_federation("cluster/federation.example.yaml")
    assert [silo.site for silo in file.silos] == ["north", "south", "archive"]
