"""Parts from Debian packages: the base file system of nodes and images, and single files out of packages."""

from __future__ import annotations

from pathlib import Path

from tests.lab.process import LabError, run

SUITE = "bookworm"


def sources() -> list[tuple[str, str, str]]:
    """The machine's own Debian sources as (address, suite, component), main component only.

    Raises:
        LabError: apt knows no Debian source for SUITE.
    """
    listed = run(["apt-get", "indextargets", "--format", "$(SITE)|$(RELEASE)|$(COMPONENT)|$(CREATED_BY)"]).stdout
    found = {
        (site, release, component)
        for site, release, component, kind in (line.split("|") for line in listed.splitlines())
        if kind == "Packages" and component == "main" and release.split("-")[0] == SUITE
    }
    if not any(release == SUITE for _, release, _ in found):
        raise LabError(f"apt on this machine has no Debian source for {SUITE}; the lab takes its packages from there")
    return sorted(found, key=lambda source: (source[1], source[0]))


def bootstrap(target: Path) -> None:
    """Write a minimal Debian file system to the folder `target`, with the machine's own apt sources."""
    main = next(address for address, release, _ in sources() if release == SUITE)
    run(["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, target, main])
    lines = [f"deb {address} {release} {component}\n" for address, release, component in sources()]
    (target / "etc/apt/sources.list").write_text("".join(lines))


def extract(packages: dict[str, list[str]], target: Path, work: Path) -> None:
    """Copy files out of Debian packages, without installing these, to the flat folder `target`.

    Args:
        packages: for each package the absolute paths to take.
        work: an empty folder for the downloads.
    """
    # apt would drop to a user who cannot write to our private folder, and warn about it.
    run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "--quiet", *packages], cwd=work)
    target.mkdir(parents=True, exist_ok=True)
    for package, paths in packages.items():
        archive = next(work.glob(f"{package}_*.deb"), None)
        if archive is None:
            raise LabError(f"apt-get download left no archive of {package}")
        tree = work / package
        run(["dpkg-deb", "--extract", archive, tree])
        for path in paths:
            source = tree / path.lstrip("/")
            if not source.is_file():
                raise LabError(f"the Debian package {package} has no file {path}")
            (target / source.name).write_bytes(source.read_bytes())
            (target / source.name).chmod(0o755)
