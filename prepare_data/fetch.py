"""Fetch addresses politely: many at once, with retries, back-off, time-outs and a size limit."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from wildshape.stage import package_version

USER_AGENT = f"wildshape/{package_version()} (animal-shape research; downloads photos for training)"
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_FORBIDDING = {"noai", "noimageai", "noindex", "noimageindex", "none"}
_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class FetchConfig:
    """How to fetch.

    Attributes:
        concurrency: Requests in flight at once.
        host_concurrency: Of these, requests to one host; None means no limit of its own.
        host_rate: Requests a second that one host is asked at most; None means no limit.
        timeout: Seconds for one attempt, from connecting to the last byte.
        connect_timeout: Seconds to connect.
        retries: Further attempts after the first one.
        backoff: Seconds before the first retry; doubles with each, with jitter of half to one.
        max_backoff: Longest back-off in seconds.
        max_retry_after: Longest wait in seconds that a server's Retry-After may ask for; beyond it
            the address is given up as `rate_limited`.
        max_bytes: Size limit of a body.
        user_agent: Who asks.
        heed_robots_tag: Whether an image whose X-Robots-Tag forbids its use is left alone.
        shared_hosts: Hosts that other processes ask as well.
        sharers: How many processes ask them, this one included; each keeps to its part of a host's limits.
    """

    concurrency: int = 64
    host_concurrency: int | None = None
    host_rate: float | None = None
    timeout: float = 30.0
    connect_timeout: float = 10.0
    retries: int = 4
    backoff: float = 0.5
    max_backoff: float = 30.0
    max_retry_after: float = 120.0
    max_bytes: int = 32 * 1024 * 1024
    user_agent: str = USER_AGENT
    heed_robots_tag: bool = True
    shared_hosts: tuple[str, ...] = ()
    sharers: int = 1


@dataclass(frozen=True)
class Fetched:
    """The outcome for one address: status `ok` and a body, or a status and its reason.

    `url` is the address that answered in the end, after redirects.
    """

    status: str
    body: bytes = b""
    error: str | None = None
    attempts: int = 1
    url: str | None = None


@dataclass(frozen=True)
class _Attempt:
    fetched: Fetched
    retry: bool = False
    retry_after: float | None = None


def parse_retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, section 10.2.3): a number or a date.

    None if the header is absent or is neither; a date gone by gives 0.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - (time.time() if now is None else now))


def forbids(values: Iterable[str], agent: str = "wildshape") -> str | None:
    """The directive of X-Robots-Tag headers that forbids taking an image for training; None if none does.

    A directive may be for one agent only ("otherbot: noai"); those for others are passed over.
    """
    for value in values:
        applies = True
        for part in value.lower().split(","):
            name, colon, rest = part.strip().partition(":")
            if colon and name.strip() not in _WITH_VALUE:
                applies = name.strip() in ("*", agent)
                part = rest
            if applies and part.strip() in _FORBIDDING:
                return part.strip()
    return None


class _Host:
    """How much one host may be asked, and since when it wants to be left alone."""

    def __init__(self, config: FetchConfig, name: str) -> None:
        sharers = config.sharers if name in config.shared_hosts else 1
        self.paused_until = 0.0
        self._next = 0.0
        self._gap = sharers / config.host_rate if config.host_rate else 0.0
        self.slots = asyncio.Semaphore(max(1, (config.host_concurrency or config.concurrency) // sharers))

    def wait(self) -> float:
        """Seconds until a request may start, by the host's Retry-After and its rate."""
        return max(self.pause(), self._next - time.monotonic())

    def pause(self) -> float:
        """Seconds for which the host still wants to be left alone."""
        return max(0.0, self.paused_until - time.monotonic())

    def start(self) -> None:
        """Note that a request starts."""
        self._next = time.monotonic() + self._gap


