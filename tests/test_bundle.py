"""Bundles: what is written can be read, and what was tampered with is refused in one line."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import (
    changed,
    dense_layers,
    gru_layers,
    make_manifest,
    make_model,
    name_of_case,
    renamed,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from kdmarl_core.bundle import (
    MANIFEST,
    MODEL,
    BundlePolicy,
    Measured,
    StudentEntry,
    load_policy,
    read_bundle,
    think_ahead,
    write_bundle,
)
from kdmarl_core.errors import UserError
from kdmarl_core.export import check_agreement, student_model
from kdmarl_core.files import atomic_folder, atomic_write, refuse_existing
from kdmarl_core.resources.count import count

MEASURED = Measured(100, 0, -11.0, -10.0, -27.0, 0.94, 0.9, 0.97)
FITTING = make_manifest()
FITTING_MODEL = make_model(FITTING)


@pytest.fixture
def bundle(tmp_path):
    """A bundle's folder."""
    folder = tmp_path / "robot_0"
    folder.mkdir()
    manifest = make_manifest(measured=MEASURED)
    write_bundle(folder, manifest, make_model(manifest))
    return folder


def edit(folder, change, *arguments):
    """Rewrite the manifest with one entry changed."""
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(change(document, *arguments)))


def adopt(folder, model):
    """Put another model into a bundle, with its own hash: the manifest vouches for it."""
    (folder / MODEL).write_bytes(model)
    edit(folder, changed, "model.sha256", hashlib.sha256(model).hexdigest())
    edit(folder, changed, "model.bytes", len(model))


# Round trip


@pytest.mark.parametrize("measured", [None, MEASURED])
def test_round_trip(tmp_path, measured):
    manifest = make_manifest(measured=measured)
    model = make_model(manifest)
    written = write_bundle(tmp_path, manifest, model)
    read, content = read_bundle(tmp_path)
    assert (read, content) == (written, model)
    assert dataclasses.replace(read, model=manifest.model) == manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, MODEL]


def test_policy_takes_the_most_probable_action(bundle):
    policy = load_policy(bundle)
    actions = set()
    for observation in np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32):
        action = policy.act(observation)
        assert action == int(policy.logits(observation).argmax())
        actions.add(action)
    assert len(actions) > 1


@given(
    st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8),
)
def test_an_action_that_is_not_legal_is_never_taken(mask, observation):
    policy = BundlePolicy(FITTING, FITTING_MODEL)
    logits = policy.logits(np.float32(observation))
    action = policy.act(np.float32(observation), np.array(mask))
    assert mask[action]
    assert logits[action] == max(value for value, legal in zip(logits, mask, strict=True) if legal)


@pytest.mark.parametrize("mask", [[True] * 4, [True] * 6, [True], [], [[True] * 5], [False] * 5])
def test_masks_that_cannot_be_meant_are_refused(mask):
    policy = BundlePolicy(FITTING, FITTING_MODEL)
    with pytest.raises(ValueError, match="no mask of 5 actions"):
        policy.act(np.zeros(8, np.float32), np.array(mask, np.bool_))


def test_a_mask_does_not_hide_an_output_that_is_not_finite():
    policy = BundlePolicy(FITTING, make_model(FITTING, scale=1e30))
    with pytest.raises(FloatingPointError):
        policy.act(np.ones(8, np.float32), np.array([True] * 4 + [False]))


# Recurrent students


def recurrent(state_size=4, **changes):
    return make_manifest(student=StudentEntry("gru", 4, 0, 0, state_size), **changes)


def policies_of(manifest, seeds):
    """One policy per seed of its weights."""
    models = {seed: make_model(manifest, seed) for seed in set(seeds)}
    return [BundlePolicy(manifest, models[seed]) for seed in seeds]


