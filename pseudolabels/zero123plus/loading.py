"""Loading and saving of diffusers' pipelines without their progress bars where nobody watches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_loading(always: bool = False) -> Iterator[None]:
    """Without the bars that the libraries show for each file of a pipeline.

    Args:
        always: also on a terminal, where loading takes no time worth watching.
    """
    libraries = (diffusers_logging, transformers_logging)
    if not always and sys.stderr.isatty():
        libraries = ()
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # diffusers passes an argument on that the hub's client no longer knows.
            warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")
            yield
    finally:
        for library in shown:
            library.enable_progress_bar()
