"""Named arrays as a safetensors file: written, and read with every byte accounted for.

The format is eight bytes of length, a JSON header, and the arrays one after the other;
reading it runs no code. It is written here since the package of that name would be a
compiled dependency for three small files.

References:
    https://github.com/safetensors/safetensors#format
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxgen._checks import UserError

DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
MAX_HEADER = 2**20  # bytes


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a file that holds the arrays, in the order of their names."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, parts, end = {}, [], 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        kind = array.dtype.newbyteorder("<")
        if kind not in names:
            raise ValueError(
                f"encode: {name} must be of floating point, got {array.dtype}."
            )
        parts.append(array.astype(kind).tobytes())
        begin, end = end, end + len(parts[-1])
        header[name] = {
            "dtype": names[kind],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(content: bytes) -> dict[str, np.ndarray]:
    """The arrays in the content of a file.

    Raises:
        ValueError: if anything is missing, left over or out of place.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        if length > min(MAX_HEADER, len(content) - 8):
            raise ValueError(f"a header of {length} bytes")
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        header.pop("__metadata__", None)
        arrays, reached = {}, 0
        for name, told in sorted(header.items(), key=lambda x: x[1]["data_offsets"]):
            begin, end = told["data_offsets"]
            if begin != reached:
                raise ValueError(f"{name} begins at {begin}, not at {reached}")
            kind, reached = DTYPES[told["dtype"]], end
            arrays[name] = np.frombuffer(data[begin:end], kind).reshape(told["shape"])
        if reached != len(data):
            raise ValueError(f"{len(data)} bytes of arrays, not {reached}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"decode: no safetensors file: {error}") from None
    return arrays


def sha256(content: bytes) -> str:
    """The digest of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_shipped(path: Path, expected: str) -> dict[str, np.ndarray]:
    """The arrays of a file that came with the package.

    Raises:
        UserError: if it is not there, or its digest is not the expected one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; install jaxgen again, or --features random"
        ) from None
    if (came := sha256(content)) != expected:
        raise UserError(
            f"{path} is not the file that was shipped: its sha256 is {came[:16]}..., not "
            f"{expected[:16]}...; put it back, or --features random"
        )
    return decode(content)
