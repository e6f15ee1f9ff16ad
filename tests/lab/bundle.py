"""The lab's bundle: the artifacts of a release, built from package registries, in the layout of an upstream one."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import tarfile
import time
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.lab import argocd, dataops, debian, devices, gobuild, images, kfp_images, postgresql, services, training
from tests.lab.cache import PROJECT, Cache, hash_file, hash_inputs, say
from tests.lab.kfp import base as kfp_base
from tests.lab.process import LabError, run

RELEASE = PROJECT / "playbooks/group_vars/all/release.yml"
MINIO = "github.com/minio/minio"
CERT_MANAGER = "github.com/cert-manager/cert-manager"
# One program, one image for each of its parts: the upstream chart names images, not commands.
CERT_MANAGER_PARTS = ("controller", "webhook", "cainjector")
# What upstream's release puts into the chart's archive.
CERT_MANAGER_CHART = ("Chart.yaml", "values.yaml", "values.schema.json", "templates")
# Images built from recipes of the project that only the component of their name needs.
COMPONENTS = ("postgresql", "airflow")
BUSYBOX = {"busybox-static": ["/bin/busybox"]}
# The cache forgets what was not used for so many seconds, and all but so many versions of one thing.
UNUSED_FOR_S = 14 * 24 * 3600.0
KEEP = 4


def release_name() -> str:
    """The release that the playbooks install.

    Raises:
        LabError: its file has no such key.
    """
    try:
        return str(yaml.safe_load(RELEASE.read_text())["slipway_release"]["name"])
    except (OSError, KeyError, TypeError) as error:
        raise LabError(f"{RELEASE}: slipway_release.name: {error}") from error


def minio_release(version: str) -> str:
    """MinIO's name of the release behind a Go pseudo-version such as v0.0.0-20260212201848-7aac2a2c5b7c."""
    found = re.fullmatch(r"v0\.0\.0-(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)-[0-9a-f]{12}", version)
    if found is None:
        raise LabError(f"tests/lab/go/minio/go.mod: {version} is not a Go pseudo-version")
    year, month, day, hour, minute, second = found.groups()
    return f"RELEASE.{year}-{month}-{day}T{hour}-{minute}-{second}Z"


@dataclass(frozen=True)
class Image:
    """An image that consists of its recipe's folder and of single programs."""

    name: str
    version: str
    programs: tuple[gobuild.Program, ...] = ()
    busybox: bool = False

    @cached_property
    def key(self) -> str:
        """Hash of what it is made from."""
        words = [json.dumps(BUSYBOX) if self.busybox else "", *(program.key for program in self.programs)]
        return hash_inputs(self.name, self.version, *words, files=[images.RECIPES / self.name])

    @property
    def reference(self) -> str:
        """Its name for podman and Kubernetes; other content has another name."""
        return images.reference(self.name, f"{self.version}-{self.key[:8]}")

    def build(self, cache: Cache) -> None:
        """Build it into podman's store."""
        with cache.workdir() as context:
            for path in (images.RECIPES / self.name).iterdir():
                shutil.copy(path, context)
            for program in self.programs:
                shutil.copy(program.build(cache), context / program.name)
            if self.busybox:
                shutil.copy(busybox(cache), context / "busybox")
            for path in context.iterdir():
                path.chmod(0o755 if path.name != "Containerfile" else 0o644)
                # A layer contains its files' times: images of the same files are to share their layers.
                os.utime(path, (0, 0))
            images.build(context / "Containerfile", context, self.reference)


def busybox(cache: Cache) -> Path:
    """Debian's static busybox."""

    def make(draft: Path) -> None:
        with cache.workdir() as work:
            (work / "packages").mkdir()
            debian.extract(BUSYBOX, work / "files", work / "packages")
            (work / "files/busybox").rename(draft)

    return cache.entry("program", "busybox", hash_inputs(debian.SUITE, json.dumps(BUSYBOX)), make)


