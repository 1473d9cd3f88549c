"""The plan of docs/scale.md: its arithmetic, and that the page shows what its own figures come to."""

import pytest

from benchmarks import scale

FIGURES = {
    "search": 50_000, "searched": 10, "file_mb": 0.005, "download": 300, "hashes": 4, "crops": 30,
    "starting": 10, "images": 100, "instances": 50, "keypoints": 400, "shapes": 1000,
}  # fmt: skip
ASSUMED = {name: value for name, (_, value) in scale.ASSUMPTIONS.items()}


def test_hours_and_dollars_by_hand():
    assumed = ASSUMED | {"gpus": 2, "gpu_detect": 50, "gpu_price": 3, "animals": 2, "gpu_crops": 900}
    rows = {name.split(",")[0]: (hours, cost) for name, _, hours, cost in scale.stages(FIGURES, assumed)}
    assert rows["search"] == pytest.approx((2000 / 3600, 0.2 / 3.6))
    assert rows["download"] == pytest.approx((10_000 / 3600, 1 / 3.6))
    assert rows["near-duplicates"][0] == pytest.approx((4 + 2.1e6 * 0.0004) / 3600)
    assert rows["detect"] == pytest.approx((10_010 / 3600, 10_010 / 3600 * 6))
    assert rows["2D labels"][0] == pytest.approx((10_000 + 10) / 3600)


def test_one_machine_bounds_the_download():
    assumed = ASSUMED | {"hosts": 100}
    rows = {name: hours for name, _, hours, _ in scale.stages(FIGURES, assumed)}
    assert rows["download"] == pytest.approx(1e6 / 300 / 3600)


def test_gigabytes_by_hand():
    rows = {name: size for name, _, size in scale.disk(FIGURES, ASSUMED | {"animals": 2})}
    assert rows == pytest.approx(
        {
            "metadata, not compressed": 50, "photos": 150, "candidates, downloads, images": 0.3,
            "instances": 0.1, "keypoints of 2D and 3D": 8, "shapes": 2,
        }
    )  # fmt: skip


def shown(page, titles):
    """Figures by name, as the page's tables show them."""
    cells = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    values = {row[0].strip(): row[1].strip().replace(",", "") for row in cells}
    return {name: float(values[title]) for name, title in titles.items()}


def test_the_page_is_what_its_figures_come_to():
    page = scale.PAGE.read_text(encoding="utf-8")
    figures = shown(page, {name: title for name, (title, *_) in scale.MEASURED.items()})
    assumed = shown(page, {name: title for name, (title, _) in scale.ASSUMPTIONS.items()})
    assert scale.section(page, scale.tables(figures, assumed)) == page
    assert assumed == ASSUMED
    assert set(scale.measured()) == set(figures)
