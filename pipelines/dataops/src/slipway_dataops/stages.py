"""What the DAG's tasks do, each from S3 to S3: they share no volume. What they hand on is small: names, hashes, numbers.

Each may be run again after it was killed at any point: the same input leads to the same result under the same name.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minio import Minio

from epos import store
from epos.errors import DataError
from epos.store import Location
from slipway_dataops import data, drops, lineage, statistics

Json = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stages:
    """The stages at their places.

    Attributes:
        client: of the object store.
        drops: where people drop data.
        data: where what is made of them goes.
        models: where the pipeline publishes models.
    """

    client: Minio
    drops: Location
    data: Location
    models: Location

    def find(self, named: list[str], start: Any, end: Any, must_be_there: bool = False) -> list[str]:
        """Names of the drops that a DAG run is about.

        Args:
            named: those that it was started for.
            start, end: its data interval, where it has one.
            must_be_there: whether a named drop that is not complete is an error.

        Raises:
            DataError: it is.
        """
        found = drops.finished(self.client, self.drops)
        chosen = drops.select(found, named, start, end)
        missing = sorted(set(named) - set(chosen))
        if missing:
            text = f"{self.drops}: no complete drop {', '.join(missing)} (<drop>/{drops.MARKER} says that one is)"
            if must_be_there:
                raise DataError(text)
            log.warning("%s", text)
        log.info("of %d complete drops these are handled: %s", len(found), ", ".join(chosen) or "none")
        return chosen

    def acquire(self, drop: str) -> Json:
        """Takes a snapshot of a drop: from here on it is these bytes or an error."""
        manifest = drops.snapshot(self.client, self.drops, drop)
        digest = drops.hash_of(manifest)
        name = lineage.snapshot_name(drop, digest)
        store.write_object(self.client, self.data, name, manifest)
        files = json.loads(manifest)["files"]
        return {
            "name": drop,
            "hash": digest,
            "location": str(self.drops.below(drop)),
            "snapshot": f"{self.data}/{name}",
            "files": len(files),
            "bytes": sum(entry["size"] for entry in files.values()),
        }

    def record(self, drop: Json) -> Json | None:
        """What is kept of a drop that was handled before."""
        return lineage.read(self.client, self.data, lineage.record_name(drop["name"], drop["hash"]))

    def observe(self, drop: Json, max_drift: float | None) -> Json:
        """Schema, statistics, and drift against the last accepted data, as a page and as JSON.

        Raises:
            DataError: the drift is larger than it may be.
        """
        accepted = lineage.read(self.client, self.data, lineage.ACCEPTED)
        before = accepted["statistics"] if accepted else None
        with self._dropped(drop) as root:
            now = statistics.describe(root)
            found = statistics.drift(before, now)
            title = f"Drop {drop['name']}, {drop['hash'][:12]}"
            page = statistics.report(title, root, now, before, found)
        name = f"reports/{drop['hash'][:12]}"
        store.write_object(self.client, self.data, f"{name}.html", page)
        compared = accepted["hash"] if accepted else None
        value = {
            "drop": drop["name"],
            "hash": drop["hash"],
            "compared_with": compared,
            "statistics": now,
            "drift": found,
        }
        store.write_json(self.client, self.data, f"{name}.json", value)
        report = f"{self.data}/{name}.html"
        for feature, index in found["features"].items():
            log.info("drift of %s: %.3f, %s", feature, index, statistics.level(index))
        for line in found["schema"]:
            log.info("schema: %s", line)
        if max_drift is not None and found["worst"] > max_drift:
            far = ", ".join(f"{n} {v:.2f}" for n, v in found["features"].items() if v > max_drift)
            raise DataError(
                f"{drop['location']}: drift against {compared}: {far}; at most {max_drift:g} is allowed: {report}"
            )
        return {"report": report, "statistics": f"{self.data}/{name}.json", "compared_with": compared, **found}

    def clean(self, drop: Json, max_removed: float) -> Json:
        """Takes out what cannot be used."""

        def work(source: Path, target: Path) -> Json:
            done = data.clean(source, target, max_removed)
            for line in done.examples:
                log.info("removed: %s", line)
            return {"kept": done.kept, "removed": dict(done.removed), "examples": done.examples}

        with self._dropped(drop) as root:
            return self._made("work/clean", root, work)

    def transform(self, cleaned: Json, max_side: int) -> Json:
        """Brings the images into one form."""
        with self._pulled(cleaned) as root:
            return self._made("work/transform", root, lambda source, target: data.transform(source, target, max_side))

    def split(self, transformed: Json, fraction: float, seed: int) -> Json:
        """Divides the images, and holds the result against the expectations of the training."""

        def work(source: Path, target: Path) -> Json:
            counts = data.split(source, target, fraction, seed)
            return counts | {"expectations": {o.name: o.checked for o in data.check(target)}}

        with self._pulled(transformed) as root:
            return self._made("sets", root, work)

    def link(self, chain: Json) -> Json:
        """Keeps the record of a drop that was trained on, and makes its statistics those that the next ones are compared with."""
        chain = {**chain, "model": lineage.model_of(self.client, self.models, chain["run"]["run_id"])}
        address = lineage.write(self.client, self.data, chain)
        observed = lineage.read(self.client, self.data, f"reports/{chain['drop']['hash'][:12]}.json")
        if observed:
            value = {"drop": chain["drop"]["name"], "hash": chain["drop"]["hash"], "statistics": observed["statistics"]}
            store.write_json(self.client, self.data, lineage.ACCEPTED, value)
        for stage in ("clean", "transform"):
            lineage.remove(self.client, Location.parse(chain[stage]["location"]))
        log.info("recorded %s", address)
        return {**chain, "record": address}

    @contextmanager
    def _dropped(self, drop: Json) -> Iterator[Path]:
        place = Location.parse(drop["snapshot"].rpartition("/")[0])
        manifest = store.read_object(self.client, place, drop["snapshot"].rpartition("/")[2])
        with _folder(drop["location"]) as root:
            store.pull(self.client, Location.parse(drop["location"]), root, manifest)
            yield root

    @contextmanager
    def _pulled(self, made: Json) -> Iterator[Path]:
        with _folder(made["location"]) as root:
            pulled = store.pull(self.client, Location.parse(made["location"]), root)
            if pulled["data_hash"] != made["hash"]:
                raise DataError(f"{root}: has data {pulled['data_hash'][:12]}, expected {made['hash'][:12]}")
            yield root

    def _made(self, stage: str, source: Path, work: Callable[[Path, Path], Json]) -> Json:
        with _folder(stage) as root:
            facts = work(source, root)
            place = self.data.below(stage)
            digest = lineage.keep(self.client, place, root)
            log.info("%s: data %s", stage, digest[:12])
            return {"hash": digest, "location": str(place.below(digest[:12])), **facts}


@contextmanager
def _folder(place: str) -> Iterator[Path]:
    """A folder for a while, that errors call by the place it stands for: people know no other."""
    with tempfile.TemporaryDirectory(prefix="dataops-") as folder:
        root = Path(folder) / "set"
        try:
            yield root
        except DataError as error:
            raise DataError(str(error).replace(str(root), place)) from error


def summary(chain: Json) -> str:
    """A line for people about a drop that was handled."""
    drop, data_set, model = chain["drop"], chain["split"], chain["model"]
    removed = sum(chain["clean"]["removed"].values())
    worst = chain["observe"]["worst"]
    text = f"drop {drop['name']} ({data_set['train']} images to learn from, {data_set['test']} held out"
    text += f", {removed} removed" if removed else ""
    text += f", drift {worst:.2f} {statistics.level(worst)})" if chain["observe"]["compared_with"] else ")"
    recall = f", recall {model['recall']:.3f}" if isinstance(model.get("recall"), int | float) else ""
    verdicts = {
        "released": f"model {model.get('version')} was released{recall}",
        "rejected": f"model {model.get('version')} was rejected{recall}: {model.get('reason')}",
    }
    return f"{text}: {verdicts.get(model['verdict'], 'what came of the model is not recorded')}; {chain['record']}"
