"""Versions, keys and the manifest of the lab's bundle."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import (
    argocd,
    bundle,
    dataops,
    debian,
    devices,
    gobuild,
    images,
    kfp_images,
    postgresql,
    services,
    training,
    wheels,
)
from tests.lab.cache import PROJECT, Cache
from tests.lab.kfp import base as kfp_base
from tests.lab.process import LabError


def module(tmp_path: Path, text: str) -> Path:
    (tmp_path / "go.mod").write_text(text)
    return tmp_path


def test_versions_come_from_go_mod(tmp_path: Path) -> None:
    folder = module(
        tmp_path, "module x\n\ntool a.b/c/cmd/d\n\nrequire a.b/c v1.2.3\n\nrequire (\n\te.f/g v0.1.0 // indirect\n)\n"
    )
    assert gobuild.module_version(folder, "a.b/c") == "v1.2.3"
    assert gobuild.module_version(folder, "e.f/g") == "v0.1.0"
    assert gobuild.tool(folder) == "a.b/c/cmd/d"


def test_missing_entries_in_go_mod_are_named(tmp_path: Path) -> None:
    folder = module(tmp_path, "module x\n")
    with pytest.raises(LabError, match=r"go\.mod: no version of a\.b/c"):
        gobuild.module_version(folder, "a.b/c")
    with pytest.raises(LabError, match=r"go\.mod: no line `tool"):
        gobuild.tool(folder)


def test_minio_release_name() -> None:
    assert bundle.minio_release("v0.0.0-20260212201848-7aac2a2c5b7c") == "RELEASE.2026-02-12T20-18-48Z"
    with pytest.raises(LabError, match=r"go\.mod: v1\.0\.0 is not"):
        bundle.minio_release("v1.0.0")


def test_program_key_depends_on_link_time_variables() -> None:
    assert gobuild.Program("pause").key != gobuild.Program("pause", variables={"main.version": "1"}).key


def test_standin_reports_its_version_everywhere_and_knows_its_images() -> None:
    standin = gobuild.Standin({"pause": "localhost/pause:1"})
    assert standin.version.endswith("+k3s1")
    assert standin.variables["k8s.io/component-base/version.gitVersion"] == standin.version
    assert standin.variables["k8s.io/client-go/pkg/version.gitVersion"] == standin.version
    assert standin.key != gobuild.Standin({"pause": "localhost/pause:2"}).key


def test_image_references_change_with_their_programs() -> None:
    before = bundle.Image("pause", "1", (gobuild.Program("pause"),)).reference
    after = bundle.Image("pause", "1", (gobuild.Program("pause", variables={"a.b": "c"}),)).reference
    assert before.startswith("localhost/slipway-lab/pause:1-")
    assert before != after


def test_files_of_a_layer_have_no_time_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"x")
    times: dict[str, float] = {}

    def build(_: Path, context: Path, __: str) -> None:
        times.update({path.name: path.stat().st_mtime for path in context.iterdir()})

    monkeypatch.setattr(gobuild.Program, "build", lambda self, cache: program)
    monkeypatch.setattr(images, "build", build)
    bundle.Image("pause", "1", (gobuild.Program("pause"),)).build(Cache(tmp_path / "cache"))
    assert times == {"Containerfile": 0, "pause": 0}


def test_cert_manager_is_one_program_in_three_images() -> None:
    made = bundle.Plan().cert_manager
    assert [image.name for image in made] == [
        f"cert-manager-{part}" for part in ("controller", "webhook", "cainjector")
    ]
    assert len({image.programs[0].key for image in made}) == 1
    assert {image.programs[0].name for image in made} == {"cert-manager"}
    assert len({image.key for image in made}) == 3
    for image in made:
        recipe = (images.RECIPES / image.name / "Containerfile").read_text()
        assert f'ENTRYPOINT ["/cert-manager", "{image.name.removeprefix("cert-manager-")}"]' in recipe


def test_cert_manager_chart_has_its_release_as_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "module/deploy/charts/cert-manager"
    (source / "templates").mkdir(parents=True)
    (source / "templates/crd-x.yaml").write_text("kind: CustomResourceDefinition\n")
    (source / "Chart.yaml").write_text("name: cert-manager\nversion: v0.0.0\nappVersion: v0.0.0\n")
    for name in ("values.yaml", "values.schema.json", "README.template.md"):
        (source / name).write_text("{}\n")
    monkeypatch.setattr(gobuild, "source", lambda cache, folder, module: tmp_path / "module")
    plan = bundle.Plan()
    version = plan.cert_manager[0].version
    packed = plan.cert_manager_chart(Cache(tmp_path / "cache"))
    assert packed.name == f"cert-manager-{version}.tgz"
    with tarfile.open(packed) as files:
        names = [
            f"cert-manager/{name}"
            for name in ("Chart.yaml", "templates/crd-x.yaml", "values.schema.json", "values.yaml")
        ]
        assert sorted(files.getnames()) == names
        file = files.extractfile("cert-manager/Chart.yaml")
        assert file is not None
        assert yaml.safe_load(file.read()) == {"name": "cert-manager", "version": version, "appVersion": version}


def test_traefik_reports_its_version() -> None:
    image = bundle.Plan().traefik
    assert image.programs[0].variables == {f"{gobuild.TRAEFIK}/pkg/version.Version": image.version}
    assert image.reference.startswith(f"localhost/slipway-lab/traefik:{image.version}-")


def test_argocd_reports_its_version() -> None:
    program = argocd.program()
    # All three are needed: otherwise the program makes a version up.
    assert {name.rpartition(".")[2]: value for name, value in program.variables.items()} == {
        "gitTag": program.version,
        "gitCommit": "module",
        "gitTreeState": "clean",
    }


def test_build_context_of_argocd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, made, context = tmp_path / "module", tmp_path / "made", tmp_path / "context"
    (module / "hack").mkdir(parents=True)
    (module / "manifests").mkdir()
    context.mkdir()
    made.write_bytes(b"x")
    for script in argocd.SCRIPTS:
        (module / script).write_text("#!/bin/sh\n")
    (module / "manifests/install.yaml").write_text("kind: Namespace\n")
    monkeypatch.setattr(gobuild.Program, "build", lambda self, cache: made)
    monkeypatch.setattr(gobuild, "source", lambda cache, folder, name: module)
    cache = Cache(tmp_path / "cache")
    argocd.prepare(cache, context, argocd.programs(bundle.HELM))
    wanted = {"argocd", "helm", "kustomize", "entrypoint.sh", "gpg-wrapper.sh", "git-verify-wrapper.sh"}
    assert {path.name for path in context.iterdir()} == wanted
    assert all(path.stat().st_mode & 0o111 for path in context.iterdir())
    recipe = argocd.RECIPE.read_text()
    assert all(name in recipe for name in wanted)
    file = argocd.manifests(cache)
    assert file.name == f"argocd-{argocd.program().version}.yaml"
    assert file.read_text() == "kind: Namespace\n"


def test_argocd_image_changes_with_its_tools() -> None:
    other = gobuild.Program("pause")
    assert argocd.image(bundle.HELM).key != argocd.image(other).key


def test_build_context_of_the_services(tmp_path: Path) -> None:
    services.prepare(Cache(tmp_path / "cache"), tmp_path)
    assert (tmp_path / "git_http.py").read_bytes() == (services.SOURCE / "git_http.py").read_bytes()
    assert bundle.Plan().services.reference.startswith("localhost/slipway-lab/services:")


def test_derived_image_changes_with_its_parent(tmp_path: Path) -> None:
    def nothing(*_: object) -> None:
        pass

    recipe = tmp_path / "Containerfile"
    one, two = (images.derived("x", images.Built("p", key, nothing), "k", recipe, nothing) for key in ("1", "2"))
    assert one.reference != two.reference


def test_manifest_entries_get_hash_and_size(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/x").write_bytes(b"program")
    (entry,) = bundle.describe(tmp_path, [{"path": "bin/x", "kind": "binary"}])
    assert entry == {"path": "bin/x", "kind": "binary", "sha256": hashlib.sha256(b"program").hexdigest(), "size": 7}


def test_chart_archive_is_reproducible(tmp_path: Path) -> None:
    source = tmp_path / "chart"
    (source / "templates").mkdir(parents=True)
    (source / "Chart.yaml").write_text("name: x\n")
    (source / "templates/a.yaml").write_text("a: 1\n")
    bundle.pack(source, "x", tmp_path / "one.tgz")
    (source / "Chart.yaml").touch()
    bundle.pack(source, "x", tmp_path / "two.tgz")
    assert (tmp_path / "one.tgz").read_bytes() == (tmp_path / "two.tgz").read_bytes()
    with tarfile.open(tmp_path / "one.tgz") as packed:
        assert packed.getnames() == ["x/Chart.yaml", "x/templates/a.yaml"]


def test_chart_of_the_gpu_standin_has_its_content_in_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(devices.CHART, chart)
    monkeypatch.setattr(devices, "CHART", chart)
    version = devices.chart_version()
    packed = bundle.Plan().gpu_chart(Cache(tmp_path / "cache"))
    assert packed.name == f"gpu-operator-{version}.tgz"
    with tarfile.open(packed) as files:
        file = files.extractfile("gpu-operator/Chart.yaml")
        assert file is not None
        assert yaml.safe_load(file.read())["version"] == version
        assert "gpu-operator/templates/daemonset.yaml" in files.getnames()
    (chart / "values.yaml").write_text("{}\n")
    assert devices.chart_version() != version


def test_build_context_of_the_gpu_standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[tuple[Path, Path]] = []
    monkeypatch.setattr(wheels, "place", lambda _, lock, target: placed.append((lock, target)))
    devices.prepare(Cache(tmp_path / "cache"), tmp_path)
    assert placed == [(devices.LOCK, tmp_path / "site-packages")]
    assert (tmp_path / "gpu_operator/__main__.py").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


def test_build_context_of_kubeflow_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[tuple[Path, Path]] = []
    monkeypatch.setattr(wheels, "place", lambda _, lock, target: placed.append((lock, target)))
    kfp_images.prepare(Cache(tmp_path / "cache"), tmp_path)
    assert placed == [(kfp_images.LOCK, tmp_path / "site-packages")]
    assert (tmp_path / "kfp_server/__main__.py").is_file()
    database = tmp_path / "database"
    database.mkdir()
    kfp_images.database().prepare(Cache(tmp_path / "cache"), database)
    recipe = (database / "Containerfile").read_text()
    assert all((database / name).is_file() and name in recipe for name in ("lab.cnf", "start.py"))
    assert not list(tmp_path.rglob("__pycache__"))


def test_each_image_of_kubeflow_pipelines_knows_its_part() -> None:
    parts = {name: reference for name, reference in kfp_images.references().items() if name != "kfp_mysql"}
    assert len(set(parts.values())) == 4
    for name, reference in parts.items():
        image = kfp_images.part(kfp_images.PARTS[name])
        assert (image.reference, dict(image.arguments)) == (reference, {"PART": kfp_images.PARTS[name]})
    assert {image.reference for image in kfp_images.members()} == set(kfp_images.references().values())


def test_images_of_one_archive_come_from_one_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    there: set[str] = set()

    def build(recipe: Path, context: Path, image: str, arguments: dict[str, str]) -> None:
        assert arguments["BASE"] in there
        assert (context / "made-for").read_text() == image.rpartition("/")[2].partition(":")[0]
        there.add(image)
        done.append(image)

    def save(saved: list[str], archive: Path) -> None:
        assert set(saved) <= there
        archive.write_text("\n".join(saved))

    def member(name: str, parent: images.Built) -> images.Derived:
        def prepare(_: Cache, context: Path) -> None:
            (context / "made-for").write_text(name)

        return images.derived(name, parent, name, tmp_path / "Containerfile", prepare)

    monkeypatch.setattr(images, "run", lambda *_, **__: None)
    monkeypatch.setattr(images, "load", lambda archive, image: there.add(image))
    monkeypatch.setattr(images, "build", build)
    monkeypatch.setattr(images, "save", save)
    start = images.Built("start", "0" * 64, lambda cache, image, draft: draft.touch())
    inner = member("inner", start)
    members = [member("a", inner), member("b", inner), member("c", start)]
    cache = Cache(tmp_path / "cache")
    archive = images.together(cache, "all", start, members)
    references = [each.reference for each in members]
    assert archive.read_text().split() == references
    assert done == [inner.reference, *references]
    assert images.together(cache, "all", start, members) == archive
    assert len(done) == 4
    stranger = images.Built("stranger", "1" * 64, start.make)
    with pytest.raises(LabError, match="image stranger does not come from start"):
        images.together(cache, "all", start, [member("d", stranger)])


def test_bundle_changes_with_the_gpu_standin(monkeypatch: pytest.MonkeyPatch) -> None:
    before = bundle.Plan().key
    monkeypatch.setattr(devices, "chart_version", lambda: "2")
    assert bundle.Plan().key != before


def test_bundle_changes_with_kubeflow_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    before = bundle.Plan().key
    monkeypatch.setattr(kfp_base, "text", lambda: "other")
    changed = bundle.Plan().key
    assert changed != before
    monkeypatch.setattr(kfp_images, "members", list)
    assert bundle.Plan().key not in (before, changed)


def test_release_without_a_name_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "release.yml"
    monkeypatch.setattr(bundle, "RELEASE", file)
    for text in ("slipway_release: {}\n", "slipway_release:\n", "other: 1\n"):
        file.write_text(text)
        with pytest.raises(LabError, match=r"release\.yml: slipway_release\.name"):
            bundle.release_name()


def test_missing_training_recipe_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RECIPE", tmp_path / "image/Containerfile")
    with pytest.raises(LabError, match=r"image/Containerfile: no recipe"):
        training.image()


def test_a_cluster_gets_its_part_of_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs, k3s' own images and the GPU operator; nothing in its manifest changes with another component."""
    gpus = {"name": "gpu-operator", "component": "gpu_operator"}
    manifest: dict[str, Any] = {
        "origin": "lab",
        "versions": {"k3s": "v1", "helm": "v3", "minio": "R1", "gpu_operator": "v26"},
        "images": {"minio": "minio:1", "busybox": "busybox:1", "gpu_validator": "gpus:1"},
        "artifacts": [
            {"path": "bin/k3s", "kind": "binary", "name": "k3s"},
            {"path": "bin/helm", "kind": "binary", "name": "helm"},
            {"path": "images/k3s.tar", "kind": "images", "name": "k3s", "images": ["busybox:1"]},
            {"path": "images/gpu_operator.tar", "kind": "images", "images": ["gpus:1"], **gpus},
            {"path": "charts/gpu-operator-1.tgz", "kind": "chart", **gpus},
            {"path": "images/minio.tar", "kind": "images", "name": "minio", "images": ["minio:1"]},
            {"path": "charts/minio-1.tgz", "kind": "chart", "name": "minio"},
        ],
    }
    whole = tmp_path / "whole"
    for item in manifest["artifacts"]:
        (whole / item["path"]).parent.mkdir(parents=True, exist_ok=True)
        (whole / item["path"]).touch()
    (whole / "bundle.yml").write_text(yaml.safe_dump(manifest))
    monkeypatch.setattr(bundle, "build", lambda _: whole)
    part = bundle.cluster(Cache(tmp_path / "cache"))
    made = yaml.safe_load((part / "bundle.yml").read_text())
    assert made == {
        "origin": "lab",
        "versions": {"k3s": "v1", "helm": "v3", "gpu_operator": "v26"},
        "images": {"busybox": "busybox:1", "gpu_validator": "gpus:1"},
        "artifacts": manifest["artifacts"][:5],
    }
    files = sorted(str(path.relative_to(part)) for path in part.rglob("*") if path.is_file())
    assert files == [
        *("bin/helm", "bin/k3s", "bundle.yml", "charts/gpu-operator-1.tgz"),
        *("images/gpu_operator.tar", "images/k3s.tar"),
    ]
    assert (part / "bin/k3s").samefile(whole / "bin/k3s")


