"""Whether what the components need fits on the nodes: CPU, memory, volumes and images. No input or output here.

What counts as free on a node is what it can give to pods (`allocatable`; before k3s runs, all that the machine has) without what pods
that stay hold outside of the components' own namespaces. So a component that runs already is counted once: by its need, not by its
pods as well.
Volumes count where they are not made yet, or as far as they are to grow: what is there has its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.slipway.needs import amount, requests
from ansible.module_utils.slipway.preflight import CONTROLLER, Node, Problem

Json = dict[str, Any]
MIB, GIB = 2**20, 2**30

# The archive, what containerd takes from it, and what that is unpacked to. More where layers are compressed.
IMAGE_COPIES = 3
# Whose volumes lie on the disks of nodes: k3s' own class, which is also the default.
_LOCAL_CLASSES = ("", "local-path")
# Where k3s' data lies: images, and volumes of that class.
DATA = "/var/lib/rancher"
_DONE = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Pods:
    """`count` alike pods (`per_node`: on each node), what one reserves (cores, bytes), and the variable that decides it."""

    name: str
    count: int
    cpu: float
    memory: float
    variable: str
    per_node: bool = False


@dataclass(frozen=True)
class Volume:
    """A claim of `size` bytes, `local` where it lies on the disk of a node; the variable decides the size."""

    name: str
    size: float
    variable: str
    local: bool = True


@dataclass(frozen=True)
class Need:
    """What a component needs in its namespace. `known` is False where its role says nothing."""

    component: str
    namespace: str
    pods: tuple[Pods, ...] = ()
    volumes: tuple[Volume, ...] = ()
    known: bool = True

    def sum(self, resource: str, nodes: int) -> float:
        """Cores (`cpu`) or bytes (`memory`) of all pods on so many nodes."""
        return float(sum(getattr(each, resource) * each.count * (nodes if each.per_node else 1) for each in self.pods))


@dataclass(frozen=True)
class Room:
    """What a node can give (cores, bytes), None where nobody knows, and what pods of others hold of it.

    `open` is False where only pods that ask for GPUs may go. `disk` is what is free where k3s' data, images and volumes lie;
    `images` is the size of the archives that are not there yet, of which there are `archives`.
    """

    name: str
    cpu: float | None = None
    memory: float | None = None
    cpu_held: float = 0.0
    memory_held: float = 0.0
    disk: float | None = None
    images: float = 0.0
    archives: int = 0
    open: bool = True

    def free(self, resource: str) -> float:
        """Cores (`cpu`) or bytes (`memory`) for the components."""
        return float(max(0.0, (getattr(self, resource) or 0.0) - getattr(self, resource + "_held")))

    def free_disk(self) -> float:
        """Bytes for volumes, when the images are there."""
        return max(0.0, (self.disk or 0.0) - IMAGE_COPIES * self.images)


@dataclass(frozen=True)
class Cluster:
    """What a running cluster tells: by node what it can give and what pods hold by namespace, and the size of each claim."""

    allocatable: Mapping[str, tuple[float, float]]
    held: Mapping[str, Mapping[str, tuple[float, float]]]
    claims: Mapping[tuple[str, str], float]


def read_cluster(nodes: Iterable[Json], pods: Iterable[Json], claims: Iterable[Json]) -> Cluster:
    """From the API's objects. Raises SlipwayError."""
    allocatable = {}
    for node in nodes:
        name, given = node["metadata"]["name"], node["status"].get("allocatable") or {}
        if given:
            allocatable[name] = (amount(given["cpu"], f"node {name}"), amount(given["memory"], f"node {name}"))
    held: dict[str, dict[str, tuple[float, float]]] = {}
    for pod in pods:
        where = pod["spec"].get("nodeName")
        # What ends by itself (Jobs, tasks, trainings) gives its room back.
        stays = pod["spec"].get("restartPolicy", "Always") == "Always"
        if not where or not stays or pod.get("status", {}).get("phase") in _DONE:
            continue
        namespace = pod["metadata"]["namespace"]
        sizes = [requests(each.get("resources"), pod["metadata"]["name"]) for each in pod["spec"]["containers"]]
        before = held.setdefault(where, {}).get(namespace, (0.0, 0.0))
        held[where][namespace] = (
            before[0] + sum(size[0] for size in sizes),
            before[1] + sum(size[1] for size in sizes),
        )
    sizes_of = {}
    for claim in claims:
        place = (claim["metadata"]["namespace"], claim["metadata"]["name"])
        sizes_of[place] = amount(claim["spec"]["resources"]["requests"]["storage"], f"claim {'/'.join(place)}")
    return Cluster(allocatable, held, sizes_of)


