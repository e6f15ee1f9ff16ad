"""Rendering, reading and validating data sets, and every kind of damage."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from epos.bop import BopDataset, data_hash, file_hashes, read_image, validate
from epos.errors import DataError, UsageError
from epos.fragments import make_fragments
from epos.ply import Mesh, read_ply, write_ply
from epos.raster import rasterize
from epos.render import DEPTH_SCALE, RenderConfig, render
from epos.samples import make_sample


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _digest(root: Path) -> str:
    return data_hash(file_hashes(root))


def test_the_same_seed_gives_the_same_bytes(rendered: Path, tmp_path: Path) -> None:
    config = RenderConfig(train_images=8, test_images=3, image_size=64, seed=7)
    render(tmp_path / "again", config)
    assert _digest(tmp_path / "again") == _digest(rendered)
    render(tmp_path / "other", RenderConfig(train_images=8, test_images=3, image_size=64, seed=8))
    assert _digest(tmp_path / "other") != _digest(rendered)


def test_more_images_keep_those_before(rendered: Path, tmp_path: Path) -> None:
    render(tmp_path / "more", RenderConfig(train_images=9, test_images=3, image_size=64, seed=7))
    name = "train/000001/rgb/000007.png"
    assert (tmp_path / "more" / name).read_bytes() == (rendered / name).read_bytes()


def test_rendering_refuses_a_folder_in_use(rendered: Path) -> None:
    before = _digest(rendered)
    with pytest.raises(UsageError, match="not empty"):
        render(rendered, RenderConfig())
    assert _digest(rendered) == before


def test_written_data_reads_back(rendered: Path) -> None:
    """Depth, masks, boxes and poses in the files agree with each other."""
    dataset = BopDataset(rendered)
    models = dataset.models()
    assert [len(m.symmetries[0]) for m in models.values()] == [1, 2, 315]
    views = dataset.views("train")
    assert len(views) == 8
    for view in views[:3]:
        assert read_image(view.path).shape == (64, 64, 3)
        scene = view.path.parent.parent
        depth = np.asarray(Image.open(scene / "depth" / view.path.name)).astype(float) * DEPTH_SCALE
        infos = json.loads((scene / "scene_gt_info.json").read_text())[str(view.im_id)]
        for i, (instance, info) in enumerate(zip(view.instances, infos, strict=True)):
            mesh = models[instance.obj_id].mesh
            points = mesh.vertices @ instance.rotation.T + instance.translation
            seen = rasterize(points, mesh.faces, view.camera, (64, 64))
            name = f"{view.im_id:06d}_{i:06d}.png"
            full, visible = (np.asarray(Image.open(scene / d / name)) > 0 for d in ("mask", "mask_visib"))
            # Models are stored in single precision, so a pixel on an edge may differ.
            assert (full != (seen.face >= 0)).sum() <= 3
            both = visible & (seen.face >= 0)
            assert np.abs(depth - seen.depth)[both].max() < DEPTH_SCALE
            assert info["px_count_all"] == full.sum() and info["px_count_visib"] == visible.sum()
            x, y, w, h = info["bbox_obj"]
            assert full[y : y + h, x : x + w].sum() == full.sum()
            assert info["visib_fract"] == pytest.approx(visible.sum() / full.sum(), abs=1e-6)


def test_targets_agree_with_masks_and_models(rendered: Path) -> None:
    """Each cell's fragment and location give a point of the model that projects to the cell."""
    dataset = BopDataset(rendered)
    models = dataset.models()
    fragments = make_fragments(models, 8)
    view = dataset.views("train")[0]
    sample = make_sample(view, models, fragments, (64, 64))
    checked = 0
    for instance in view.instances:
        index = int(np.searchsorted(fragments.obj_ids, instance.obj_id))
        ys, xs = np.nonzero(sample.objects == index + 1)
        numbers = sample.fragments[ys, xs]
        points = fragments.centers[index][numbers] + (
            fragments.sizes[index][numbers][:, None] * sample.locations[ys, xs]
        )
        pixels = (points @ instance.rotation.T + instance.translation) @ view.camera.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        assert np.allclose(pixels, np.stack([xs, ys], axis=1) * 4 + 1.5, atol=1e-3)
        checked += len(xs)
    assert checked > 20


def test_validation_counts(rendered: Path) -> None:
    report = validate(BopDataset(rendered), ["train", "test"])
    assert report["objects"] == [1, 2, 3]
    assert report["train"] == {"scenes": 1, "images": 8, "instances": 24}
    assert report["test"]["images"] == 3


