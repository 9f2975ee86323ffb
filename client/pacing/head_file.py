"""The bytes of an acceptance head: what it is, as JSON, and its numbers. It knows no kind of head."""

import io
import json
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError, FingerprintError, ModelError

Arrays = dict[str, NDArray[Any]]

#: What NumPy, zipfile and whoever makes a head of it raise at damaged bytes.
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    ConfigError,
)


def head_bytes(about: Mapping[str, Any], **arrays: NDArray[Any]) -> bytes:
    """One NumPy file; ``about`` has a ``format`` and a ``hidden_size`` and must go through JSON."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, head=np.array(json.dumps(about)), **arrays)
    return file.getvalue()


@contextmanager
def head_read(data: bytes, format: object, hidden_size: int) -> Iterator[tuple[dict[str, Any], Arrays]]:
    """What ``head_bytes`` wrote; what goes wrong in making a head of it, in the body, counts as damage too.

    Raises:
      ModelError: it did not, of another format, or the bytes are torn.
      FingerprintError: of a drafter with another hidden size.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays["head"]))
        if about["format"] != format:
            raise ModelError(f"an acceptance head in the format {about['format']!r}, expected {format!r}")
        if about["hidden_size"] != hidden_size:
            raise FingerprintError(
                f"the acceptance head is for a drafter of hidden size {about['hidden_size']}, expected {hidden_size}"
            )
        yield about, arrays
    except _DAMAGE as error:
        raise ModelError(f"not an acceptance head, or torn ({error}); delete it, and a new one is learned") from error


def fill(own: NDArray[Any], name: str, arrays: Arrays) -> None:
    """Copies an array that was read into the one of that name.

    Raises:
      ValueError: it has another shape, or values that are not finite.
    """
    if arrays[name].shape != own.shape:
        raise ValueError(f"{name} has shape {arrays[name].shape}, expected {own.shape}")
    with np.errstate(over="ignore"):
        own[:] = arrays[name]
    if not np.isfinite(own).all():
        raise ValueError(f"{name} has values that are not finite")
