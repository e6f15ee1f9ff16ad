"""Which model versions answer, and which of them answers a request."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from epos.errors import UsageError

_VERSION = re.compile(r"[0-9a-z][0-9a-z.-]{0,62}")
_MAX_WEIGHT = 1_000_000


@dataclass(frozen=True)
class Share:
    """A version and its share of the requests.

    Attributes:
        version: of the model.
        weight: its part of the sum of all weights; 0 for one that answers only who asks for it by name.
    """

    version: str
    weight: int = 1

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.version):
            raise UsageError(f"--serve: {self.version!r} is no version of a model")
        if not 0 <= self.weight <= _MAX_WEIGHT:
            raise UsageError(f"--serve: {self.version}: weight {self.weight} is not in 0..{_MAX_WEIGHT}")

    @classmethod
    def parse(cls, text: str) -> Share:
        """Reads VERSION or VERSION=WEIGHT.

        Raises:
            UsageError: something else.
        """
        version, equals, weight = text.partition("=")
        if equals and not (weight.isascii() and weight.isdigit()):
            raise UsageError(f"--serve: {text!r}: the weight is no whole number from 0")
        return cls(version, int(weight) if equals else 1)

    def __str__(self) -> str:
        return f"{self.version}={self.weight}"


def check_shares(shares: Sequence[Share]) -> tuple[Share, ...]:
    """The shares, if they can serve together.

    Raises:
        UsageError: there is none, none has a weight, or a version is named twice.
    """
    versions = [share.version for share in shares]
    for version in versions:
        if versions.count(version) > 1:
            raise UsageError(f"--serve: {version} is given twice")
    if not any(share.weight for share in shares):
        raise UsageError("--serve: no version has a weight above 0, so none would answer")
    return tuple(shares)


def choose(shares: Sequence[Share], request_id: str) -> Share:
    """The version that answers a request: always the same one for the same id and the same shares.

    Weighted rendezvous hashing (Schindelhauer, Schomaker, 2005): the order of the shares does not matter, and where
    weights change only as many ids move to another version as must.
    """

    def distance(share: Share) -> float:
        if not share.weight:
            return math.inf
        digest = hashlib.sha256(f"{share.version} {request_id}".encode()).digest()
        uniform = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 1)
        return -math.log(uniform) / share.weight

    return min(shares, key=distance)
