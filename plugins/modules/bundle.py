#!/usr/bin/python
"""Module: fill or verify a bundle."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Fill a bundle from official releases, or verify one
description:
  - A bundle is a directory with every artifact of a release and C(bundle.yml), which lists them with their SHA-256.
  - C(present) fetches what is missing, each file once. Files appear only whole and verified, cut downloads are resumed,
    and C(bundle.yml) is written last.
  - C(verified) compares the files with C(bundle.yml) and reports every difference in one message.
  - Hashes are remembered beside the bundle, so files that did not change are not read again.
  - Runs on the controller. Artifacts of kind C(image) need the program C(skopeo).
options:
  path:
    description: Directory of the bundle.
    type: path
    required: true
  state:
    description: Whether to fill or to verify.
    type: str
    choices: [present, verified]
    default: verified
  release:
    description: Name, arch, versions and images of the release, as they go into C(bundle.yml). Needed by C(present).
    type: dict
    suboptions:
      name:
        description: Name of the release.
        type: str
        required: true
      arch:
        description: Architecture of programs and images.
        type: str
        default: amd64
      versions:
        description: Version of each part.
        type: dict
        default: {}
      images:
        description: Image reference for each name that roles use.
        type: dict
        default: {}
      artifacts:
        description: The files.
        type: list
        elements: dict
        required: true
        suboptions:
          path:
            description: Path in the bundle.
            type: str
            required: true
          kind:
            description: >-
              What it is. C(images) is an archive of images under I(url), C(image) one image of a registry, C(kustomize) manifests that are
              rendered here from I(sources); for whoever reads the bundle these are a C(manifest).
            type: str
            choices: [binary, chart, images, image, kustomize, manifest]
            required: true
          name:
            description: Name of the part.
            type: str
            required: true
          version:
            description: Version of the part.
            type: str
            default: ""
          url:
            description: Where the file is.
            type: str
            default: ""
          sha256:
            description: Its SHA-256; with I(member), that of the archive. Either this or I(checksum_url).
            type: str
            default: ""
          checksum_url:
            description: >-
              Published hashes: lines of C(sha256sum), a lone hash, or the C(index.yaml) of a chart repository.
            type: str
            default: ""
          checksum_name:
            description: Name there, in an index C(<chart>-<version>). Without it, the last part of I(url).
            type: str
            default: ""
          member:
            description: The file is this member of the tar archive under I(url).
            type: str
            default: ""
          image:
            description: Reference with tag, for kind C(image). The archive carries it.
            type: str
            default: ""
          digest:
            description: Digest C(sha256:...) of the manifest of that image for I(arch).
            type: str
            default: ""
          images:
            description: References in an archive of kind C(images), for the record.
            type: list
            elements: str
            default: []
          component:
            description: The component that needs it; empty for what every site needs.
            type: str
            default: ""
          roots:
            description: For kind C(kustomize), the folders with kustomizations that are rendered, in the first of I(sources).
            type: list
            elements: str
            default: []
          sources:
            description:
              - For kind C(kustomize), source archives, as Git hosts pack them for a tag. Such an archive has no lasting hash, so that of its
                files counts.
              - They are rendered by the bundle's C(bin/kubectl), without the network.
            type: list
            elements: dict
            default: []
            suboptions:
              url:
                description: Where the tar archive is. Its outermost folder does not count.
                type: str
                required: true
              folders:
                description: Folders that are needed of it.
                type: list
                elements: str
                required: true
              hash:
                description: Hash of the files in I(folders), C(h1:...) as Go's dirhash makes it.
                type: str
                required: true
              remote:
                description: The address by which kustomizations of other sources refer to this one, without the folder.
                type: str
                default: ""
              ref:
                description: The version at which they do.
                type: str
                default: ""
      unpinned:
        description: >-
          Images whose digests nobody publishes, so that they are not in the bundle: nodes get them from their registry. Named in a
          warning.
        type: list
        elements: dict
        default: []
        suboptions:
          image:
            description: Reference with tag.
            type: str
            required: true
          component:
            description: The component that needs it.
            type: str
            required: true
  components:
    description: The components that the site installs. What others alone need is left out.
    type: list
    elements: str
    default: []
  stamp:
    description: File that remembers hashes. Without it, C(.<name>.stamp.json) beside the bundle.
    type: path
  retries:
    description: How often a download is tried in all.
    type: int
    default: 5
  timeout:
    description: Seconds without a byte after which a try has failed.
    type: float
    default: 30
  backoff:
    description: Seconds before the second try; doubled before each further one.
    type: float
    default: 1
  skopeo:
    description: Name or path of the program skopeo.
    type: str
    default: skopeo
attributes:
  check_mode:
    support: full
    description: Reports what would be fetched.
  diff_mode:
    support: full
    description: Lists the paths.
author: Slipway
"""

EXAMPLES = r"""
- name: Fill the bundle
  bundle:
    path: "{{ slipway_bundle_dir }}"
    state: present
    release: "{{ slipway_release }}"

- name: The bundle is whole
  bundle:
    path: "{{ slipway_bundle_dir }}"
  register: bundle
"""

