"""The rules of docs/architecture.md and CONTRIBUTING.md that a machine can hold."""

import ast
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("prepare_data", "pose", "pseudolabels", "acsm")
PACKAGES = ("wildshape", *STAGES)
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BENCHMARKS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py"))
MAX_LINES = 400
MAX_PARAMETERS = 8

# What may import a stage, and from where: at the top of a module, or inside functions only.
TOP_LEVEL = {"prepare_data/diorama/": ("acsm.template", "acsm.renderer")}
IN_FUNCTIONS = {
    **dict.fromkeys(("wildshape/demo", "wildshape/run", "wildshape/predict", "wildshape/status"), STAGES),
    "wildshape/__init__": STAGES,
    "prepare_data/": ("pseudolabels",),
}
# diffusers takes the components of a pipeline's folder from the names of its constructor's parameters.
NAMED_BY_A_LIBRARY = {(Path("pseudolabels/zero123plus/pipeline.py"), "__init__")}
# Engine modules that may import torch when they are imported.
TORCH_AT_TOP = {
    Path(f"wildshape/{name}.py")
    for name in ("checkpoints", "data_stream", "device", "distributed", "finite", "pretrained", "training")
}


@lru_cache
def tree(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def at_top(node):
    """Import nodes that run when the module is imported; not those for a type checker."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from at_top(child)


def top_imports(path):
    return [name for node in at_top(tree(path)) for name in imported(node)]


def all_imports(path):
    return [name for node in ast.walk(tree(path)) for name in imported(node)]


def functions(path):
    return [
        node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def allowed(table, path):
    return tuple(name for prefix, names in table.items() if str(path).startswith(prefix) for name in names)


def strangers(path, names):
    """Imports of stages other than the module's own."""
    others = [stage for stage in STAGES if stage != path.parts[0]]
    return [name for name in names if name.split(".")[0] in others]


def is_one_of(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_there_is_something_to_look_at():
    assert {path.parts[0] for path in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_rooms_import_the_engine_and_not_one_another(path):
    at_import = allowed(TOP_LEVEL, path)
    later = at_import + allowed(IN_FUNCTIONS, path)
    wrong = [name for name in strangers(path, top_imports(path)) if not is_one_of(name, at_import)]
    assert not wrong, "at the top of the module"
    wrong = [name for name in strangers(path, all_imports(path)) if not is_one_of(name, later)]
    assert not wrong, "inside a function"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] == "wildshape"], ids=str)
def test_the_engine_is_imported_without_torch(path):
    if path not in TORCH_AT_TOP:
        wrong = [
            name
            for name in top_imports(path)
            if is_one_of(
                name,
                ("torch", "torchvision", *(".".join(p.with_suffix("").parts) for p in TORCH_AT_TOP)),
            )
        ]
        assert not wrong


@pytest.mark.parametrize("path", [*MODULES, *BENCHMARKS], ids=str)
def test_a_module_fits_in_the_head(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_name_says_what_is_in_it(path):
    parts = {path.stem, *path.parts[1:-1]} - {"__init__", "__main__"}
    assert not parts & sys.stdlib_module_names, "shadows a standard module when run as a script"
    assert not parts & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize("path", [*MODULES, *BENCHMARKS], ids=str)
def test_functions_take_few_parameters(path):
    wrong = {}
    for function in functions(path):
        given = function.args
        names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if any("njit" in ast.unparse(decorator) for decorator in function.decorator_list):
            continue  # a compiled loop takes arrays and numbers only
        if (path, function.name) in NAMED_BY_A_LIBRARY:
            continue
        if count > MAX_PARAMETERS:
            wrong[function.name] = count
    assert not wrong, "take a dataclass of settings"


@pytest.mark.parametrize("path", [*MODULES, *BENCHMARKS], ids=str)
def test_no_exception_is_swallowed_unseen(path):
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        where = f"line {node.lineno}"
        assert node.type is not None, f"bare except: {where}"
        broad = ast.unparse(node.type) in ("Exception", "BaseException")
        silent = all(isinstance(child, ast.Pass | ast.Continue) for child in node.body)
        assert not (broad and silent), where


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_public_names_are_documented(path):
    module = tree(path)
    assert ast.get_docstring(module), "the module"
    for node in module.body:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, kinds) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def tracked():
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode or not found.stdout:
        pytest.skip("no git checkout: nothing tells which files are tracked")
    return [ROOT / name for name in found.stdout.split("\0") if name]


# Assembled, so that this file does not contain what it looks for.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:wo" r"rk|ro" r"ot|home/[a-z]+|Us" r"ers/[A-Za-z]+)/")
MARKERS = re.compile(r"\b(?:FIX" r"ME|XX" r"X|TO" r"DO|bre" r"akpoint\(\)|pdb\.set" r"_trace)")


def test_tracked_files_name_no_machine_and_leave_no_loose_ends():
    wrong = []
    for path in tracked():
        if not path.is_file():
            continue  # deleted, and not yet committed
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an array
        for pattern in (MACHINE_PATHS, MARKERS):
            wrong += [f"{path.relative_to(ROOT)}: {found.group()}" for found in pattern.finditer(text)]
    assert not wrong


def test_no_two_modules_of_tests_have_one_name():
    names = sorted(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, following in zip(names, names[1:]) if name == following] == []


def test_no_tracked_file_is_large():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked() if path.is_file()}
    weights = (".pt", ".safetensors")
    large = {
        n: size for n, size in sizes.items() if size > (10_000_000 if n.endswith(weights) else 2_000_000)
    }
    assert not large and sum(sizes.values()) < 40_000_000


def test_docs_link_to_files_that_exist():
    wrong = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                wrong.append(f"{page.relative_to(ROOT)}: {target}")
    assert not wrong
