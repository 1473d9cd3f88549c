"""What all tests share: options, markers that skip with a reason, one thread, a temporary workspace."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch is imported: small tensors lose to threads, and sums keep order

import signal  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from wildshape.workspace import Workspace  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs deaf to Ctrl-C, and children inherit that: tests send it to theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "small", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("small")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that are marked slow")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The longest files go first, so that the other processes do not wait for them in the end.
    items.sort(key=lambda item: item.path.name not in ("test_pipeline.py", "test_engine_ray.py"))

    def skip(marker: str, reason: str) -> None:
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))

    if not config.getoption("--run-slow"):
        skip("slow", "takes long; add --run-slow")
    if any(item.get_closest_marker("gpu") for item in items) and not _has_cuda():
        skip("gpu", "needs a CUDA device; torch finds none")
    photos = os.environ.get("WILDSHAPE_REAL_DATA")
    if not photos:
        skip("real_data", "needs real photos; set WILDSHAPE_REAL_DATA to their folder")
    elif not Path(photos).is_dir():
        skip("real_data", f"WILDSHAPE_REAL_DATA is {photos}, which is no folder")


@pytest.fixture
def real_data() -> Path:
    """The folder of real photos (for tests marked real_data)."""
    return Path(os.environ["WILDSHAPE_REAL_DATA"])


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[..., Workspace]:
    """Workspaces of any category under one temporary root."""

    def make(category: str = "cow", name: str | None = None) -> Workspace:
        return Workspace(tmp_path, category, name)

    return make


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    """The workspace of the cow under a temporary root."""
    return make_workspace()
