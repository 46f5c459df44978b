"""Key pairs: files of keys, what is in them, and how they are shown."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import TypeAdapter, ValidationError

from oneround.errors import OneRoundError
from oneround.files import hidden_part, name_part, sync_folder
from oneround.schema import PublicKey, Recipient

AGE_HEADER = b"age-encryption.org/v1\n"
"""First bytes of a file in the age format."""


class KeyFiles(NamedTuple):
    """A private file, which stays with its owner, and a public one for everybody."""

    private: Path
    public: Path


def new_signing_key(stem: str | os.PathLike[str], passphrase: str | None = None) -> KeyFiles:
    """Write a new P-256 key pair: ``STEM.key``, only for its owner, and ``STEM.pub``.

    Args:
        stem: path of the files, without ending.
        passphrase: passphrase that protects the private file; ``None``: none.

    Raises:
        OneRoundError: one of the files exists, or cannot be written.
    """
    ec = package("cryptography.hazmat.primitives.asymmetric.ec")
    forms = package("cryptography.hazmat.primitives.serialization")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = (
        forms.BestAvailableEncryption(passphrase.encode()) if passphrase else forms.NoEncryption()
    )
    private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, secret)
    return _write_pair(Path(stem), (".key", private), (".pub", _pem(key.public_key())))


def new_encryption_key(stem: str | os.PathLike[str], passphrase: str | None = None) -> KeyFiles:
    """Write a new age key pair: ``STEM.identity``, only for its owner, and ``STEM.recipient``.

    Arguments and errors as for :func:`new_signing_key`.
    """
    pyrage = package("pyrage")
    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    private = f"# public key: {recipient}\n{identity}\n".encode()
    if passphrase:
        private = pyrage.passphrase.encrypt(private, passphrase)
    public = f"{recipient}\n".encode()
    return _write_pair(Path(stem), (".identity", private), (".recipient", public))


def read_public_key(path: str | os.PathLike[str]) -> str:
    """The key in a ``.pub`` file (PEM), as the study has it: one line of base64.

    Raises:
        OneRoundError: the file cannot be read, or is not a P-256 public key.
    """
    text = _text(path)
    if "PRIVATE KEY" in text:
        raise OneRoundError(
            "this is the private key, which nobody else may have.",
            file=path,
            remedy="Give the .pub file; if the private one was sent to anybody, make a new pair.",
        )
    body = re.sub(r"-----[A-Z ]+-----|\s", "", text)
    return _validated(PublicKey, body, path, "a public key for signatures (P-256, PEM)", ".pub")


def read_recipient(path: str | os.PathLike[str]) -> str:
    """The recipient in a ``.recipient`` file.

    Raises:
        OneRoundError: the file cannot be read, or is not an age recipient.
    """
    text = _text(path).strip()
    return require_recipient(
        _validated(Recipient, text, path, "an age recipient", ".recipient"), path
    )


def require_recipient(recipient: str, file: str | os.PathLike[str] | None = None) -> str:
    """``recipient``, if its checksum is right; that is looked at where ``pyrage`` is installed.

    Raises:
        OneRoundError: a character of it is wrong.
    """
    try:
        pyrage = import_module("pyrage")
    except ModuleNotFoundError:
        return recipient
    try:
        pyrage.x25519.Recipient.from_str(recipient)
    except pyrage.RecipientError as error:
        raise OneRoundError(
            f"the age recipient {recipient} is mistyped: its checksum is wrong.",
            file=file,
            remedy="Copy the line of the .recipient file that `oneround keys new` wrote.",
        ) from error
    return recipient


def public_key_of(private: str | os.PathLike[str], passphrase: str | None = None) -> str:
    """The public key that belongs to a ``.key`` file, as one line of base64.

    Raises:
        OneRoundError: it is not a private P-256 key, or the passphrase is missing or wrong.
    """
    forms = package("cryptography.hazmat.primitives.serialization")
    content = _text(private).encode()
    secret = passphrase.encode() if passphrase and b"ENCRYPTED" in content else None
    try:
        key = forms.load_pem_private_key(content, secret)
        line = "".join(_pem(key.public_key()).decode().splitlines()[1:-1])
        return TypeAdapter(PublicKey).validate_python(line)
    except (ValueError, TypeError) as error:  # cryptography: wrong or missing passphrase
        locked = b"ENCRYPTED" in content
        raise OneRoundError(
            "the passphrase does not open it." if locked else "not a private key (P-256, PEM).",
            file=private,
            remedy="Give the passphrase in ONEROUND_PASSPHRASE, or when asked."
            if locked
            else "Give the .key file that `oneround keys new` wrote.",
        ) from error


def fingerprint(public_key: str) -> str:
    """First half of the SHA-256 of a public key, in eight groups of four hexadecimal digits."""
    digits = hashlib.sha256(base64.b64decode(public_key)).hexdigest()
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


def needs_passphrase(path: str | os.PathLike[str]) -> bool:
    """Whether a ``.key`` or ``.identity`` file is protected by a passphrase."""
    content = read_bytes(path)
    return content.startswith(AGE_HEADER) or b"BEGIN ENCRYPTED PRIVATE KEY" in content


def to_pem(line: str) -> str:
    """A public key, one line of base64, as a PEM file has it."""
    wrapped = "\n".join(line[i : i + 64] for i in range(0, len(line), 64))
    return f"-----BEGIN PUBLIC KEY-----\n{wrapped}\n-----END PUBLIC KEY-----\n"


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file.

    Raises:
        OneRoundError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OneRoundError(
            f"cannot be read: {error.strerror}.", file=path, remedy="Check the path."
        ) from error


def package(name: str) -> Any:
    """A module of ``oneround[secure]``.

    Raises:
        OneRoundError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise OneRoundError(
            f"signatures and encryption need the package {error.name!r}.",
            remedy="Install what they need: pip install 'oneround[secure]'.",
        ) from error


