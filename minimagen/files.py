"""Files that are whole or not there: written under another name first, and then renamed.

If the process dies or the disk fills up, the previous file stays intact.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

MOST_TEXT = 64 * 2**20  # bytes of a text file that are read; a larger one is refused


def part_of(path: Path) -> Path:
    """The name under which this process writes ``path``."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")


def clear_parts(directory: Path) -> None:
    """Remove the ``.part`` files and directories that dead processes of this machine left."""
    pattern = re.compile(rf"\.(.+)\.{re.escape(socket.gethostname())}-(\d+)\.part")
    for path in directory.glob(".*.part"):
        found = pattern.fullmatch(path.name)
        if not found or _alive(int(found[2])):
            continue
        if not path.is_dir():
            path.unlink(missing_ok=True)
            continue
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # what was reserved for it, see new_directory; not if it has files
            path.with_name(found[1]).rmdir()


def _alive(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def new_directory(path: Path, fill: Callable[[Path, str], object]) -> Path:
    """Make the directory ``path`` with all that ``fill`` writes into it, or nothing; return it.

    fill: called with an empty directory, and the name that it will get

    If the name is taken, ``_1``, ``_2``, ... is added, also when two processes ask at the same
    moment. The directory above is created if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent)
    for number in itertools.count():
        final = path.with_name(f"{path.name}_{number}") if number else path
        part = part_of(final)
        part.mkdir()
        try:
            try:
                final.mkdir()  # reserves the name: a directory that is empty can be replaced
            except FileExistsError:
                continue
            fill(part, final.name)
            if os.name == "nt":
                final.rmdir()
            os.rename(part, final)
            return final
        except BaseException:
            with suppress(OSError):
                final.rmdir()
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    raise AssertionError  # there are more numbers than directories


def timestamped(output: Path | str, prefix: str) -> Path:
    """The path ``output/prefix_<YYYYMMDD_HHMMSS>``."""
    return Path(output) / f"{prefix}_{time.strftime('%Y%m%d_%H%M%S')}"


def timestamped_directory(output: Path | str, prefix: str) -> Path:
    """Make the directory ``timestamped(output, prefix)``, see ``new_directory``."""
    return new_directory(timestamped(output, prefix), lambda part, name: None)


def check_writable(directory: Path | str, setting: str) -> None:
    """Raise ValueError, naming the setting, if a directory cannot be created or written to."""
    path = Path(directory).absolute()
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"`{setting}` is {str(directory)!r}, but {there} is not a directory")
    try:
        with tempfile.TemporaryFile(dir=there):  # what rights say is not true of all places
            pass
    except OSError:
        raise ValueError(
            f"`{setting}` is {str(directory)!r}, but {there} cannot be written to"
        ) from None


def atomic_write(
    path: Path,
    write: Callable[[Path], object],
    before_rename: Callable[[Path], object] = lambda part: None,
) -> None:
    """Let ``write`` write a temporary file, then rename it to ``path``: the whole file or nothing.

    before_rename: called with the complete temporary file

    Raises OSError, naming the file, if that fails; a previous file at ``path`` stays intact.
    """
    part = part_of(path)
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        before_rename(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # not there, or in a place that cannot be changed
            part.unlink()


def read_file(path: Path, most: int | None = MOST_TEXT) -> bytes:
    """The content of a regular file of at most ``most`` bytes (None: any size).

    Raises ValueError, naming the file, if it is missing, larger, or something that has no end, such
    as a pipe or /dev/zero.
    """
    try:
        about = path.stat()  # of what a link points to
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if most is not None and about.st_size > most:
            raise ValueError(f"{path} has {about.st_size} bytes, it should have at most {most}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, object] | None = None,
    atomic: Callable[[Path, Callable[[Path], object]], None] = atomic_write,
) -> None:
    """Write a safetensors file, the whole file or nothing; it holds ``state`` as JSON.

    atomic: ``atomic_write``, or a function like it
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"state": json.dumps(state or {})}  # one entry: their order is left to chance

    def write(part: Path) -> None:
        save_file(ready, part, metadata)
        part.chmod(0o644)  # save_file makes a file that only its owner may read

    atomic(path, write)


def parse_tensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the ``state`` (JSON) in the content of a safetensors file.

    path: for errors. Raises ValueError, naming it, when it is broken.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        tensors = load(data)
        header = json.loads(data[8 : 8 + size])  # load has checked that it is small
        return tensors, str(header.get("__metadata__", {}).get("state", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read what ``save_tensors`` wrote. Raises ValueError, naming the file, when it is broken."""
    tensors, state = parse_tensors(read_file(path, None), path)  # no map: Windows cannot replace it
    return tensors, json.loads(state)