HELM = gobuild.Program(
    "helm",
    "helm.sh/helm/v3",
    {
        "helm.sh/helm/v3/internal/version.version": "{version}",
        # The Kubernetes that `helm template` assumes; upstream sets it to that of its client library.
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor": "34",
        "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor": "34",
    },
)
PACKAGED = [
    gobuild.Program("pause"),
    gobuild.Program("coredns", "github.com/coredns/coredns"),
    gobuild.Program(
        "local-path-provisioner", "github.com/rancher/local-path-provisioner", {"main.VERSION": "{version}"}
    ),
    gobuild.Program(
        "metrics-server", "sigs.k8s.io/metrics-server", {"k8s.io/client-go/pkg/version.gitVersion": "{version}"}
    ),
]


class Plan:
    """Everything that goes into the bundle, known by hash before anything is built."""

    @cached_property
    def minio_version(self) -> str:
        """The Go version of MinIO."""
        return gobuild.module_version(gobuild.MODULES / "minio", MINIO)

    @cached_property
    def minio(self) -> Image:
        """The MinIO image."""
        tag = minio_release(self.minio_version)
        date, clock = tag.removeprefix("RELEASE.").split("T")
        commit = self.minio_version.rsplit("-", 1)[1]
        variables = {
            f"{MINIO}/cmd.Version": f"{date}T{clock.replace('-', ':')}",
            f"{MINIO}/cmd.ReleaseTag": tag,
            f"{MINIO}/cmd.CommitID": commit,
            f"{MINIO}/cmd.ShortCommitID": commit,
            f"{MINIO}/cmd.CopyrightYear": date[:4],
        }
        return Image("minio", tag, (gobuild.Program("minio", MINIO, variables),), busybox=True)

    @cached_property
    def traefik(self) -> Image:
        """The Traefik image. Its dashboard is a page that says so: the module has no files for it."""
        program = gobuild.Program("traefik", gobuild.TRAEFIK, {f"{gobuild.TRAEFIK}/pkg/version.Version": "{version}"})
        return Image("traefik", program.version, (program,))

    @cached_property
    def cert_manager(self) -> list[Image]:
        """The images of cert-manager's controller, webhook and CA injector."""
        program = gobuild.Program("cert-manager", CERT_MANAGER, {f"{CERT_MANAGER}/pkg/util.AppVersion": "{version}"})
        return [Image(f"cert-manager-{part}", program.version, (program,)) for part in CERT_MANAGER_PARTS]

    @cached_property
    def argocd(self) -> images.Built:
        """The image of Argo CD and its Redis."""
        return argocd.image(HELM)

    @cached_property
    def services(self) -> images.Built:
        """The image of the project's own services."""
        return services.image()

    @cached_property
    def postgresql(self) -> images.Built:
        """The image of PostgreSQL."""
        return postgresql.image()

    @cached_property
    def airflow(self) -> images.Built:
        """The image of Airflow."""
        return dataops.image()

    @cached_property
    def packaged(self) -> list[Image]:
        """The images of the components that k3s packages, and the busybox of storage helpers."""
        programs = [Image(program.name, program.version, (program,)) for program in PACKAGED]
        return [*programs, self.traefik, Image("busybox", "1", busybox=True)]

    @cached_property
    def standin(self) -> gobuild.Standin:
        """The k3s stand-in."""
        return gobuild.Standin({image.name: image.reference for image in self.packaged})

    @cached_property
    def epos(self) -> images.Built:
        """The training image."""
        return training.image()

    @cached_property
    def gpu_operator(self) -> images.Built:
        """The image of the GPU operator's stand-in."""
        return devices.image()

    @property
    def compiled(self) -> list[gobuild.Program | gobuild.Standin]:
        """What the Go compiler makes, the longest work first."""
        first: list[gobuild.Program | gobuild.Standin] = [argocd.program(), self.standin]
        first += [*self.minio.programs, *self.traefik.programs]
        return [*first, *self.cert_manager[0].programs, *reversed(PACKAGED), *argocd.programs(HELM)[1:]]

    @cached_property
    def key(self) -> str:
        """Hash of the whole bundle."""
        words = [
            release_name(),
            self.standin.key,
            HELM.key,
            self.minio.key,
            self.minio_version,
            self.epos.key,
            self.gpu_operator.key,
            devices.chart_version(),
            *(image.key for image in self.cert_manager),
            self.argocd.key,
            self.services.key,
            self.postgresql.key,
            self.airflow.key,
            dataops.chart_version(),
            *(image.key for image in kfp_images.members()),
            kfp_base.text(),
            project_version(),
        ]
        return hash_inputs("bundle", *words, files=[Path(__file__)])

    def chart(self, cache: Cache) -> Path:
        """MinIO's chart out of its Go module, as an archive with always the same bytes, in a folder of its own."""

        def make(draft: Path) -> None:
            source = gobuild.source(cache, gobuild.MODULES / "minio", MINIO) / "helm/minio"
            version = yaml.safe_load((source / "Chart.yaml").read_text())["version"]
            draft.mkdir()
            pack(source, "minio", draft / f"minio-{version}.tgz")

        return next(cache.entry("chart", "minio", hash_inputs("chart", self.minio_version), make).iterdir())

    def cert_manager_chart(self, cache: Cache) -> Path:
        """cert-manager's chart out of its Go module, as an archive with always the same bytes, in a folder of its own."""
        folder = gobuild.MODULES / "cert-manager"
        version = gobuild.module_version(folder, CERT_MANAGER)

        def make(draft: Path) -> None:
            source = gobuild.source(cache, folder, CERT_MANAGER) / "deploy/charts/cert-manager"
            draft.mkdir()
            with cache.workdir() as work:
                for name in CERT_MANAGER_CHART:
                    (shutil.copytree if (source / name).is_dir() else shutil.copy)(source / name, work / name)
                # As upstream's release does: the files in the module have v0.0.0.
                chart = {
                    **yaml.safe_load((source / "Chart.yaml").read_text()),
                    "version": version,
                    "appVersion": version,
                }
                (work / "Chart.yaml").write_text(yaml.safe_dump(chart, sort_keys=False))
                pack(work, "cert-manager", draft / f"cert-manager-{version}.tgz")

        key = hash_inputs("chart", version, *CERT_MANAGER_CHART)
        return next(cache.entry("chart", "cert-manager", key, make).iterdir())

    def gpu_chart(self, cache: Cache) -> Path:
        """The chart of the GPU operator's stand-in."""
        return standin_chart(cache, "gpu-operator", devices.chart_version(), devices.copy_chart)

    def airflow_chart(self, cache: Cache) -> Path:
        """The stand-in for Airflow's chart."""
        return standin_chart(cache, "airflow", dataops.chart_version(), dataops.copy_chart)


