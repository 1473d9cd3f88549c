"""What the documentation shows is run, so that it stays true."""

import re
from pathlib import Path

import numpy as np
import pytest

from wildshape.category import list_categories, load_category
from wildshape.cli import COMMANDS
from wildshape.geometry import camera_to_crop, crop_affine
from wildshape.schemas import MASK_STATUSES, SCHEMAS, STATUSES, TRANSFORMS
from wildshape.workspace import TABLES, Workspace

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", sorted(DOCS.glob("*.md")) + [ROOT / "README.md"], ids=lambda page: page.name
)
def test_tables_have_a_row_a_line(page):
    """A table whose lines were joined is shown as text."""
    width = None
    for line in page.read_text().splitlines():
        if re.search(r"\|\s*:?-{3}", line):
            assert re.fullmatch(r"\s*\|(\s*:?-{3,}:?\s*\|)+", line), line
            width = line.count("|")
        elif width is not None and line.lstrip().startswith("|"):
            cells = re.sub(r"`[^`]*`", "", line).replace(r"\|", "")
            assert cells.count("|") == width, line
        else:
            width = None


def test_a_category_is_added_by_one_yaml_and_a_template(tmp_path, monkeypatch):
    """The worked example of docs/new_category.md, as written there."""
    from acsm.template import template_for

    yaml, to_file, skeleton = blocks("new_category.md", "yaml")
    (script,) = blocks("new_category.md", "python")
    root = tmp_path / "my_data"
    (root / "categories").mkdir(parents=True)
    path = root / "categories/zebra.yaml"
    path.write_text(yaml)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "docs/new_category.md", "exec"), {})

    path.write_text(yaml[: yaml.index("template:")] + to_file)
    spec = load_category("zebra", root)
    template = template_for(spec)
    assert "zebra" in list_categories(root)
    assert template.num_keypoints == spec.skeleton.num_keypoints == 16
    assert template.diameter() == pytest.approx(2)
    workspace = Workspace(root, "zebra")
    assert workspace.data_dir == root.resolve() / "data/zebra"

    (root / "categories/bird.yaml").write_text(skeleton)
    path.write_text(path.read_text().replace("skeleton: quadruped16", "skeleton: bird.yaml"))
    bird = load_category("zebra", root).skeleton
    assert bird.num_keypoints == 7 and bird.flip == (0, 1, 3, 2, 5, 4, 6)
    from wildshape.errors import UserError

    with pytest.raises(UserError, match="expected 7 keypoint vertices, as bird has keypoints; found 16"):
        template_for(load_category("zebra", root))


def test_the_settings_of_a_template_that_are_shown_are_understood():
    import yaml

    from acsm.template_settings import settings_from

    (shown,) = re.findall(
        r"^```\n(up:.*?)```", (DOCS / "new_category.md").read_text(), re.DOTALL | re.MULTILINE
    )
    settings = settings_from(yaml.safe_load(shown), "docs")
    assert settings.front == "+z" and settings.keypoints["Tail"] == 1204 and settings.vertices == 2000


def test_a_new_category_goes_through_a_command(tmp_path, capsys):
    """Status of a category that no code knows."""
    from wildshape import status

    (tmp_path / "categories").mkdir()
    (tmp_path / "categories/zebra.yaml").write_text(blocks("new_category.md", "yaml")[0])
    assert status.main(["--category", "zebra", "--data-root", str(tmp_path)]) == 0
    assert "zebra" in capsys.readouterr().out


def test_conventions_of_crops_hold():
    """The sentences of docs/conventions.md that have numbers in them."""
    box = np.array([10.0, 20.0, 50.0, 40.0])
    np.testing.assert_allclose(crop_affine(box, 8).apply([[10, 10], [50, 50]]), [[-0.5, -0.5], [7.5, 7.5]])
    right = crop_affine(box, 8, rotation_deg=90).apply([31, 30]) - crop_affine(box, 8).apply([30, 30])
    np.testing.assert_allclose(right, [0, 0.2], atol=1e-12)  # right becomes down
    facing = np.array([1.0, 0, 0, 0.5**0.5, 0.5**0.5, 0, 0])
    w, x = facing[3:5]
    turn = np.array([[1, 0, 0], [0, w * w - x * x, -2 * w * x], [0, 2 * w * x, w * w - x * x]])
    np.testing.assert_allclose(turn @ [1, 2, 3], [1, -3, 2])  # (x, y, z) becomes (x, -z, y)
    moved = camera_to_crop(facing, crop_affine(box, 8), 8)
    assert moved[0] == pytest.approx(1 / 20)  # half the side is 20 pixels


