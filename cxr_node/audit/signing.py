"""The node's signing key: Ed25519 (RFC 8032), for checkpoints of the audit log and seals of its archives."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_node.errors import StoreError
from cxr_node.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def folder(settings: Settings) -> Path:
    """Where the signing key and the statements lie."""
    return settings.node.data_dir.absolute() / "audit"


def signing_key(settings: Settings) -> Ed25519PrivateKey:
    """The key that signs checkpoints; made at its first use, readable for the node's user alone.

    Raises:
        StoreError: it can't be read or written, or is no Ed25519 key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = _key_file(settings)
    try:
        if not path.exists():
            if settings.storage.url and settings.database.url:
                raise StoreError(f"audit.key: {path} does not exist: all hosts sign with the same key, so copy it to this host.")
            made = Ed25519PrivateKey.generate()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            pem = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            with suppress(FileExistsError):  # another process was quicker: its key is taken
                _write_new(path, pem)
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(f"audit.key: {path} is not an Ed25519 key: make one with `openssl genpkey -algorithm ed25519`.")
        public = path.with_suffix(".pub.pem")
        if not public.exists():
            pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            with suppress(OSError):  # it is there, or the key lies where nothing may be written
                _write_new(public, pem)
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"audit.key: {path} can't be used ({getattr(error, 'strerror', None) or error}): check its owner."
        ) from error
    return key


def public_key(file: Path) -> Ed25519PublicKey:
    """A key to verify signatures with, from a PEM file of a public key, or of a private one.

    Raises:
        StoreError: it can't be read, or is no Ed25519 key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    try:
        content = file.read_bytes()
        if b"PRIVATE KEY" in content:
            private = serialization.load_pem_private_key(content, None)
            key: Any = private.public_key() if isinstance(private, Ed25519PrivateKey) else None
        else:
            key = serialization.load_pem_public_key(content)
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{file}: not a readable key ({getattr(error, 'strerror', None) or error}).") from error
    if not isinstance(key, Ed25519PublicKey):
        raise StoreError(f"{file}: not an Ed25519 key; use the file signing-key.pub.pem of the node.")
    return key


def own_public_key(settings: Settings) -> Ed25519PublicKey:
    """The key that the node itself signs with.

    Raises:
        StoreError: it can't be read.
    """
    public = _key_file(settings).with_suffix(".pub.pem")
    return public_key(public) if public.exists() else signing_key(settings).public_key()


def fingerprint(key: Ed25519PublicKey) -> str:
    """Which key it is: the first 16 digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign(key: Ed25519PrivateKey, said: Mapping[str, Any]) -> str:
    """A statement in JSON with its signature."""
    whole = {**said, "key": fingerprint(key.public_key())}
    signature = base64.b64encode(key.sign(_signed(whole))).decode()
    return json.dumps({**whole, "signature": signature}, sort_keys=True)


def is_signed(key: Ed25519PublicKey, statement: Mapping[str, Any]) -> bool:
    """Whether a statement bears a signature of this key."""
    from cryptography.exceptions import InvalidSignature

    said = {name: value for name, value in statement.items() if name != "signature"}
    try:
        key.verify(base64.b64decode(str(statement["signature"])), _signed(said))
    except (InvalidSignature, ValueError, KeyError):
        return False
    return True


def _key_file(settings: Settings) -> Path:
    return settings.audit.key or folder(settings) / "signing-key.pem"


def _write_new(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # fails if there is one, and is whole at once
    finally:
        temporary.unlink(missing_ok=True)


def _signed(said: Mapping[str, Any]) -> bytes:
    return b"cxr-node audit\n" + json.dumps(dict(said), sort_keys=True, separators=(",", ":")).encode()
