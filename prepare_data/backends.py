"""Detectors and segmenters by name: backends of ours, imported when made, and plug-ins from files."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from wildshape.errors import UserError
from wildshape.files import file_hash
from wildshape.workspace import Workspace


@dataclass(frozen=True)
class BackendRequest:
    """What a backend is made from.

    Attributes:
        model: What stands after the colon, or "".
        opts: `--opts KEY VALUE ...` as a mapping, values as text.
        device: auto, cpu or cuda.
        workspace: The category's workspace.
    """

    model: str
    opts: Mapping[str, str]
    device: str
    workspace: Workspace


@dataclass(frozen=True)
class LoadedBackend:
    """A detector or segmenter that is ready to be made.

    Attributes:
        name: As written in tables.
        settings: What its results depend on: the request, and hashes of files.
        make: Makes it; raises UserError if that cannot be done here.
        note: What a reader of its results must know, or "".
    """

    name: str
    make: Callable[[], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def title(self) -> str:
        """Name and note, as shown to people."""
        return f"{self.name} ({self.note})" if self.note else self.name


@dataclass(frozen=True)
class Backends:
    """The backends of one kind.

    Attributes:
        kind: The flag that names one, without dashes.
        makers: By name, the module and the function that makes it from a `BackendRequest`.
        notes: What a reader of results must know, by name.
        files: Files of ours that results depend on, by name.
    """

    kind: str
    makers: Mapping[str, tuple[str, str]]
    notes: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    def find(
        self, spec: str, workspace: Workspace, opts: Sequence[str] = (), device: str = "auto"
    ) -> LoadedBackend:
        """The backend that the flag names; nothing heavy is imported before it is made.

        Args:
            spec: `NAME`, `NAME:MODEL` or `path/to/file.py:NAME`.
            workspace: The category's workspace.
            opts: `KEY VALUE ...`.
            device: auto, cpu or cuda.

        Raises:
            UserError: if there is none of that name, or a file it needs is missing.
        """
        options = parse_opts(opts)
        settings: dict[str, Any] = {self.kind: spec, **options}
        for key, value in options.items():
            if Path(value).is_file():
                settings[f"{key} hash"] = file_hash(value)[:16]
        head, _, tail = spec.rpartition(":")
        if head.endswith(".py"):
            file = Path(head).expanduser()
            if not file.is_file():
                raise UserError(f"--{self.kind}: expected a Python file at {head}; found none")
            settings["file hash"] = file_hash(file)[:16]
            settings[self.kind] = f"{file.name}:{tail}"
            return LoadedBackend(
                f"{file.stem}:{tail}", partial(load_plug_in, self.kind, file, tail, options), settings
            )
        name, _, model = spec.partition(":")
        if name not in self.makers:
            raise UserError(
                f"--{self.kind}: expected {', '.join(self.makers)} or path/to/file.py:NAME; found {spec}"
            )
        if name in self.files:
            settings["weights hash"] = file_hash(self.files[name])[:16]
        module, function = self.makers[name]
        request = BackendRequest(model, options, device, workspace)

        def make() -> Any:
            return getattr(importlib.import_module(module), function)(request)

        return LoadedBackend(spec, make, settings, self.notes.get(name, ""))


def import_transformers(flag: str) -> Any:
    """The package transformers, its progress bars off where there is no terminal.

    Args:
        flag: What needs it, for the message.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f'{flag} needs transformers; run: pip install "wildshape[transformers]"') from error
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    return transformers


def parse_opts(opts: Sequence[str]) -> dict[str, str]:
    """`KEY VALUE KEY VALUE ...` (or `KEY=VALUE ...`) as a mapping.

    Raises:
        UserError: if a key has no value.
    """
    pairs: dict[str, str] = {}
    words = iter(opts)
    for word in words:
        key, equals, value = word.partition("=")
        found = value if equals else next(words, None)
        if found is None:
            raise UserError(f"--opts: expected pairs KEY VALUE; found {' '.join(opts)}")
        pairs[key] = found
    return pairs


def load_plug_in(kind: str, file: Path, name: str, options: Mapping[str, str]) -> Any:
    """A class of a file, made with `--opts` as its arguments, or a callable as it is.

    Args:
        kind: The flag that names it, for messages.
        file: A Python file.
        name: What to take from it.
        options: Arguments of a class, their values read as YAML.

    Raises:
        UserError: if the file has no such name or needs a package that is not installed, or the class
            does not take the options.
    """
    module_name = f"{kind}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    loader = importlib.util.spec_from_file_location(module_name, file)
    if loader is None or loader.loader is None:
        raise UserError(f"--{kind}: expected a Python file; found {file}")
    module = importlib.util.module_from_spec(loader)
    sys.modules[module_name] = module  # dataclasses and pickling look it up there
    try:
        loader.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"{file} needs {error.name or error}; run: pip install {error.name}") from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(f"{file}: expected a class {name}; found {', '.join(own) or 'none'}")
    if not inspect.isclass(found):
        return found
    try:
        return found(**{key: yaml.safe_load(value) for key, value in options.items()})
    except ImportError as error:
        raise UserError(f"{file} needs {error.name or error}; run: pip install {error.name}") from error
    except TypeError as error:
        raise UserError(f"{file}:{name} cannot be made with --opts {dict(options)}: {error}") from error