@pytest.mark.parametrize("memory", [False, True])
def test_thinking_together_is_thinking_alone(memory):
    manifest = recurrent() if memory else FITTING
    seeds = [0, 1, 0, 0]  # three fly the same model, one another
    alone, together = policies_of(manifest, seeds), policies_of(manifest, seeds)
    rng = np.random.default_rng(0)
    for step in range(6):
        observations = rng.normal(size=(4, manifest.observation_size)).astype(np.float32)
        if step == 3:
            alone[2].reset()
            together[2].reset()
        think_ahead(zip(together, observations, strict=True))
        for one, other, observation in zip(alone, together, observations, strict=True):
            np.testing.assert_allclose(
                other.logits(observation), one.logits(observation), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("memory", [False, True])
def test_what_was_thought_ahead_is_no_answer_to_anything_else(memory):
    manifest = recurrent() if memory else FITTING
    [alone], together = policies_of(manifest, [0]), policies_of(manifest, [0, 0])
    first, second = np.eye(manifest.observation_size, dtype=np.float32)[:2]
    if memory:
        alone.logits(first)
        alone.reset()
    think_ahead((policy, first) for policy in together)
    np.testing.assert_array_equal(together[0].logits(second), alone.logits(second))
    together[1].reset()
    alone.reset()
    np.testing.assert_array_equal(together[1].logits(first), alone.logits(first))


def test_memory_lasts_until_it_is_reset():
    policy = BundlePolicy(recurrent(), make_model(recurrent()))
    shown = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    first = [policy.logits(now) for now in shown]
    policy.reset()
    again = [policy.logits(now) for now in shown]
    assert np.array_equal(first, again)
    unreset = [policy.logits(now) for now in shown]
    assert not np.allclose(unreset, first, atol=1e-3)


def test_policies_of_one_model_do_not_share_their_memory():
    one, other = (BundlePolicy(recurrent(), make_model(recurrent())) for _ in range(2))
    observation = np.ones(8, np.float32)
    before = one.logits(observation)
    assert np.array_equal(other.logits(observation), before)
    assert not np.array_equal(one.logits(observation), before)


@pytest.mark.parametrize("mask", [None, np.array([False, True, False, False, False])])
def test_acting_is_one_step_of_memory(mask):
    policy, stepped = (BundlePolicy(recurrent(), make_model(recurrent())) for _ in range(2))
    shown = np.random.default_rng(3).normal(size=(20, 8)).astype(np.float32)
    for observation in shown:
        logits = stepped.logits(observation)
        assert policy.act(observation, mask) == (int(logits.argmax()) if mask is None else 1)


@pytest.mark.parametrize(
    ("said", "real"), [(0, 4), (3, 4), (5, 4), (8, 0)], ids=lambda size: f"size {size}"
)
def test_a_state_of_another_size_is_refused(bundle, refusal, said, real):
    """The manifest says one thing, the model that it vouches for another."""
    adopt(bundle, make_model(recurrent(real)))
    edit(bundle, changed, "student.state_size", said)
    message = refusal(load_policy, bundle)
    assert message.startswith(f"{bundle / MODEL}: ")
    assert "do not belong together" in message
    edit(bundle, changed, "student.state_size", real)
    load_policy(bundle)  # negative control


# Tampering


def flip_bit(folder):
    content = bytearray((folder / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / MODEL).write_bytes(content)


def truncate(folder):
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-1])


def swap_for_same_size(folder):
    (folder / MODEL).write_bytes(make_model(make_manifest(), seed=1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_bit, "SHA-256"),
        (truncate, "bytes"),
        (swap_for_same_size, "SHA-256"),
        (lambda folder: (folder / MODEL).unlink(), "cannot be read"),
    ],
    ids=["bit flip", "cut short", "another model", "missing"],
)
def test_damaged_models_are_refused(bundle, damage, said, refusal):
    damage(bundle)
    message = refusal(load_policy, bundle)
    assert message.startswith(f"{bundle / MODEL}: ")
    assert said in message
    assert "copy the bundle again" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ((changed, "schema_version", 1), ["schema_version", "1", "2"]),
        ((changed, "safe_action", "hover"), ["safe_action", "hover", "stay"]),
        ((changed, "blocks", []), ["blocks"]),
        ((changed, "blocks", [{"name": "a", "size": 0, "unit": "m"}]), ["blocks", "a", "0"]),
        ((changed, "blocks", [{"name": "a", "size": 4, "unit": "m"}] * 2), ["blocks", "a"]),
        ((changed, "blocks", [{"name": "../a", "size": 8, "unit": "m"}]), ["blocks", "../a"]),
        ((changed, "actions", []), ["safe_action", "stay"]),
        ((changed, "rate_hz", 0.0), ["rate_hz", "0"]),
        ((changed, "rate_hz", -1.0), ["rate_hz", "-1"]),
        ((changed, "rate_hz", "fast"), ["rate_hz", "fast", "number"]),
        ((changed, "model.file", "../other.onnx"), ["model.file", "../other.onnx"]),
        ((changed, "student.width", None), ["student", "missing key 'width'"]),
        ((changed, "student.state_size", None), ["student", "missing key 'state_size'"]),
        ((changed, "student.state_size", -1), ["student.state_size", "-1"]),
        ((changed, "agent", None), ["missing key 'agent'"]),
        ((changed, "measured.episodes", 1.5), ["measured", "episodes", "1.5"]),
        ((changed, "signed", True), ["unknown key 'signed'"]),
        ((renamed, "schema_version", "schema_verison"), ["'schema_verison'", "schema_version"]),
        ((renamed, "model.sha256", "sha265"), ["model", "'sha265'", "sha256"]),
    ],
    ids=name_of_case,
)
def test_manifests_that_do_not_fit_are_refused(bundle, change, named, refusal):
    edit(bundle, *change)
    message = refusal(load_policy, bundle)
    assert message.startswith(f"{bundle / MANIFEST}: ")
    for word in named:
        assert word in message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"seed": 1' + b"0" * 5000],
)
def test_garbled_manifests_are_refused(bundle, content, refusal):
    (bundle / MANIFEST).write_bytes(content)
    assert refusal(load_policy, bundle).startswith(f"{bundle / MANIFEST}: ")


