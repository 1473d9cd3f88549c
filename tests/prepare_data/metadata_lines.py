"""Made-up metadata in the dataset's layout, and random lines that try to break a reader."""

import random

TITLES = (
    "My+cow", "Moscow", "", "two%20cows%2C+%3Ca+href%3D%22x%22%3Egrazing%3C%2Fa%3E", "COW", "brown_cow",
    "cow2", "%2Ccow", "x%2Ccattle", "a+sea+cow", "sea-cow", "cow%26amp%3Bcalf", "b%C3%AAte", "cowboy",
    "\xff\xfecow", "ox", "boxes+of+oxen", "ox%21", "%E7%89%9B", "calf+muscle", "r%C3%A9d+bull",
)  # fmt: skip
LICENSES = (
    ("Attribution License", "http://creativecommons.org/licenses/by/2.0/"),
    ("Attribution-NonCommercial-ShareAlike License", "http://creativecommons.org/licenses/by-nc-sa/2.0/"),
    ("", ""),
)


def fields(
    photo_id, title="", description="", tags="", marker=0, url=None, machine_tags="", license=0
) -> list:
    """The 23 fields of one photo."""
    url = url or f"http://farm1.staticflickr.com/1/{photo_id}_ab.jpg"
    name, address = LICENSES[license]
    return [
        str(photo_id), "1@N00", "Jo%C3%A3o+P", "2008-01-01 00:00:00.0", "1199145600", "Canon", title,
        description, tags, machine_tags, "4.5", "52.25", "16", f"http://www.flickr.com/photos/1@N00/{photo_id}/",
        url, name, address, "1", "1", "ab", "ab", "jpg", str(marker),
    ]  # fmt: skip


def line(photo_id, *args, columns=25, **kwargs) -> str:
    """One line, with or without the later release's first column and hash."""
    values = fields(photo_id, *args, **kwargs)
    if columns == 25:
        values[:1] = ["7", str(photo_id), "0f0f"]
    return "\t".join(values)


def random_lines(seed: int, count: int) -> list[bytes]:
    """Photos, videos, blank lines, lines cut short, bad markers and addresses, bytes of no encoding."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        kind = rng.random()
        text = line(
            rng.randrange(count),
            rng.choice(TITLES),
            rng.choice(TITLES),
            ",".join(rng.choices(TITLES, k=rng.randrange(3))),
            marker=int(kind < 0.1),
            columns=rng.choice((23, 25)),
            url="no address" if kind > 0.97 else None,
            machine_tags=rng.choice(("", "animal:kind=cow")),
            license=rng.randrange(3),
        )
        raw = text.encode("latin-1" if "\xff" in text else "utf-8")
        if 0.90 < kind < 0.92:
            raw = rng.choice((b"", b"  ", b"\t"))
        elif 0.92 < kind < 0.95:
            raw = raw[: rng.randrange(len(raw))]
        elif 0.95 < kind < 0.96:
            raw = raw[:-1] + b"7"
        lines.append(raw)
    return lines
