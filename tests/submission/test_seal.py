from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oneround import signing
from oneround.errors import OneRoundError
from oneround.study import Study, SubmissionSpec
from oneround.submission import (
    check_submission,
    read_submission,
    read_submissions,
    seal_submission,
)
from oneround.submission.container import MANIFEST, SIGNATURE, WEIGHTS, pack

Submit = Callable[..., Path]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, signing.KeyFiles]:
    folder = tmp_path_factory.mktemp("keys")
    made = {site: signing.new_signing_key(folder / site) for site in ("north", "south", "stranger")}
    return made | {"coordinator": signing.new_encryption_key(folder / "coordinator")}


@pytest.fixture(scope="module")
def signed(study: Study, pairs: dict[str, signing.KeyFiles]) -> Study:
    """The study with keys; its hash is still the same."""
    known = {site: signing.read_public_key(pairs[site].public) for site in ("north", "south")}
    return study.model_copy(update={"submission": SubmissionSpec(keys=known)})


@pytest.fixture(scope="module")
def secret(signed: Study, pairs: dict[str, signing.KeyFiles]) -> Study:
    recipient = signing.read_recipient(pairs["coordinator"].public)
    submission = signed.submission.model_copy(update={"encrypt_to": recipient})
    return signed.model_copy(update={"submission": submission})


def codes(
    path: Path, study: Study | None = None, identity: signing.Identity | None = None
) -> list[str]:
    return [problem.code for problem in check_submission(path, study, identity=identity)]


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_signed_by_its_site(
    submit: Submit, signed: Study, pairs: dict[str, signing.KeyFiles]
) -> None:
    path = submit()
    assert codes(path, signed) == ["not-signed"]
    before = members(path)
    assert seal_submission(path, signed, key=pairs["north"].private) == path
    assert members(path).keys() == {MANIFEST, WEIGHTS, SIGNATURE}
    assert members(path).items() > before.items()
    assert codes(path, signed) == []
    submission = read_submission(path, signed)
    assert submission.signed_by == signing.fingerprint(signed.submission.keys["north"])
    seal_submission(path, signed, key=pairs["north"].private)  # again: a new signature
    assert codes(path, signed) == []


def test_without_keys_in_the_study_a_signature_is_said_not_to_be_compared(
    submit: Submit, study: Study, signed: Study, pairs: dict[str, signing.KeyFiles]
) -> None:
    path = seal_submission(submit(), signed, key=pairs["north"].private)
    for known in (None, study):
        [problem] = check_submission(path, known)
        assert (problem.code, problem.fatal) == ("signature-not-compared", False)
    assert read_submission(path, study).signed_by is None


def test_signature_of_another_file_or_key(
    submit: Submit, signed: Study, pairs: dict[str, signing.KeyFiles]
) -> None:
    path = submit()
    other = submit("other.oneround", images=121, class_counts=[51, 40, 30])
    seal_submission(other, signed, key=pairs["north"].private)
    good = members(path)
    by_stranger = signing.sign(good, pairs["stranger"].private)
    by_south = signing.sign(good, pairs["south"].private)
    for signature in (members(other)[SIGNATURE], by_stranger, by_south, b"", b"{}"):
        path.write_bytes(pack(good | {SIGNATURE: signature}))
        [problem] = check_submission(path, signed)
        assert problem.code == "wrong-signature"
        assert str(problem).isprintable()
        with pytest.raises(OneRoundError, match="wrong-signature"):
            read_submission(path, signed)


def test_weights_of_a_stranger_are_not_even_parsed(
    submit: Submit, signed: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneround.submission import weights

    path = submit()
    monkeypatch.setattr(weights, "parse_header", lambda _: pytest.fail("parsed"))
    assert codes(path, signed) == ["not-signed"]


def test_site_without_a_key(
    submit: Submit, signed: Study, pairs: dict[str, signing.KeyFiles]
) -> None:
    path = submit(site="west")
    assert codes(path, signed) == ["unknown-key"]
    with pytest.raises(OneRoundError, match="the study has no key for west"):
        seal_submission(path, signed, key=pairs["stranger"].private)


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "requires signed submissions"), ("south", "has the key")]
)
def test_what_the_coordinator_would_refuse_does_not_leave(
    submit: Submit,
    secret: Study,
    pairs: dict[str, signing.KeyFiles],
    key: str | None,
    reason: str,
) -> None:
    path = submit()
    before = path.read_bytes()
    with pytest.raises(OneRoundError, match=reason) as caught:
        seal_submission(path, secret, key=pairs[key].private if key else None)
    assert caught.value.remedy
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_sealing_something_else(submit: Submit, signed: Study, tmp_path: Path) -> None:
    changed = signed.model_copy(update={"seed": 1})
    with pytest.raises(OneRoundError, match="other-study"):
        seal_submission(submit(), changed)
    with pytest.raises(OneRoundError, match="no such file"):
        seal_submission(tmp_path / "missing", signed)


def test_large_signature(submit: Submit) -> None:
    path = submit()
    path.write_bytes(pack(members(path) | {SIGNATURE: b" " * 70_000}))
    assert codes(path) == ["signature-too-large"]


def test_encrypted_to_the_coordinator(
    submit: Submit, secret: Study, pairs: dict[str, signing.KeyFiles], tmp_path: Path
) -> None:
    path = submit()
    leaves = seal_submission(path, secret, key=pairs["north"].private)
    assert leaves == tmp_path / "north.oneround.age"
    assert b"manifest" not in leaves.read_bytes()
    assert codes(leaves, secret) == ["encrypted"]
    identity = signing.Identity(pairs["coordinator"].private)
    assert codes(leaves, secret, identity) == []
    [sent], own = read_submissions([leaves], secret, identity=identity), read_submission(path)
    assert (sent.manifest, sent.sha256) == (own.manifest, own.sha256)
    assert (sent.size, sent.path) == (leaves.stat().st_size, leaves)
    other = signing.Identity(signing.new_encryption_key(tmp_path / "other").private)
    assert codes(leaves, secret, other) == ["other-recipient"]
    assert codes(path, secret, identity) == ["not-encrypted"]
    assert read_submission(path, secret).sha256 == own.sha256, "it is only a warning"


def test_full_disk_is_not_taken_for_a_wrong_key(
    submit: Submit,
    secret: Study,
    pairs: dict[str, signing.KeyFiles],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaves = seal_submission(submit(), secret, key=pairs["north"].private)
    identity = signing.Identity(pairs["coordinator"].private)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no disk that is always full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: full.open("r+b", buffering=0))
    [problem] = check_submission(leaves, secret, identity=identity)
    assert problem.code == "unreadable"
    assert "No space left" in problem.what


def test_limit_holds_for_encrypted_files(
    submit: Submit, secret: Study, pairs: dict[str, signing.KeyFiles]
) -> None:
    leaves = seal_submission(submit(), secret, key=pairs["north"].private)
    identity = signing.Identity(pairs["coordinator"].private)
    size = leaves.stat().st_size
    for limit, found in ((size, []), (size - 1, ["too-large"])):
        problems = check_submission(leaves, secret, identity=identity, limit_bytes=limit)
        assert [problem.code for problem in problems] == found
