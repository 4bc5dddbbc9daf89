"""Signed bundles: who is believed, who is refused, and that keys stay where they belong."""

import base64
import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import changed, make_manifest, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmarl_core.bundle import MANIFEST, MODEL, NO_TRUST, Trust, load_policy, signing, write_bundle
from kdmarl_core.bundle.signing import SIGNATURE, admit, canonical, make_keys, read_private_key

ROBOTS = ("robot_0", "robot_1")


class Fleet:
    """Two bundles, the fleet's keys, a stranger's keys, and a folder that trusts the fleet."""

    def __init__(self, root, kdmarl):
        self.root, self.kdmarl = root, kdmarl
        for index, robot in enumerate(ROBOTS):
            folder = root / "bundles" / robot
            folder.mkdir(parents=True)
            manifest = make_manifest(robot=robot)
            write_bundle(folder, manifest, make_model(manifest, seed=index))
        self.bundle = root / "bundles" / "robot_0"
        self.key, public, self.key_id = make_keys(root / "keys" / "fleet")
        self.stranger, _, self.stranger_id = make_keys(root / "keys" / "stranger")
        self.trusted = root / "trusted"
        self.trusted.mkdir(mode=0o755)
        (self.trusted / "fleet.pub").write_bytes(public.read_bytes())

    def sign(self, key=None):
        done = self.kdmarl("sign", "--key", key or self.key, self.root / "bundles")
        assert done.code == 0, done.err
        return done

    def admit(self, security, robot="robot_0"):
        return admit(self.bundle, Trust(security, self.trusted), robot)

    def edit(self, name, *change):
        path = self.bundle / name
        path.write_text(json.dumps(changed(json.loads(path.read_text()), *change)))


@pytest.fixture
def fleet(tmp_path, kdmarl):
    return Fleet(tmp_path, kdmarl)


# Let in


def test_signed_bundles_are_let_in(fleet):
    fleet.sign()
    for security in ("check", "enforce"):
        vouched = fleet.admit(security)
        assert vouched.trusted
        assert vouched.state == f"signed by fleet (key {fleet.key_id})"
        assert vouched.model == (fleet.bundle / MODEL).read_bytes()
    policy = load_policy(fleet.bundle, Trust("enforce", fleet.trusted), "robot_0")
    assert policy.vouched == vouched.state


def test_unsigned_and_unknown_are_told_when_checked(fleet):
    assert fleet.admit("check")[2:] == ("unsigned", False)
    fleet.sign(fleet.stranger)
    found = fleet.admit("check")
    assert found[2:] == (f"signed by unknown key {fleet.stranger_id}", False)
    assert not admit(fleet.bundle, Trust("check", None)).trusted


def test_without_security_a_signature_is_not_looked_at(fleet):
    (fleet.bundle / SIGNATURE).write_text("nonsense")
    assert not admit(fleet.bundle, NO_TRUST).trusted


