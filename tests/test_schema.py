"""Documents become dataclasses or one clear line."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from helpers import DISTILLATION_RECIPE, TEAM_FILE, TRAINING_RECIPE
from hypothesis import given
from hypothesis import strategies as st

from kdmarl_core.bundle import Manifest
from kdmarl_core.distil.learner import Recipe as DistillationRecipe
from kdmarl_core.errors import UserError, did_you_mean, unknown
from kdmarl_core.schema import from_mapping, parse_json, read_json, read_yaml
from kdmarl_core.teacher.mappo import Recipe as TrainingRecipe
from kdmarl_core.team_file import TeamFile


@dataclass(frozen=True)
class Wheel:
    radius_m: float
    spokes: int = 32


@dataclass(frozen=True)
class Vehicle:
    name: str
    kind: Literal["bike", "trike"]
    wheels: tuple[Wheel, ...]
    spares: dict[str, Wheel] = field(default_factory=dict)
    bell: bool = True
    load_kg: float | None = None
    tag: int | str = 0

    def __post_init__(self):
        if not self.wheels:
            raise UserError("wheels: there are none; add one")


BIKE = {"name": "red", "kind": "bike", "wheels": [{"radius_m": 0.35}, {"radius_m": 1}]}


def test_builds_nested_dataclasses():
    assert from_mapping(Vehicle, BIKE, "f") == Vehicle(
        "red", "bike", (Wheel(0.35), Wheel(1.0)), {}, True, None
    )
    full = BIKE | {"spares": {"front": {"radius_m": 2.0, "spokes": 8}}, "load_kg": 3, "tag": "x"}
    vehicle = from_mapping(Vehicle, full, "f")
    assert vehicle.spares == {"front": Wheel(2.0, 8)}
    assert (vehicle.load_kg, vehicle.tag) == (3.0, "x")
    assert type(vehicle.load_kg) is float


@pytest.mark.parametrize("kind", [TeamFile, TrainingRecipe, DistillationRecipe])
def test_what_is_written_can_be_read_again(kind):
    documents = {
        TeamFile: TEAM_FILE,
        TrainingRecipe: TRAINING_RECIPE,
        DistillationRecipe: DISTILLATION_RECIPE,
    }
    once = from_mapping(kind, documents[kind], "f")
    text = json.dumps(dataclasses.asdict(once))
    assert from_mapping(kind, parse_json(text, Path("f")), "f") == once


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 5}, ["f: name:", "a text", "5"]),
        ({"name": None}, ["f: name:", "None"]),
        ({"kind": "bik"}, ["f: kind:", "'bik'", "did you mean bike"]),
        ({"kind": ["bike"]}, ["f: kind:"]),
        ({"wheels": {"radius_m": 1}}, ["f: wheels:", "a list"]),
        ({"wheels": "round"}, ["f: wheels:", "a list", "'round'"]),
        ({"wheels": [{"radius_m": 1}, 7]}, ["f: wheels[1]:", "a mapping", "7"]),
        ({"wheels": [{"radius": 1}]}, ["f: wheels[0]:", "'radius'", "did you mean radius_m"]),
        ({"wheels": [{"spokes": 1}]}, ["f: wheels[0]:", "missing key 'radius_m'", "number"]),
        ({"wheels": [{"radius_m": True}]}, ["f: wheels[0]: radius_m:", "True"]),
        ({"wheels": [{"radius_m": "1"}]}, ["f: wheels[0]: radius_m:", "'1'"]),
        ({"wheels": [{"radius_m": float("nan")}]}, ["radius_m", "finite"]),
        ({"wheels": [{"radius_m": float("inf")}]}, ["radius_m", "finite"]),
        ({"wheels": [{"radius_m": 1, "spokes": 1.0}]}, ["spokes", "a whole number", "1.0"]),
        ({"wheels": [{"radius_m": 1, "spokes": True}]}, ["spokes", "a whole number"]),
        ({"wheels": []}, ["f: wheels: there are none"]),
        ({"spares": {"front": {}}}, ["f: spares: front:", "missing key 'radius_m'"]),
        ({"spares": {3: {"radius_m": 1}}}, ["f: spares:", "a text", "3"]),
        ({"bell": 1}, ["f: bell:", "true or false", "1"]),
        ({"load_kg": "heavy"}, ["f: load_kg:", "number", "'heavy'"]),
        ({"tag": 1.5}, ["f: tag:", "a whole number or a text", "1.5"]),
        ({"colour": "red"}, ["f: unknown key 'colour'", "valid: bell, kind"]),
        ({"nmae": "red"}, ["f: unknown key 'nmae'", "did you mean name"]),
        ({4: "red"}, ["f: unknown key '4'"]),
    ],
)
def test_wrong_values_are_refused_by_name(changes, words, refusal):
    message = refusal(from_mapping, Vehicle, BIKE | changes, "f")
    assert message.startswith("f: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize("key", ["name", "kind", "wheels"])
def test_missing_keys_are_named(key, refusal):
    document = {k: v for k, v in BIKE.items() if k != key}
    assert f"missing key '{key}'" in refusal(from_mapping, Vehicle, document, "f")


@pytest.mark.parametrize("document", [None, 3, "text", [1], True])
def test_only_mappings_are_taken(document, refusal):
    assert refusal(from_mapping, Vehicle, document, "f").startswith("f: expected a mapping")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", ["not valid YAML"]),
        (b"a: b: c", ["not valid YAML"]),
        (b"\ta: 1", ["not valid YAML"]),
        (b"a: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        (b"a: 2024-13-45", ["not valid YAML"]),
        (b"a: " + b"[" * 5000, ["not valid YAML"]),
        (b"a: \x00", ["not valid YAML"]),
        (b"\xff\xfe\xfa", ["cannot be read"]),
        (b"", ["expected a mapping"]),
        (b"- 1", ["expected a mapping", "list"]),
        (b"text", ["expected a mapping", "str"]),
    ],
)
def test_files_that_are_not_yaml_are_refused(content, words, tmp_path, refusal):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    message = refusal(read_yaml, path)
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_missing_files_and_folders_are_refused(read, tmp_path, refusal):
    assert "no such file" in refusal(read, tmp_path / "none")
    assert "cannot be read" in refusal(read, tmp_path)
    (tmp_path / "file").touch()
    assert refusal(read, tmp_path / "file" / "below").startswith(str(tmp_path))
    assert refusal(read, tmp_path / ("long" * 100)).startswith(str(tmp_path))


# Whatever comes

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def spoilt(draw, document):
    """A valid document in which one entry, at any depth, was replaced, removed or added."""
    copy = dict(document)
    key = draw(st.sampled_from(sorted(copy)))
    if isinstance(copy[key], dict) and draw(st.booleans()):
        copy[key] = draw(spoilt(copy[key]))
    else:
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                copy[key] = draw(documents)
            case "remove":
                del copy[key]
            case "add":
                copy[draw(st.text(max_size=6))] = draw(documents)
    return copy


@pytest.mark.parametrize(
    ("kind", "valid"),
    [
        (TeamFile, TEAM_FILE),
        (TrainingRecipe, TRAINING_RECIPE),
        (DistillationRecipe, DISTILLATION_RECIPE),
        (Manifest, {"blocks": [], "model": {"file": "model.onnx"}}),
    ],
)
@given(data=st.data())
def test_any_document_is_taken_or_refused_in_one_line(kind, valid, data):
    document = data.draw(spoilt(valid) | documents)
    try:
        made = from_mapping(kind, document, "file.yaml")
    except UserError as error:
        message = str(error)
    else:
        assert isinstance(made, kind)
        return
    assert message.startswith("file.yaml: ")
    assert len(message.splitlines()) == 1


@given(text=st.text())
def test_any_text_is_read_or_refused(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (read_yaml, read_json):
        try:
            assert hasattr(read(path), "items")
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017


# Hints


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("velocty", "did you mean velocity?"),
        ("landmark", "did you mean landmarks?"),
        ("qqq", "valid: landmarks, position, velocity"),
    ],
)
def test_hints_name_the_nearest(name, hint):
    assert did_you_mean(name, ["velocity", "position", "landmarks"]) == hint
    message = str(unknown("block", name, ["velocity", "position", "landmarks"], "team.yaml"))
    assert message == f"team.yaml: unknown block '{name}'; {hint}"


def test_hints_without_anything_valid():
    assert did_you_mean("x", []) == "there are none"


def test_a_key_that_stands_twice_is_refused(tmp_path, refusal):
    path = tmp_path / "twice.yaml"
    path.write_text("width: 16\nnested:\n  width: 1\nwidth: 32\n")
    message = refusal(read_yaml, path)
    assert "'width' stands twice" in message
    assert "line 4" in message
