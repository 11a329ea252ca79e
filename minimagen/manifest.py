"""The manifest of a directory: which files it should have, with their sizes and SHA-256.

With it a missing or damaged file is noticed, and named. A manifest has one writer. A directory that
several processes write to has a manifest for each of them, in the folder ``manifest``.

A new file is listed before it gets its name. Until the next write the manifest has two entries for
it, the new file and the one before (or that there was none): whenever the process dies, one of the
two is true.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minimagen.files import atomic_write, read_file
from minimagen.settings import from_json, settings

FOLDER = "manifest"


class Digest(NamedTuple):
    """What is known about the content of a file."""

    size: int  # in bytes
    sha256: str  # in hexadecimal


@settings
class _Content:
    """The JSON of a manifest."""

    files: dict[str, list[Digest | None]]  # by path within the directory, the newest first
    format: int = 1


def digest_of(path: Path) -> Digest:
    """The digest of a file. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Digest(path.stat().st_size, sha256)


class Manifest:
    """The manifest ``name`` of the directory ``root``; its file need not exist yet.

    folder: where in ``root`` it is kept
    """

    def __init__(self, root: Path, name: str, folder: str = FOLDER) -> None:
        self.root = root
        self.path = root / folder / f"{name}.json"

    def files(self) -> dict[str, list[Digest | None]]:
        """What is listed, by path within the directory; None: there may be no such file.

        Raises ValueError if the manifest is damaged.
        """
        if not self.path.exists():
            return {}
        return from_json(_Content, read_file(self.path), str(self.path)).files

    def lists(self, path: Path) -> bool:
        """Whether there must be such a file."""
        return None not in self.files().get(self._name(path), [None])

    def write(
        self, path: Path, write: Callable[[Path], object], previous: Path | None = None
    ) -> None:
        """Write a file, the whole file or nothing, and list it; arguments as in ``atomic_write``.

        previous: where to keep the file that is at ``path`` now; None: it is replaced
        """

        name, new = self._name(path), not path.exists()

        def enlist(part: Path) -> None:
            files = self.files()
            now = files.get(name, [None])[0]
            files[name] = [digest_of(part), None if new else now]
            if previous is not None and not new:
                kept = self._name(previous)
                files[kept] = [now, files.get(kept, [None])[0]]
            self._save(files)
            if previous is not None and not new:
                os.replace(path, previous)

        atomic_write(path, write, enlist)
        if new:  # from now on it must be there
            files = self.files()
            self._save(files | {name: files[name][:1]})

    def read(self, path: Path, most: int | None = None) -> bytes:
        """The content of a listed file, see ``read_file``.

        Raises ValueError, naming the file, if it is missing or not what is listed. Without the
        folder of manifests, as in older versions, nothing is compared.
        """
        if not self.path.parent.exists():
            return read_file(path, most)
        due = self.files().get(self._name(path))
        if due is None:
            raise ValueError(f"{path} is not listed in {self.path}")
        if not path.exists():
            raise ValueError(f"{path} is missing")
        data = read_file(path, most)
        if Digest(len(data), hashlib.sha256(data).hexdigest()) not in due:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {self.path}")
        return data

    def check(self) -> None:
        """Raise ValueError, naming the file, if a listed file is missing or damaged."""
        for name in self.files():
            if self.lists(self.root / name):
                self.read(self.root / name)

    def restore(self, path: Path, other: Path) -> None:
        """Put a listed file in the place of another one, for instance of a damaged one."""
        files = self.files()
        kept = files.pop(self._name(other))
        self._save(files | {self._name(path): kept, self._name(other): kept})
        os.replace(other, path)

    def renew(self, *paths: Path) -> None:
        """List exactly these files, as they are now; those that do not exist are left out."""
        self._save({self._name(path): [digest_of(path)] for path in paths if path.is_file()})

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _save(self, files: Mapping[str, Sequence[Digest | None]]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        content = {"format": 1, "files": files}  # a NamedTuple becomes a list
        text = json.dumps(content, indent=1) + "\n"
        atomic_write(self.path, lambda part: part.write_text(text, encoding="utf-8"))