def standin_chart(cache: Cache, name: str, version: str, copy: Callable[[Path], None]) -> Path:
    """A chart of ours as an archive with always the same bytes, in a folder of its own."""

    def make(draft: Path) -> None:
        draft.mkdir()
        with cache.workdir() as work:
            copy(work / "chart")
            pack(work / "chart", name, draft / f"{name}-{version}.tgz")

    return next(cache.entry("chart", name, hash_inputs("chart", version), make).iterdir())


def pack(source: Path, top: str, target: Path) -> None:
    """Write the files below `source` to a .tgz under the folder name `top`; owners and times are left out."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as files,
    ):
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            content = path.read_bytes()
            member = tarfile.TarInfo(f"{top}/{path.relative_to(source)}")
            member.size, member.mode = len(content), 0o644
            files.addfile(member, io.BytesIO(content))


def archive(cache: Cache, name: str, members: list[Image]) -> Path:
    """One image archive with all `members`."""

    def make(draft: Path) -> None:
        references = [member.reference for member in members]
        for member in members:
            for program in member.programs:
                program.build(cache)
        with cache.lock("podman"), images.passing(*references):
            for member in members:
                member.build(cache)
            images.save(references, draft)

    return cache.entry("image", name, hash_inputs(name, *(member.key for member in members)), make)


def project_version() -> str:
    """The version of this project, which is also that of its training code."""
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"])


def as_text(manifest: dict[str, Any]) -> str:
    """A manifest as it lies in the bundle."""
    text: str = yaml.safe_dump(manifest, sort_keys=False, width=120)
    return text


def describe(folder: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Complete manifest entries with the SHA-256 and the size in bytes of their files below `folder`."""
    return [
        {**entry, "sha256": hash_file(folder / entry["path"]), "size": (folder / entry["path"]).stat().st_size}
        for entry in entries
    ]


