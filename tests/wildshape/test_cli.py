import dataclasses
import errno
import importlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import wildshape
from wildshape.cli import COMMANDS, CommonConfig, guarded, main, say, script_main
from wildshape.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Chooses things."""

    selection_num: int = 100
    """How many to keep."""
    use_web_images: bool = False
    """Whether to train on web images too."""


def call(tmp_path, *arguments, run=None):
    seen = []

    def keep(config, workspace):
        seen.append((config, workspace))
        if run is not None:
            run(config, workspace)

    code = script_main(Config, keep, ["--data-root", str(tmp_path), *arguments], prog="choose")
    return code, *(seen[0] if seen else (None, None))


def fail(error):
    def run(*_):
        raise error

    return run


def test_flags_are_accepted_with_dashes_and_underscores(tmp_path):
    for flag in ("--selection_num", "--selection-num"):
        code, config, workspace = call(tmp_path, "--category", "cow", flag, "7", "--use_web_images")
        assert code == 0 and config.selection_num == 7 and config.use_web_images
    assert workspace.root == tmp_path.resolve() and workspace.name == "cow"
    _, _, workspace = call(tmp_path, "--category", "horse", "--name", "trial")
    assert workspace.run_dir == tmp_path.resolve() / "runs/trial"
    assert (tmp_path / ".wildshape").exists()


def test_help_shows_the_fields_docstrings(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        call(tmp_path, "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "How many to keep" in text and "usage: choose" in text


def test_a_flag_that_is_wrong_exits_with_2(tmp_path):
    for arguments in (["--category", "cow", "--selection_num", "many"], ["--colour"], []):
        with pytest.raises(SystemExit) as stop:
            call(tmp_path, *arguments)
        assert stop.value.code == 2


def test_an_unknown_category_is_one_line_and_exit_code_2(tmp_path, capsys):
    code, *_ = call(tmp_path, "--category", "crow")
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("error: unknown category crow (did you mean cow?); there are: bear, cow, dog,")
    assert err.count("\n") == 1


def test_a_users_error_is_one_line_without_a_traceback(tmp_path, capsys):
    code, *_ = call(tmp_path, "--category", "cow", run=fail(UserError("expected a;\nfound b")))
    assert code == 2 and capsys.readouterr().err == "error: expected a; found b\n"


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path, capsys):
    code, *_ = call(tmp_path, "--category", "cow", "--debug", run=fail(UserError("expected a; found b")))
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" in err and err.endswith("error: expected a; found b\n")


def test_ctrl_c_is_130(tmp_path, capsys):
    code, *_ = call(tmp_path, "--category", "cow", run=fail(KeyboardInterrupt()))
    assert code == 130
    assert capsys.readouterr().err == "stopped; run the same command again to continue\n"


def test_a_file_that_may_not_be_opened_is_2(tmp_path, capsys):
    error = OSError(errno.EACCES, os.strerror(errno.EACCES), "cows.json")
    code, *_ = call(tmp_path, "--category", "cow", run=fail(error))
    assert (
        code == 2
        and "error: could not open cows.json: Permission denied; allow it" in capsys.readouterr().err
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_nothing_is_2(tmp_path, capsys, number):
    error = OSError(number, os.strerror(number), "runs/x.parquet")
    code, *_ = call(tmp_path, "--category", "cow", run=fail(error))
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    assert f"error: could not write to runs/x.parquet: {os.strerror(number)}; make room" in err


@pytest.mark.parametrize(
    ("use", "line"),
    [
        (lambda file: (file / "x").write_text(""), "expected folders on the way to {}/x; found a file"),
        (lambda file: file.mkdir(), "expected a folder at {}; found a file"),
        (lambda file: file.parent.read_text(), "expected a file at {0.parent}; found a folder"),
    ],
)
def test_a_file_in_place_of_a_folder_is_one_line(tmp_path, capsys, use, line):
    file = tmp_path / "file"
    file.write_text("")
    assert guarded(lambda: use(file)) == 2
    assert capsys.readouterr().err == f"error: {line.format(file)}\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O"), FileNotFoundError("x"), ZeroDivisionError()])
def test_mistakes_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)):
        guarded(fail(error))


def test_unknown_command_guesses(capsys):
    assert main(["pose-trian"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown command pose-trian; did you mean pose-train? (wildshape --help)\n"
    )
    assert main(["zzz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_a_command_is_called_with_its_flags_and_underscores_do(monkeypatch, tmp_path):
    (tmp_path / "toy_command.py").write_text("def main(argv):\n    return len(argv)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("wildshape.cli.COMMANDS", {"toy-command": ("toy_command", "")})
    assert main(["toy_command", "--a", "b"]) == 2
    assert main(["toy-command"]) == 0


@pytest.mark.parametrize(
    ("command", "flags", "line"),
    [
        ("pose-train", ["--seed", "-1"], "--seed: expected at least 0; found -1"),
        ("pose-train", ["--hidden", "nan"], "--hidden: expected a number; found nan"),
        ("compare", ["--permutations", "-5"], "--permutations: expected at least 1; found -5"),
        ("add-folder", ["--workers", "-1", "--folder", "x"], "--workers: expected at least 0; found -1"),
    ],
)
def test_numbers_that_no_command_takes(tmp_path, capsys, command, flags, line):
    assert main([command, "--category", "cow", "--data-root", str(tmp_path), *flags]) == 2
    assert f"error: {line}" in capsys.readouterr().err


def test_names_that_are_not_utf8_are_one_line(tmp_path, capsys):
    assert main(["add-folder", "--category", "cow", "--folder", os.fsdecode(b"\xe9t\xe9")]) == 2
    assert r"expected names in UTF-8; found '\udce9t\udce9'" in capsys.readouterr().err


def test_say_prints_a_line(capsys):
    say("12 of 20 rows")
    assert capsys.readouterr().out == "12 of 20 rows\n"


def test_the_engine_imports_no_torch():
    modules = (
        "wildshape, wildshape.cli, wildshape.tables, wildshape.workspace, wildshape.stage, wildshape.crops"
    )
    code = f"import {modules}, sys; print([m for m in ('torch', 'cv2', 'pandas') if m in sys.modules])"
    code = code.replace(", wildshape.crops", "")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    code = "import wildshape.crops, wildshape.geometry, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_answers_in_under_a_second():
    def seconds():
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "wildshape", "--help"], capture_output=True, check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 1


def test_a_reader_that_has_seen_enough_is_no_error():
    work = "from wildshape.cli import guarded, say; guarded(lambda: [say('x' * 999) for _ in range(999)])"
    process = subprocess.Popen(
        [sys.executable, "-c", work], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=60) == 0 and process.stderr.read() == ""
    process.stderr.close()


COMMAND_MODULES = sorted({(name, module) for name, (module, _) in COMMANDS.items()})


@pytest.mark.parametrize(("name", "module"), COMMAND_MODULES)
def test_every_command_shows_its_flags(name, module, capsys):
    config = importlib.import_module(module).Config
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = [field.name.rstrip("_") for field in dataclasses.fields(config)]
    hidden = [flag for flag in flags if flag.replace("_", "-") not in text and flag.upper() not in text]
    assert not hidden
    assert {"category", "name", "data_root", "overwrite", "debug"} <= set(flags)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.__setattr__(object.__new__(config), "category", "cow")


@pytest.mark.parametrize(("name", "module"), [c for c in COMMAND_MODULES if c[0] != "demo"])
def test_every_command_refuses_an_unknown_category_in_one_line(name, module, tmp_path, capsys):
    """Required flags are filled in with anything: the category is looked at first."""
    config = importlib.import_module(module).Config
    arguments = [name, "--category", "crow", "--data-root", str(tmp_path)]
    for field in dataclasses.fields(config):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name == "format":
            arguments.insert(1, "coco")
        elif required and field.name != "category":
            arguments += [f"--{field.name}", str(tmp_path)]
    if "photos" in {field.name for field in dataclasses.fields(config)}:
        arguments.append(str(tmp_path / "a.jpg"))
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: unknown category crow (did you mean cow?)") and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    sorted(f"{m.replace('.', '/')}.py" for _, m in COMMAND_MODULES if not m.startswith("wildshape")),
)
def test_scripts_run_from_any_folder(script, tmp_path):
    path = Path(wildshape.__file__).parents[1] / script
    found = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and "--category" in found.stdout
