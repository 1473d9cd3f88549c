"""Which photos a category's words select: whole words, their plurals, exclusions, licences."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_plus

from wildshape.category import CategorySpec
from wildshape.errors import UserError

# Creative Commons' own short names; "cc0" and "pdm" are the public domain's two marks.
LICENSES = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "cc0", "pdm")
_LICENSE_WORDS = {"attribution": "by", "noncommercial": "nc", "noderivs": "nd", "sharealike": "sa"}
_LICENSE_URL = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)", re.IGNORECASE)
_LICENSE_SHORT = re.compile(r"\bcc[ _-]?(by(?:-nc)?(?:-nd|-sa)?)\b", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_ASCII_RUN = re.compile(r"[0-9a-z]+")


def plural(word: str) -> str:
    """English plural of the last word: pony, ponies; calf, calves; ox, oxen; cow, cows."""
    if word.endswith(("ox",)) and len(word) == 2:
        return word + "en"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith("lf"):
        return word[:-1] + "ves"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word + "s"


def license_code(name: str | None, url: str | None = None) -> str | None:
    """Short name of a Creative Commons licence, told by its address or its long name; None if unknown.

    "Attribution-NonCommercial License" is "by-nc".
    """
    found = _LICENSE_URL.search(url or "") or _LICENSE_URL.search(name or "")
    if found:
        code = found[2].lower().rstrip("-")
        code = {"zero": "cc0", "mark": "pdm"}.get(code, code)
        return code if code in LICENSES else None
    short = _LICENSE_SHORT.search(name or "")
    if short:
        return short[1].lower()
    if (name or "").strip().upper().startswith("CC0"):
        return "cc0"
    parts = [_LICENSE_WORDS.get(part) for part in re.split(r"[^a-z]+", (name or "").lower())]
    kept = [part for part in parts if part]
    order = [part for part in ("by", "nc", "nd", "sa") if part in kept]
    code = "-".join(order)
    return code if code in LICENSES else None


def decode(field: str) -> str:
    """A metadata field as a person wrote it: URL-decoded, without HTML, on one line."""
    return " ".join(_TAG.sub(" ", html.unescape(unquote_plus(field))).split())


def _forms(word: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form.strip().casefold() for form in (word, plural(word))))


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    forms = {form for word in words for form in _forms(word)}
    if not forms:
        return None
    # the blank of a phrase also stands for "-" and "_", but not for the line end between fields
    branches = [
        r"[ \t_\-]+".join(re.escape(part) for part in form.split())
        for form in sorted(forms, key=len, reverse=True)
    ]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(branches)})(?![^\W_])")


def _runs(words: Iterable[str]) -> dict[str, str] | None:
    """The first word of each form, with the longest run of plain letters in it; None if one has no run."""
    runs = {}
    for form in (form for word in words for form in _forms(word)):
        first = form.split()[0]
        found = _ASCII_RUN.findall(first)
        if not found:
            return None
        runs[first] = max(found, key=len)
    return runs


def _prefilter(runs: Mapping[str, str]) -> str:
    """A pattern for still encoded lines of any bytes, without which no word can stand in them.

    It reads the same in Python's `re`, over bytes, and in RE2: word boundaries are those of plain letters
    in both, and capitals are spelled out, for RE2 would take the Kelvin sign for a k. Letters that only
    Unicode's case folding makes equal are not looked for.
    """
    # Around a whole plain word there is nothing, a sign, or an encoded sign (%2C); a run of plain letters
    # inside another word may have letters around it, encoded or not.
    whole = sorted({_any_case(run) for word, run in runs.items() if run == word})
    inside = sorted({_any_case(run) for word, run in runs.items() if run != word})
    if whole:
        inside.append(rf"(?:\b|_|%[0-9A-Fa-f][0-9A-Fa-f])(?:{'|'.join(whole)})(?:\b|_)")
    return "|".join(inside)


def _any_case(run: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in run)


class Query:
    """A category's words: whole words or phrases, singular or plural, whatever their case.

    A photo is selected if any of `words` stands in its title, description or user tags, none of
    `exclude` does, and its licence is one of `licenses`.

    Args:
        words: To be found.
        exclude: To rule a photo out.
        machine_tags: Whether machine tags count as well.
        licenses: Short names (`LICENSES`); empty takes all, also unknown ones.

    Raises:
        UserError: no words, or a licence that is not known.
    """

    def __init__(
        self,
        words: Iterable[str],
        exclude: Iterable[str] = (),
        *,
        machine_tags: bool = False,
        licenses: Iterable[str] = (),
    ) -> None:
        self.words, self.exclude = tuple(words), tuple(exclude)
        self.machine_tags = machine_tags
        self.licenses = tuple(dict.fromkeys(name.strip().lower() for name in licenses))
        if not self.words:
            raise UserError("expected a word to search for; add synonyms: to the category")
        if unknown := [name for name in self.licenses if name not in LICENSES]:
            raise UserError(f"--licenses: expected some of {', '.join(LICENSES)}; found {unknown[0]}")
        self._words, self._exclude = _pattern(self.words), _pattern(self.exclude)
        runs = _runs(self.words)
        self.prefilter = None if runs is None else _prefilter(runs)
        self._prefilter = re.compile(self.prefilter.encode()) if self.prefilter else None
        self._runs = None if runs is None else {run.encode() for run in runs.values()}
        self._single: dict[str, re.Pattern[str] | None] = {}

    @classmethod
    def of(cls, category: CategorySpec, **options: object) -> Query:
        """The query of a category."""
        return cls(category.synonyms, category.exclude, **options)  # type: ignore[arg-type]

    def may_match(self, line: bytes) -> bool:
        """False only if no word can stand in the encoded `line`."""
        if self._prefilter is None or self._runs is None:
            return True
        lower = line.lower()
        # The plain test is a hundred times faster than the pattern and stops most lines.
        return any(run in lower for run in self._runs) and self._prefilter.search(line) is not None

    def text(self, row: Mapping[str, str]) -> str:
        """What is searched of a photo: its decoded fields, each tag too, separated by line ends."""
        tags = row["user_tags"].split(",")
        if self.machine_tags:
            tags += row["machine_tags"].split(",")
        parts = (row["title"], row["description"], *tags)
        return "\n".join(decode(part) for part in parts)

    def verdict(self, text: str) -> str:
        """`selected`, `no_word` or `excluded` for a decoded text, fields separated by line ends."""
        folded = text.casefold()
        if self._words is None or not self._words.search(folded):
            return "no_word"
        if self._exclude is not None and self._exclude.search(folded):
            return "excluded"
        return "selected"

    def allows(self, name: str | None, url: str | None) -> bool:
        """Whether the licence is one of those asked for."""
        return not self.licenses or license_code(name, url) in self.licenses

    def standing(self, text: str) -> tuple[list[str], list[str]]:
        """Which of `words`, and which of `exclude`, stand in a decoded text."""
        folded = text.casefold()
        for word in (*self.words, *self.exclude):
            self._single.setdefault(word, _pattern([word]))
        found = [
            [word for word in group if (pattern := self._single[word]) and pattern.search(folded)]
            for group in (self.words, self.exclude)
        ]
        return found[0], found[1]
