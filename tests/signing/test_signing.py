from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from oneround import signing
from oneround.errors import OneRoundError
from oneround.signing import WrongIdentityError, WrongSignatureError
from oneround.study import Study

CONTENTS = {"manifest.json": b"{}", "model.safetensors": bytes(range(256))}


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> signing.KeyFiles:
    return signing.new_signing_key(tmp_path_factory.mktemp("north") / "north")


@pytest.fixture(scope="module")
def south(tmp_path_factory: pytest.TempPathFactory) -> signing.KeyFiles:
    return signing.new_signing_key(tmp_path_factory.mktemp("south") / "south", "open sesame")


@pytest.fixture(scope="module")
def public(north: signing.KeyFiles) -> str:
    return signing.read_public_key(north.public)


def test_private_file_is_for_its_owner_alone(north: signing.KeyFiles, tmp_path: Path) -> None:
    pair = signing.new_encryption_key(tmp_path / "sub" / "coordinator.2026")
    assert [file.name for file in pair] == [
        "coordinator.2026.identity",
        "coordinator.2026.recipient",
    ]
    assert [file.stat().st_mode & 0o777 for file in (*north, *pair)] == [0o600, 0o644] * 2


@pytest.mark.parametrize("make", [signing.new_signing_key, signing.new_encryption_key])
@pytest.mark.parametrize("which", [0, 1])
def test_no_key_is_ever_replaced(
    make: Callable[..., signing.KeyFiles], which: int, tmp_path: Path
) -> None:
    pair = make(tmp_path / "north")
    content = pair[which].read_bytes()
    pair[1 - which].unlink()
    with pytest.raises(OneRoundError, match="a key is never replaced"):
        make(tmp_path / "north")
    assert pair[which].read_bytes() == content
    assert list(tmp_path.iterdir()) == [pair[which]]