def _write_pair(stem: Path, private: tuple[str, bytes], public: tuple[str, bytes]) -> KeyFiles:
    files = KeyFiles(*(stem.with_name(stem.name + suffix) for suffix, _ in (private, public)))
    for file in files:
        if os.path.lexists(file):
            raise OneRoundError(
                "a key of this name exists, and a key is never replaced.",
                file=file,
                remedy="Choose another name, or move the old pair away.",
            )
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with (
            hidden_part(files.private, private=True) as secret,
            hidden_part(files.public) as shown,
        ):
            secret.write(private[1])
            shown.write(public[1])
            _settle_both((secret, shown), files)
    except OSError as error:
        raise OneRoundError(
            f"cannot write: {error.strerror}; there is no key.",
            file=stem,
            remedy="Make room or choose another folder, then run the same command again.",
        ) from error
    return files


def _settle_both(parts: Sequence[BinaryIO], files: KeyFiles) -> None:
    """Give both files their names, or none: a full disk has refused before, or is undone."""
    for part in parts:
        part.flush()
        os.fsync(part.fileno())
        part.close()
    named = list[Path]()
    try:
        for part, file in zip(parts, files, strict=True):
            name_part(Path(part.name), file, replace=False)
            named.append(file)
        sync_folder(files.private.parent)
    except BaseException:
        for file in named:
            file.unlink()
        raise


def _pem(public_key: Any) -> bytes:
    forms = package("cryptography.hazmat.primitives.serialization")
    pem: bytes = public_key.public_bytes(
        forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def _validated(kind: Any, text: str, path: str | os.PathLike[str], what: str, ending: str) -> str:
    try:
        value: str = TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        raise OneRoundError(
            f"not {what}.",
            file=path,
            remedy=f"Give the {ending} file that `oneround keys new` wrote.",
        ) from error
    return value


def _text(path: str | os.PathLike[str]) -> str:
    return read_bytes(path).decode("ascii", errors="replace")