def room_of(node: Node, needs: Sequence[Need], cluster: Cluster | None, images: Sequence[Mapping[str, Any]]) -> Room:
    """What a node has: by the cluster where it is one of its nodes, else by its probe. `images` are the archives for each node."""
    cpu = memory = disk = None
    missing = images
    if node.probe is not None:
        cpu, memory = float(node.probe["cpus"]), float(node.probe["memory_mb"]) * MIB
        disk = next((each["free_gb"] * GIB for each in node.probe["disks"] if each["path"] == DATA), None)
        there = set(node.probe["k3s"].get("files", ()))
        missing = [each for each in images if each["sha256"] not in there]
    held: list[tuple[float, float]] = []
    if cluster and node.name in cluster.allocatable:
        cpu, memory = cluster.allocatable[node.name]
        ours = {need.namespace for need in needs}
        held = [sizes for namespace, sizes in cluster.held.get(node.name, {}).items() if namespace not in ours]
    return Room(
        node.name,
        cpu,
        memory,
        sum(each[0] for each in held),
        sum(each[1] for each in held),
        disk,
        sum(each["size"] for each in missing),
        len(missing),
        not (node.gpus.gpus and node.gpus.taint),
    )


def known_claims(nodes: Sequence[Node], cluster: Cluster | None) -> Mapping[tuple[str, str], float] | None:
    """Claims that are there: those of the cluster, none where k3s never ran, None where nobody can tell."""
    if cluster:
        return cluster.claims
    fresh = all(
        node.probe and node.probe["k3s"]["state"] == "none" and not node.probe["k3s"]["found"] for node in nodes
    )
    return {} if fresh else None


def read_need(component: str, given: Mapping[str, Any] | None, local_storage: bool) -> Need:
    """What a role's `_<role>_needs` says; None where it has none. Raises SlipwayError.

    `local_storage` tells whether k3s' own storage class is there.
    """
    namespace = component.replace("_", "-")
    if given is None:
        return Need(component, namespace, known=False)
    volumes = []
    for volume in given.get("volumes") or []:
        local = local_storage and (volume.get("class") or "") in _LOCAL_CLASSES
        size = amount(volume["size"], volume["variable"])
        volumes.append(Volume(volume["name"], size, volume["variable"], local))
    pods = tuple(Pods(**each) for each in given.get("pods") or [])
    return Need(component, str(given.get("namespace") or namespace), pods, tuple(volumes))


def to_make(need: Need, claims: Mapping[tuple[str, str], float]) -> list[tuple[Volume, float]]:
    """Volumes on nodes' disks that take more room than they have, each with the bytes that it needs besides."""
    more = [(each, each.size - claims.get((need.namespace, each.name), 0.0)) for each in need.volumes if each.local]
    return [(each, size) for each, size in more if size > 0]


def judge_capacity(
    needs: Sequence[Need], rooms: Sequence[Room], claims: Mapping[tuple[str, str], float] | None
) -> list[Problem]:
    """An error for each need that no node, or all of them together, cannot meet.

    How pods are spread is the scheduler's business: what would fit in sum and one by one is not judged further. `claims` are those
    that are there, None where nobody knows.
    """
    problems = [_images_problem(room) for room in rooms if room.disk is not None and not _images_fit(room)]
    open_rooms = [room for room in rooms if room.open]
    if all(room.cpu is not None and room.memory is not None for room in rooms) and open_rooms:
        problems += _judge_pods(needs, open_rooms)
        for resource in ("cpu", "memory"):
            problems += _judge_sum(needs, rooms, open_rooms, resource)
    if claims is not None and rooms and all(room.disk is not None for room in rooms):
        problems += _judge_volumes(needs, rooms, claims)
    return problems


def _images_fit(room: Room) -> bool:
    return not room.images or IMAGE_COPIES * room.images <= (room.disk or 0.0)


def _images_problem(room: Room) -> Problem:
    found = (
        f"images of {size(room.images)} to transfer take {size(IMAGE_COPIES * room.images)} with what is unpacked, "
        f"{size(room.disk or 0.0)} are free"
    )
    remedy = f"enlarge the file system of {DATA}, or take components out of slipway_components"
    return Problem("error", room.name, "capacity", found, "room for all images on each node", remedy)


def _judge_pods(needs: Sequence[Need], rooms: Sequence[Room]) -> list[Problem]:
    """Pods that are too large for every node, or for one on which each has to run."""
    problems = []
    for need in needs:
        for each in need.pods:
            fits = [room for room in rooms if each.cpu <= room.free("cpu") and each.memory <= room.free("memory")]
            if each.count == 0 or (len(fits) == len(rooms) if each.per_node else fits):
                continue
            short = [room for room in rooms if room not in fits]
            largest = max(short, key=lambda room: (room.free("cpu"), room.free("memory")))
            found = (
                f"{need.component}: a pod of {each.name} needs {_both(each.cpu, each.memory)}; "
                f"{largest.name}, the largest, has {_both(largest.free('cpu'), largest.free('memory'))} for it"
            )
            remedy = f"lower {each.variable}, or use a larger machine"
            problems.append(Problem("error", largest.name, "capacity", found, "a node with room for it", remedy))
    return problems


