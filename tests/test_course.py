"""course.py: the files of the course, in a clone and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimagen import course
from minimagen.course import course_file

ROOT = Path(__file__).parents[1]


def test_files_lie_beside_the_package_in_a_clone() -> None:
    """And directories too."""
    assert course_file("captions.txt") == ROOT / "captions.txt"
    assert course_file("notebooks") == ROOT / "notebooks"


def test_files_lie_within_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These win; what is nowhere is looked for in a clone."""
    installed = tmp_path / "minimagen" / "course"
    installed.mkdir(parents=True)
    (installed / "captions.txt").write_text("a red circle")
    monkeypatch.setattr(course, "__file__", str(tmp_path / "minimagen" / "course.py"))
    assert course_file("captions.txt") == installed / "captions.txt"
    assert course_file("notebooks") == tmp_path / "notebooks"