def test_layout_does_not_matter_but_every_value_does(fleet):
    fleet.sign()
    path = fleet.bundle / MANIFEST
    document = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(document.items())), indent=7))
    assert fleet.admit("enforce").trusted


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees(fleet, tmp_path):
    """An independent implementation verifies what we sign."""
    fleet.sign()
    content, value = tmp_path / "content", tmp_path / "signature"
    content.write_bytes(canonical(fleet.admit("enforce").manifest))
    document = json.loads((fleet.bundle / SIGNATURE).read_text())
    value.write_bytes(base64.b64decode(document["signature"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin"]
    files = ["-inkey", fleet.trusted / "fleet.pub", "-in", content, "-sigfile", value]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Refused


def test_unsigned_is_refused(fleet, refusal):
    message = refusal(fleet.admit, "enforce")
    assert message.startswith(f"{fleet.bundle / SIGNATURE}: ")
    assert "unsigned" in message


def test_untrusted_is_refused_with_both_keys(fleet, refusal):
    fleet.sign(fleet.stranger)
    message = refusal(fleet.admit, "enforce")
    assert fleet.stranger_id in message
    assert f"{fleet.key_id} (fleet)" in message


@pytest.mark.parametrize("security", ["check", "enforce"])
@pytest.mark.parametrize(
    "change",
    [
        ("safe_action", "up"),
        ("rate_hz", 20.0),
        ("teacher.sha256", "1" * 64),
        ("robot", "robot_1"),
        ("student.flops_per_decision", 1),
    ],
    ids=lambda change: change[0],
)
def test_an_altered_manifest_is_refused(fleet, security, change, refusal):
    fleet.sign()
    fleet.edit(MANIFEST, *change)
    message = refusal(fleet.admit, security)
    assert fleet.key_id in message
    assert "altered" in message


def test_another_robots_signature_is_refused(fleet, refusal):
    fleet.sign()
    other = fleet.root / "bundles" / "robot_1" / SIGNATURE
    (fleet.bundle / SIGNATURE).write_bytes(other.read_bytes())
    assert "altered" in refusal(fleet.admit, "check")


def test_another_robots_bundle_is_refused(fleet, refusal):
    """Rightly signed, but for its neighbour."""
    fleet.sign()
    for name in (MANIFEST, MODEL, SIGNATURE):
        other = fleet.root / "bundles" / "robot_1" / name
        (fleet.bundle / name).write_bytes(other.read_bytes())
    message = refusal(fleet.admit, "enforce")
    assert "'robot_1' is not 'robot_0'" in message
    assert fleet.admit("enforce", robot="robot_1").trusted


def test_an_altered_model_is_refused_although_signed(fleet, refusal):
    fleet.sign()
    model = bytearray((fleet.bundle / MODEL).read_bytes())
    expected = fleet.admit("off").manifest.model.sha256
    model[100] ^= 1
    (fleet.bundle / MODEL).write_bytes(model)
    message = refusal(fleet.admit, "enforce")
    assert expected[:12] in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("signature", "AAAA"), "altered"),
        (("signature", "not base64!"), "altered"),
        (("signature", ""), "altered"),
        (("signature", "Ünterschrift"), "altered"),
        (("algorithm", "none"), "'none' is not ed25519"),
        (("key", "0" * 16), "not trusted"),
        (("key", None), "missing key 'key'"),
        (("comment", "hello"), "unknown key 'comment'"),
    ],
    ids=str,
)
def test_a_spoiled_signature_is_refused(fleet, change, said, refusal):
    fleet.sign()
    fleet.edit(SIGNATURE, *change)
    message = refusal(fleet.admit, "enforce")
    assert message.startswith(f"{fleet.bundle / SIGNATURE}: ")
    assert said in message


@settings(max_examples=50)
@given(data=st.data())
def test_no_single_change_of_a_byte_is_overlooked(tmp_path_factory, data):
    """What a signature covers cannot change; what it does not cover does not matter."""
    from kdmarl_core.bundle.signing import sign_bundle
    from kdmarl_core.errors import UserError

    root = tmp_path_factory.mktemp("fleet")
    key, _, _ = make_keys(root / "keys" / "fleet")
    folder = root / "robot_0"
    folder.mkdir()
    manifest = make_manifest()
    written = write_bundle(folder, manifest, make_model(manifest))
    sign_bundle(folder, read_private_key(key))
    name = data.draw(st.sampled_from([MODEL, MANIFEST, SIGNATURE]))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    try:
        vouched = admit(folder, Trust("enforce", root / "keys"), "robot_0")
    except UserError:
        return
    assert (vouched.manifest, name) in [(written, MANIFEST), (written, SIGNATURE)]


def test_enforcing_needs_keys(fleet, refusal):
    fleet.sign()
    assert "trusted keys" in refusal(admit, fleet.bundle, Trust("enforce", None))
    gone = Trust("enforce", fleet.root / "gone")
    assert "no such folder" in refusal(admit, fleet.bundle, gone)


def test_keys_that_anyone_may_change_are_refused(fleet, refusal):
    fleet.sign()
    (fleet.trusted / "fleet.pub").chmod(0o666)
    assert "chmod o-w" in refusal(fleet.admit, "enforce")
    (fleet.trusted / "fleet.pub").chmod(0o644)
    fleet.trusted.chmod(0o777)
    assert "chmod o-w" in refusal(fleet.admit, "enforce")


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n", b"\xff" * 100])
def test_what_is_no_key_is_refused(fleet, content, refusal):
    fleet.sign()
    (fleet.trusted / "odd.pub").write_bytes(content)
    assert "odd.pub: not an ed25519 public key" in refusal(fleet.admit, "enforce")


# Keys and commands


