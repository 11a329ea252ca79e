"""Files that are whole or not there: written under another name first, and then renamed.

If the process dies or the disk fills up, the previous file stays intact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write a temporary file, then rename it to ``path``: the whole file or nothing.

    Raises OSError, naming the file, if that fails; a previous file at ``path`` stays intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # not there, or in a place that cannot be changed
            aside.unlink()


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object] | None = None
) -> None:
    """Write a safetensors file, the whole file or nothing; it holds ``state`` as JSON."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", "state": json.dumps(state or {})}

    def write(aside: Path) -> None:
        save_file(ready, aside, metadata)
        aside.chmod(0o644)  # save_file makes a file that only its owner may read

    atomic_write(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read what ``save_tensors`` wrote. Raises ValueError, naming the file, when it is broken."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
        return load(path.read_bytes()), state  # no memory map: Windows cannot replace it
    except (OSError, SafetensorError, ValueError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error for a safetensors file that cannot be read."""
    return ValueError(f"{path} is not a readable safetensors file: {error}")
