"""Fixtures of the prepare_data tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bad_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def quick(monkeypatch):
    """Short back-offs."""
    from prepare_data import fetch

    fast = fetch.FetchConfig.__init__

    def init(self, *arguments, **keywords):
        fast(self, *arguments, **{"backoff": 0.02, **keywords})

    monkeypatch.setattr(fetch.FetchConfig, "__init__", init)
