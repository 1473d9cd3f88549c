"""A small world, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from diorama_settings import SMALL

from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.world import build_world
from wildshape.workspace import Workspace


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root: Path = tmp_path_factory.mktemp("world")
    workspace = Workspace(root, "horse")
    build_world(DioramaConfig(**SMALL), workspace, threads=2)
    return workspace
