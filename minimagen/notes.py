"""Notes: the warnings of MinImagen itself. The commands print each as one line on stderr."""

from __future__ import annotations

import warnings


class Note(UserWarning):
    """A warning for whoever uses MinImagen, about captions, settings or files.

    Its own class, because warnings of libraries are hidden by the module that they come from, and
    one that is given within torch's ``no_grad`` looks as if it came from torch.
    """


def note(text: str) -> None:
    """Warn: one line that says what is lost or left out, and what can be done."""
    warnings.warn(text, Note, stacklevel=3)