def test_a_number_too_large_is_refused(bundle, refusal):
    edit(bundle, changed, "rate_hz", 10**400)
    assert "rate_hz" in refusal(load_policy, bundle)


def test_missing_manifest_is_refused(bundle, refusal):
    (bundle / MANIFEST).unlink()
    assert refusal(load_policy, bundle).startswith(f"{bundle / MANIFEST}: ")


@pytest.mark.parametrize(
    "wrong",
    [
        make_manifest(blocks=[("position", 2)]),
        make_manifest(actions=("stay", "go")),
    ],
    ids=["inputs", "actions"],
)
def test_models_of_other_robots_are_refused(bundle, wrong, refusal):
    """Vouched for by the manifest, yet of other sizes."""
    adopt(bundle, make_model(wrong))
    message = refusal(load_policy, bundle)
    assert message.startswith(f"{bundle / MODEL}: ")
    assert "do not belong together" in message


def model_of(nodes, inputs, outputs, weights=()):
    """ONNX bytes of any small graph on floats."""
    info = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in group]
        for group in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "any", *info, list(weights))
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    "model",
    [
        b"not a model",
        model_of(
            [helper.make_node("Relu", ["x"], ["logits"])],
            [("x", ["n", 8])],
            [("logits", ["n", 8])],
        ),
        model_of(
            [helper.make_node("ReduceMax", ["observation"], ["logits"], keepdims=0)],
            [("observation", ["n", 8])],
            [("logits", [])],
        ),
        model_of(
            [helper.make_node("Slice", ["observation", "a", "b", "c"], ["logits"])],
            [("observation", ["n", "t", 8])],
            [("logits", ["n", "t", 5])],
            [
                helper.make_tensor(name, TensorProto.INT64, [1], [value])
                for name, value in (("a", 0), ("b", 5), ("c", 2))
            ],
        ),
    ],
    ids=["bytes", "names", "a scalar", "three axes"],
)
def test_models_of_another_kind_are_refused(bundle, model, refusal):
    adopt(bundle, model)
    assert refusal(load_policy, bundle).startswith(f"{bundle / MODEL}: ")


@given(st.data())
def test_no_single_change_of_a_byte_is_overlooked(tmp_path_factory, data):
    """The bundle is refused, or its model is the one that was written."""
    folder = tmp_path_factory.mktemp("bundle")
    manifest = make_manifest(blocks=[("position", 2)], measured=MEASURED)
    written = write_bundle(folder, manifest, make_model(manifest))
    name = data.draw(st.sampled_from([MODEL, MANIFEST]))
    content = bytearray((folder / name).read_bytes())
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with contextlib.suppress(UserError):
        policy = load_policy(folder)
        assert name == MANIFEST  # a name or a figure that nothing can check
        assert policy.manifest.model == written.model


# ONNX and its cost


def test_onnx_equals_torch():
    layers = dense_layers([7, 16, 16, 4])
    modules = []
    for weight, bias in layers:
        linear = nn.Linear(*weight.shape)
        linear.weight.data, linear.bias.data = torch.from_numpy(weight.T), torch.from_numpy(bias)
        modules += [linear, nn.ReLU()]
    network = nn.Sequential(*modules[:-1])
    manifest = make_manifest(blocks=[("all", 7)], actions=("stay", "a", "b", "c"))
    policy = BundlePolicy(manifest, student_model(layers))
    observations = np.random.default_rng(1).normal(size=(100, 7)).astype(np.float32)
    found = np.stack([policy.logits(observation) for observation in observations])
    with torch.no_grad():
        expected = network(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_onnx_gru_equals_torch():
    first, gru, head = layers = gru_layers(7, 16, 4)
    cell = nn.GRUCell(16, 16)
    names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    for name, array in zip(names, gru, strict=True):
        getattr(cell, name).data = torch.from_numpy(array.T)
    manifest = make_manifest(
        blocks=[("all", 7)],
        actions=("stay", "a", "b", "c"),
        student=StudentEntry("gru", 16, 0, 0, 16),
    )
    policy = BundlePolicy(manifest, student_model(layers))
    state = torch.zeros(1, 16)
    for observation in np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32):
        hidden = np.maximum(observation @ first.weight + first.bias, 0)
        with torch.no_grad():
            state = cell(torch.from_numpy(hidden)[None], state)
        expected = state[0].numpy() @ head.weight + head.bias
        np.testing.assert_allclose(policy.logits(observation), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [2e-5, float("nan")])
