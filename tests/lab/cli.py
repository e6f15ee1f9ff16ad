"""Command line of the lab."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.lab import bundle, faults, k3s_version, nodes, passes, training
from tests.lab.cache import PROJECT, Cache
from tests.lab.process import LabError
from tests.lab.site import Site, check_name, read_site, state_folder


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    top = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    verbs.add_parser("bundle", help="build or reuse the bundle; prints its path last")
    command = verbs.add_parser(
        "k3s-version", help="make a bundle with another version of the k3s stand-in, to upgrade to; prints its path"
    )
    command.add_argument("folder", type=Path, help="the bundle that it differs from in nothing else")
    command.add_argument("version")
    command = verbs.add_parser("images", help="build the images that nobody publishes and put them into a bundle")
    command.add_argument("folder", type=Path)
    command.add_argument(
        "--inventory", type=Path, help="whose components and GPUs decide what is built; default: all, without CUDA"
    )
    command.add_argument("--cpu", action="store_true", help="without CUDA in any case: the GPUs are simulated")
    verbs.add_parser("govet", help="go vet on the k3s stand-in, unless its sources have passed before")
    verbs.add_parser("gotest", help="go test on the k3s stand-in, unless its sources have passed before")
    command = verbs.add_parser("check", help="run checks, but for those that have passed on the same files before")
    command.add_argument("names", nargs="+", choices=passes.CHECKS, metavar="NAME", help=", ".join(passes.CHECKS))
    for verb, text in (
        ("up", "start the nodes of a site that are missing, wait until they answer"),
        ("status", "print each node's address and state"),
        ("fault", "disturb a node, or undo it"),
    ):
        command = verbs.add_parser(verb, help=text)
        command.add_argument("--site", required=True)
        command.add_argument("--inventory", type=Path, help="default: inventories/<site>/hosts.yml")
        if verb == "fault":
            command.add_argument("node")
            command.add_argument("fault", choices=sorted({**faults.FAULTS, **faults.GPU_FAULTS}))
            command.add_argument("gpu", type=int, nargs="?", help=f"a GPU's number, for {', '.join(faults.GPU_FAULTS)}")
            command.add_argument("--reason", default="fallen off the bus", help="what ails the GPU (%(default)s)")
    command = verbs.add_parser("down", help="remove a site: containers, volumes, network, state")
    command.add_argument("--site", required=True)
    return top


def _site(arguments: argparse.Namespace) -> Site:
    name = check_name(arguments.site)
    return read_site(name, arguments.inventory or PROJECT / "inventories" / name / "hosts.yml")


def main(words: list[str]) -> int:
    """Run one verb; returns the exit status (0 done, 1 failed, 2 wrong usage)."""
    arguments = parser().parse_args(words)
    nodes.use_own_settings()
    try:
        match arguments.verb:
            case "bundle":
                print(bundle.build(Cache()))
            case "k3s-version":
                print(k3s_version.build(Cache(), arguments.folder, arguments.version))
            case "images":
                inventory = arguments.inventory
                chosen = training.variant(inventory) if inventory and not arguments.cpu else "cpu"
                bundle.add_built(
                    Cache(), arguments.folder, chosen, bundle.needed(inventory) if inventory else bundle.COMPONENTS
                )
            case "govet":
                bundle.Plan().standin.vet(Cache())
            case "gotest":
                print(bundle.Plan().standin.test(Cache()).read_text(), end="")
            case "check":
                if not all(passes.passes(name, passes.CHECKS[name], Cache()) for name in arguments.names):
                    return 1
            case "up":
                nodes.up(_site(arguments), Cache())
            case "down":
                name = check_name(arguments.site)
                nodes.down(name, state_folder(name), Cache())
            case "status":
                site = _site(arguments)
                states = nodes.container_states(site)
                for node, address in site.nodes.items():
                    print(f"{node}\t{address}\t{states.get(node, 'absent')}")
            case "fault" if arguments.fault in faults.GPU_FAULTS:
                faults.inject_gpu(_site(arguments), arguments.node, arguments.fault, arguments.gpu, arguments.reason)
            case "fault":
                faults.inject(_site(arguments), arguments.node, arguments.fault)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    return 0
