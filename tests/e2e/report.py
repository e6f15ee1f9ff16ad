"""The report of a verification for people: one HTML file with everything in it, to look at, to print, to attach.

What could not be found out is said in its place. Nothing is loaded from anywhere, and no text can become markup.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import jinja2
import pytest
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeClient, items
from ansible.module_utils.slipway.workloads import KINDS, judge, judge_node

from .gpus import RESOURCE
from .site import Site

FILE = "index.html"
TEMPLATE = "report.html.j2"
# A message that is longer is cut in the middle: its beginning names what failed, its end tells why.
MESSAGE = 12_000
# What is quicker is no news to anybody.
WORTH_A_LINE = 0.5
Found = TypeVar("Found")


@dataclass
class Result:
    """One test: its name, what it promises, how it ended, and what it said.

    `outcome` is passed, failed, skipped, or not run where something ended the suite before. A failure of a fixture is one of the test.
    """

    name: str
    promise: str
    outcome: str = "not run"
    seconds: float = 0.0
    message: str = ""

    def add(self, phase: pytest.TestReport) -> None:
        """Take in how set-up, test or clean-up went."""
        self.seconds += phase.duration
        if phase.failed:
            self.outcome = "failed"
            self.message = cut("\n\n".join(filter(None, (self.message, phase.longreprtext))))
        elif phase.skipped and self.outcome != "failed":
            self.outcome = "skipped"
            # (file, line, reason) of whoever skipped.
            reason = phase.longrepr[2] if isinstance(phase.longrepr, tuple) else phase.longreprtext
            self.message = reason.removeprefix("Skipped: ")
        elif phase.when == "call" and self.outcome == "not run":
            self.outcome = "passed"


@dataclass
class Findings:
    """What a report is made of.

    Attributes:
        site: name, domain, release, origin (of the bundle).
        components: name, version, problem (empty: it is well), workloads (how many).
        nodes: name, roles, problem, kubelet, system, cpus, memory, gpus, gpu.
        phases, roles: seconds by name.
        training: the suite's record of the model, as in training.json; empty when there is none.
        prediction: the answer of the model service at the front door, as in prediction.json; empty when there is none.
        loss: the picture of the loss curve as a data URI, empty without one.
        overlays: pictures of poses by name, as data URIs.
        tests: every test that ran.
        missing: by key of the attributes above, why there is nothing.
        made: when.
    """

    site: Json
    components: Sequence[Json] = ()
    nodes: Sequence[Json] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    roles: Mapping[str, float] = field(default_factory=dict)
    training: Json = field(default_factory=dict)
    prediction: Json = field(default_factory=dict)
    loss: str = ""
    overlays: Mapping[str, str] = field(default_factory=dict)
    tests: Sequence[Result] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    made: datetime = field(default_factory=lambda: datetime.now(UTC))

    def count(self, outcome: str) -> int:
        """How many tests ended so."""
        return sum(test.outcome == outcome for test in self.tests)


def cut(text: str) -> str:
    """A message of a size that people read."""
    if len(text) <= MESSAGE:
        return text
    return f"{text[: MESSAGE // 3]}\n[... {len(text) - MESSAGE} characters ...]\n{text[-MESSAGE * 2 // 3 :]}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def percent(value: float, whole: float) -> str:
    """A share as CSS wants it, never outside of the whole."""
    return f"{100 * min(max(value / whole, 0), 1):.2f}%" if whole > 0 else "0%"


def worth_a_line(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """What took some time, with its seconds."""
    return [(name, took) for name, took in seconds.items() if took >= WORTH_A_LINE]


def render(findings: Findings) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "worth_a_line": worth_a_line}
    environment.globals["percent"] = percent
    return environment.get_template(TEMPLATE).render(it=findings)


def picture(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def read_nodes(kube: KubeClient) -> list[Json]:
    """Every node with what it offers, by name."""
    found = []
    for node in items(kube, "/api/v1/nodes"):
        labels, status = node["metadata"].get("labels", {}), node["status"]
        mark = "node-role.kubernetes.io/"
        roles = sorted(key.removeprefix(mark) for key in labels if key.startswith(mark))
        memory = status["capacity"]["memory"]
        found.append(
            {
                "name": node["metadata"]["name"],
                "roles": ", ".join(roles) or "agent",
                "problem": judge_node(node),
                "kubelet": status["nodeInfo"]["kubeletVersion"],
                "system": status["nodeInfo"]["osImage"],
                "cpus": status["capacity"]["cpu"],
                # The kubelet reports Ki.
                "memory": f"{int(memory.removesuffix('Ki')) / 2**20:.1f} GiB" if memory.endswith("Ki") else memory,
                "gpus": int(status["allocatable"].get(RESOURCE, 0)),
                "gpu": labels.get("nvidia.com/gpu.product", ""),
            }
        )
    return sorted(found, key=lambda node: node["name"])


def read_components(kube: KubeClient, names: Sequence[str], versions: Mapping[str, str]) -> list[Json]:
    """Each component with its version and whether all of its workloads run, in the order given."""
    found = []
    for name in names:
        # By convention a component's namespace has its role's name.
        namespace = name.replace("_", "-")
        workloads = [
            (kind, item)
            for kind, path in KINDS.items()
            if kind != "Job"
            for item in items(kube, path.format(namespace))
        ]
        problems = [
            f"{item['metadata']['name']}: {reason}" for kind, item in workloads if (reason := judge(kind, item)[0])
        ]
        found.append(
            {
                "name": name,
                "version": versions.get(name, ""),
                "workloads": len(workloads),
                "problem": "; ".join(problems),
            }
        )
    return found


def read_fresh(path: Path, since: float) -> Json:
    """A JSON file that this verification has written.

    Raises:
        SlipwayError: it has not.
    """
    if not path.is_file() or path.stat().st_mtime < since:
        raise SlipwayError(f"This verification has not written {path.name}.")
    try:
        value: Json = json.loads(path.read_text())
    except ValueError as error:
        raise SlipwayError(f"{path}: {error}") from error
    return value


def read_timings(path: str) -> Json:
    """What Ansible's callback has measured so far.

    Raises:
        SlipwayError: nobody measures.
    """
    if not path:
        raise SlipwayError("nobody measured: SLIPWAY_TIMINGS names the file, as `make` does")
    return read_fresh(Path(path), 0)


class Recorder:
    """Collects how the tests went and writes the report when they are over."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.since = time.time()
        self.results: dict[str, Result] = {}
        self.missing: dict[str, str] = {}
        self.path: Path | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what each test promises."""
        for item in session.items:
            promise = (getattr(getattr(item, "obj", None), "__doc__", None) or "").strip().partition("\n")[0]
            self.results[item.nodeid] = Result(item.nodeid.removeprefix("tests/e2e/"), promise)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test went."""
        if report.nodeid in self.results:
            self.results[report.nodeid].add(report)

    def pytest_sessionfinish(self) -> None:
        """Write the report, whatever went wrong before."""
        folder = Path(self.config.getoption("report_dir"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(render(self.findings(folder)))
        self.path = folder / FILE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where it is; in a failed verification it is one of the last lines."""
        if self.path:
            terminalreporter.write_line(f"report: {self.path}")

    def attempt(self, key: str, read: Callable[[], Found], default: Found) -> Found:
        """What `read` finds; what it raises is the reason for an empty place in the report."""
        try:
            return read()
        # Whatever is broken, the report of it is wanted.
        except Exception as error:
            self.missing[key] = str(error) or type(error).__name__
            return default

    def findings(self, folder: Path) -> Findings:
        """All that can be found out now."""
        option = self.config.getoption
        empty: Json = {}
        nothing: list[Json] = []
        manifest: Json = {}
        kubeconfig = Path(option("kubeconfig") or "")

        def look() -> KubeClient:
            manifest.update(Site(kubeconfig, Path(option("bundle"))).manifest)
            return KubeClient(str(kubeconfig))

        kube = self.attempt("site", look, None)
        nodes = components = nothing
        if kube:
            names = [name for name in option("components").split(",") if name]
            nodes = self.attempt("nodes", lambda: read_nodes(kube), nothing)
            components = self.attempt(
                "components", lambda: read_components(kube, names, manifest.get("versions", {})), nothing
            )
        timings = self.attempt("phases", lambda: read_timings(option("timings")), empty)
        training = self.attempt("training", lambda: read_fresh(folder / "training.json", self.since), empty)
        prediction = self.attempt("prediction", lambda: read_fresh(folder / "prediction.json", self.since), empty)
        pictures = sorted(path for path in (folder / "pictures").glob("*.png") if path.stat().st_mtime >= self.since)
        loss = next((picture(path) for path in pictures if path.stem == "loss"), "")
        return Findings(
            site={
                "name": option("site_name") or kubeconfig.parent.name,
                "domain": option("domain"),
                "release": manifest.get("release", ""),
                "origin": manifest.get("origin", ""),
                "k3s": manifest.get("versions", {}).get("k3s", ""),
            },
            components=components,
            nodes=nodes,
            # The run that measures is still verifying: of this phase nobody but the suite knows.
            phases={**timings.get("plays", {}), "The tests": time.time() - self.since},
            roles=timings.get("roles", {}),
            training=training,
            prediction=prediction,
            loss=loss,
            overlays={path.stem: picture(path) for path in pictures if path.stem != "loss"},
            tests=list(self.results.values()),
            missing=self.missing,
        )
