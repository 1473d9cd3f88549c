"""Finding photos: columns, words, malformed lines, lists of addresses."""

from __future__ import annotations

import bz2
import gzip
import json

import pytest
from metadata_lines import line

from prepare_data.metadata import ScanCounts, scan
from prepare_data.query import LICENSES, Query, license_code, plural
from prepare_data.search_metadata import Config, main, run
from wildshape.errors import UserError
from wildshape.tables import make_record_id


@pytest.mark.parametrize(
    ("word", "expected"),
    [("cow", "cows"), ("calf", "calves"), ("ox", "oxen"), ("pony", "ponies"), ("donkey", "donkeys"),
     ("fox", "foxes"), ("finch", "finches"), ("sea cow", "sea cows")],
)  # fmt: skip
def test_plural(word, expected):
    assert plural(word) == expected


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A Cow in a field", "selected"),
        ("three COWS", "selected"),
        ("brown_cow-portrait", "selected"),
        ("Moscow", "no_word"),
        ("scowl", "no_word"),
        ("cow2", "no_word"),
        ("a sea cow", "excluded"),
        ("sea-cow and cow", "excluded"),
        ("by the sea\ncow", "selected"),  # tags, title and description do not join to a phrase
        ("", "no_word"),
    ],
)
def test_verdict(text, verdict):
    assert Query(["cow"], ["sea cow"]).verdict(text) == verdict


@pytest.mark.parametrize(
    ("name", "url", "code"),
    [
        ("Attribution License", None, "by"),
        ("Attribution-NonCommercial-ShareAlike License", None, "by-nc-sa"),
        ("Attribution-NonCommercial-NoDerivs License", None, "by-nc-nd"),
        ("Attribution-ShareAlike License", "", "by-sa"),
        ("CC BY-NC 4.0", None, "by-nc"),
        ("CC0 1.0", None, "cc0"),
        (None, "https://creativecommons.org/licenses/by-nd/2.0/", "by-nd"),
        ("", "http://creativecommons.org/publicdomain/zero/1.0/", "cc0"),
        ("Public Domain Mark", "https://creativecommons.org/publicdomain/mark/1.0/", "pdm"),
        ("All Rights Reserved", None, None),
        (None, None, None),
    ],
)
def test_license_code(name, url, code):
    assert license_code(name, url) == code
    assert code is None or code in LICENSES


def test_a_licence_that_does_not_exist():
    with pytest.raises(UserError, match="--licenses: expected some of by, .*; found nc"):
        Query(["cow"], licenses=["by", "nc"])


def test_standing_names_the_words():
    query = Query(["cow", "calf"], ["sea cow", "toy"])
    assert query.standing("Cows\nand calves") == (["cow", "calf"], [])
    assert query.standing("a sea cow\ntoys") == (["cow"], ["sea cow", "toy"])


@pytest.mark.parametrize(
    "text", ["cow", "a+cow", "%2Ccow", "cow%21", "_cow_", "x,cow,y", "COWS", "%3Eox%3C"]
)
def test_prefilter_passes_what_may_match(text):
    assert Query(["cow", "ox"]).may_match(text.encode())


@pytest.mark.parametrize("text", ["Moscow", "box", "scows", "cowboy", "c+o+w", ""])
def test_prefilter_stops_what_cannot_match(text):
    assert not Query(["cow", "ox"]).may_match(text.encode())