def test_export_refuses_a_difference(wrong, refusal):
    logits = np.zeros((10, 5), np.float32)
    assert check_agreement("robot_0", logits + 5e-6, logits) == pytest.approx(5e-6)
    other = logits.copy()
    other[3, 2] = wrong
    assert refusal(check_agreement, "robot_0", other, logits).startswith("robot_0: ")


def test_cost_of_a_known_net():
    # 7*16 + 16*4 weights are one multiply-add each; 16 + 4 biases
    cost = count(student_model(dense_layers([7, 16, 4])))
    assert cost == (7 * 16 + 16 + 16 * 4 + 4, 2 * (7 * 16 + 16 * 4))


def test_cost_of_a_recurrent_net():
    # 7 features, width 16, 4 actions; three gates read the layer below, and three the state
    cost = count(student_model(gru_layers(7, 16, 4)))
    weights = 7 * 16 + 16 * 48 + 16 * 48 + 16 * 4
    assert cost == (weights + 16 + 48 + 48 + 4, 2 * weights)


def test_a_product_without_weights_of_known_size_is_refused(refusal):
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    shapes = [("a", [1, 8]), ("b", [8, 5])]
    message = refusal(count, model_of([node], shapes, [("c", [1, 5])]))
    assert "MatMul" in message


def test_unknown_operators_are_refused(refusal):
    node = helper.make_node("Softmax", ["observation"], ["logits"])
    model = model_of([node], [("observation", ["n", 5])], [("logits", ["n", 5])])
    onnx.checker.check_model(model)
    assert "Softmax" in refusal(count, model)


# Writing


MARKER = "*.json"


def fail_to_write(target, *, overwrite):
    with atomic_folder(target, MARKER, overwrite=overwrite) as folder:
        (folder / "first").write_text("done")
        raise RuntimeError("halfway")


def test_a_failing_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="halfway"):
        fail_to_write(tmp_path / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(UserError, match="--overwrite"):
        fail_to_write(target, overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert list(target.iterdir()) == []


def test_a_failing_overwrite_keeps_what_was_there(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.json").write_text("precious")
    with pytest.raises(RuntimeError, match="halfway"):
        fail_to_write(target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (target / "old.json").read_text() == "precious"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whatever_comes_while_a_folder_is_replaced_keeps_the_old_one(tmp_path, monkeypatch, error):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.json").write_text("precious")
    rename = Path.rename

    def fail_once(path, to):
        if to == target:
            monkeypatch.undo()
            raise error("now")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises((error, UserError)), atomic_folder(target, MARKER, overwrite=True):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (target / "old.json").read_text() == "precious"


def test_overwriting_replaces_the_whole_folder(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.json").write_text("precious")
    with atomic_folder(target, MARKER, overwrite=True) as folder:
        (folder / "new").write_text("whole")
        assert (target / "old.json").exists()  # until the new one is complete
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_failing_file_write_keeps_the_old_file(tmp_path, refusal):
    target = tmp_path / "file"
    atomic_write(target, b"old")
    with pytest.raises(TypeError):
        atomic_write(target, "text is not bytes")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert refusal(atomic_write, target / "below", b"new").startswith(str(target / "below"))


def test_existing_output_is_refused(tmp_path, refusal):
    assert "--overwrite" in refusal(refuse_existing, tmp_path, MARKER, overwrite=False)
    refuse_existing(tmp_path, MARKER, overwrite=True)
    refuse_existing(tmp_path / "new" / "deep", MARKER, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_is_never_replaced(tmp_path, refusal):
    target = tmp_path / "home"
    target.mkdir()
    (target / "diary.txt").write_text("precious")
    assert MARKER in refusal(refuse_existing, target, MARKER, overwrite=True)
    with pytest.raises(UserError, match="not replaced"):
        fail_to_write(target, overwrite=True)
    assert (target / "diary.txt").read_text() == "precious"
