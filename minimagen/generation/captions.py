"""What to draw: captions from the command line or a file, and which of their words are unknown."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from minimagen.course import course_file
from minimagen.data import words
from minimagen.settings import naming
from minimagen.text import check_text

WORDS_NAMED = 8  # maximum number of unknown words in a note
LETTERS_SHOWN = 40  # maximum number of letters of such a word


def read_captions(value: str | None) -> list[str]:
    """Read the setting ``captions``: one caption, or a .txt file (UTF-8) with one per line.

    Empty lines are skipped. Blanks and other space within a line become one blank. None reads the
    course's captions.txt. Raises ValueError, naming the setting, if there is no such file, if it is
    not text, or if it has no caption.
    """
    value = str(course_file("captions.txt")) if value is None else value
    with naming("captions"):
        check_text(value)
    if value.lower().endswith(".txt"):
        lines = re.split(r"\r\n|\n|\r", _read_text(value))  # not at U+2028, as splitlines does
    elif os.path.exists(value):  # unlike Path.exists, also for a caption too long for a name
        raise ValueError(f"`captions` is the path {value!r}, a file of captions should be a .txt")
    else:
        lines = [value]
    captions = [" ".join(line.split()) for line in lines]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise ValueError(f"`captions` is {value!r}, it should hold at least one caption")
    return captions


def _read_text(path: str) -> str:
    """The text of a file of captions. Raises ValueError, naming the setting and the file."""
    reason = ""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a device may have no end
            reason = "it is not a file"
        else:
            text = Path(path).read_text(encoding="utf-8-sig")
            if "\0" not in text:
                return text
            reason = "it has NUL characters, is it UTF-16? It should be UTF-8"
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeError:
        reason = "it is not UTF-8 text"
    raise ValueError(
        f"`captions` is {path!r}, it should be a text file with one caption per line: {reason}"
    )


def unknown_words(captions: Sequence[str], known: Collection[str] | None) -> str | None:
    """A note that names the words of captions that are not in ``known``; None if all are known.

    known: the words that the model was trained on, see ``TrainingDirectory.load_words``; None if
           the training directory does not say: then there is no note
    """
    if known is None:
        return None
    new = [word for word in dict.fromkeys(words(" ".join(captions))) if word not in known]
    if not new:
        return None
    long = sorted(word for word in known if len(word) > 2)  # "cat" is not a misspelt "at"
    named = []
    for word in new[:WORDS_NAMED]:
        near = difflib.get_close_matches(word, long, 1, cutoff=0.7)
        named.append(f'"{word[:LETTERS_SHOWN]}"' + (f" ({near[0]}?)" if near else ""))
    more = f" and {len(new) - WORDS_NAMED} more" if len(new) > WORDS_NAMED else ""
    return f"the model was not trained on {', '.join(named)}{more}"
