"""Signatures and encryption: who wrote a file, and who alone can read it; works offline.

Signatures are those of OpenSSF Model Signing with P-256 keys in PEM files, encryption is the age
format; files made here can be checked and opened with the tools of these projects. Needs
``pip install 'oneround[secure]'``.
"""

from __future__ import annotations

from oneround.signing.encryption import (
    ENCRYPTED_SUFFIX,
    Identity,
    WrongIdentityError,
    encrypt,
    is_encrypted,
)
from oneround.signing.keys import (
    KeyFiles,
    fingerprint,
    needs_passphrase,
    new_encryption_key,
    new_signing_key,
    public_key_of,
    read_public_key,
    read_recipient,
    require_recipient,
)
from oneround.signing.signatures import (
    SIGNATURE_SUFFIX,
    WHOLE_FILE,
    WrongSignatureError,
    require_signed_file,
    sign,
    sign_file,
    signature_path,
    verify,
)

__all__ = [
    "ENCRYPTED_SUFFIX",
    "SIGNATURE_SUFFIX",
    "WHOLE_FILE",
    "Identity",
    "KeyFiles",
    "WrongIdentityError",
    "WrongSignatureError",
    "encrypt",
    "fingerprint",
    "is_encrypted",
    "needs_passphrase",
    "new_encryption_key",
    "new_signing_key",
    "public_key_of",
    "read_public_key",
    "read_recipient",
    "require_recipient",
    "require_signed_file",
    "sign",
    "sign_file",
    "signature_path",
    "verify",
]