def test_accented_words_match_encoded_fields(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text(line(1, title="une+b%C3%AAte+noire") + "\n" + line(2, title="beta") + "\n")
    found = list(scan(path, Query(["bête"]), ScanCounts()))
    assert [photo.source_id for photo in found] == ["1"]


@pytest.mark.parametrize("columns", [23, 25])
@pytest.mark.parametrize("opener", [open, gzip.open, bz2.open])
def test_metadata_selects_and_counts(tmp_path, columns, opener):
    lines = [
        line(1, title="My+cow", columns=columns),
        line(2, description="two%20cows%2C+%3Ca+href%3D%22x%22%3Egrazing%3C%2Fa%3E", columns=columns),
        line(3, tags="farm,highland+cattle", columns=columns),
        line(4, title="Moscow", columns=columns),
        line(5, title="cow", tags="red+bull", columns=columns),
        line(6, title="cow+video", marker=1, columns=columns),
        "3\tbroken line about a cow",
        line(7, title="cow", columns=columns).replace("\t0", "\tx") if columns == 23 else "cow",
        line(8, title="cow", columns=columns, url="not-an-address"),
        line(1, title="My+cow", columns=columns),
        "",
    ]
    path = tmp_path / "metadata"
    with opener(path, "wb") as handle:
        handle.write("\n".join(lines).encode())
    counts = ScanCounts()
    photos = list(scan(path, Query(["cow", "cattle"], ["red bull"]), counts))
    assert [photo.source_id for photo in photos] == ["1", "2", "3", "1"]
    assert (counts.lines, counts.malformed, counts.videos) == (10, 3, 1)
    assert (counts.no_word, counts.excluded) == (1, 1)
    assert counts.malformed_lines[0] == "metadata:7: expected 23 or 25 columns, found 2"
    first = photos[0]
    assert first.author == "João P" and first.license == "Attribution License"
    assert first.page_url == "http://www.flickr.com/photos/1@N00/1/"


def test_lists_of_addresses(tmp_path):
    (tmp_path / "a.txt").write_text(
        "# mine\nhttp://x.org/1.jpg\n\nftp://x.org/2.jpg\nhttps://x.org/3.jpg\n"
    )
    (tmp_path / "b.csv").write_text(
        'id,URL,license\n9,http://x.org/4.jpg,CC0\n8,,CC0\n"7","http://x.org/5,a.jpg",\n'
    )
    records = [
        {"item_download_url": "http://x.org/6.jpg", "photo_id": 6},
        {"other": 1},
        "http://x.org/7.jpg",
    ]
    (tmp_path / "c.json").write_text("\n".join(json.dumps(r) for r in records) + "\n{broken\n")
    counts, found = ScanCounts(), []
    for name in ("a.txt", "b.csv", "c.json"):
        found += scan(tmp_path / name, Query(["cow"]), counts)
    assert [photo.url.rpartition("/")[2] for photo in found] == [
        "1.jpg", "3.jpg", "4.jpg", "5,a.jpg", "6.jpg", "7.jpg",
    ]  # fmt: skip
    assert (found[2].source_id, found[2].license) == ("9", "CC0")
    assert found[4].source_id == "6"
    assert counts.lines == 10 and counts.malformed == 4


def test_ids_in_lists_of_addresses_may_repeat(workspace, tmp_path):
    """Numbers within a file, or observations of which several photos were taken."""
    for folder, first in (("a", 1), ("b", 4)):
        (tmp_path / folder).mkdir()
        lines = [f"{number},http://x.org/{first + number}.jpg\n" for number in range(2)]
        (tmp_path / folder / "list.csv").write_text("id,url\n" + "".join(lines) + "0,http://x.org/0.jpg\n")
    files = (tmp_path / "a/list.csv", tmp_path / "b/list.csv")
    assert run(Config(category="cow", metadata=files), workspace)["selected"] == 5
    table = workspace.load("candidates")
    assert len(set(table["record_id"])) == 5 and list(table["source_id"]) == ["0", "1", "0", "0", "1"]
    # What is added to either file of one name is noticed.
    for number, file in enumerate(files):
        with file.open("a") as handle:
            handle.write(f"9,http://x.org/more{number}.jpg\n")
        with pytest.raises(UserError, match="add --overwrite"):
            run(Config(category="cow", metadata=files), workspace)
        found = run(Config(category="cow", metadata=files, overwrite=True), workspace)
        assert found["selected"] == 6 + number


def test_run_writes_candidates(workspace, capsys):
    workspace.metadata_dir.mkdir(parents=True)
    path = workspace.metadata_dir / "yfcc.tsv"
    path.write_text(
        "\n".join([line(1, title="cow"), "broken", line(2, tags="heifers"), line(1, title="cow")])
    )
    metrics = run(Config(category="cow"), workspace)
    assert (metrics["selected"], metrics["malformed"], metrics["repeated"]) == (2, 1, 1)
    out = capsys.readouterr().out
    assert "2 photos of 4 lines (1 repeated, 1 malformed)" in out and "yfcc.tsv:2" in out
    table = workspace.load("candidates")
    assert list(table["status"]) == ["pending"] * 2
    assert table["record_id"][0] == make_record_id("yfcc100m", "1")
    assert table["width"].tolist() == [-1, -1]
    path.write_text(line(3, title="cow"))
    with pytest.raises(UserError, match="--overwrite"):
        run(Config(category="cow"), workspace)
    assert run(Config(category="cow", overwrite=True), workspace)["selected"] == 1


def write_metadata(workspace, *lines):
    workspace.metadata_dir.mkdir(parents=True, exist_ok=True)
    (workspace.metadata_dir / "yfcc.tsv").write_text("\n".join(lines))


def test_a_sample_is_drawn_evenly_and_again_the_same(workspace):
    write_metadata(workspace, *(line(number, title="cow") for number in range(200)))
    metrics = run(Config(category="cow", sample=50), workspace)
    first = workspace.load("candidates")["source_id"].tolist()
    assert (metrics["selected"], metrics["kept"], len(set(first))) == (200, 50, 50)
    assert sorted(first, key=int) == first, "in the file's order"
    assert 60 < sum(map(int, first)) / 50 < 140
    run(Config(category="cow", sample=50, overwrite=True), workspace)
    assert workspace.load("candidates")["source_id"].tolist() == first
    run(Config(category="cow", sample=50, seed=1, overwrite=True), workspace)
    assert workspace.load("candidates")["source_id"].tolist() != first


def test_what_a_killed_search_left_is_removed(workspace):
    (workspace.data_dir / ".search_abc").mkdir(parents=True)
    (workspace.data_dir / ".search_abc" / "lines.duckdb").write_bytes(b"x")
    write_metadata(workspace, line(1, title="cow"))
    run(Config(category="cow"), workspace)
    assert not list(workspace.data_dir.glob(".search_*"))


def test_limit_takes_the_first(workspace):
    write_metadata(workspace, *(line(number, title="cow") for number in range(9)))
    run(Config(category="cow", limit=4), workspace)
    assert workspace.load("candidates")["source_id"].tolist() == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="give it or --limit, not both"):
        Config(category="cow", limit=4, sample=2)


