"""Asking politely, other addresses for dead photos, pictures that are none, and whom to thank."""

from __future__ import annotations

import csv
import hashlib
import time
from dataclasses import replace

import pytest
from bad_server import photo
from test_download_images import candidates

from prepare_data.download_images import Config, run
from prepare_data.downloader import StoreConfig, resume, store
from prepare_data.fallbacks import commons_address, commons_key, fallbacks, other_sizes
from prepare_data.fetch import Fetched, forbids
from prepare_data.journal import Journal
from wildshape.errors import UserError
from wildshape.stage import Provenance, publish

FAST = {"category": "cow", "retries": 1, "timeout": 2.0, "max_retry_after": 1.0}


def statuses(workspace) -> dict[str, str]:
    table = workspace.load("images")
    return {url.rpartition("/")[2]: value for url, value in zip(table["url"], table["status"])}


def test_a_host_is_asked_no_faster_than_its_rate(workspace, server, quick):
    paths = [f"/{number}" for number in range(8)]
    server.pages = {path: photo(number) for number, path in enumerate(paths)}
    candidates(workspace, [server.url + path for path in paths])
    run(Config(**FAST, host_rate=20.0), workspace)
    times = sorted(moment for moments in server.times.values() for moment in moments)
    assert len(times) == 8
    # Starts lie .05 s apart; the server sees them a little early or late.
    assert times[-1] - times[0] > 7 * 0.05 - 0.04
    assert set(workspace.load("images")["status"]) == {"ok"}