def _judge_sum(
    needs: Sequence[Need], rooms: Sequence[Room], open_rooms: Sequence[Room], resource: str
) -> list[Problem]:
    """What all pods reserve together."""
    show = cores if resource == "cpu" else size
    there = sum(room.free(resource) for room in open_rooms)
    parts = sorted(((need.sum(resource, len(rooms)), need) for need in needs), key=lambda part: -part[0])
    wanted = sum(part for part, _ in parts)
    if wanted <= there:
        return []
    word = "CPUs" if resource == "cpu" else "memory"
    largest = ", ".join(f"{need.component} {show(part)}" for part, need in parts if part)
    free = ", ".join(f"{room.name} {show(room.free(resource))}" for room in open_rooms)
    variables = dict.fromkeys(each.variable for part, need in parts if part for each in need.pods)
    found = f"the components reserve {show(wanted)} {word} ({largest}); there are {show(there)} ({free})"
    remedy = f"lower {', '.join(variables)}, take components out of slipway_components, or add a node"
    return [Problem("error", CONTROLLER, "capacity", found, f"{word} for all components", remedy)]


def _judge_volumes(
    needs: Sequence[Need], rooms: Sequence[Room], claims: Mapping[tuple[str, str], float]
) -> list[Problem]:
    """Volumes on the disks of nodes: each on one, all of them together."""
    due = [(need, volume, more) for need in needs for volume, more in to_make(need, claims)]
    largest = max(rooms, key=Room.free_disk)
    problems = []
    for need, volume, more in due:
        if more > largest.free_disk():
            found = (
                f"{need.component}: volume {volume.name} needs {size(more)}; "
                f"{largest.name}, the node with most, has {size(largest.free_disk())} besides the images"
            )
            remedy = f"lower {volume.variable}, or enlarge the file system of {DATA}"
            problems.append(Problem("error", largest.name, "capacity", found, "a node with room for it", remedy))
    wanted, there = sum(more for _, _, more in due), sum(room.free_disk() for room in rooms)
    if not problems and wanted > there:
        parts = ", ".join(f"{need.component} {size(more)}" for need, _, more in due)
        free = ", ".join(f"{room.name} {size(room.free_disk())}" for room in rooms)
        variables = dict.fromkeys(volume.variable for _, volume, _ in due)
        found = f"volumes need {size(wanted)} ({parts}); besides the images there are {size(there)} ({free})"
        remedy = f"lower {', '.join(variables)}, or enlarge the file systems of {DATA}"
        problems.append(Problem("error", CONTROLLER, "capacity", found, "room for all volumes", remedy))
    return problems


def _both(cpu: float, memory: float) -> str:
    return f"{cores(cpu)} CPUs and {size(memory)}"


def cores(number: float) -> str:
    """Cores as a person writes them."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def size(number: float) -> str:
    """Bytes as a person writes them."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"


def plan(needs: Sequence[Need], rooms: Sequence[Room], claims: Mapping[tuple[str, str], float] | None) -> str:
    """The needs of each component against the room of each node, for a person; at most 100 columns with usual names."""
    head = ("needed by", "CPUs", "memory", "volumes", "of it new")
    rows: list[Sequence[str]] = []
    for need in needs:
        if need.known:
            volumes = sum(each.size for each in need.volumes)
            new = "?" if claims is None else size(sum(more for _, more in to_make(need, claims)))
            row = (cores(need.sum("cpu", len(rooms))), size(need.sum("memory", len(rooms))))
            rows.append((need.component, *row, *((size(volumes), new) if volumes else ("-", "-"))))
        else:
            rows.append((need.component, *("?",) * 4))
    total = tuple(show(sum(need.sum(key, len(rooms)) for need in needs)) for key, show in _SHOWN)
    rows.append(("together", *total, size(sum(each.size for need in needs for each in need.volumes)), ""))
    below = ("free on", "CPUs", "memory", "disk", "images to transfer")
    room_rows = [(room.name, *(_free(room, key, show) for key, show in _SHOWN), *_disk(room)) for room in rooms]
    widths = [max(len(row[column]) for row in (head, below, *rows, *room_rows)) for column in range(len(head))]
    return "\n".join(_line(row, widths) for row in (head, *rows, below, *room_rows))


_SHOWN = (("cpu", cores), ("memory", size))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [f"{row[0]:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells).rstrip()


def _free(room: Room, key: str, show: Any) -> str:
    whole = getattr(room, key)
    return "?" if whole is None else f"{show(room.free(key))} of {show(whole)}"


def _disk(room: Room) -> tuple[str, str]:
    images = f"{size(room.images)} in {room.archives}" if room.archives else "none"
    return ("?" if room.disk is None else size(room.disk), images)
