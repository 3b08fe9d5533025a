"""The order of the tests, longest file first, and one thread for each of them."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Undo what an earlier test left: rounding depends on the number of threads."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the stories first and leave all else as it is."""
    items.sort(key=lambda item: item.get_closest_marker("stories") is None)
