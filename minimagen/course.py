"""Where the files of the course are: captions, notebooks, exercises, solutions, parameters."""

from __future__ import annotations

from pathlib import Path


def course_file(name: str) -> Path:
    """The path of a file or directory of the course, such as "captions.txt" or "notebooks".

    An installed package has them in minimagen/course/; in a clone they are next to minimagen/.
    """
    package = Path(__file__).parent
    installed = package / "course" / name
    return installed if installed.exists() else package.parent / name
