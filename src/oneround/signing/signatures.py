"""Signatures of OpenSSF Model Signing: who wrote a file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from oneround.errors import OneRoundError
from oneround.files import write_atomic
from oneround.signing.keys import package, public_key_of, read_bytes, read_public_key, to_pem

SIGNATURE_SUFFIX = ".sig"
"""The signature of ``study.toml`` is ``study.toml.sig``."""

WHOLE_FILE = "."
"""Name of the content if a single file is signed instead of a folder."""


class WrongSignatureError(Exception):
    """The content is not what the owner of the key signed; the message says why."""


def sign(
    contents: Mapping[str, bytes],
    private: str | os.PathLike[str],
    passphrase: str | None = None,
) -> bytes:
    """A signature of named contents, as if they were the files of a folder.

    Args:
        contents: contents by file name; :data:`WHOLE_FILE` is the name of a single file.
        private: ``.key`` file.
        passphrase: passphrase of that file.

    Returns:
        A Sigstore bundle, JSON, as ``model_signing verify key`` reads it.

    Raises:
        OneRoundError: as for :func:`public_key_of`.
    """
    public_key_of(private, passphrase)  # for its errors
    signing = package("model_signing.signing")
    with _as_files(contents) as (model, signature):
        secret = passphrase.encode() if passphrase and b"ENCRYPTED" in read_bytes(private) else None
        config = signing.Config().use_elliptic_key_signer(private_key=private, password=secret)
        config.sign(model, signature)
        return signature.read_bytes()


def verify(contents: Mapping[str, bytes], signature: bytes, public_key: str) -> None:
    """Refuse a signature that does not cover exactly these contents, or is of another key.

    Raises:
        WrongSignatureError: it is wrong, and says why; ``signature`` may be any bytes.
        OneRoundError: the packages for it are not installed.
    """
    verifying = package("model_signing.verifying")
    with _as_files(contents) as (model, file):
        file.write_bytes(signature)
        pem = file.with_name("key.pub")
        pem.write_text(to_pem(public_key))
        try:
            _require_signature_alone(signature, public_key)  # else the library may print
            verifying.Config().use_elliptic_key_verifier(public_key=pem).verify(model, file)
            covered = _covered(signature)
        except Exception as error:  # from a stranger's bytes the library raises many kinds
            reason = str(error).split("\n")[0].partition(": ")[0][:200] or type(error).__name__
            raise WrongSignatureError(reason) from error
    if covered != set(contents):  # a signature can say that it leaves files out
        raise WrongSignatureError(f"it covers {sorted(covered)}")


def signature_path(path: str | os.PathLike[str]) -> Path:
    """The path of the signature of the file at ``path``."""
    return Path(f"{os.fspath(path)}{SIGNATURE_SUFFIX}")


def sign_file(
    path: str | os.PathLike[str],
    private: str | os.PathLike[str],
    passphrase: str | None = None,
) -> Path:
    """Write the signature of one file beside it and return its path.

    Raises:
        OneRoundError: the file or the key cannot be read, or the signature cannot be written.
    """
    signature = signature_path(path)
    write_atomic(signature, sign({WHOLE_FILE: read_bytes(path)}, private, passphrase))
    return signature


def require_signed_file(
    path: str | os.PathLike[str], content: bytes, signed_by: str | os.PathLike[str]
) -> None:
    """Refuse a file that is not what the owner of ``signed_by`` (a ``.pub`` file) has signed.

    Raises:
        OneRoundError: there is no signature beside ``path``, or it is not of ``content``.
    """
    public_key = read_public_key(signed_by)
    signature = signature_path(path)
    if not signature.is_file():
        raise OneRoundError(
            f"there is no signature, {signature.name}.",
            file=path,
            remedy="Ask the coordinator for the study and its .sig file; put both in one folder.",
        )
    try:
        verify({WHOLE_FILE: content}, read_bytes(signature), public_key)
    except WrongSignatureError as error:
        raise OneRoundError(
            f"this is not what the owner of {os.fspath(signed_by)} signed ({error}).",
            file=path,
            remedy="Do not use it; ask the coordinator to send the file and its .sig file again.",
        ) from error


def _require_signature_alone(signature: bytes, public_key: str) -> None:
    """Refuse a bundle that carries more than a statement and its signature.

    Raises:
        ValueError: there are other keys, spaces or characters, which nothing covers.
    """
    bundle = json.loads(signature)
    envelope, key = bundle["dsseEnvelope"], bundle["verificationMaterial"]["publicKey"]
    hint = hashlib.sha256(to_pem(public_key).encode()).hexdigest()
    alone = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64_again(envelope["payload"]),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": _base64_again(envelope["signatures"][0]["sig"]), "keyid": ""}],
        },
    }
    if key.get("hint", hint) != hint:
        raise ValueError("Key mismatch")
    if bundle != alone:
        raise ValueError("it holds more than a signature")
    if signature != json.dumps(alone, separators=(",", ":")).encode():
        raise ValueError("it is not written as a signature is")


def _base64_again(text: str) -> str:
    return base64.b64encode(base64.b64decode(text)).decode()


def _covered(signature: bytes) -> set[str]:
    payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return {resource["name"] for resource in payload["predicate"]["resources"]}


@contextmanager
def _as_files(contents: Mapping[str, bytes]) -> Iterator[tuple[Path, Path]]:
    """A model of these files, and a path for its signature, in a folder that nobody else reads."""
    with tempfile.TemporaryDirectory(prefix="oneround-") as folder:
        model = Path(folder, "model")
        if set(contents) == {WHOLE_FILE}:
            model.write_bytes(contents[WHOLE_FILE])
        else:
            model.mkdir()
            for name, content in contents.items():
                (model / name).write_bytes(content)
        yield model, Path(folder, "signature.json")