def test_sources_are_those_of_this_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "http://m/debian|bookworm|main|Packages\nhttp://m/debian|bookworm|contrib|Packages\n"
    lines += "http://m/sec|bookworm-security|main|Packages\nhttp://x/|cloud-bookworm|main|Packages\n"
    lines += "http://m/debian|bookworm|main|DEP-11\n"
    monkeypatch.setattr(debian, "run", lambda command: type("Done", (), {"stdout": lines}))
    assert debian.sources() == [("http://m/debian", "bookworm", "main"), ("http://m/sec", "bookworm-security", "main")]


def test_machine_without_debian_sources_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "run", lambda command: type("Done", (), {"stdout": "http://m|noble|main|Packages\n"}))
    with pytest.raises(LabError, match="no Debian source for bookworm"):
        debian.sources()


class FakeImage:
    """Stands for an image of ours."""

    def __init__(self, path: Path, reference: str) -> None:
        self.path = path
        self.reference = reference

    def archive(self, cache: Cache) -> Path:
        return self.path


def test_our_images_join_a_downloaded_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, folder = tmp_path / "archive", tmp_path / "bundle"
    archive.write_bytes(b"image")
    folder.mkdir()
    monkeypatch.setattr(training, "image", lambda variant: FakeImage(archive, f"localhost/epos:{variant}"))
    monkeypatch.setattr(services, "image", lambda: FakeImage(archive, "localhost/services:1"))
    monkeypatch.setattr(postgresql, "image", lambda: FakeImage(archive, "localhost/postgresql:1"))
    monkeypatch.setattr(dataops, "image", lambda: FakeImage(archive, "localhost/airflow:1"))
    with pytest.raises(LabError, match="fill the bundle first"):
        bundle.add_built(Cache(tmp_path / "cache"), folder)

    other = {"path": "bin/k3s", "kind": "binary", "name": "k3s", "sha256": "0" * 64, "size": 1}
    old = {"path": "images/epos.tar", "kind": "images", "name": "epos", "sha256": "1" * 64, "size": 1}
    (folder / "bundle.yml").write_text(yaml.safe_dump({"images": {"minio": "m"}, "artifacts": [old, other]}))
    bundle.add_built(Cache(tmp_path / "cache"), folder, "cuda")
    manifest = yaml.safe_load((folder / "bundle.yml").read_text())
    assert manifest["images"] == {
        "minio": "m",
        "epos": "localhost/epos:cuda",
        "services": "localhost/services:1",
        "postgresql": "localhost/postgresql:1",
        "airflow": "localhost/airflow:1",
    }
    images_of_ours = [f"images/{name}.tar" for name in ("epos", "services", "postgresql", "airflow")]
    assert [entry["path"] for entry in manifest["artifacts"]] == ["bin/k3s", *images_of_ours]
    # Nodes of a site without it do not import it.
    assert [entry.get("component") for entry in manifest["artifacts"]] == [None, None, None, "postgresql", "airflow"]
    assert manifest["artifacts"][1]["sha256"] == hashlib.sha256(b"image").hexdigest()
    assert manifest["artifacts"][1]["built"] is True
    assert (folder / "images/epos.tar").read_bytes() == b"image"


