"""Damage to files, for tests that expect it to be detected."""

from pathlib import Path


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
