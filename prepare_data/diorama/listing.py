"""The synthetic web's listing: YFCC100M-style metadata, and the folder that a server serves.

The 23 tab-separated columns follow the YFCC100M release (Thomee et al. 2016): photo id, user id,
nickname, date taken, date uploaded, device, title, description, user tags, machine tags, longitude,
latitude, accuracy, page address, download address, license, license address, server, farm, secret,
original secret, extension, marker (0 photo, 1 video); text is URL-encoded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np

from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.plan import PHOTO_ID_BASE
from wildshape.category import CategorySpec
from wildshape.files import atomic_write, write_json
from wildshape.workspace import Workspace

OK, RATE_LIMITED, TRUNCATED, CUT, PAGE = "ok", "rate_limited", "truncated", "cut", "page"
_LICENSES = (
    ("Attribution License", "by/2.0"),
    ("Attribution-ShareAlike License", "by-sa/2.0"),
    ("Attribution-NonCommercial License", "by-nc/2.0"),
    ("Attribution-NoDerivs License", "by-nd/2.0"),
)
_NICKNAMES = ("ada_k", "Björn Ås", "field notes", "m.oliveira", "tomas+lens", "yuki55", "Ruth & Co")
_DEVICES = ("Canon EOS 350D", "NIKON D80", "SONY DSC-H5", "Panasonic DMC-FZ50", "")
_TITLES = (
    "{} in the field", "Grazing {}", "our neighbour's {}", "{} on the hill", "Morning with the {}",
    "{}", "IMG_{n} {}", "young {} by the fence", "{} & clouds", "wild {}, day {d}",
)  # fmt: skip
_DESCRIPTIONS = (
    "", "", "Seen on a walk.", "Taken last {season}; the light was <b>lovely</b>.",
    "100% crop, no filter", "three of them came close", "Ein schöner Tag draußen",
)  # fmt: skip
_SEASONS = ("spring", "summer", "autumn", "winter")
_OTHER = (
    "sunset",
    "old bridge",
    "birthday cake",
    "concert",
    "city at night",
    "my bicycle",
    "harbour",
)


@dataclass(frozen=True)
class Photo:
    """What the listing says of one photo besides its words; a function of its id."""

    key: str
    nickname: str
    user: str
    server: int
    farm: int
    secret: str
    license_name: str
    license_url: str

    @property
    def path(self) -> str:
        """Path on the server."""
        return f"/{self.server}/{self.key}_{self.secret}.jpg"

    @property
    def page_url(self) -> str:
        """Address of the photo's page; it is never requested."""
        return f"http://www.flickr.example/photos/{self.user}/{self.key}/"


