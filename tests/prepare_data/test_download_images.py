"""Downloading: what every kind of answer becomes, resuming after a kill, near-duplicates."""

from __future__ import annotations

import email.utils
import io
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from bad_server import photo
from PIL import Image

from prepare_data.download_images import Config, run
from prepare_data.downloader import sweep
from prepare_data.fetch import parse_retry_after
from prepare_data.imagefile import BadImage, inspect_image
from prepare_data.journal import Journal, read_journal
from prepare_data.pool import mark_repeated
from wildshape.errors import UserError
from wildshape.near_duplicates import phash
from wildshape.stage import Provenance, publish
from wildshape.tables import Table, content_hash, make_image_id, make_record_id, read_table


def candidates(workspace, urls):
    rows = [
        {"record_id": make_record_id("urls", url), "url": url, "source": "urls", "width": -1,
         "height": -1, "status": "pending"}
        for url in urls
    ]  # fmt: skip
    publish(Table.from_rows("images", rows), workspace.table_path("candidates"), Provenance("test"))


FAST = {"category": "cow", "retries": 2, "timeout": 0.6, "max_retry_after": 1.0, "max_megabytes": 0.05}


def png_cut() -> bytes:
    data = photo(40, format="PNG")
    return data[: len(data) // 2]


def test_exact_counts_by_reason(workspace, server, quick, capsys):
    good = photo(1)
    pages = {
        "/good.jpg": good,
        "/png": photo(2, format="PNG"),
        "/missing": {"code": 404},
        "/gone": {"code": 410},
        "/forbidden": {"code": 403},
        "/broken-server": {"code": 500},
        "/flaky": [{"code": 503}, {"drop": True}, photo(3)],
        "/limited-once": [{"code": 429, "headers": {"Retry-After": "0"}}, photo(4)],
        "/limited": {"code": 429},
        "/limited-long": {"code": 429, "headers": {"Retry-After": "3600"}},
        "/slow": {"delay": 1.0, "body": photo(5)},
        "/dropped": {"drop": True},
        "/cut-on-the-wire": {"body": photo(6), "cut": 300},
        "/cut-file": photo(7)[:-400],
        "/cut-png": png_cut(),
        "/page.html": b"<html>This photo is unavailable</html>",
        "/empty": b"",
        "/tiny": photo(8, 40, 40),
        "/huge": b"\xff" * 60_000,
        "/moved": {"code": 302, "headers": {"Location": "/png2"}},
        "/png2": photo(9, format="PNG"),
        "/circle": {"code": 302, "headers": {"Location": "/circle"}},
        "/same.jpg": good,
        "/larger.jpg": enlarged(good),
    }
    server.pages = pages
    urls = [server.url + path for path in pages if path not in ("/png2", "/limited-long")]
    # Of another host, which is left alone from then on.
    urls.append(server.url.replace("127.0.0.1", "localhost") + "/limited-long")
    urls += ["http://127.0.0.1:9/closed", "http://[bad"]
    candidates(workspace, urls)
    metrics = run(Config(**FAST), workspace)
    table = workspace.load("images")
    status = {url.rpartition("/")[2]: value for url, value in zip(table["url"], table["status"])}
    assert status == {
        "good.jpg": "duplicate", "same.jpg": "duplicate", "larger.jpg": "ok", "png": "ok",
        "missing": "not_found", "gone": "not_found", "forbidden": "http_error",
        "broken-server": "http_error", "flaky": "ok",
        "limited-once": "ok", "limited": "rate_limited", "limited-long": "rate_limited", "slow": "timeout",
        "dropped": "connection", "cut-on-the-wire": "truncated", "cut-file": "truncated",
        "cut-png": "truncated", "page.html": "not_image", "empty": "not_image", "tiny": "too_small",
        "huge": "too_large", "moved": "ok", "circle": "http_error", "closed": "connection",
        "[bad": "http_error",
    }  # fmt: skip
    assert metrics["by_status"] == {
        "ok": 5, "not_found": 2, "rate_limited": 2, "http_error": 4, "timeout": 1, "connection": 2,
        "truncated": 3, "not_image": 2, "too_small": 1, "too_large": 1, "duplicate": 2,
    }  # fmt: skip
    assert "25 addresses: 5 ok, 2 not_found" in capsys.readouterr().out
    hits = server.hits
    once = ("/good.jpg", "/missing", "/forbidden", "/cut-file", "/page.html", "/limited-long", "/huge")
    assert {hits[path] for path in once} == {1}
    retried = ("/broken-server", "/limited", "/slow", "/cut-on-the-wire")
    assert {hits[path] for path in retried} == {3}
    assert hits["/dropped"] in (3, 6)  # aiohttp itself asks again once when a connection drops
    assert all(agent.startswith("wildshape/") for agent in server.agents)
    for row in table.rows():
        if row["image_id"] is not None:
            data = workspace.image_file(row["path"]).read_bytes()
            assert make_image_id(data) == row["image_id"]
            assert row["path"].startswith(f"data/cow/images/{row['image_id'][1:3]}/{row['image_id']}.")
            assert inspect_image(data).phash == row["phash"]
            assert row["error"] is None or row["status"] == "duplicate"
        else:
            assert row["error"]
    assert not workspace.table_path("downloads").with_suffix(".journal.jsonl").exists()
    before = dict(server.hits)
    run(Config(**FAST), workspace)
    assert dict(server.hits) == before


def enlarged(data: bytes) -> bytes:
    out = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    image.resize((image.width * 2, image.height * 2)).save(out, "JPEG", quality=80)
    return out.getvalue()


def test_overwrite_fetches_only_what_failed(workspace, server, quick):
    server.pages = {"/a": photo(1), "/b": [{"code": 404}, photo(2)]}
    candidates(workspace, [server.url + "/a", server.url + "/b"])
    assert run(Config(**FAST), workspace)["by_status"] == {"ok": 1, "not_found": 1}
    assert run(Config(**FAST, overwrite=True), workspace)["by_status"] == {"ok": 2}
    assert server.hits == {"/a": 1, "/b": 2}
    next(workspace.images_dir.glob("*/*.jpg")).unlink()
    assert run(Config(**FAST, overwrite=True), workspace)["by_status"] == {"ok": 2}
    assert sum(server.hits.values()) == 4


def test_more_candidates_need_overwrite_and_fetch_only_the_new(workspace, server, quick):
    server.pages = {f"/{i}": photo(i) for i in range(4)}
    candidates(workspace, [f"{server.url}/{i}" for i in range(2)])
    run(Config(**FAST), workspace)
    candidates(workspace, [f"{server.url}/{i}" for i in range(4)])
    with pytest.raises(UserError, match="add --overwrite"):
        run(Config(**FAST), workspace)
    assert run(Config(**FAST, overwrite=True), workspace)["by_status"] == {"ok": 4}
    assert set(server.hits.values()) == {1}


def test_nothing_usable_is_an_error(workspace, server, quick):
    candidates(workspace, [server.url + "/a"])
    with pytest.raises(UserError, match="expected images from 1 addresses; found none .*HTTP 404"):
        run(Config(**FAST), workspace)
    assert list(workspace.load("images")["status"]) == ["not_found"]


def test_needs_candidates(workspace):
    with pytest.raises(UserError, match=r"needs data/cow/candidates.parquet.*search_metadata.py"):
        run(Config(category="cow"), workspace)


@pytest.mark.parametrize("flag", ["concurrency", "timeout", "min_side"])
def test_flags_are_checked(flag):
    with pytest.raises(UserError, match=f"--{flag}: expected at least"):
        Config(category="cow", **{flag: 0})


def test_retry_after_is_honoured_for_the_whole_host(workspace, server, quick):
    later = {"code": 429, "headers": {"Retry-After": "1"}}
    server.pages = {"/a": [later, photo(1)], "/b": [{"delay": 0.3, "code": 500}, photo(2)]}
    candidates(workspace, [server.url + "/a", server.url + "/b"])
    assert run(Config(**{**FAST, "timeout": 5.0}), workspace)["by_status"] == {"ok": 2}
    (first, again), (_, other) = server.times["/a"], server.times["/b"]
    assert 1.0 <= again - first < 2.5
    assert other - first >= 1.0  # /b failed and would have come back after .32 s


def test_retry_after_date(workspace, server, quick):
    when = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.pages = {"/a": [{"code": 503, "headers": {"Retry-After": when}}, photo(1)]}
    candidates(workspace, [server.url + "/a"])
    assert run(Config(**{**FAST, "max_retry_after": 5}), workspace)["by_status"] == {"ok": 1}
    first, again = server.times["/a"]
    assert 0.7 <= again - first < 3.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5.0), (" 0 ", 0.0), ("Wed, 21 Oct 2015 07:28:10 GMT", 10.0), (None, None), ("soon", None),
     ("Wed, 21 Oct 2015 07:00:00 GMT", 0.0), ("-3", None)],
)  # fmt: skip
def test_parse_retry_after(value, seconds):
    now = datetime(2015, 10, 21, 7, 28, 0, tzinfo=UTC).timestamp()
    assert parse_retry_after(value, now) == seconds