class Fetcher:
    """Fetches addresses; use as an async context manager.

    A server that answers with Retry-After is left alone for that long by every request to the same
    host, and given up for now if that is longer than `max_retry_after`. A request that waits for its host
    holds no slot, so that others go on.

    Args:
        config: How to fetch.
        ready: Awaited before each request, once its host's turn has come.
    """

    def __init__(self, config: FetchConfig, ready: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.config = config
        self._ready = ready
        self._random = random.Random()
        self._hosts: dict[str, _Host] = {}
        self._proxies = urllib.request.getproxies()

    async def __aenter__(self) -> Fetcher:
        """Open the connections' pool."""
        config = self.config
        self._slots = asyncio.Semaphore(config.concurrency)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.concurrency, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(
                total=config.timeout, sock_connect=min(config.connect_timeout, config.timeout)
            ),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.5"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, url: str) -> Fetched:
        """Fetch one address; every outcome is a `Fetched`, none an exception."""
        try:
            host = urlsplit(url).netloc
        except ValueError as error:
            return Fetched("http_error", error=f"expected an address; found {url} ({error})")
        if host not in self._hosts:
            self._hosts[host] = _Host(self.config, host)
        place = self._hosts[host]
        attempts = 0
        while True:
            # The host's slot first: a request that waits for its host holds none of the common ones.
            async with place.slots:
                while (wait := place.wait()) > 0:
                    if (pause := place.pause()) > self.config.max_retry_after:
                        reason = f"{host} asked to be left alone for {pause:.0f} s more"
                        return Fetched("rate_limited", error=reason, attempts=attempts)
                    await asyncio.sleep(wait)
                async with self._slots:
                    if self._ready is not None:
                        await self._ready()
                    if place.wait() > 0:
                        continue
                    place.start()
                    attempts += 1
                    attempt = await self._attempt(url)
            wait_after = self._wait_after(attempt, attempts)
            if attempt.retry_after is not None:
                place.paused_until = max(place.paused_until, time.monotonic() + attempt.retry_after)
            if wait_after is None:
                return replace(attempt.fetched, attempts=attempts)
            await asyncio.sleep(wait_after)

    def _wait_after(self, attempt: _Attempt, attempts: int) -> float | None:
        """Seconds before the next attempt, or None if there is none."""
        config = self.config
        if not attempt.retry or attempts > config.retries:
            return None
        backoff = min(config.max_backoff, config.backoff * 2 ** (attempts - 1))
        backoff *= self._random.uniform(0.5, 1.0)
        if attempt.retry_after is None:
            return backoff
        if attempt.retry_after > config.max_retry_after:
            return None
        # the jitter keeps those that waited for the same host from returning all at once
        return attempt.retry_after + min(backoff, 0.25)

    async def _attempt(self, url: str) -> _Attempt:
        try:
            async with self._session.get(url, proxy=self._proxy(url)) as response:
                if response.status != 200:
                    return _refusal(response)
                tags = response.headers.getall("X-Robots-Tag", [])
                if self.config.heed_robots_tag and (tag := forbids(tags)):
                    return _Attempt(Fetched("forbidden", error=f"X-Robots-Tag: {tag}"))
                body = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK):
                    body += chunk
                    if len(body) > self.config.max_bytes:
                        reason = f"more than {self.config.max_bytes} bytes"
                        return _Attempt(Fetched("too_large", error=reason))
                return _Attempt(Fetched("ok", bytes(body), url=str(response.url)))
        except TimeoutError as error:  # aiohttp's time-outs derive from it
            reason = str(error) or f"no answer in {self.config.timeout:g} s"
            return _Attempt(Fetched("timeout", error=reason), retry=True)
        except aiohttp.ClientPayloadError as error:
            return _Attempt(Fetched("truncated", error=_first_line(error)), retry=True)
        except (aiohttp.InvalidURL, aiohttp.TooManyRedirects, ValueError) as error:
            return _Attempt(Fetched("http_error", error=_first_line(error)))
        except (aiohttp.ClientError, OSError) as error:
            return _Attempt(Fetched("connection", error=_first_line(error)), retry=True)

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
            return None
        return self._proxies.get(parts.scheme)


def _refusal(response: aiohttp.ClientResponse) -> _Attempt:
    code = response.status
    reason = f"HTTP {code} {response.reason or ''}".strip()
    status = {404: "not_found", 410: "not_found", 429: "rate_limited"}.get(code, "http_error")
    header = response.headers.get("Retry-After")
    wait = parse_retry_after(header) if code in (429, 503) else None
    if header is not None and code in (429, 503):
        reason += f", Retry-After: {header}"
    return _Attempt(Fetched(status, error=reason), code in _RETRIED, wait)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"