def _scene(root: Path, split: str = "train") -> Path:
    return root / split / "000001"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _resize(path: Path) -> None:
    Image.open(path).resize((48, 64)).save(path)


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("camera file", lambda r: (_scene(r) / "scene_camera.json").unlink(), r"scene_camera\.json: missing file"),
    ("camera key", lambda r: _edit(_scene(r) / "scene_camera.json", lambda v: v["2"].pop("cam_K")),
     r"scene_camera\.json: 2\.cam_K: expected 9 finite numbers"),
    ("camera entry", lambda r: _edit(_scene(r) / "scene_camera.json", lambda v: v.pop("2")),
     r"scene_camera\.json: 2: missing camera"),
    ("no intrinsics", lambda r: _edit(_scene(r) / "scene_camera.json", lambda v: v["2"].update(cam_K=[0.0] * 9)),
     r"scene_camera\.json: 2\.cam_K: not an intrinsic matrix"),
    ("image size", lambda r: _resize(_scene(r) / "rgb/000003.png"),
     r"rgb/000003\.png: image is 48x64 px, expected 64x64 px"),
    ("test image size", lambda r: [_resize(p) for p in (_scene(r, "test") / "rgb").iterdir()],
     r"test/000001/rgb/000000\.png: image is 48x64 px, expected 64x64 px \(camera\.json\)"),
    ("mask size", lambda r: _resize(_scene(r) / "mask_visib/000003_000001.png"),
     r"mask_visib/000003_000001\.png: image is 48x64"),
    ("truncated image", lambda r: _truncate(_scene(r) / "rgb/000004.png"), r"rgb/000004\.png: damaged image"),
    ("no image", lambda r: (_scene(r) / "rgb/000004.png").write_text("hello"), r"rgb/000004\.png: damaged image"),
    ("missing image", lambda r: (_scene(r) / "rgb/000004.png").unlink(), r"rgb/000004\.png: missing image"),
    ("truncated mask", lambda r: _truncate(_scene(r) / "mask_visib/000001_000000.png"),
     r"mask_visib/000001_000000\.png: damaged image"),
    ("rotation", lambda r: _edit(_scene(r) / "scene_gt.json",
                                 lambda v: v["1"][2].update(cam_R_m2c=[1, 0, 0, 0, 1, 0, 0, 0.5, 1])),
     r"scene_gt\.json: 1\[2\]\.cam_R_m2c: not a rotation matrix"),
    ("reflection", lambda r: _edit(_scene(r) / "scene_gt.json",
                                   lambda v: v["1"][2].update(cam_R_m2c=[1, 0, 0, 0, 1, 0, 0, 0, -1])),
     r"scene_gt\.json: 1\[2\]\.cam_R_m2c: not a rotation matrix"),
    ("not a number", lambda r: _edit(_scene(r) / "scene_gt.json",
                                     lambda v: v["1"][2].update(cam_t_m2c=[1, float("nan"), 300])),
     r"scene_gt\.json: 1\[2\]\.cam_t_m2c: expected 3 finite numbers"),
    ("behind", lambda r: _edit(_scene(r) / "scene_gt.json", lambda v: v["1"][0].update(cam_t_m2c=[0, 0, -300])),
     r"scene_gt\.json: 1\[0\]\.cam_t_m2c: the object is behind the camera"),
    ("unknown object", lambda r: _edit(_scene(r) / "scene_gt.json", lambda v: v["0"][1].update(obj_id=9)),
     r"scene_gt\.json: 0\[1\]\.obj_id: no model of object 9"),
    ("missing truth", lambda r: (_scene(r) / "scene_gt.json").unlink(), r"scene_gt\.json: missing file"),
    ("broken JSON", lambda r: _truncate(_scene(r) / "scene_gt.json"), r"scene_gt\.json: not valid JSON"),
    ("visibility", lambda r: _edit(_scene(r) / "scene_gt_info.json", lambda v: v["0"][1].pop("visib_fract")),
     r"scene_gt_info\.json: 0\[1\]\.visib_fract"),
    ("missing model", lambda r: (r / "models/obj_000002.ply").unlink(), r"models/obj_000002\.ply: No such file"),
    ("truncated model", lambda r: _truncate(r / "models/obj_000002.ply"), r"models/obj_000002\.ply: damaged PLY"),
    ("missing info", lambda r: (r / "models/models_info.json").unlink(), r"models_info\.json: missing file"),
    ("diameter", lambda r: _edit(r / "models/models_info.json", lambda v: v["1"].update(diameter=0)),
     r"models_info\.json: 1\.diameter: expected a positive number"),
    ("symmetry", lambda r: _edit(r / "models/models_info.json",
                                 lambda v: v["2"].update(symmetries_discrete=[[1, 2, 3]])),
     r"models_info\.json: 2\.symmetries_discrete\[0\]: expected 16 finite numbers"),
    ("split", lambda r: shutil.rmtree(r / "test"), r"test: missing split folder"),
    ("targets", lambda r: (r / "test_targets_bop19.json").write_text('[{"scene_id": 1, "im_id": 99, "obj_id": 1}]'),
     r"test_targets_bop19\.json: scene_id 1, im_id 99: no such image"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damage_is_named_with_file_and_key(copied: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copied)
    with pytest.raises(DataError, match=message) as caught:
        validate(BopDataset(copied), ["train", "test"])
    assert str(caught.value).startswith(str(copied)), "the text starts with the file"


def test_all_problems_are_reported_at_once(copied: Path) -> None:
    _truncate(_scene(copied) / "rgb/000004.png")
    _resize(_scene(copied, "test") / "rgb/000001.png")
    (copied / "models/obj_000003.ply").unlink()
    with pytest.raises(DataError) as caught:
        validate(BopDataset(copied), ["train", "test"])
    assert "obj_000003.ply" in str(caught.value)
    restored = copied.parent / "rest"
    shutil.copytree(copied, restored)
    write_ply(restored / "models/obj_000003.ply", read_ply(copied / "models/obj_000002.ply"))
    with pytest.raises(DataError) as caught:
        validate(BopDataset(restored), ["train", "test"])
    assert len(str(caught.value).splitlines()) == 2


def test_a_folder_like_t_less(copied: Path) -> None:
    """Grey JPEGs, several scenes, models_cad, no targets, no visible masks."""
    (copied / "models").rename(copied / "models_cad")
    (copied / "test_targets_bop19.json").unlink()
    (copied / "test").rename(copied / "test_primesense")
    first = copied / "test_primesense" / "000001"
    (first / "gray").mkdir()
    for path in (first / "rgb").iterdir():
        Image.open(path).convert("L").save(first / "gray" / f"{path.stem}.jpg")
    shutil.rmtree(first / "rgb")
    shutil.rmtree(first / "mask_visib")
    shutil.copytree(first, copied / "test_primesense" / "000007")
    dataset = BopDataset(copied)
    report = validate(dataset, ["train", "test_primesense"])
    assert report["test_primesense"] == {"scenes": 2, "images": 6, "instances": 18}
    view = dataset.targets("test_primesense")[-1]
    assert view.scene_id == 7 and read_image(view.path).shape == (64, 64, 3)
    sample = make_sample(view, dataset.models(), make_fragments(dataset.models(), 4), (64, 64))
    assert set(np.unique(sample.objects)) <= {0, 1, 2, 3} and sample.objects.any()


def test_images_without_annotations_can_be_read(copied: Path) -> None:
    for path in _scene(copied, "test").glob("scene_gt*.json"):
        path.unlink()
    assert len(BopDataset(copied).views("test", annotated=False)) == 3
    with pytest.raises(DataError, match=r"scene_gt\.json: missing file"):
        BopDataset(copied).views("test")


def test_ply_in_ascii_with_normals_and_texture(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_text(
        "ply\nformat ascii 1.0\ncomment made by hand\nelement vertex 3\nproperty float x\nproperty float y\n"
        "property float z\nproperty float nx\nproperty float ny\nproperty float nz\nproperty uchar red\n"
        "property uchar green\nproperty uchar blue\nelement face 1\nproperty list uchar int vertex_indices\n"
        "property list uchar float texcoord\nend_header\n"
        "0 0 0 0 0 1 255 0 0\n1.5 0 0 0 0 1 0 255 0\n0 2 0 0 0 1 0 0 255\n3 0 1 2 6 0 0 1 0 0 1\n"
    )
    mesh = read_ply(path)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1.5, 0, 0], [0, 2, 0]]
    assert mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.colors.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_ply_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mesh = Mesh(rng.normal(size=(9, 3)).astype(np.float32), rng.integers(0, 9, (5, 3)), rng.integers(0, 256, (9, 3)))
    write_ply(tmp_path / "a.ply", mesh)
    again = read_ply(tmp_path / "a.ply")
    assert all((getattr(mesh, n) == getattr(again, n)).all() for n in ("vertices", "faces", "colors"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "not a PLY file"),
        ("ply\nformat binary_middle 1.0\nend_header\n", "unknown PLY format"),
        ("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "damaged PLY file"),
        (
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
            "element face 1\nproperty list uchar int vertex_indices\nend_header\n1 2 3\n3 0 0 7\n",
            "face: an index is out of range",
        ),
        (
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
            "element face 1\nproperty list uchar int vertex_indices\nend_header\n1 2 3\n4 0 0 0 0\n",
            "only triangles",
        ),
    ],
)
def test_damaged_ply(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.ply").write_text(text)
    with pytest.raises(DataError, match=message):
        read_ply(tmp_path / "a.ply")


def test_data_hash_sees_names_and_content(copied: Path) -> None:
    before = _digest(copied)
    image = _scene(copied) / "rgb/000000.png"
    content = image.read_bytes()
    cv2.imwrite(str(image), 255 - cv2.imread(str(image)))
    assert _digest(copied) != before
    image.write_bytes(content)
    assert _digest(copied) == before
    image.rename(image.with_name("000099.png"))
    assert hashlib.sha256(content).hexdigest() in str(file_hashes(copied)) and _digest(copied) != before