def test_a_host_gets_no_more_requests_at_once_than_it_may(workspace, server, quick):
    most, now = [], []
    answer = server.answer

    def counting(handler):
        now.append(1)
        most.append(len(now))
        time.sleep(0.03)
        now.pop()  # before the answer goes out, after which the next request may come
        answer(handler)

    server.answer = counting
    paths = [f"/{number}" for number in range(12)]
    server.pages = {path: photo(number) for number, path in enumerate(paths)}
    candidates(workspace, [server.url + path for path in paths])
    run(Config(**FAST, host_concurrency=2), workspace)
    assert max(most) == 2 and set(workspace.load("images")["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("headers", "directive"),
    [
        (["noai"], "noai"),
        (["nofollow, NoImageAI"], "noimageai"),
        (["noindex"], "noindex"),
        (["none"], "none"),
        (["nofollow", "noai"], "noai"),
        (["otherbot: noai"], None),
        (["otherbot: noai, noindex"], None),
        (["wildshape: noindex"], "noindex"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        (["max-image-preview:large, noai"], "noai"),
        (["max-snippet:-1, max-image-preview:large, max-video-preview:-1, noindex"], "noindex"),
        (["all"], None),
        ([], None),
    ],
)
def test_forbids(headers, directive):
    assert forbids(headers) == directive


def test_robots_tag_is_heeded_unless_told_otherwise(workspace, server, quick):
    server.pages = {
        "/free": photo(1),
        "/noai": {"body": photo(2), "headers": {"X-Robots-Tag": "noai, noimageai"}},
    }
    candidates(workspace, [server.url + path for path in server.pages])
    run(Config(**FAST), workspace)
    assert statuses(workspace) == {"free": "ok", "noai": "forbidden"}
    run(Config(**FAST, ignore_robots_tag=True, retry_failed=("forbidden",)), workspace)
    assert statuses(workspace) == {"free": "ok", "noai": "ok"}
    assert server.hits == {"/free": 1, "/noai": 2}


def test_what_robots_tags_forbid_goes_when_they_are_heeded_again(workspace, server, quick):
    server.pages = {
        "/free": photo(1),
        "/noai": {"body": photo(2), "headers": {"X-Robots-Tag": "noai"}},
    }
    candidates(workspace, [server.url + path for path in server.pages])
    run(Config(**FAST, ignore_robots_tag=True), workspace)
    assert statuses(workspace) == {"free": "ok", "noai": "ok"}
    with pytest.raises(UserError, match="other settings .*ignore_robots_tag.* add --overwrite"):
        run(Config(**FAST), workspace)
    run(Config(**FAST, overwrite=True), workspace)
    assert statuses(workspace) == {"free": "ok", "noai": "forbidden"}


@pytest.mark.parametrize("ignored", [True, False])
def test_an_unfinished_run_that_ignored_robots_tags_is_not_taken_up_by_one_that_does_not(tmp_path, ignored):
    images, journal = tmp_path / "images", tmp_path / "journal.jsonl"
    place = StoreConfig(tmp_path, images, journal, heed_robots_tag=not ignored)
    resume(place, "settings")
    fetched = Fetched("ok", photo(1), url="http://x.org/1.jpg")
    writer = Journal(journal)
    store("urls:1", fetched, place, writer)
    writer.close()
    heeding = replace(place, heed_robots_tag=True)
    assert ("urls:1" in resume(heeding, "settings")) != ignored


def test_a_host_that_asks_for_long_is_left_alone(workspace, server, quick):
    server.pages = {f"/{number}": {"code": 429, "headers": {"Retry-After": "300"}} for number in range(40)}
    elsewhere = server.url.replace("127.0.0.1", "localhost") + "/free"
    server.pages["/free"] = photo(1)
    candidates(workspace, [server.url + path for path in server.pages if path != "/free"] + [elsewhere])
    run(Config(**FAST, concurrency=4), workspace)
    table = workspace.load("images")
    assert table["status"].tolist() == ["rate_limited"] * 40 + ["ok"]
    assert sum(server.hits.values()) <= 4 + 1  # those under way when the first answer came
    assert "asked to be left alone for" in table["error"][39]


def test_addresses_that_wait_for_their_host_hold_up_no_others(workspace, server, quick):
    later = {"code": 503, "headers": {"Retry-After": "2"}}
    server.pages = {f"/{number}": [later, photo(number)] for number in range(12)}
    server.pages |= {f"/free{number}": photo(50 + number) for number in range(4)}
    other = server.url.replace("127.0.0.1", "localhost")
    urls = [(other if "free" in path else server.url) + path for path in server.pages]
    candidates(workspace, urls)
    run(Config(**{**FAST, "max_retry_after": 5.0, "timeout": 10.0}, concurrency=2), workspace)
    assert set(workspace.load("images")["status"]) == {"ok"}
    first = min(min(moments) for moments in server.times.values())
    assert max(server.times[f"/free{number}"][0] for number in range(4)) - first < 2


def test_other_sizes_of_a_flickr_photo():
    url = "http://farm6.staticflickr.com/5001/5312345678_0a1b2c3d4e.jpg"
    head = url.removesuffix(".jpg")
    assert other_sizes(url) == [f"{head}{size}.jpg" for size in ("_b", "_c", "_z", "_w", "_n")]
    live = "https://live.staticflickr.com/5001/5312345678_0a1b2c3d4e_z.jpg"
    assert other_sizes(live)[2] == "https://live.staticflickr.com/5001/5312345678_0a1b2c3d4e.jpg"
    assert other_sizes(live.replace("_z", "_o")) == []
    assert other_sizes("http://example.org/5001/5312345678_0a1b2c3d4e.jpg") == []


def test_the_mirror_drops_the_leading_zero_of_each_byte():
    url = next(
        f"http://farm1.staticflickr.com/1/{number}_ab.jpg"
        for number in range(1000)
        if hashlib.md5(f"http://farm1.staticflickr.com/1/{number}_ab.jpg".encode()).digest()[0] < 16
    )
    digits = hashlib.md5(url.encode()).hexdigest()
    expected = "".join(digits[i : i + 2].removeprefix("0") for i in range(0, 32, 2))
    assert commons_key(url) == expected and len(expected) < 32
    place = f"http://mirror/data/images/{expected[:3]}/{expected[3:6]}/{expected}.jpg"
    assert commons_address(url, "http://mirror/") == place
    assert fallbacks(url, ["commons", "flickr"], "http://mirror")[0] == place
    assert len(fallbacks(url, ["commons", "flickr"])) == 6


def test_a_dead_photo_is_taken_from_the_mirror(workspace, server, quick):
    dead, gone = f"{server.url}/dead.jpg", f"{server.url}/gone.jpg"
    there = commons_address(dead, server.url)
    server.pages = {there.removeprefix(server.url): photo(1), "/alive.jpg": photo(2)}
    candidates(workspace, [dead, gone, f"{server.url}/alive.jpg"])
    run(Config(**FAST, fallbacks=("flickr", "commons"), commons_base=server.url), workspace)
    table = workspace.load("images")
    assert statuses(workspace) == {"dead.jpg": "ok", "gone.jpg": "not_found", "alive.jpg": "ok"}
    assert table["fetched_url"].tolist() == [there, None, None]
    with pytest.raises(UserError, match="--fallbacks: expected some of flickr, commons; found mirror"):
        Config(**FAST, fallbacks=("mirror",))


def test_placeholders_are_told_by_their_address_and_by_their_bytes(workspace, server, quick):
    moved = {"code": 302, "headers": {"Location": "/pw/images/photo_unavailable.png"}}
    server.pages = {
        "/pw/images/photo_unavailable.png": photo(1, format="PNG"),
        "/moved": moved,
        **{f"/same{number}": photo(2) for number in range(5)},
        **{f"/twice{number}": photo(3) for number in range(2)},
    }
    candidates(workspace, [server.url + path for path in server.pages if "pw" not in path])
    metrics = run(Config(**FAST), workspace)
    assert metrics["by_status"] == {"ok": 1, "placeholder": 6, "duplicate": 1}
    found = statuses(workspace)
    assert found["moved"] == "placeholder" and found["same0"] == "placeholder"
    errors = dict(zip(found, workspace.load("images")["error"]))
    assert errors["moved"] == f"answered by {server.url}/pw/images/photo_unavailable.png"
    assert errors["same0"] == "the same bytes from 5 addresses"


def test_a_placeholder_is_a_dead_photo_and_no_fallback(workspace, server, quick):
    moved = {"code": 302, "headers": {"Location": "/pw/photo_unavailable.png"}}
    dead = f"{server.url}/moved.jpg"
    mirror = commons_address(dead, server.url).removeprefix(server.url)
    server.pages = {"/pw/photo_unavailable.png": photo(1, format="PNG"), "/moved.jpg": moved}
    server.pages[mirror] = [photo(2), moved]
    candidates(workspace, [dead])
    settings = {**FAST, "fallbacks": ("commons",), "commons_base": server.url}
    run(Config(**settings), workspace)
    assert statuses(workspace) == {"moved.jpg": "ok"}
    next(workspace.images_dir.glob("*/*.jpg")).unlink()
    with pytest.raises(UserError, match="1 placeholder"):
        run(Config(**settings, overwrite=True), workspace)


def test_only_the_failures_asked_for_are_fetched_again(workspace, server, quick):
    server.pages = {
        "/good": photo(1),
        "/missing": [{"code": 404}, photo(2)],
        "/broken": [{"code": 500}, {"code": 500}, photo(3)],
        "/never": {"code": 404},
    }
    candidates(workspace, [server.url + path for path in server.pages])
    run(Config(**FAST), workspace)
    found = {"good": "ok", "missing": "not_found", "broken": "http_error", "never": "not_found"}
    assert statuses(workspace) == found
    run(Config(**FAST, retry_failed=("http_error",)), workspace)
    assert statuses(workspace) == {**found, "broken": "ok"}
    assert server.hits == {"/good": 1, "/missing": 1, "/broken": 3, "/never": 1}
    run(Config(**FAST, retry_failed=("all",)), workspace)
    assert statuses(workspace) == {**found, "broken": "ok", "missing": "ok"}
    assert server.hits == {"/good": 1, "/missing": 2, "/broken": 3, "/never": 2}
    with pytest.raises(UserError, match="--retry_failed: expected all, or some of"):
        Config(**FAST, retry_failed=("ok",))


def test_attribution_names_author_licence_and_page(workspace, server, quick):
    server.pages = {"/1": photo(1), "/2": {"code": 404}}
    candidates(workspace, [f"{server.url}/1", f"{server.url}/2"])
    table = workspace.load("candidates").with_columns(
        author=["João", "Ann"],
        license=["Attribution License"] * 2,
        page_url=["http://page/1", "http://page/2"],
    )
    publish(table, workspace.table_path("candidates"), Provenance("test"))
    run(Config(**FAST), workspace)
    with open(workspace.data_dir / "attribution.csv", encoding="utf-8", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert (row["author"], row["license"], row["page"]) == ("João", "Attribution License", "http://page/1")
    assert workspace.image_file(row["file"]).is_file()


def test_attribution_is_written_only_if_it_changed(workspace, server, quick):
    server.pages = {"/1": photo(1), "/2": [{"code": 404}, photo(2)]}
    candidates(workspace, [f"{server.url}/1", f"{server.url}/2"])
    path = workspace.data_dir / "attribution.csv"
    run(Config(**FAST), workspace)
    first = path.stat().st_ino, path.read_text()
    run(Config(**FAST), workspace)
    assert (path.stat().st_ino, path.read_text()) == first
    run(Config(**FAST, retry_failed=("all",)), workspace)
    assert path.read_text().startswith(first[1]) and len(path.read_text().splitlines()) == 3
    path.unlink()
    run(Config(**FAST), workspace)
    assert len(path.read_text().splitlines()) == 3