def test_line_in_the_study_is_the_key_of_the_pem_file(north: signing.KeyFiles, public: str) -> None:
    key = serialization.load_pem_private_key(north.private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert public == b"".join(pem.splitlines()[1:-1]).decode()
    assert signing.public_key_of(north.private) == public
    assert len(signing.fingerprint(public).split()) == 8


def test_signature_holds_for_these_contents_only(
    north: signing.KeyFiles, south: signing.KeyFiles, public: str
) -> None:
    signature = signing.sign(CONTENTS, north.private)
    signing.verify(CONTENTS, signature, public)
    changed = CONTENTS | {"manifest.json": b"{ "}
    swapped = dict(zip(CONTENTS, reversed(CONTENTS.values()), strict=True))
    for wrong in (changed, swapped, CONTENTS | {"x": b""}, {"manifest.json": b"{}"}):
        with pytest.raises(WrongSignatureError):
            signing.verify(wrong, signature, public)
    with pytest.raises(WrongSignatureError, match="Key mismatch"):
        signing.verify(CONTENTS, signature, signing.read_public_key(south.public))


def test_another_key_under_the_name_of_the_right_one(
    north: signing.KeyFiles, tmp_path: Path
) -> None:
    """The hint in the bundle is not signed: with it forged, the signature itself must fail."""
    other = signing.new_signing_key(tmp_path / "other")
    good = json.loads(signing.sign(CONTENTS, north.private))
    forged = json.loads(signing.sign(CONTENTS, other.private))
    forged["verificationMaterial"] = good["verificationMaterial"]
    compact = json.dumps(forged, separators=(",", ":")).encode()
    with pytest.raises(WrongSignatureError):
        signing.verify(CONTENTS, compact, signing.read_public_key(north.public))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s + b"\n",
        lambda s: s.replace(b'","', b'", "', 1),
        lambda s: s.replace(b'{"mediaType"', b'{"note":"unsigned","mediaType"'),
        lambda s: s.replace(b'"keyid":""', b'"keyid":"unsigned"'),
        lambda s: s.replace(b'"keyid":""}]', b'"keyid":""},{"sig":"AAAA","keyid":""}]'),
        lambda s: s.replace(b'"publicKey":{', b'"publicKey":{"rawBytes":"AAAA",'),
        lambda s: re.sub(rb'"hint":"\w+"', b"", s),
        lambda s: s.replace(b'"tlogEntries":[]', b'"tlogEntries":[],"x":1'),
        lambda s: s.replace(b'"payload":"', b'"payload":"-'),
        lambda s: s.replace(b"application/vnd.in-toto", b"application\\/vnd.in-toto"),
    ],
)
def test_nothing_unsigned_travels_in_a_signature(
    north: signing.KeyFiles,
    public: str,
    change: Callable[[bytes], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    signature = signing.sign(CONTENTS, north.private)
    changed = change(signature)
    assert changed != signature
    with pytest.raises(WrongSignatureError):
        signing.verify(CONTENTS, changed, public)
    assert capsys.readouterr().out == ""  # the library warns there


@pytest.mark.parametrize(
    "signature",
    [b"", b"{}", b"\xff" * 100, b"[" * 60_000, b'{"dsseEnvelope": 1}', b"null"],
    ids=["empty", "object", "bytes", "deep", "envelope", "null"],
)
def test_any_bytes_as_signature(signature: bytes, public: str) -> None:
    with pytest.raises(WrongSignatureError):
        signing.verify(CONTENTS, signature, public)


def test_signature_that_leaves_the_weights_out(
    north: signing.KeyFiles, public: str, tmp_path: Path
) -> None:
    from model_signing import hashing
    from model_signing import signing as model_signing_api

    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    config = hashing.Config().set_ignored_paths(paths=[tmp_path / "model.safetensors"])
    signer = model_signing_api.Config().use_elliptic_key_signer(private_key=north.private)
    signer.set_hashing_config(config).sign(tmp_path, tmp_path / "signature.json")
    signature = (tmp_path / "signature.json").read_bytes()
    with pytest.raises(WrongSignatureError):
        signing.verify(CONTENTS, signature, public)


def test_the_tool_of_the_standard_agrees(north: signing.KeyFiles, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, content in CONTENTS.items():
        (model / name).write_bytes(content)
    (tmp_path / "signature.json").write_bytes(signing.sign(CONTENTS, north.private))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(model)]
    command += ["--signature", str(tmp_path / "signature.json")]
    command += ["--public_key", str(north.public)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    (model / "manifest.json").write_bytes(b"{ }")
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_passphrase(south: signing.KeyFiles) -> None:
    assert signing.needs_passphrase(south.private)
    signature = signing.sign(CONTENTS, south.private, "open sesame")
    signing.verify(CONTENTS, signature, signing.read_public_key(south.public))
    for wrong in ("open", "", None):
        with pytest.raises(OneRoundError, match="the passphrase does not open it"):
            signing.sign(CONTENTS, south.private, wrong)


def test_passphrase_is_not_needed_for_a_key_without(north: signing.KeyFiles, public: str) -> None:
    assert not signing.needs_passphrase(north.private)
    signing.verify(CONTENTS, signing.sign(CONTENTS, north.private, "not needed"), public)


def test_wrong_files_as_keys(north: signing.KeyFiles, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = other.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "p384.pub").write_bytes(pem)
    (tmp_path / "text.pub").write_bytes(b"hello\xff\n")
    with pytest.raises(OneRoundError, match="the private key, which nobody else may have"):
        signing.read_public_key(north.private)
    for file in ("p384.pub", "text.pub"):
        with pytest.raises(OneRoundError, match="not a public key") as caught:
            signing.read_public_key(tmp_path / file)
        assert caught.value.remedy
    for read in (
        signing.read_public_key,
        signing.read_recipient,
        signing.public_key_of,
        signing.Identity,
    ):
        with pytest.raises(OneRoundError, match="cannot be read"):
            read(tmp_path / "missing")
        with pytest.raises(OneRoundError, match="not a"):
            read(tmp_path / "text.pub")


def test_file_and_its_signature(north: signing.KeyFiles, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_bytes(b"name = 'x'\n")
    with pytest.raises(OneRoundError, match=r"no signature, study\.toml\.sig"):
        signing.require_signed_file(file, file.read_bytes(), north.public)
    assert signing.sign_file(file, north.private) == tmp_path / "study.toml.sig"
    signing.require_signed_file(file, file.read_bytes(), north.public)
    with pytest.raises(OneRoundError, match="not what the owner of") as caught:
        signing.require_signed_file(file, b"name = 'y'\n", north.public)
    assert caught.value.file == str(file)


def decrypted(identity: signing.Identity, content: bytes) -> bytes:
    plain = io.BytesIO()
    identity.decrypt(io.BytesIO(content), plain)
    return plain.getvalue()


def test_only_the_recipient_can_open(tmp_path: Path) -> None:
    pair = signing.new_encryption_key(tmp_path / "coordinator")
    content = bytes(100_000)
    encrypted = signing.encrypt(content, signing.read_recipient(pair.public))
    assert signing.is_encrypted(encrypted)
    assert len(encrypted) < len(content) + 500
    identity = signing.Identity(pair.private)
    assert decrypted(identity, encrypted) == content
    [secret] = [line for line in pair.private.read_text().splitlines() if line[0] != "#"]
    assert pyrage.decrypt(encrypted, [pyrage.x25519.Identity.from_str(secret)]) == content
    other = signing.Identity(signing.new_encryption_key(tmp_path / "other").private)
    with pytest.raises(WrongIdentityError):
        decrypted(other, encrypted)
    for damaged in (encrypted[:-1], encrypted[:500], encrypted + b"x", b"age-encryption.org/v1\n"):
        with pytest.raises(WrongIdentityError):
            decrypted(identity, damaged)


def test_identity_with_a_passphrase(tmp_path: Path) -> None:
    pair = signing.new_encryption_key(tmp_path / "coordinator", "open sesame")
    assert signing.needs_passphrase(pair.private)
    assert b"AGE-SECRET-KEY" not in pair.private.read_bytes()
    encrypted = signing.encrypt(b"x", signing.read_recipient(pair.public))
    assert decrypted(signing.Identity(pair.private, "open sesame"), encrypted) == b"x"
    for wrong in ("open", None):
        with pytest.raises(OneRoundError, match="the passphrase does not open it"):
            signing.Identity(pair.private, wrong)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, public: str) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(OneRoundError, match="model_signing") as caught:
        signing.verify(CONTENTS, b"{}", public)
    assert "oneround[secure]" in caught.value.remedy


@pytest.mark.parametrize("make", [signing.new_signing_key, signing.new_encryption_key])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_no_half_of_a_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], signing.KeyFiles],
    call: int,
) -> None:
    calls = iter(range(1, 99))
    sync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OneRoundError, match="No space left on device") as caught:
        make(tmp_path / "north")
    assert "Make room" in caught.value.remedy
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    made = make(tmp_path / "north")
    assert {file.name for file in made} == set(os.listdir(tmp_path))


def test_a_mistyped_recipient_is_known_by_its_checksum(tmp_path: Path) -> None:
    pair = signing.new_encryption_key(tmp_path / "coordinator")
    right = signing.read_recipient(pair.public)
    wrong = right[:-1] + ("q" if right[-1] != "q" else "p")
    pair.public.write_text(wrong)
    with pytest.raises(OneRoundError, match="checksum") as caught:
        signing.read_recipient(pair.public)
    assert caught.value.file == str(pair.public)
    study = tmp_path / "study.toml"
    study.write_text(f'name = "x"\nclasses = ["a", "b"]\n[submission]\nencrypt_to = "{wrong}"\n')
    with pytest.raises(OneRoundError, match="checksum") as caught:
        Study.read(study)
    assert caught.value.file == str(study)
    with pytest.raises(OneRoundError, match="checksum"):
        signing.encrypt(b"", wrong)
