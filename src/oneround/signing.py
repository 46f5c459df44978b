"""Signatures and encryption: who wrote a file, and who alone can read it; works offline.

Signatures are those of OpenSSF Model Signing with P-256 keys in PEM files, encryption is the age
format; files made here can be checked and opened with the tools of these projects. Needs
``pip install 'oneround[secure]'``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import TypeAdapter, ValidationError

from oneround.errors import OneRoundError
from oneround.files import hidden_part, name_part, sync_folder, write_atomic
from oneround.schema import PublicKey, Recipient

SIGNATURE_SUFFIX = ".sig"
"""The signature of ``study.toml`` is ``study.toml.sig``."""

ENCRYPTED_SUFFIX = ".age"
"""Ending of the name of a file that is encrypted to the coordinator."""

WHOLE_FILE = "."
"""Name of the content if a single file is signed instead of a folder."""

_AGE_HEADER = b"age-encryption.org/v1\n"


class WrongSignatureError(Exception):
    """The content is not what the owner of the key signed; the message says why."""


class WrongIdentityError(Exception):
    """The identity does not open this file."""


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
    ec = _package("cryptography.hazmat.primitives.asymmetric.ec")
    forms = _package("cryptography.hazmat.primitives.serialization")
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
    pyrage = _package("pyrage")
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
    forms = _package("cryptography.hazmat.primitives.serialization")
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
    signing = _package("model_signing.signing")
    with _as_files(contents) as (model, signature):
        secret = passphrase.encode() if passphrase and b"ENCRYPTED" in _bytes(private) else None
        config = signing.Config().use_elliptic_key_signer(private_key=private, password=secret)
        config.sign(model, signature)
        return signature.read_bytes()


def verify(contents: Mapping[str, bytes], signature: bytes, public_key: str) -> None:
    """Refuse a signature that does not cover exactly these contents, or is of another key.

    Raises:
        WrongSignatureError: it is wrong, and says why; ``signature`` may be any bytes.
        OneRoundError: the packages for it are not installed.
    """
    verifying = _package("model_signing.verifying")
    with _as_files(contents) as (model, file):
        file.write_bytes(signature)
        pem = file.with_name("key.pub")
        pem.write_text(_to_pem(public_key))
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
    write_atomic(signature, sign({WHOLE_FILE: _bytes(path)}, private, passphrase))
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
        verify({WHOLE_FILE: content}, _bytes(signature), public_key)
    except WrongSignatureError as error:
        raise OneRoundError(
            f"this is not what the owner of {os.fspath(signed_by)} signed ({error}).",
            file=path,
            remedy="Do not use it; ask the coordinator to send the file and its .sig file again.",
        ) from error


def is_encrypted(content: bytes) -> bool:
    """Whether these first bytes are those of an age file."""
    return content.startswith(_AGE_HEADER)


def encrypt(content: bytes, recipient: str) -> bytes:
    """``content`` as an age file that only the owner of ``recipient`` can open."""
    pyrage = _package("pyrage")
    require_recipient(recipient)
    encrypted: bytes = pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(recipient)])
    return encrypted


class Identity:
    """The private half of an age key pair.

    Args:
        path: ``.identity`` file, or one that ``age-keygen`` wrote.
        passphrase: passphrase of that file, if it has one.

    Raises:
        OneRoundError: the file cannot be read, is not an identity, or the passphrase is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], passphrase: str | None = None) -> None:
        pyrage = _package("pyrage")
        self.path = Path(path)
        content = _bytes(path)
        locked = is_encrypted(content)
        try:
            if locked:
                content = pyrage.passphrase.decrypt(content, passphrase or "")
            lines = content.decode().splitlines()
            [line] = [line.strip() for line in lines if line.startswith("AGE-SECRET-KEY-1")]
            self._identity = pyrage.x25519.Identity.from_str(line)
        except (ValueError, pyrage.DecryptError, pyrage.IdentityError) as error:
            raise OneRoundError(
                "the passphrase does not open it." if locked else "not an age identity.",
                file=path,
                remedy="Give the passphrase in ONEROUND_PASSPHRASE, or when asked."
                if locked
                else "Give the .identity file that `oneround keys new` wrote.",
            ) from error

    def decrypt(self, encrypted: BinaryIO, plain: BinaryIO) -> None:
        """Decrypt an age file into another file; little of it is in memory at a time.

        Args:
            encrypted: encrypted file, positioned at its start.
            plain: file to write; its content is at most as long.

        Raises:
            WrongIdentityError: it was encrypted to another key, or is damaged.
        """
        pyrage = _package("pyrage")
        try:
            pyrage.decrypt_io(encrypted, plain, [self._identity])
        except (pyrage.DecryptError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk; damage has no number
                raise
            raise WrongIdentityError(str(error)[:200]) from error


def needs_passphrase(path: str | os.PathLike[str]) -> bool:
    """Whether a ``.key`` or ``.identity`` file is protected by a passphrase."""
    content = _bytes(path)
    return is_encrypted(content) or b"BEGIN ENCRYPTED PRIVATE KEY" in content


def _require_signature_alone(signature: bytes, public_key: str) -> None:
    """Refuse a bundle that carries more than a statement and its signature.

    Raises:
        ValueError: there are other keys, spaces or characters, which nothing covers.
    """
    bundle = json.loads(signature)
    envelope, key = bundle["dsseEnvelope"], bundle["verificationMaterial"]["publicKey"]
    hint = hashlib.sha256(_to_pem(public_key).encode()).hexdigest()
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
    forms = _package("cryptography.hazmat.primitives.serialization")
    pem: bytes = public_key.public_bytes(
        forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def _to_pem(line: str) -> str:
    wrapped = "\n".join(line[i : i + 64] for i in range(0, len(line), 64))
    return f"-----BEGIN PUBLIC KEY-----\n{wrapped}\n-----END PUBLIC KEY-----\n"


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


def _bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OneRoundError(
            f"cannot be read: {error.strerror}.", file=path, remedy="Check the path."
        ) from error


def _text(path: str | os.PathLike[str]) -> str:
    return _bytes(path).decode("ascii", errors="replace")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise OneRoundError(
            f"signatures and encryption need the package {error.name!r}.",
            remedy="Install what they need: pip install 'oneround[secure]'.",
        ) from error