def test_explain_shows_what_each_word_brought(workspace, capsys):
    write_metadata(
        workspace,
        line(1, title="cow"),
        line(2, title="cow+and+calf"),
        line(3, title="calf"),
        line(4, title="a+toy+cow+statue"),
        line(5, title="toy+bull"),
    )
    metrics = run(Config(category="cow", explain=True), workspace)
    assert metrics["by_word"] == {"cow": 2, "calf": 2}
    assert metrics["only_word"] == {"cow": 1, "calf": 1}
    assert metrics["by_exclude"] == {"toy": 2, "statue": 1}
    assert metrics["only_exclude"] == {"toy": 1}
    rows = [text.split() for text in capsys.readouterr().out.splitlines()]
    assert ["cow", "2", "1"] in rows and ["toy", "2", "1"] in rows and ["heifer", "0", "0"] in rows


def test_licences_and_machine_tags_are_asked_for(workspace):
    write_metadata(
        workspace,
        line(1, title="cow"),
        line(2, title="cow", license=1),
        line(3, title="cow", license=2),
        line(4, machine_tags="animal:kind=cow"),
    )
    metrics = run(Config(category="cow", licenses=("by",), machine_tags=True), workspace)
    assert workspace.load("candidates")["source_id"].tolist() == ["1", "4"]
    assert metrics["license"] == 2
    table = workspace.load("candidates")
    assert table["latitude"].tolist() == [52.25] * 2 and table["taken"][0].startswith("2008")
    run(Config(category="cow", overwrite=True), workspace)
    assert len(workspace.load("candidates")) == 3


def test_what_the_user_can_mend(workspace, tmp_path, capsys):
    root = ["--category", "cow", "--data-root", str(workspace.root)]
    assert main(root) == 2
    assert "expected metadata files" in capsys.readouterr().err
    empty = tmp_path / "m.tsv"
    empty.write_text(line(1, title="Moscow") + "\nbroken\n")
    assert main([*root, "--metadata", str(empty)]) == 2
    assert "found none in 2 lines of 1 files (1 malformed" in capsys.readouterr().err
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress((line(1, title="cow") + "\n").encode() * 50)[:-20])
    assert main([*root, "--metadata", str(cut)]) == 2
    assert "cut.gz: expected a readable file" in capsys.readouterr().err
    table = tmp_path / "list.csv"
    table.write_text("name,size\na,1\n")
    assert main([*root, "--metadata", str(table)]) == 2
    assert "expected a column named one of" in capsys.readouterr().err
    assert not workspace.table_path("candidates").exists()


def test_limit(workspace, tmp_path):
    path = tmp_path / "u.txt"
    path.write_text("".join(f"http://x.org/{i}.jpg\n" for i in range(10)))
    config = Config(category="cow", metadata=(path,), limit=3)
    assert run(config, workspace)["selected"] == 3