def test_keys_are_private_and_never_replaced(tmp_path, kdmarl):
    before = os.umask(0)
    try:
        done = kdmarl("keygen", tmp_path / "keys" / "fleet")
    finally:
        os.umask(before)
    assert done.code == 0, done.err
    private, public = tmp_path / "keys" / "fleet.key", tmp_path / "keys" / "fleet.pub"
    assert (private.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    assert "PRIVATE" not in public.read_text()
    content = private.read_bytes(), public.read_bytes()
    again = kdmarl("keygen", tmp_path / "keys" / "fleet")
    assert again.code == 2
    assert "never replaced" in again.err
    public.unlink()
    assert kdmarl("keygen", tmp_path / "keys" / "fleet").code == 2
    assert (private.read_bytes(), public.exists()) == (content[0], False)


def test_a_private_key_that_others_can_read_is_refused(fleet):
    fleet.key.chmod(0o640)
    done = fleet.kdmarl("sign", "--key", fleet.key, fleet.root / "bundles")
    assert done.code == 2
    assert "0640" in done.err
    assert f"chmod 600 {fleet.key}" in done.err
    assert not (fleet.bundle / SIGNATURE).exists()


def test_a_public_key_does_not_sign(fleet, refusal):
    public = fleet.key.with_suffix(".pub")
    message = refusal(read_private_key, public)
    assert f"a public key signs nothing; give the private one, {fleet.key}" in message
    public.chmod(0o600)
    disguised = public.rename(public.with_suffix(".pem"))
    assert "not an ed25519 private key" in refusal(read_private_key, disguised)


def test_sign_and_verify(fleet):
    said = fleet.sign().out.splitlines()
    assert len(said) == 2
    assert all(fleet.key_id in line for line in said)
    done = fleet.kdmarl("verify", "--trusted-keys", fleet.trusted, fleet.root / "bundles")
    assert done.code == 0, done.err
    assert done.out.count(f"signed by fleet (key {fleet.key_id})") == 2
    done = fleet.kdmarl("verify", "--json", "--trusted-keys", fleet.trusted, fleet.bundle)
    [found] = json.loads(done.out)
    assert found["robot"] == "robot_0"
    fleet.sign(fleet.stranger)
    done = fleet.kdmarl("verify", "--trusted-keys", fleet.trusted, fleet.root / "bundles")
    assert done.code == 2
    assert "not trusted" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_nothing_is_signed_if_one_bundle_is_damaged(fleet):
    (fleet.root / "bundles" / "robot_1" / MODEL).write_bytes(b"")
    done = fleet.kdmarl("sign", "--key", fleet.key, fleet.root / "bundles")
    assert done.code == 2
    assert not (fleet.bundle / SIGNATURE).exists()


def test_a_folder_without_bundles_is_refused(fleet):
    done = fleet.kdmarl("sign", "--key", fleet.key, fleet.trusted)
    assert done.code == 2
    assert "no bundle" in done.err


def test_a_robots_process_does_not_keep_the_library(fleet):
    fleet.sign()
    code = (
        "import sys; from pathlib import Path; from kdmarl_core.bundle import Trust, load_policy\n"
        "policy = load_policy(Path(sys.argv[1]), Trust('enforce', Path(sys.argv[2])))\n"
        "print(policy.vouched, 'cryptography' in sys.modules)"
    )
    command = [sys.executable, "-c", code, fleet.bundle, fleet.trusted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"signed by fleet (key {fleet.key_id}) False"


def test_nothing_in_the_working_folder_takes_the_librarys_place(fleet, refusal, monkeypatch):
    """A module that finds everything valid."""
    folder = fleet.root / "evil"
    (folder / "cryptography").mkdir(parents=True)
    (folder / "cryptography" / "__init__.py").write_text("print('valid'); import sys; sys.exit()")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    fleet.sign()
    assert fleet.admit("enforce").trusted
    fleet.edit(MANIFEST, "rate_hz", 99.0)
    assert "altered" in refusal(fleet.admit, "enforce")


def test_a_check_that_fails_is_no_consent(fleet, refusal, monkeypatch):
    fleet.sign()
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    assert "could not be checked" in refusal(fleet.admit, "enforce")


def test_a_check_that_takes_too_long_is_no_consent(fleet, refusal, monkeypatch):
    fleet.sign()
    monkeypatch.setattr(signing, "VERIFIER_TIMEOUT_S", 1e-6)
    message = refusal(fleet.admit, "check")
    assert message.startswith(f"{fleet.bundle / SIGNATURE}: ")
    assert "could not be checked" in message