RETURN = r"""
bundle:
  description: The parsed manifest; in check mode of C(present) that of before, empty if there is none.
  returned: success
  type: dict
fetched:
  description: Paths that were fetched; in check mode, that would be.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.bundle import MANIFEST, Stamp, default_stamp, locked, read_manifest, verify
from ansible.module_utils.slipway.bundle_fill import Artifact, Filler, write_manifest
from ansible.module_utils.slipway.download import Transfer
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kustomize_sources import Source

_ARTIFACT_SPEC: dict[str, dict[str, Any]] = {
    "path": {"type": "str", "required": True},
    "kind": {
        "type": "str",
        "required": True,
        "choices": ["binary", "chart", "images", "image", "kustomize", "manifest"],
    },
    "name": {"type": "str", "required": True},
    "version": {"type": "str", "default": ""},
    "url": {"type": "str", "default": ""},
    "sha256": {"type": "str", "default": ""},
    "checksum_url": {"type": "str", "default": ""},
    "checksum_name": {"type": "str", "default": ""},
    "member": {"type": "str", "default": ""},
    "image": {"type": "str", "default": ""},
    "digest": {"type": "str", "default": ""},
    "images": {"type": "list", "elements": "str", "default": []},
    "component": {"type": "str", "default": ""},
    "roots": {"type": "list", "elements": "str", "default": []},
    "sources": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "url": {"type": "str", "required": True},
            "folders": {"type": "list", "elements": "str", "required": True},
            "hash": {"type": "str", "required": True},
            "remote": {"type": "str", "default": ""},
            "ref": {"type": "str", "default": ""},
        },
    },
}
_UNPINNED_SPEC: dict[str, dict[str, Any]] = {
    "image": {"type": "str", "required": True},
    "component": {"type": "str", "required": True},
}


def fill(params: dict[str, Any], bundle: Path, stamp: Stamp, check: bool) -> dict[str, Any]:
    """`state: present`; the module's result. Raises SlipwayError."""
    release = params["release"]
    artifacts = [
        Artifact(
            **item
            | {key: tuple(item[key]) for key in ("images", "roots")}
            | {"sources": tuple(Source.of(source) for source in item["sources"])}
        )
        for item in release["artifacts"]
        if item["component"] in ("", *params["components"])
    ]
    filler = Filler(
        bundle,
        stamp,
        Transfer(params["retries"], params["timeout"], params["backoff"]),
        release["arch"],
        params["skopeo"],
    )
    fetched = filler.fill(artifacts, check)
    if check:
        manifest = read_manifest(bundle) if (bundle / MANIFEST).is_file() else {}
        return {"changed": bool(fetched), "fetched": fetched, "bundle": manifest}
    manifest = filler.manifest(release, artifacts, "upstream")
    written = write_manifest(bundle, manifest)
    return {"changed": bool(fetched) or written, "fetched": fetched, "bundle": manifest}


def check_files(bundle: Path, stamp: Stamp) -> dict[str, Any]:
    """`state: verified`; the module's result. Raises SlipwayError with every fault."""
    manifest = read_manifest(bundle)
    faults = verify(bundle, manifest["artifacts"], stamp)
    if faults:
        raise SlipwayError(f"the bundle {bundle} is damaged:\n" + "\n".join(faults))
    return {"changed": False, "fetched": [], "bundle": manifest}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "default": "verified", "choices": ["present", "verified"]},
            "release": {
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "arch": {"type": "str", "default": "amd64"},
                    "versions": {"type": "dict", "default": {}},
                    "images": {"type": "dict", "default": {}},
                    "artifacts": {"type": "list", "elements": "dict", "required": True, "options": _ARTIFACT_SPEC},
                    "unpinned": {"type": "list", "elements": "dict", "default": [], "options": _UNPINNED_SPEC},
                },
            },
            "components": {"type": "list", "elements": "str", "default": []},
            "stamp": {"type": "path"},
            "retries": {"type": "int", "default": 5},
            "timeout": {"type": "float", "default": 30},
            "backoff": {"type": "float", "default": 1},
            "skopeo": {"type": "str", "default": "skopeo"},
        },
        required_if=[("state", "present", ["release"])],
        supports_check_mode=True,
    )
    # Resolved, so that a link to the bundle and its target share one stamp.
    bundle = Path(module.params["path"]).resolve()
    stamp = Stamp(Path(module.params["stamp"]) if module.params["stamp"] else default_stamp(bundle))
    try:
        if module.params["state"] == "present":
            with locked(bundle):
                result = fill(module.params, bundle, stamp, module.check_mode)
            unpinned = [
                item
                for item in module.params["release"]["unpinned"]
                if item["component"] in module.params["components"]
            ]
            if unpinned:
                images = ", ".join(item["image"] for item in unpinned)
                module.warn(
                    f"not in the bundle, as nobody publishes their digests; nodes must reach the registries of: {images}"
                )
        else:
            result = check_files(bundle, stamp)
    except (SlipwayError, OSError) as error:
        module.fail_json(msg=str(error))
    if not stamp.save():
        module.warn("hashes cannot be remembered beside the bundle, so every run reads all files")
    fetched = "".join(f"{path}\n" for path in result["fetched"])
    module.exit_json(**result, diff={"before": "", "after": fetched})


if __name__ == "__main__":
    main()
