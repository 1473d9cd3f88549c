"""Other addresses of a Flickr photo whose own is dead: its other sizes, and the YFCC100M mirror."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from wildshape.errors import UserError

KINDS = ("flickr", "commons")
# The image bucket of the Multimedia Commons initiative.
COMMONS = "https://multimedia-commons.s3-us-west-2.amazonaws.com/"
# https://live.staticflickr.com/{server}/{id}_{secret}[_{size}].jpg: the sizes that share a photo's secret,
# from 1024 pixels downwards; no suffix is 500 pixels.
_SIZES = ("_b", "_c", "_z", "", "_w", "_n")
_STATIC = re.compile(
    r"(?P<head>https?://(?:farm\d+|live|c\d+)\.static\.?flickr\.com/(?:\d+/)?\d+/\d+_[0-9a-f]+)"
    r"(?P<size>_[a-z]|)(?P<tail>\.jpg)(?:\?.*)?",
    re.IGNORECASE,
)


def other_sizes(url: str) -> list[str]:
    """Addresses of the same photo in other sizes, from large to small; none if it is not Flickr's.

    Of an original ("_o") the other sizes have another secret, which its address does not tell.
    """
    found = _STATIC.fullmatch(url.strip())
    if found is None or found["size"].lower() == "_o":
        return []
    return [found["head"] + size + found["tail"] for size in _SIZES if size != found["size"].lower()]


def commons_key(url: str) -> str:
    """The mirror's name of a photo: MD5 of its download address, each byte without a leading zero.

    So the released index was made ("%x" of each byte); 32 digits or fewer.
    """
    return "".join(f"{byte:x}" for byte in hashlib.md5(url.encode(), usedforsecurity=False).digest())


def commons_address(url: str, base: str = COMMONS) -> str:
    """Where the Multimedia Commons mirror keeps the photo with this download address."""
    key = commons_key(url)
    return f"{base.rstrip('/')}/data/images/{key[:3]}/{key[3:6]}/{key}.jpg"


def fallbacks(url: str, kinds: Sequence[str], base: str = COMMONS) -> list[str]:
    """Other addresses to try for a photo, in order.

    Args:
        url: Its own address.
        kinds: Some of `KINDS`.
        base: The mirror's address.
    """
    found: list[str] = []
    for kind in kinds:
        found += other_sizes(url) if kind == "flickr" else [commons_address(url, base)]
    return found


def check_kinds(kinds: Sequence[str]) -> None:
    """Check the names of fallbacks.

    Raises:
        UserError: for a name that is not in `KINDS`.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--fallbacks: expected some of {', '.join(KINDS)}; found {kind}")
