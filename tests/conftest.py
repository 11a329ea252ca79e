"""For all tests, those of notebooks too.

One thread: the tests' models are tiny, and threads that wait for one another on a busy machine
take minutes where one takes a second. Cells of notebooks are slow tests: ``-m "not slow"`` leaves
them out.
"""

import signal
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before those that are not asked for are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each cell of a notebook as slow."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command, as all that its process does, ends with Ctrl-C and SIGTERM ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
