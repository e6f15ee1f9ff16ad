"""Downloads that resume after a cut and are only believed when their hash is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import requests
import urllib3
import yaml
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import file_sha256

T = TypeVar("T")
_CHUNK = 1 << 20
# Answers that another try does not change.
_FINAL = frozenset({400, 401, 403, 404, 405, 410, 451})


class HashError(SlipwayError):
    """The bytes are not those that were promised."""


@dataclass(frozen=True)
class Transfer:
    """How to fetch: `tries` in all, `timeout` seconds without a byte, `backoff` seconds times 1, 2, 4... in between."""

    tries: int = 5
    timeout: float = 30
    backoff: float = 1
    sleep: Callable[[float], None] = time.sleep

    def text(self, url: str) -> str:
        """A small text file such as a list of checksums. Raises SlipwayError."""
        return self._retry(url, lambda: self._get(url, {}).text)

    def file(self, url: str, target: Path, sha256: str) -> None:
        """Fetch `url` to `target`, which appears there whole and verified or not at all.

        What an earlier try (of this or an earlier run) left beside it is resumed. Raises SlipwayError.
        """
        # The name holds the wanted hash, so that the rest of another version is never continued.
        part = target.with_name(f".{target.name}.{sha256[:12]}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._retry(url, lambda: self._resume(url, part))
        actual = file_sha256(part)
        if actual != sha256:
            # Bytes of an earlier run may be the bad ones: once more, from nothing.
            part.unlink()
            self._retry(url, lambda: self._resume(url, part))
            actual = file_sha256(part)
        if actual != sha256:
            part.unlink()
            raise HashError(f"{url}: SHA-256 is {actual}, but {sha256} was published")
        part.replace(target)

    def unverified(self, url: str, target: Path) -> None:
        """Fetch `url` to `target`, whose content the caller judges: for what is packed anew now and then, so that no hash holds.

        Raises SlipwayError.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        self._retry(url, lambda: self._resume(url, target))

    def _retry(self, url: str, action: Callable[[], T]) -> T:
        for attempt in range(1, self.tries + 1):
            try:
                return action()
            except requests.HTTPError as error:
                said = f"{error.response.status_code} {error.response.reason}"
                if error.response.status_code in _FINAL:
                    raise SlipwayError(f"{url}: {said}") from error
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                said = str(error)
            if attempt < self.tries:
                self.sleep(self.backoff * 2 ** (attempt - 1))
        raise SlipwayError(f"{url}: not fetched in {self.tries} tries; the last one: {said}")

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        # identity: a server that packs a .tgz once more would break hash and resume position.
        response = requests.get(
            url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=self.timeout
        )
        response.raise_for_status()
        return response

    def _resume(self, url: str, part: Path) -> None:
        have = part.stat().st_size if part.exists() else 0
        try:
            response = self._get(url, {"Range": f"bytes={have}-"} if have else {})
        except requests.HTTPError as error:
            if error.response.status_code == 416:
                # Nothing follows: the file is whole, or longer than the real one; the hash tells.
                return
            raise
        with response, part.open("ab" if response.status_code == 206 else "wb") as stream:
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                stream.write(chunk)


def published_sha256(text: str, name: str, source: str) -> str:
    """The hash of `name` in a published list: `sha256sum` lines, a lone hash, or the index.yaml of a chart repository.

    In an index, `name` is `<chart>-<version>`. Raises SlipwayError when it is not there.
    """
    if source.endswith((".yaml", ".yml")):
        for chart, releases in (yaml.safe_load(text).get("entries") or {}).items():
            for release in releases:
                if f"{chart}-{release.get('version')}" == name:
                    return _hash(str(release.get("digest", "")), name, source)
        raise SlipwayError(f"{source} has no entry for {name}")
    listed: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 and not listed and len(words[0]) == 64:
            return _hash(words[0], name, source)
        if len(words) == 2:
            # The star marks binary mode.
            listed.append(words[1].lstrip("*").removeprefix("./"))
            if listed[-1] == name:
                return _hash(words[0], name, source)
    raise SlipwayError(f"{source} has no line for {name}; it has {', '.join(listed) or 'none'}")


def _hash(text: str, name: str, source: str) -> str:
    if len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef"):
        raise SlipwayError(f"{source}: what stands for {name} is no SHA-256")
    return text.lower()
