"""Captions as lines of text in any script: each word in the first font that has all its letters.

The fonts are, in this order: that of Pillow, for plain English; DejaVu Sans, which matplotlib
brings, for Latin, Greek, Cyrillic, Arabic, Hebrew and more; the Noto fonts of ``PACKAGES``, if they
are installed, for nearly all others and emoji; and all other fonts of the machine. A letter that no
font has is shown by its code point, such as [4E00].
"""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Run = tuple[str, Font]  # letters in one font

LINE_LETTERS = 200  # more than fit in a line of a sheet
PACKAGES = ("manimgx_fonts", "manimgx_fonts_cjk")  # of PyPI, with the Noto fonts and nothing else


class Letters:
    """Text of one size. ``missing`` collects the letters that no font has."""

    def __init__(self, size: int) -> None:
        self.size, self.line_height = size, round(1.27 * size)
        self.missing: dict[str, None] = {}
        self._runs = functools.cache(self._find_runs)

    def wrap(self, text: str, width: int, most: int = 5) -> list[str]:
        """Text in lines of at most ``width`` pixels; "…" replaces text beyond ``most`` lines."""
        text = unicodedata.normalize("NFC", text[: (most + 1) * LINE_LETTERS])
        lines = [""]
        for word in text.split():
            while self.length(word) > width and len(lines) <= most:  # a word longer than a line
                fits = bisect_right(
                    range(1, len(word)), width, key=lambda end: int(self.length(word[:end]))
                )
                lines.append(word[: max(1, fits)])
                word = word[max(1, fits) :]
            longer = f"{lines[-1]} {word}".strip()
            if self.length(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        lines = [line for line in lines if line]
        if len(lines) > most:
            lines = [*lines[: most - 1], lines[most - 1][:-1] + "…"]
        return lines

    def length(self, line: str) -> float:
        """The width of a line, in pixels."""
        return sum(font.getlength(text) for text, font in self._line(line))

    def write(self, pen: ImageDraw.ImageDraw, place: tuple[float, float], line: str) -> None:
        """Write a line of text, its upper left corner at ``place``."""
        x, y = place
        for text, font in self._line(line):
            pen.text((x, y + self.size), text, "black", font, anchor="ls")
            x += font.getlength(text)

    def _line(self, line: str) -> list[Run]:
        """The runs of a line; neighbours in one font are one run, for scripts from the right."""
        runs = (run for word in re.findall(r"\S+\s*", line) for run in self._runs(word))
        return [
            ("".join(text for text, _ in group), font)
            for font, group in groupby(runs, key=lambda run: run[1])
        ]

    def _find_runs(self, word: str) -> list[Run]:
        """A word in the first font that has all its letters, else letter by letter."""
        if (run := self._run(word)) is not None:
            return [run]
        runs = []
        for letter in filter(_is_visible, word):
            run = self._run(letter)
            if run is None:
                self.missing[letter] = None
                run = f"[{ord(letter):X}]", _opened(None, self.size)
            runs.append(run)
        return runs

    def _run(self, text: str) -> Run | None:
        """Text in the first font that has all of it; without joiners that this font lacks."""
        due = set(map(ord, filter(_is_visible, text)))
        for path in _paths():
            there = _letters(path)
            if due <= there:
                with suppress(OSError):  # this size is not in a font of pictures
                    shown = "".join(letter for letter in text if ord(letter) in there)
                    return shown, _opened(path, self.size)
        return None


def _is_visible(letter: str) -> bool:
    """False for those that only say how their neighbours look: joiners, directions, variants."""
    return unicodedata.category(letter) != "Cf" and not "\ufe00" <= letter <= "\ufe0f"


def _paths() -> Iterator[Path | None]:
    """The files of the fonts, in order; None is Pillow's own font."""
    yield None
    yield from _installed()  # only now: this imports matplotlib


@functools.cache
def _installed() -> list[Path]:
    from matplotlib import font_manager  # takes a moment

    found = [Path(font_manager.findfont("DejaVu Sans"))]
    for name in PACKAGES:
        spec = find_spec(name)
        for place in (spec and spec.submodule_search_locations) or ():
            found += sorted(map(Path, font_manager.findSystemFonts([place])))
    fonts = sorted(  # upright ones of usual weight first
        font_manager.fontManager.ttflist,
        key=lambda font: (font.style != "normal", font.weight not in (400, "normal"), font.fname),
    )
    found += [Path(font.fname) for font in fonts]
    return [path for path in dict.fromkeys(found) if not path.name.startswith("LastResort")]


@functools.cache
def _letters(path: Path | None) -> frozenset[int]:
    """The code points that a font has; none if it cannot be read."""
    if path is None:
        return frozenset(range(32, 127)) | set(map(ord, "…‘’“”"))
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _opened(path: Path | None, size: int) -> Font:
    if path is None:
        return ImageFont.load_default(size)
    font = ImageFont.truetype(path, size)
    with suppress(OSError, ValueError, NotImplementedError):  # most fonts have one weight
        font.set_variation_by_name("Regular")
    return font