def place(files: Mapping[str, Path], folder: Path) -> None:
    """Put files into a bundle folder under their paths there, without a second copy on the disk."""
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)


def build(cache: Cache) -> Path:
    """The bundle's folder; whatever is missing in the cache is built first."""
    plan = Plan()
    path = cache.path("bundle", "lab", plan.key)
    if path.exists():
        os.utime(path)
        return path
    with cache.lock("build"):
        start = time.monotonic()
        result = cache.entry("bundle", "lab", plan.key, lambda draft: _assemble(cache, plan, draft))
        gobuild.prune_caches(cache)
        gone = cache.prune(
            ("program", "packages", "image", "chart", "govet", "gotest", "passed", "bundle"), UNUSED_FOR_S, KEEP
        )
        say(f"bundle ready after {time.monotonic() - start:.0f} s, {len(gone)} old entries removed from the cache")
    return result


def cluster(cache: Cache) -> Path:
    """The folder of a bundle with that part of the lab's that a cluster needs which has at most the GPU operator."""
    whole = build(cache)
    manifest = yaml.safe_load((whole / "bundle.yml").read_text())
    artifacts = [
        item
        for item in manifest["artifacts"]
        if item["kind"] == "binary" or item["name"] == "k3s" or item.get("component") == "gpu_operator"
    ]
    names = {item.get("component", item["name"]) for item in artifacts}
    references = {reference for item in artifacts for reference in item.get("images", [])}
    part = {
        **manifest,
        "versions": {name: version for name, version in manifest["versions"].items() if name in names},
        "images": {name: image for name, image in manifest["images"].items() if image in references},
        "artifacts": artifacts,
    }
    text = as_text(part)

    def make(draft: Path) -> None:
        place({item["path"]: whole / item["path"] for item in artifacts}, draft)
        (draft / "bundle.yml").write_text(text)

    return cache.entry("bundle", "cluster", hash_inputs("cluster", text), make)


def needed(inventory: Path) -> tuple[str, ...]:
    """Those of COMPONENTS that a site installs.

    Raises:
        LabError: Ansible cannot read the inventory.
    """
    place = ("--playbook-dir", PROJECT / "playbooks", "--host", "localhost")
    listed = json.loads(run(["ansible-inventory", "-i", inventory, *place]).stdout)
    return tuple(name for name in COMPONENTS if name in listed["slipway_components"])


def add_built(cache: Cache, folder: Path, variant: str = "cpu", components: Collection[str] = COMPONENTS) -> None:
    """Put the images into an existing bundle that nobody publishes: they are always built from their recipes.

    Args:
        folder: the bundle's.
        variant: of the training image, a key of training.LOCKS.
        components: those of COMPONENTS whose images are needed.

    Raises:
        LabError: there is no bundle in `folder`.
    """
    path = folder / "bundle.yml"
    try:
        manifest: dict[str, Any] = yaml.safe_load(path.read_text())
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; fill the bundle first") from error
    built = {"epos": training.image(variant), "services": services.image()}
    makers = {"postgresql": postgresql.image, "airflow": dataops.image}
    built |= {name: makers[name]() for name in COMPONENTS if name in components}
    for name, image in built.items():
        file = f"images/{name}.tar"
        if manifest.get("images", {}).get(name) == image.reference and (folder / file).exists():
            continue
        draft = folder / f"{file}.part"
        draft.parent.mkdir(exist_ok=True)
        shutil.copyfile(image.archive(cache), draft)
        draft.replace(folder / file)
        entry = {
            "path": file,
            "kind": "images",
            "name": name,
            "version": project_version(),
            "images": [image.reference],
            "built": True,
            **({"component": name} if name in COMPONENTS else {}),
        }
        manifest["images"] = {**manifest.get("images", {}), name: image.reference}
        others = [artifact for artifact in manifest["artifacts"] if artifact["path"] != file]
        manifest["artifacts"] = [*others, *describe(folder, [entry])]
        # Like the rest of the bundle, the manifest is whole or not there.
        part = folder / "bundle.yml.part"
        part.write_text(as_text(manifest))
        part.replace(path)