def test_kill_9_and_resume_gives_the_same_table(workspace, server, tmp_path):
    count = 60
    server.latency = 0.02
    for i in range(count):
        server.pages[f"/{i}"] = photo(i) if i % 5 else {"code": 404}
    urls = [f"{server.url}/{i}" for i in range(count)]
    candidates(workspace, urls)
    command = [
        sys.executable, "-m", "prepare_data.download_images", "--category", "cow", "--concurrency", "3",
        "--data-root", str(workspace.root),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    journal = workspace.table_path("downloads").with_suffix(".journal.jsonl")
    for stop in (10, 35):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 30
        while len(read_journal(journal, "record_id")) < stop and time.monotonic() < limit:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not workspace.table_path("downloads").exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    # only what was under way at a kill (4 for each of 3 requests, answers not yet written) came twice
    again = sum(server.hits.values()) - count
    assert again <= 2 * 4 * 3
    table = workspace.load("images")
    assert sorted(table["url"]) == sorted(urls) and set(table["status"]) == {"ok", "not_found"}
    other = type(workspace)(tmp_path / "other", "cow")
    candidates(other, urls)
    run(Config(category="cow"), other)
    assert content_hash(other.load("images")) == content_hash(table)
    assert not [p for p in workspace.images_dir.rglob(".*") if p.is_file()]
    assert not workspace.table_path("downloads").with_suffix(".parts").exists()


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_nothing(workspace, server, tmp_path):
    count = 300
    kinds = {
        "ok": lambda i: photo(i),
        "not_found": lambda i: {"code": 404},
        "limited": lambda i: [{"code": 429, "headers": {"Retry-After": "0"}}, photo(i)],
        "burst": lambda i: [{"code": 500}, {"code": 503}, photo(i)],
        "reset": lambda i: [{"drop": True}, {"drop": True}, photo(i)],
        "slow": lambda i: {"delay": 0.2, "body": photo(i)},
        "truncated": lambda i: photo(i)[:-300],
    }
    names = [list(kinds)[i % len(kinds)] for i in range(count)]
    server.latency = 0.01
    server.pages = {f"/{i}": kinds[name](i) for i, name in enumerate(names)}
    urls = [f"{server.url}/{i}" for i in range(count)]
    candidates(workspace, urls)
    command = [
        sys.executable, "-m", "prepare_data.download_images", "--category", "cow", "--concurrency", "4",
        "--data-root", str(workspace.root),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    journal = workspace.table_path("downloads").with_suffix(".journal.jsonl")
    kills = 0
    while kills < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        start = len(read_journal(journal, "record_id"))
        limit = time.monotonic() + 60
        while process.poll() is None and len(read_journal(journal, "record_id")) <= start:
            assert time.monotonic() < limit
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 3
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    table = workspace.load("images")
    found = dict(zip(table["url"], table["status"]))
    failed = {"not_found", "truncated"}
    assert found == {url: name if name in failed else "ok" for url, name in zip(urls, names)}
    expected = {"ok": 1, "not_found": 1, "limited": 2, "burst": 3, "reset": 3, "slow": 1, "truncated": 1}
    settled = [i for i, name in enumerate(names) if name not in ("reset", "burst", "limited")]
    again = sum(server.hits[f"/{i}"] - expected[names[i]] for i in settled)
    assert again <= kills * 4 * 4
    other = type(workspace)(tmp_path / "other", "cow")
    candidates(other, urls)
    run(Config(category="cow"), other)
    assert content_hash(other.load("images")) == content_hash(table)


def test_an_image_on_file_is_always_on_record(workspace, server, quick, monkeypatch):
    """A crash just before the file gets its name leaves a record without a file, not the reverse."""
    import wildshape.files

    server.pages = {"/a": photo(1), "/b": photo(2)}
    candidates(workspace, [server.url + "/a", server.url + "/b"])
    replace, fail = os.replace, [True]

    def crash(source, target):
        if str(target).endswith(".jpg") and fail[0]:
            fail[0] = False
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(wildshape.files.os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        run(Config(**{**FAST, "concurrency": 1}), workspace)
    journal = workspace.table_path("downloads").with_suffix(".journal.jsonl")
    known = read_journal(journal, "record_id")
    on_record = {row["path"].rpartition("/")[2] for row in known.values() if row.get("path")}
    on_file = {path.name for path in workspace.images_dir.rglob("*.jpg")}
    assert on_file <= on_record
    assert run(Config(**FAST), workspace)["by_status"] == {"ok": 2}
    assert sum(server.hits.values()) <= 4 - len(on_file)


def test_images_of_the_labelled_set_are_marked(workspace, server, quick):
    server.pages = {"/mine": enlarged(photo(1)), "/other": photo(2)}
    candidates(workspace, [server.url + path for path in server.pages])
    workspace.labelled_images_dir.mkdir(parents=True)
    file = workspace.labelled_images_dir / "1.jpg"
    file.write_bytes(photo(1))
    row = {"record_id": "l1", "image_id": "label1", "path": workspace.relative(file), "source": "t",
           "width": 96, "height": 80, "status": "ok"}  # fmt: skip
    publish(Table.from_rows("images", [row]), workspace.table_path("labelled_images"), Provenance("t"))
    assert run(Config(**FAST), workspace)["by_status"] == {"ok": 1, "in_labels": 1}
    table = workspace.load("images")
    assert table["error"][0] == "repeats the labelled image label1"
    # labels that come later ask for --overwrite, which fetches nothing again
    file.write_bytes(photo(2))
    row["phash"] = phash(np.asarray(Image.open(io.BytesIO(photo(2)))))
    publish(Table.from_rows("images", [row]), workspace.table_path("labelled_images"), Provenance("t"))
    with pytest.raises(UserError, match="labelled_images.parquet has changed"):
        run(Config(**FAST), workspace)
    assert run(Config(**FAST, overwrite=True), workspace)["by_status"] == {"ok": 1, "in_labels": 1}
    assert workspace.load("images")["status"].tolist() == ["ok", "in_labels"]
    assert set(server.hits.values()) == {1}


def test_mark_repeated_keeps_the_largest():
    near = ["0" * 16, "0" * 15 + "1", "f" * 16, None, "0" * 16]
    rows = [
        {"record_id": f"r{i}", "image_id": f"i{i}", "source": "t", "width": width, "height": 10,
         "phash": value, "status": status}
        for i, (value, width, status) in enumerate(
            zip(near, (10, 20, 5, 5, 99), ("ok", "ok", "ok", "ok", "not_found")))
    ]  # fmt: skip
    table = Table.from_rows("images", rows)
    marked = mark_repeated(table)
    assert marked["status"].tolist() == ["duplicate", "ok", "ok", "ok", "not_found"]
    assert marked["error"].tolist() == ["repeats r1", None, None, None, None]
    assert mark_repeated(table, ["i2"], [None])["status"].tolist()[2] == "in_labels"
    assert mark_repeated(table.take([])) is not None


def test_inspect_image_applies_orientation():
    image = Image.new("RGB", (40, 20), (200, 30, 30))
    exif = image.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    facts = inspect_image(out.getvalue())
    assert (facts.width, facts.height, facts.suffix) == (20, 40, ".jpg")
    cmyk = io.BytesIO()
    image.convert("CMYK").save(cmyk, "JPEG")
    assert inspect_image(cmyk.getvalue()).width == 40
    with pytest.raises(BadImage) as raised:
        inspect_image(b"")
    assert raised.value.status == "not_image"


def test_journal_drops_a_torn_line(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append({"id": "a", "n": 1})
        journal.append({"id": "b", "n": 2})
    path.write_bytes(path.read_bytes()[:-4])
    with Journal(path) as journal:
        journal.append({"id": "c", "n": 3})
    assert {key: row["n"] for key, row in read_journal(path, "id").items()} == {"a": 1, "c": 3}
    assert read_journal(tmp_path / "none", "id") == {}


def test_sweep_removes_only_half_written_files(tmp_path):
    (tmp_path / "ab").mkdir()
    for name in ("i1.jpg", ".i1.0123456789ab.jpg", ".keep"):
        (tmp_path / "ab" / name).write_bytes(b"x")
    assert sweep(tmp_path) == 1
    assert sorted(p.name for p in (tmp_path / "ab").iterdir()) == [".keep", "i1.jpg"]


def test_downloads_table_keeps_what_was_fetched(workspace, server, quick):
    server.pages = {"/a": photo(1), "/b": photo(1)}
    candidates(workspace, [server.url + "/a", server.url + "/b"])
    run(Config(**FAST), workspace)
    downloads = read_table(workspace.table_path("downloads"), "images")
    assert downloads["status"].tolist() == ["ok", "ok"]
    assert workspace.load("images")["status"].tolist() == ["ok", "duplicate"]
