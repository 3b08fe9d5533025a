"""A digest of an ONNX file inside the file itself, so that damage to any byte of it is found.

A changed bit in a weight leaves a valid network that predicts something else. The digest is 40
hexadecimal digits in the metadata of the file, under its own key: that of the file's bytes with
zeros instead of these digits. It protects from accidents, not from forgery.
"""

from __future__ import annotations

from hashlib import blake2b

DIGEST_KEY = "kdsteps.digest"
PLACEHOLDER = "0" * 40
# how Protocol Buffers store the entry: its key, then field 2 with a value of 40 bytes
_MARK = DIGEST_KEY.encode() + bytes([2 << 3 | 2, len(PLACEHOLDER)])


def sealed(content: bytes) -> bytes:
    """The bytes of an ONNX file with their digest instead of `PLACEHOLDER`.

    Raises:
        ValueError: The metadata has no entry `DIGEST_KEY` with `PLACEHOLDER`.
    """
    before, found, after = _parts(content)
    if found != PLACEHOLDER.encode():
        raise ValueError(f"the metadata should have {DIGEST_KEY!r}: {PLACEHOLDER!r}")
    return before + _digest(before, after) + after


def is_sealed(content: bytes) -> bool:
    """Whether a file has such a digest, right or wrong."""
    return bool(_parts(content)[1])


def is_intact(content: bytes) -> bool:
    """Whether a file has such a digest and is as it was when it was sealed."""
    before, found, after = _parts(content)
    return found == _digest(before, after)


def _parts(content: bytes) -> tuple[bytes, bytes, bytes]:
    """What comes before the digest, the digest, and what follows it; empty where there is none."""
    before, mark, rest = content.partition(_MARK)
    return before + mark, rest[: len(PLACEHOLDER)], rest[len(PLACEHOLDER) :]


def _digest(before: bytes, after: bytes) -> bytes:
    digest = blake2b(digest_size=len(PLACEHOLDER) // 2)
    for part in (before, PLACEHOLDER.encode(), after):
        digest.update(part)
    return digest.hexdigest().encode()