def compile_all(programs: Iterable[gobuild.Program | gobuild.Standin], cache: Cache) -> None:
    """Compile programs two at a time: one links or downloads while another compiles. After a failure nothing new begins."""
    with ThreadPoolExecutor(max_workers=2) as compilers:
        try:
            for done in as_completed([compilers.submit(program.build, cache) for program in programs]):
                done.result()
        except BaseException:
            compilers.shutdown(wait=False, cancel_futures=True)
            raise


def _assemble(cache: Cache, plan: Plan, draft: Path) -> None:
    # What waits for downloads and what needs processors hardly disturb each other.
    with ThreadPoolExecutor(max_workers=1) as beside:
        images_of_ours = (plan.epos, plan.services, plan.gpu_operator, plan.postgresql, plan.airflow)
        epos, own, gpu_operator, database, flows = (beside.submit(image.archive, cache) for image in images_of_ours)
        pipelines = beside.submit(kfp_images.archive, cache)
        compile_all(plan.compiled, cache)
        helm, k3s = HELM.build(cache), plan.standin.build(cache)
        plan.standin.test(cache)
        packaged = archive(cache, "k3s", plan.packaged)
        minio = archive(cache, "minio", [plan.minio])
        chart, gpu_chart, cert_manager_chart = plan.chart(cache), plan.gpu_chart(cache), plan.cert_manager_chart(cache)
        airflow_chart = plan.airflow_chart(cache)
        cert_manager = archive(cache, "cert-manager", plan.cert_manager)
        argocd_archive, argocd_manifests = plan.argocd.archive(cache), argocd.manifests(cache)
        kfp_manifests = kfp_images.manifests(cache)
        epos_archive, services_archive, gpu_archive = epos.result(), own.result(), gpu_operator.result()
        kfp_archive, postgresql_archive, airflow_archive = pipelines.result(), database.result(), flows.result()
    chart_version = chart.stem.removeprefix("minio-")
    gpu_version = devices.chart_version()
    helm_version = HELM.version
    draft.mkdir()
    place(
        {
            "bin/k3s": k3s,
            "bin/kubectl": k3s,
            "bin/helm": helm,
            "images/k3s.tar": packaged,
            "images/minio.tar": minio,
            "images/epos.tar": epos_archive,
            "images/gpu_operator.tar": gpu_archive,
            "images/cert-manager.tar": cert_manager,
            "images/argocd.tar": argocd_archive,
            "images/services.tar": services_archive,
            "images/kubeflow_pipelines.tar": kfp_archive,
            "images/postgresql.tar": postgresql_archive,
            "images/airflow.tar": airflow_archive,
            f"charts/{chart.name}": chart,
            f"charts/{gpu_chart.name}": gpu_chart,
            f"charts/{airflow_chart.name}": airflow_chart,
            f"charts/{cert_manager_chart.name}": cert_manager_chart,
            f"manifests/{argocd_manifests.name}": argocd_manifests,
            f"manifests/{kfp_manifests.name}": kfp_manifests,
        },
        draft,
    )
    k3s_version, minio_tag, epos_version = plan.standin.version, plan.minio.version, project_version()
    cert_manager_version, argocd_version = plan.cert_manager[0].version, argocd.program().version
    busybox_image = next(image for image in plan.packaged if image.name == "busybox")
    manifest = {
        "schema": 1,
        "release": release_name(),
        "origin": "lab",
        "arch": "amd64",
        "versions": {
            "k3s": k3s_version,
            "helm": helm_version,
            "minio": minio_tag,
            "gpu_operator": gpu_version,
            "cert_manager": cert_manager_version,
            "argocd": argocd_version,
            "kubeflow_pipelines": kfp_base.version(),
            "postgresql": postgresql.version(),
            "airflow": dataops.airflow_version(),
            "epos": epos_version,
        },
        "images": {
            "minio": plan.minio.reference,
            **{f"cert_manager_{image.name.removeprefix('cert-manager-')}": image.reference for image in plan.cert_manager},
            "argocd": plan.argocd.reference,
            # Debian's Redis lies in the same image.
            "argocd_redis": plan.argocd.reference,
            "services": plan.services.reference,
            **kfp_images.references(),
            "postgresql": plan.postgresql.reference,
            "airflow": plan.airflow.reference,
            # One stand-in for the operator, its device plugin and the image of its check.
            "gpu_operator": plan.gpu_operator.reference,
            "gpu_device_plugin": plan.gpu_operator.reference,
            "gpu_validator": plan.gpu_operator.reference,
            "epos": plan.epos.reference,
            "busybox": busybox_image.reference,
        },
        "artifacts": describe(
            draft,
            [
                {"path": "bin/k3s", "kind": "binary", "name": "k3s", "version": k3s_version},
                {"path": "bin/kubectl", "kind": "binary", "name": "kubectl", "version": k3s_version},
                {"path": "bin/helm", "kind": "binary", "name": "helm", "version": helm_version},
                {
                    "path": "images/k3s.tar", "kind": "images", "name": "k3s", "version": k3s_version,
                    "images": [image.reference for image in plan.packaged],
                },
                {"path": "images/minio.tar", "kind": "images", "name": "minio", "version": minio_tag, "images": [plan.minio.reference]},
                {"path": "images/epos.tar", "kind": "images", "name": "epos", "version": epos_version, "images": [plan.epos.reference]},
                {
                    "path": "images/services.tar", "kind": "images", "name": "services", "version": epos_version,
                    "images": [plan.services.reference],
                },
                {"path": f"charts/{chart.name}", "kind": "chart", "name": "minio", "version": chart_version},
                {
                    "path": "images/cert-manager.tar", "kind": "images", "name": "cert-manager", "version": cert_manager_version,
                    "component": "cert_manager", "images": [image.reference for image in plan.cert_manager],
                },
                {
                    "path": f"charts/{cert_manager_chart.name}", "kind": "chart", "name": "cert-manager",
                    "version": cert_manager_version, "component": "cert_manager",
                },
                {
                    "path": "images/argocd.tar", "kind": "images", "name": "argocd", "version": argocd_version,
                    "component": "argocd", "images": [plan.argocd.reference],
                },
                {
                    "path": f"manifests/{argocd_manifests.name}", "kind": "manifest", "name": "argocd",
                    "version": argocd_version, "component": "argocd",
                },
                {
                    "path": "images/kubeflow_pipelines.tar", "kind": "images", "name": "kubeflow-pipelines",
                    "version": kfp_base.version(), "component": "kubeflow_pipelines",
                    "images": [image.reference for image in kfp_images.members()],
                },
                {
                    "path": f"manifests/{kfp_manifests.name}", "kind": "manifest", "name": "kubeflow-pipelines",
                    "version": kfp_base.version(), "component": "kubeflow_pipelines",
                },
                {
                    "path": "images/postgresql.tar", "kind": "images", "name": "postgresql", "version": postgresql.version(),
                    "component": "postgresql", "images": [plan.postgresql.reference],
                },
                {
                    "path": "images/airflow.tar", "kind": "images", "name": "airflow", "version": dataops.airflow_version(),
                    "component": "airflow", "images": [plan.airflow.reference],
                },
                {
                    "path": f"charts/{airflow_chart.name}", "kind": "chart", "name": "airflow", "version": dataops.chart_version(),
                    "component": "airflow",
                },
                {
                    "path": "images/gpu_operator.tar", "kind": "images", "name": "gpu-operator", "version": gpu_version,
                    "component": "gpu_operator", "images": [plan.gpu_operator.reference],
                },
                {
                    "path": f"charts/{gpu_chart.name}", "kind": "chart", "name": "gpu-operator", "version": gpu_version,
                    "component": "gpu_operator",
                },
            ],
        ),
    }  # fmt: skip
    (draft / "bundle.yml").write_text(as_text(manifest))
    (draft / "build-times.json").write_text(json.dumps(cache.times, indent=1))
