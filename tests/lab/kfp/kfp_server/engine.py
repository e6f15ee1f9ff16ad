"""Drives all runs: looks at the store and at the pods, and brings each run one step further."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import pods
from .drive import CAUSES, Drive, Limits
from .kube import Kube, KubeClient, KubeError
from .store import Run, Store, Unavailable

Json = dict[str, Any]

log = logging.getLogger("kfp.engine")

PACE_S = 0.5
# How old the list of pods may get when nothing is heard of a change.
REFRESH_S = 5.0
# How long the pods of a run are kept after its end, and how often that is looked after.
KEEP_S = 24 * 3600.0
CLEAN_EVERY_S = 60.0
LONGEST_REST_S = 20.0
_SELECTOR = ",".join(f"{key}={value}" for key, value in pods.LABELS.items())


class Engine:
    """Has no memory that counts: another one may go on from the store and the pods at any moment."""

    def __init__(
        self,
        store: Store,
        kube: Kube,
        site: pods.Site,
        clock: Callable[[], float] = time.time,
        limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    ) -> None:
        """`site` says what all pods have in common; see `site_of`."""
        self._store = store
        self._kube = kube
        self._site = site
        self._clock = clock
        self._limits = limits
        self._news = threading.Event()
        self._followed = False
        self._listed: list[Json] = []
        self._listed_at = 0.0
        self._listed_runs: frozenset[str] = frozenset()
        self._known: set[str] = set()
        self._cleaned_at = 0.0
        self._rest_until = 0.0
        self._failures = 0

    def tick(self) -> None:
        """One step of every run. While the database or Kubernetes is away, it rests for longer and longer."""
        if self._clock() < self._rest_until:
            return
        try:
            if self._store.leads():
                self._step()
            self._failures = 0
        except (Unavailable, KubeError) as error:
            self._failures += 1
            rest = min(0.5 * 2**self._failures, LONGEST_REST_S)
            self._rest_until = self._clock() + rest
            # What was asked for last may or may not have happened.
            self._news.set()
            log.warning("%s; again in %.0f s", error, rest)

    def run(self, stop: threading.Event) -> None:
        """Tick until told to stop: at once when there is news, else at a pace."""
        threading.Thread(target=self._follow, args=(stop,), name="pods", daemon=True).start()
        while not stop.is_set():
            self.tick()
            self._store.changed.wait(PACE_S)
            self._store.changed.clear()

    def _follow(self, stop: threading.Event) -> None:
        """Hear of changes of pods, and wake the engine."""
        while not stop.is_set():
            try:
                for _ in self._kube.watch("pods", _SELECTOR):
                    self._followed = True
                    self._news.set()
                    self._store.changed.set()
            except KubeError as error:
                log.warning("pods are not watched: %s", error)
            self._followed = False
            stop.wait(1.0)

    def _step(self) -> None:
        runs = self._store.list_active_runs()
        by_run = self._pods(runs)
        trouble: Exception | None = None
        for run in runs:
            try:
                self._drive(run, by_run.get(run.run_id, {}))
            except KubeError as error:
                # Others may fare better.
                trouble = error
        if self._clock() - self._cleaned_at > CLEAN_EVERY_S or self._orphaned(runs):
            self._clean()
        if trouble:
            raise trouble

    def _drive(self, run: Run, found: Mapping[str, Json]) -> None:
        drive: Drive | None = None
        try:
            drive = Drive(self._store, self._kube, self._site, run, found, self._clock, self._limits)
            drive.step()
        except (Unavailable, KubeError):
            raise
        except CAUSES as error:
            self._fail(run, str(error))
        except Exception as error:
            # A fault of the stand-in must not leave the run as it is for ever.
            log.exception("run %s", run.run_id)
            self._fail(run, f"fault of the stand-in: {type(error).__name__}: {error}")
        finally:
            if drive is not None and drive.touched:
                self._news.set()

    def _fail(self, run: Run, message: str) -> None:
        log.error("run %s cannot go on: %s", run.run_id, message)
        run.error = {"code": 13, "message": message}
        run.enter("FAILED")
        self._store.save_run(run)

    def _pods(self, runs: list[Run]) -> dict[str, dict[str, Json]]:
        """The pods of these runs, by run and name. Without runs, Kubernetes is not asked."""
        wanted = frozenset(run.run_id for run in runs)
        if not wanted:
            self._listed, self._listed_runs = [], wanted
            return {}
        old = self._clock() - self._listed_at > REFRESH_S
        if old or self._news.is_set() or not self._followed or wanted != self._listed_runs:
            # Cleared first: what happens during the list counts for the next one.
            self._news.clear()
            selector = f"{_SELECTOR},{pods.RUN_LABEL} in ({','.join(sorted(wanted))})"
            self._listed, self._listed_at, self._listed_runs = self._kube.list("pods", selector), self._clock(), wanted
        found: dict[str, dict[str, Json]] = {}
        for pod in self._listed:
            found.setdefault(_run_of(pod), {})[pod["metadata"]["name"]] = pod
        return found

    def _orphaned(self, runs: list[Run]) -> bool:
        """Whether a run that had pods is deleted."""
        active = {run.run_id for run in runs}
        gone = self._known - active
        self._known = active
        return any(self._store.run(run_id) is None for run_id in gone)

    def _clean(self) -> None:
        """Remove the pods of deleted runs, and those of runs that ended long ago. Others keep their logs."""
        self._cleaned_at = self._clock()
        runs: dict[str, Run | None] = {}
        # Only pods of runs: others may carry the component's label.
        for pod in self._kube.list("pods", f"{_SELECTOR},{pods.RUN_LABEL}"):
            run_id = _run_of(pod)
            if run_id not in runs:
                runs[run_id] = self._store.run(run_id)
            run = runs[run_id]
            old = run is not None and run.final and self._clock() - pods.seconds(run.finished_at) > KEEP_S
            if (run is None or old) and not pod["metadata"].get("deletionTimestamp"):
                self._kube.delete("pods", pod["metadata"]["name"])


def from_environment(store: Store) -> Engine:
    """The engine of a server in a pod."""
    return Engine(store, KubeClient(), site_of())


def site_of(environment: Mapping[str, str] = os.environ) -> pods.Site:
    """What the variables of the real API server say of all pods."""
    run_as: Json = {}
    for key, name in (("runAsUser", "USER"), ("runAsGroup", "GROUP")):
        if value := environment.get(f"DEFAULT_SECURITY_CONTEXT_RUN_AS_{name}"):
            run_as[key] = int(value)
    if value := environment.get("DEFAULT_SECURITY_CONTEXT_RUN_AS_NON_ROOT"):
        run_as["runAsNonRoot"] = value.lower() == "true"
    return pods.Site(
        image=environment["V2_LAUNCHER_IMAGE"],
        publish_logs=environment.get("PUBLISH_LOGS", "true") == "true",
        run_as=run_as,
    )


def _run_of(pod: Json) -> str:
    run_id: str = pod["metadata"].get("labels", {}).get(pods.RUN_LABEL, "")
    return run_id
