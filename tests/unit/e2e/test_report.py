"""The report for people: everything is in one file, what is missing is said, and no text becomes markup."""

from __future__ import annotations

import json
import os
import re
import struct
import time
import zlib
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.e2e import report
from tests.e2e.report import Findings, Recorder, Result, render

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def png(width: int = 4, height: int = 3, colour: tuple[int, int, int] = (200, 60, 60)) -> bytes:
    """A picture of one colour."""
    rows = (b"\x00" + bytes(colour) * width) * height
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """A verification where everything went well but one test."""
    (tmp_path / "loss.png").write_bytes(png())
    uri = report.picture(tmp_path / "loss.png")
    return Findings(
        site={"name": "lab", "domain": "lab.internal", "release": "2026.11", "origin": "registries", "k3s": "v1.35.8"},
        components=[
            {"name": "minio", "version": "RELEASE.2025", "workloads": 1, "problem": ""},
            {"name": "argocd", "version": "v3.2.6", "workloads": 6, "problem": "argocd-server: 0 of 1 pods are ready"},
        ],
        nodes=[
            {
                "name": "server-1", "roles": "control-plane", "problem": "", "kubelet": "v1.35.8", "system": "Debian GNU/Linux 12",
                "cpus": "2", "memory": "7.8 GiB", "gpus": 1, "gpu": "NVIDIA-H100",
            }
        ],
        phases={"Preflight": 12.0, "Platform": 161.0, "Nothing": 0.1},
        roles={"minio": 20.5},
        training={
            "version": "4e1b7c", "run_id": "0824c0d1-da25-4ea2-a508-0b0394a1a237", "data_hash": "9f" * 32, "recall": 0.7646,
            "min_recall": 0.5, "commit": "c0ffee", "device": "cpu (cpu)", "gpus": ["GPU-1"], "train_seconds": 171.2,
            "trained_at": "2026-11-26T18:00:00+00:00", "run_seconds": 200.0,
            "urls": {"Application": "https://argocd.lab.internal/applications/epos-dev"},
            "tasks": [
                {"name": "ingest", "state": "SUCCEEDED", "begin": 1.0, "seconds": 9.0},
                {"name": "train", "state": "SUCCEEDED", "begin": 20.0, "seconds": 120.0},
            ],
        },
        prediction={
            "url": "https://epos-dev.lab.internal/v1/predict", "status": 200, "seconds": 0.4, "version": "4e1b7c",
            "poses": [{"object": 1, "distance_mm": 712.3, "score": 0.91}],
        },
        loss=uri,
        overlays={"000001_000002": uri},
        tests=[
            Result("test_a.py::test_b", "It holds.", "passed", 1.0),
            Result("test_a.py::test_c", "It does not.", "failed", 2.0, "AssertionError: pod x: OOMKilled"),
            Result("test_a.py::test_d", "Elsewhere.", "skipped", 0.0, "no node of this site advertises GPUs"),
        ],
        made=datetime(2026, 11, 26, 18, 5, tzinfo=UTC),
    )  # fmt: skip