def photo_of(key: str) -> Photo:
    """The photo of an id."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    name, url = _LICENSES[int(rng.integers(len(_LICENSES)))]
    who = int(rng.integers(len(_NICKNAMES)))
    return Photo(
        key, _NICKNAMES[who], f"{10_000_000 + 7919 * who}@N0{who}", int(rng.integers(1, 90)),
        int(rng.integers(1, 6)), f"{int(rng.integers(1 << 40)):010x}", name,
        f"http://creativecommons.org/licenses/{url}/",
    )  # fmt: skip


@dataclass(frozen=True)
class Site:
    """What the server serves.

    Attributes:
        photos: keys of real pictures.
        failing: behaviour -> keys of addresses that never give a picture.
    """

    photos: tuple[str, ...]
    failing: dict[str, tuple[str, ...]]


def write_site(folder: Path, files: Sequence[tuple[str, bytes]], config: DioramaConfig) -> Site:
    """Writes the web folder and ``server.json``, which tells how each path behaves."""
    rng = np.random.default_rng([config.seed, 31])
    routes: dict[str, dict[str, str]] = {}
    slow = set()
    if files:
        count = round(config.rate_limited_share * len(files))
        slow = set(rng.choice(len(files), count, replace=False).tolist())
    for n, (key, data) in enumerate(files):
        path = photo_of(key).path
        with atomic_write(folder / "web" / path[1:]) as handle:
            handle.write(data)
        routes[path] = {"kind": RATE_LIMITED if n in slow else OK, "file": f"web{path}"}
    failing: dict[str, list[str]] = {"not_found": [], TRUNCATED: [], CUT: [], PAGE: []}
    number = PHOTO_ID_BASE // 2
    for kinds, share in (
        (("not_found",), config.not_found_share),
        ((TRUNCATED, CUT), config.truncated_share),
        ((PAGE,), config.not_image_share),
    ):
        for n in range(round(share * config.num_web)):
            number += int(rng.integers(100, 90_000))
            kind, path = kinds[n % len(kinds)], photo_of(str(number)).path
            failing[kind].append(str(number))
            if kind == "not_found":
                continue
            source = photo_of(files[int(rng.integers(len(files)))][0]).path if files else ""
            routes[path] = {"kind": kind, "file": f"web{source}" if source and kind != PAGE else ""}
    write_json(folder / "server.json", routes)
    return Site(tuple(key for key, _ in files), {k: tuple(v) for k, v in failing.items()})


def choose_address(folder: Path) -> str:
    """The address that a world's metadata names: a port drawn from the folder's path."""
    # below the range that systems hand out to outgoing connections, so that it is rarely taken
    port = 20_000 + zlib.crc32(str(folder.resolve()).encode()) % 12_000
    return f"http://127.0.0.1:{port}"


def _words(category: CategorySpec, key: str) -> tuple[str, str, list[str]]:
    rng = np.random.default_rng(zlib.crc32(f"{key} words".encode()))
    word = str(rng.choice(category.synonyms)) if rng.random() < 0.4 else category.synonyms[0]
    title = _TITLES[int(rng.integers(len(_TITLES)))].format(word, n=rng.integers(9999), d=rng.integers(9))
    text = _DESCRIPTIONS[int(rng.integers(len(_DESCRIPTIONS)))]
    text = text.format(season=_SEASONS[int(rng.integers(4))])
    tags = [word, str(rng.choice(["nature", "farm", "animal", "outdoors", "travel"]))]
    if rng.random() < 0.25:  # found by its tags alone
        title = f"DSC_{int(rng.integers(9999)):04d}"
    return title[:1].upper() + title[1:], text, tags


def _line(photo: Photo, words: tuple[str, str, list[str]], base_url: str, video: bool = False) -> str:
    rng = np.random.default_rng(zlib.crc32(f"{photo.key} place".encode()))
    year, month, day = (
        2005 + int(rng.integers(9)),
        1 + int(rng.integers(12)),
        1 + int(rng.integers(28)),
    )
    uploaded = 1_104_537_600 + (year - 2005) * 31_557_600 + month * 2_629_800
    placed = rng.random() < 0.5
    title, text, tags = words
    fields = [
        photo.key, photo.user, quote_plus(photo.nickname), f"{year}-{month:02d}-{day:02d} 12:30:00.0",
        str(uploaded), quote_plus(_DEVICES[int(rng.integers(len(_DEVICES)))]), quote_plus(title),
        quote_plus(text), ",".join(quote_plus(tag) for tag in tags), "",
        f"{rng.uniform(-120, 150):.6f}" if placed else "", f"{rng.uniform(-40, 60):.6f}" if placed else "",
        "16" if placed else "", photo.page_url, f"{base_url}{photo.path}", photo.license_name,
        photo.license_url, str(photo.server), str(photo.farm), photo.secret, photo.secret,
        "mov" if video else "jpg", "1" if video else "0",
    ]  # fmt: skip
    return "\t".join(fields)


def _other_lines(category: CategorySpec, count: int, base_url: str) -> Iterator[str]:
    """Rows that a search must not take: other things, excluded phrases, videos."""
    rng = np.random.default_rng(zlib.crc32(category.name.encode()))
    for n in range(count):
        key = str(PHOTO_ID_BASE // 3 + 1000 * n + int(rng.integers(1000)))
        kind = n % 4
        if kind == 0 and category.exclude:
            phrase = str(rng.choice(category.exclude))
            words = (f"A {phrase}", "", [phrase, category.synonyms[0]])
        elif kind == 1:
            words = (f"{category.synonyms[0]} on film", "", [category.synonyms[0]])
        else:
            subject = str(rng.choice(_OTHER))
            words = (subject, "", [subject.replace(" ", "")])
        yield _line(photo_of(key), words, base_url, video=kind == 1)


def metadata_path(workspace: Workspace) -> Path:
    """The world's metadata file."""
    return workspace.metadata_dir / "diorama_yfcc100m.tsv"


def write_metadata(
    workspace: Workspace, site: Site, config: DioramaConfig, base_url: str
) -> dict[str, Any]:
    """Writes the metadata file, rows shuffled; returns counts by what the address gives."""
    category = workspace.category
    keys = list(site.photos) + [key for group in site.failing.values() for key in group]
    lines = [_line(photo_of(key), _words(category, key), base_url) for key in keys]
    others = list(_other_lines(category, round(config.other_subject_share * config.num_web), base_url))
    lines += others
    rng = np.random.default_rng([config.seed, 37])
    with atomic_write(metadata_path(workspace), "w") as handle:
        for n in rng.permutation(len(lines)):
            handle.write(lines[n] + "\n")
    counts = {kind: len(group) for kind, group in site.failing.items()}
    limited = round(config.rate_limited_share * len(site.photos))
    return {"web": len(site.photos), **counts, RATE_LIMITED: limited, "other_subjects": len(others)}


def change_address(workspace: Workspace, old: str, new: str) -> None:
    """Puts another server address into the metadata; photo ids, and so record ids, stay."""
    path = metadata_path(workspace)
    text = path.read_text(encoding="utf-8").replace(f"\t{old}/", f"\t{new}/")
    with atomic_write(path, "w") as handle:
        handle.write(text)
