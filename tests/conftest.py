"""The order of the tests: the longest file first, so that two workers end together."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the stories first and leave all else as it is."""
    items.sort(key=lambda item: item.get_closest_marker("stories") is None)