def test_only_images_of_installed_components_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image.tar").write_bytes(b"image")
    for module in (training, services, dataops):
        image = FakeImage(tmp_path / "image.tar", f"localhost/{module.__name__}:1")
        monkeypatch.setattr(module, "image", lambda *_, made=image: made)
    monkeypatch.setattr(postgresql, "image", lambda: pytest.fail("nobody asked for PostgreSQL's image"))
    (tmp_path / "bundle.yml").write_text(yaml.safe_dump({"images": {}, "artifacts": []}))
    bundle.add_built(Cache(tmp_path / "cache"), tmp_path, components=["airflow"])
    manifest = yaml.safe_load((tmp_path / "bundle.yml").read_text())
    assert list(manifest["images"]) == ["epos", "services", "airflow"]


@pytest.mark.parametrize("listed", [None, ["minio"], ["minio", "postgresql"], ["minio", "postgresql", "airflow"]])
def test_a_site_says_which_components_it_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: list[str] | None
) -> None:
    """Or else the playbooks do."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    site = {"slipway_components": listed} if listed else {}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": site, "hosts": {"a": {}}}}))
    defaults = yaml.safe_load((PROJECT / "playbooks/group_vars/all/site.yml").read_text())["slipway_components"]
    assert bundle.needed(tmp_path) == tuple(name for name in bundle.COMPONENTS if name in (listed or defaults))


@pytest.mark.parametrize(
    ("line", "wanted"), [("", "cpu"), ("gpu_operator_gpus: 0", "cpu"), ("gpu_operator_gpus: 8", "cuda")]
)
def test_sites_with_gpus_get_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, wanted: str) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    (tmp_path / "hosts.yml").write_text(f"agent: {{hosts: {{a: {{{line}}}, b: }}}}\n")
    assert training.variant(tmp_path) == wanted


def test_manifest_names_what_the_roles_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"x")
    (tmp_path / "minio-5.tgz").write_bytes(b"x")
    monkeypatch.setattr(gobuild.Program, "build", lambda self, cache: made)
    monkeypatch.setattr(gobuild.Standin, "build", lambda self, cache: made)
    monkeypatch.setattr(gobuild.Standin, "test", lambda self, cache: made)
    monkeypatch.setattr(images.Built, "archive", lambda self, cache: made)
    monkeypatch.setattr(images, "together", lambda cache, name, start, members: made)
    monkeypatch.setattr(bundle, "archive", lambda cache, name, members: made)
    monkeypatch.setattr(bundle.Plan, "chart", lambda self, cache: tmp_path / "minio-5.tgz")
    plan, folder = bundle.Plan(), tmp_path / "bundle"
    bundle._assemble(Cache(tmp_path / "cache"), plan, folder)
    manifest = yaml.safe_load((folder / "bundle.yml").read_text())
    reference = plan.gpu_operator.reference
    assert {name for name, image in manifest["images"].items() if image == reference} == {
        "gpu_operator", "gpu_device_plugin", "gpu_validator",
    }  # fmt: skip
    parts = {entry["path"]: entry for entry in manifest["artifacts"] if entry.get("component") == "gpu_operator"}
    chart = f"charts/gpu-operator-{devices.chart_version()}.tgz"
    assert set(parts) == {"images/gpu_operator.tar", chart}
    assert parts["images/gpu_operator.tar"]["images"] == [reference]
    assert (parts[chart]["kind"], parts[chart]["name"]) == ("chart", "gpu-operator")
    pipelines = {
        entry["path"]: entry for entry in manifest["artifacts"] if entry.get("component") == "kubeflow_pipelines"
    }
    version = kfp_base.version()
    kfp_manifests = f"manifests/kubeflow-pipelines-{version}.yaml"
    assert set(pipelines) == {"images/kubeflow_pipelines.tar", kfp_manifests}
    assert (pipelines[kfp_manifests]["kind"], pipelines[kfp_manifests]["name"]) == ("manifest", "kubeflow-pipelines")
    assert (folder / kfp_manifests).read_text() == kfp_base.text()
    wanted = {name: manifest["images"][name] for name in (*kfp_images.PARTS, "kfp_mysql")}
    assert set(pipelines["images/kubeflow_pipelines.tar"]["images"]) == set(wanted.values())
    assert all((folder / entry["path"]).is_file() for entry in manifest["artifacts"])
    assert manifest["versions"]["gpu_operator"] == devices.chart_version()
    assert manifest["versions"]["kubeflow_pipelines"] == version
    (database,) = [entry for entry in manifest["artifacts"] if entry.get("component") == "postgresql"]
    assert database["images"] == [manifest["images"]["postgresql"]] == [plan.postgresql.reference]
    assert manifest["versions"]["postgresql"] == database["version"] == "15"
    image, airflow_chart = [entry for entry in manifest["artifacts"] if entry.get("component") == "airflow"]
    assert image["images"] == [manifest["images"]["airflow"]] == [plan.airflow.reference]
    assert (airflow_chart["kind"], airflow_chart["name"]) == ("chart", "airflow")
    assert manifest["versions"]["airflow"] == image["version"] == dataops.airflow_version()


def test_after_a_failed_program_nothing_new_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def build(program: gobuild.Program, cache: Cache) -> Path:
        begun.append(program.name)
        if program.name == "helm":
            raise LabError("helm cannot be compiled")
        time.sleep(0.3)
        return tmp_path

    monkeypatch.setattr(gobuild.Program, "build", build)
    with pytest.raises(LabError, match="helm cannot be compiled"):
        bundle.compile_all([bundle.HELM, *bundle.PACKAGED, *bundle.PACKAGED], Cache(tmp_path))
    assert len(begun) < 5