class Loads(HTMLParser):
    """What a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        assert not [key for key in values if key.startswith("on")], attrs
        self.loads += [value or "" for key, value in attrs if key in ("src", "srcset", "data", "action", "background")]
        self.loads += [values.get("href") or ""] if tag == "link" else []


def loads(page: str) -> Loads:
    parser = Loads()
    parser.feed(page)
    return parser


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]).split())


def test_everything_is_in_one_file(findings: Findings) -> None:
    page = render(findings)
    found = loads(page)
    assert len(found.loads) == 2
    assert all(each.startswith("data:image/png;base64,") for each in found.loads)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(found.tags)
    assert "@import" not in page and "url(" not in page


def test_what_people_look_for_is_there(findings: Findings) -> None:
    text = text_of(render(findings))
    for wanted in (
        *(
            "lab.internal",
            "2026.11",
            "1 of 3 tests failed",
            "1 skipped",
            "OOMKilled",
            "no node of this site advertises GPUs",
        ),
        *(
            "0.7646",
            "gate 0.50",
            "0824c0d1-da25-4ea2-a508-0b0394a1a237",
            "c0ffee",
            "9f9f",
            "cpu (cpu)",
            "GPU-1",
            "2 min 51 s",
        ),
        *("RELEASE.2025", "argocd-server: 0 of 1 pods are ready", "server-1", "NVIDIA-H100", "2 min 41 s", "20 s"),
        *("https://epos-dev.lab.internal/v1/predict answered 200", "712 mm", "0.910", "ingest", "000001_000002"),
    ):
        assert wanted in text, wanted
    # What took no time is no phase that anybody looks for.
    assert "Nothing" not in text


@pytest.mark.parametrize(("recall", "shade"), [(0.7646, "fill"), (0.5, "fill"), (0.499, "fill off")])
def test_recall_is_held_against_the_gate(findings: Findings, recall: float, shade: str) -> None:
    findings.training["recall"] = recall
    page = render(findings)
    assert f'<div class="{shade}" style="width: {100 * recall:.2f}%"></div>' in page
    assert '<div class="gate" style="left: 50.00%"></div>' in page


def test_no_text_becomes_markup(findings: Findings) -> None:
    def poison(value: Any) -> Any:
        match value:
            case str():
                return (
                    value
                    if value.startswith("data:") or value in ("SUCCEEDED", "passed", "failed", "skipped")
                    else HOSTILE + value
                )
            case dict():
                return {poison(key) if key not in KEYS else key: poison(each) for key, each in value.items()}
            case list():
                return [poison(each) for each in value]
            case Result():
                return Result(
                    poison(value.name), poison(value.promise), value.outcome, value.seconds, poison(value.message)
                )
        return value

    names = ("site", "components", "nodes", "phases", "roles", "training", "prediction", "tests", "overlays")
    values = {name: getattr(findings, name) for name in names}
    keys = [key for name in ("site", "training", "prediction") for key in values[name]]
    keys += [key for each in (*values["components"], *values["nodes"], *findings.training["tasks"]) for key in each]
    KEYS = {*keys, *findings.prediction["poses"][0]}
    page = render(Findings(**{name: poison(value) for name, value in values.items()}, missing={"site": HOSTILE}))
    assert "alert(" in page
    found = loads(page)
    assert "script" not in found.tags
    assert all(each.startswith("data:") for each in found.loads)


def test_links_lead_to_pages_only(findings: Findings) -> None:
    findings.training["urls"] = {"Run": "javascript:alert(1)"}
    assert "href" not in render(findings)


def test_missing_pieces_are_said(findings: Findings) -> None:
    text = text_of(render(Findings(site={"name": "x", "domain": "", "release": "", "origin": "", "k3s": ""})))
    for wanted in (
        *(
            "No test ran",
            "no record of a training",
            "No prediction was asked for",
            "has read no loss curve",
            "no pictures of poses",
        ),
        *("Nobody said which components", "No node was found", "Nobody measured"),
    ):
        assert wanted in text, wanted
    reasons = {"training": "This verification has not written training.json.", "nodes": "the API does not answer"}
    text = text_of(render(Findings(site=findings.site, missing=reasons)))
    assert all(reason in text for reason in reasons.values())


def test_a_job_and_another_model_are_said(findings: Findings) -> None:
    for key in ("run_id", "commit", "tasks", "urls", "run_seconds"):
        del findings.training[key]
    findings.training["way"] = "a Kubernetes Job: the site has no component kubeflow_pipelines"
    findings.prediction["version"] = "older"
    text = text_of(render(findings))
    for wanted in ("the site has no component kubeflow_pipelines", "not deployed", "not the model above"):
        assert wanted in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "62 min 05 s")],
)
def test_times_for_people(seconds: float, expected: str) -> None:
    assert report.duration(seconds) == expected


def test_long_messages_are_cut_in_the_middle() -> None:
    text = report.cut("a" * 10_000 + "b" * 10_000)
    assert len(text) < report.MESSAGE + 100
    assert text.startswith("aaa") and text.endswith("bbb") and "8000 characters" in text


def phase(when: str, outcome: str, text: Any = "", seconds: float = 1.0) -> Any:
    return SimpleNamespace(
        nodeid="tests/e2e/test_a.py::test_b", when=when, duration=seconds, longrepr=text, longreprtext=str(text),
        passed=outcome == "passed", failed=outcome == "failed", skipped=outcome == "skipped",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("phases", "outcome", "message"),
    [
        ([], "not run", ""),
        ([phase("setup", "passed")], "not run", ""),
        ([phase("setup", "passed"), phase("call", "passed"), phase("teardown", "passed")], "passed", ""),
        ([phase("setup", "passed"), phase("call", "failed", "why"), phase("teardown", "passed")], "failed", "why"),
        ([phase("setup", "failed", "no way"), phase("teardown", "passed")], "failed", "no way"),
        ([phase("setup", "passed"), phase("call", "passed"), phase("teardown", "failed", "left")], "failed", "left"),
        ([phase("setup", "skipped", ("f.py", 3, "Skipped: no GPU")), phase("teardown", "passed")], "skipped", "no GPU"),
    ],
)
def test_how_a_test_went(phases: list[Any], outcome: str, message: str) -> None:
    result = Result("x", "")
    for each in phases:
        result.add(each)
    assert (result.outcome, result.message, result.seconds) == (outcome, message, float(len(phases)))


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    """A recorder of a site that cannot be reached, with results of this verification and of an older one."""
    options = {
        "report_dir": str(tmp_path / "report"), "kubeconfig": str(tmp_path / "none"), "bundle": str(tmp_path), "components": "minio",
        "timings": str(tmp_path / "timings.json"), "site_name": "lab", "domain": "lab.internal",
    }  # fmt: skip
    return Recorder(SimpleNamespace(getoption=options.__getitem__))  # type: ignore[arg-type]


def test_a_report_is_written_whatever_is_broken(recorder: Recorder, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    (folder / "pictures").mkdir(parents=True)
    (folder / "training.json").write_text("{}")
    (folder / "pictures/loss.png").write_bytes(png())
    for path in (folder / "training.json", folder / "pictures/loss.png"):
        os.utime(path, (time.time() - 100, time.time() - 100))
    (folder / "prediction.json").write_text("{")
    (tmp_path / "timings.json").write_text(json.dumps({"plays": {"Judge": 7.0}, "roles": {}}))
    item = SimpleNamespace(nodeid="tests/e2e/test_a.py::test_b", obj=test_links_lead_to_pages_only)
    recorder.pytest_collection_finish(SimpleNamespace(items=[item]))  # type: ignore[arg-type]
    recorder.pytest_runtest_logreport(phase("call", "failed", "why it failed"))
    recorder.pytest_sessionfinish()
    text = text_of((folder / report.FILE).read_text())
    for wanted in (
        "test_a.py::test_b",
        "why it failed",
        "Judge",
        "not written training.json",
        "prediction.json",
        "bundle.yml",
    ):
        assert wanted in text, wanted
    assert "data:image" not in (folder / report.FILE).read_text().partition("</head>")[2]


def node(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "n",
            "labels": {"node-role.kubernetes.io/control-plane": "true", "nvidia.com/gpu.product": "H100"},
        },
        "spec": {},
        "status": {
            "capacity": {"cpu": "2", "memory": "8123456Ki"},
            "allocatable": {"nvidia.com/gpu": "2"},
            "nodeInfo": {"kubeletVersion": "v1.35.8", "osImage": "Debian"},
            "conditions": [{"type": "Ready", "status": "True"}],
            **more,
        },
    }


class Api:
    """Answers by path."""

    def __init__(self, answers: dict[str, list[dict[str, Any]]]) -> None:
        self.answers = answers

    def get(self, path: str, **_: str) -> dict[str, Any]:
        """A list of objects."""
        return {"items": self.answers.get(path, [])}


def test_nodes_and_components_as_the_api_knows_them() -> None:
    waiting = {
        "metadata": {"name": "git", "generation": 1},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 1},
    }
    api: Any = Api(
        {
            "/api/v1/nodes": [node(), {**node(), "metadata": {"name": "a"}}],
            "/apis/apps/v1/namespaces/git-x/deployments": [waiting],
        }
    )
    first, second = report.read_nodes(api)
    assert (first["name"], first["roles"], first["gpu"]) == ("a", "agent", "")
    assert (second["roles"], second["memory"], second["gpus"], second["problem"]) == ("control-plane", "7.7 GiB", 2, "")
    git, other = report.read_components(api, ["git_x", "other"], {"git_x": "1"})
    assert (git["version"], git["workloads"], git["problem"]) == ("1", 1, "git: 0 of 1 pods are of its newest version")
    assert (other["version"], other["workloads"], other["problem"]) == ("", 0, "")
