"""Triangle meshes in PLY files (ASCII and binary), as far as BOP's object models use the format.

Source: Greg Turk, "The PLY Polygon File Format" (1994).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epos.errors import DataError

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh: vertices (N, 3) float64 in mm, faces (M, 3) int64, colours (N, 3) uint8."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str, str | None]]  # name, type of the value, type of the list's length


def _header(path: Path, data: bytes) -> tuple[str, list[_Element], int]:
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise DataError(f"{path}: not a PLY file")
    body = data.index(b"\n", end) + 1
    form, elements = "", []
    for line in data[:end].decode("ascii", "replace").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "format":
            form = words[1]
        elif words[0] == "element":
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[0] == "property" and words[1] == "list":
            elements[-1].properties.append((words[4], _TYPES[words[3]], _TYPES[words[2]]))
        elif words[0] == "property":
            elements[-1].properties.append((words[2], _TYPES[words[1]], None))
    if form not in _BYTE_ORDER:
        raise DataError(f"{path}: format: unknown PLY format {form!r}")
    return form, elements, body


def _read_element(element: _Element, data: bytes, offset: int, order: str) -> tuple[dict[str, np.ndarray], int]:
    """Reads one binary element; a list property must have the same length in every row (triangles)."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int, ...]]] = []
    position = offset
    for name, kind, length_kind in element.properties:
        if length_kind is None:
            fields.append((name, order + kind))
            position += np.dtype(kind).itemsize
            continue
        length = int(np.frombuffer(data, order + length_kind, 1, position)[0])
        fields += [(f"#{name}", order + length_kind), (name, order + kind, (length,))]
        position += np.dtype(length_kind).itemsize + length * np.dtype(kind).itemsize
    dtype = np.dtype(fields)
    rows = np.frombuffer(data, dtype, element.count, offset)
    for name in dtype.names or ():
        if name.startswith("#") and not (rows[name] == rows[name][0]).all():
            raise ValueError(f"{name[1:]}: only triangles are supported")
    return {name: rows[name] for name in dtype.names or ()}, offset + dtype.itemsize * element.count


def _read_ascii(element: _Element, words: list[list[str]]) -> dict[str, np.ndarray]:
    table = np.array(words, dtype=np.float64).reshape(element.count, -1)
    columns, at = {}, 0
    for name, _, length_kind in element.properties:
        width = 1
        if length_kind is not None:
            width = int(table[0, at])
            if not (table[:, at] == width).all():
                raise ValueError(f"{name}: only triangles are supported")
            at += 1
        columns[name] = table[:, at] if length_kind is None else table[:, at : at + width]
        at += width
    return columns


def read_ply(path: Path) -> Mesh:
    """Reads a mesh.

    Raises:
        DataError: the file is missing, damaged or no triangle mesh.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    try:
        form, elements, offset = _header(path, data)
        columns: dict[str, dict[str, np.ndarray]] = {}
        lines = data[offset:].decode("ascii").splitlines() if form == "ascii" else []
        row = 0
        for element in elements:
            if not element.count:
                continue
            if form == "ascii":
                columns[element.name] = _read_ascii(element, [x.split() for x in lines[row : row + element.count]])
                row += element.count
            else:
                columns[element.name], offset = _read_element(element, data, offset, _BYTE_ORDER[form])
        vertex, face = columns["vertex"], columns["face"]
        vertices = np.stack([vertex[a] for a in "xyz"], axis=1).astype(np.float64)
        faces = np.asarray(face["vertex_indices" if "vertex_indices" in face else "vertex_index"]).astype(np.int64)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged PLY file: {error}") from error
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise DataError(f"{path}: face: only triangles are supported")
    if not np.isfinite(vertices).all():
        raise DataError(f"{path}: vertex: a coordinate is not finite")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(f"{path}: face: an index is out of range")
    colors = np.full((len(vertices), 3), 160, np.uint8)
    if "red" in vertex:
        colors = np.stack([vertex[c] for c in ("red", "green", "blue")], axis=1).astype(np.uint8)
    return Mesh(vertices, faces, colors)


def write_ply(path: Path, mesh: Mesh) -> None:
    """Writes a mesh as little-endian binary PLY with vertex colours."""
    vertex = np.empty(len(mesh.vertices), [(a, "<f4") for a in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
    for i, axis in enumerate("xyz"):
        vertex[axis] = mesh.vertices[:, i]
    for i, color in enumerate(("red", "green", "blue")):
        vertex[color] = mesh.colors[:, i]
    face = np.empty(len(mesh.faces), [("n", "u1"), ("v", "<i4", (3,))])
    face["n"], face["v"] = 3, mesh.faces
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertex)}"]
    lines += [f"property float {a}" for a in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    lines += [f"element face {len(face)}", "property list uchar int vertex_indices", "end_header", ""]
    path.write_bytes("\n".join(lines).encode() + vertex.tobytes() + face.tobytes())