def test_the_data_format_names_every_table_column_status_and_transform():
    page = (DOCS / "data_format.md").read_text()
    sections = dict(re.findall(r"^### (\w+):.*?$(.*?)(?=^##)", page, re.DOTALL | re.MULTILINE))
    for kind, schema in SCHEMAS.items():
        documented = re.findall(r"^\| ([a-z_0-9, ]+) \|", sections[kind], re.MULTILINE)
        names = {name for cell in documented for name in cell.split(", ")} - {"column"}
        inherited = set(SCHEMAS["instances"]) if kind == "labels" else set()
        assert names | inherited == set(schema), kind
    assert all(f"`{status}`" in page for status in STATUSES)
    assert all(transform in page for transform in TRANSFORMS)
    assert all(f"`{status}`" in page for status in MASK_STATUSES)
    assert all(f"  {table}.parquet" in page for table in TABLES)


def test_every_format_is_shown_with_a_command():
    from wildshape.formats import export_command, import_command

    page = (DOCS / "data_format.md").read_text()
    for verb, module in (("import", import_command), ("export", export_command)):
        shown = re.findall(rf"^\| (\w+) \| .* \| `wildshape {verb} (\w+) [^`]+` \|$", page, re.MULTILINE)
        assert all(name == called for name, called in shown)
        assert {name for name, _ in shown} == set(module.FORMATS)


def test_the_detector_that_is_shown_is_one():
    from prepare_data.detectors import default_threshold, detect

    (script,) = blocks("prepare_data.md", "python")
    scope = {}
    exec(script, scope)
    detector = scope["Detector"]()
    ((boxes, scores, labels),) = detect(detector, "shown", [np.zeros((200, 300, 3), np.uint8)])
    assert boxes.shape == (1, 4) and scores.tolist() == [0.9] and list(labels) == ["cow"]
    assert default_threshold(detector) == 0.5


def test_the_segmenter_that_is_shown_is_one():
    from prepare_data.segmenters import segment

    (script,) = blocks("masks.md", "python")
    scope = {}
    exec(script, scope)
    image = np.full((60, 80, 3), 200, np.uint8)
    image[20:30, 10:40] = 0
    boxes = np.array([[5, 15, 50, 40], [60, 0, 80, 20]], np.float32)
    (((mask, quality), nothing),) = segment(scope["Segmenter"](), "shown", [image], [boxes])
    assert mask.sum() == 300 and quality == 0.5 and nothing == "nothing dark in the box"


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_code_that_is_shown_compiles_and_its_imports_work(page):
    for block in blocks(page, "python"):
        compile(block, page, "exec")
        for line in re.findall(r"^(?:from|import) .*$", block, re.MULTILINE):
            exec(line, {})


PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *DOCS.glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_and_files_that_are_named_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    code = [*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"^    .*$", text, re.MULTILINE)]
    code += re.findall(r"`([^`\n]+)`", text)
    commands = re.findall(r"^\s*wildshape ([a-z][a-z-]+)", "\n".join(code), re.MULTILINE)
    assert not set(commands) - set(COMMANDS)
    scripts = re.findall(r"python ((?:prepare_data|pose|pseudolabels|acsm|benchmarks)/[\w/]+\.py)", text)
    assert not [name for name in scripts if not (ROOT / name).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_flags_that_are_shown_are_understood(page):
    """Every `wildshape command --flag` or `python room/script.py --flag` names flags of that command."""
    import importlib
    from dataclasses import fields

    modules = {name: module for name, (module, _) in COMMANDS.items()}
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    shown = [
        *((modules.get(name), rest) for name, rest in re.findall(r"\bwildshape ([a-z-]+)([^\n`]*)", text)),
        *(
            (path.replace("/", "."), rest)
            for path, rest in re.findall(r"python ((?:prepare_data|pose|acsm)/\w+)\.py([^\n`]*)", text)
        ),
    ]
    for module, rest in shown:
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w-]*)", rest)}
        if module and flags:
            # A field of a reserved name ends with an underscore that its flag does not have.
            names = [field.name.rstrip("_") for field in fields(importlib.import_module(module).Config)]
            known = {*names, "help"}
            assert not {f for f in flags if f not in known and f.removeprefix("no_") not in known}, rest
