"""Each benchmark's reader on small sets in that benchmark's exact files, against the protocol written out by hand.

The reference below shares no code with the package: crop, mask, unit, fit and clip are spelled out with NumPy alone,
and each of them is shown to matter by leaving it out.
"""

import io
import math
import tarfile

import numpy as np
import pytest
from PIL import Image

from jointdit.errors import InputError
from jointdit.evaluation.benchmarks import BENCHMARKS, evaluate_benchmark, read_samples
from jointdit.scenes import render_scene


class FromBrightness:
    """An estimator that reads its map off the image: 0.3 + red / 100, plus a corner it gets wrong."""

    name = "brightness"

    def __init__(self, space="disparity"):
        self.space = space
        self.long_sides = []

    def estimate(self, image, long_side=None):
        self.long_sides.append(long_side)
        return prediction_of(image)


def prediction_of(image):
    return (0.3 + image[..., 0].astype(np.float32) / 100).astype(np.float32)


def scene_like(height, width, seed, far=9.0):
    """(image, depth): depth falls towards the bottom, with a step; red is roughly its inverse, with errors."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    depth = 1.2 + (far - 1.2) * (1 - rows / height) ** 2 + 0.4 * np.sin(columns / width * 7)
    depth = depth + (columns > width * 0.6) * 0.7
    wrong = 20 * (rows < height * 0.25) + 15 * (columns < width * 0.1) + rng.integers(0, 6, (height, width))
    red = np.clip(160 / depth + wrong, 0, 255)
    image = np.stack([red, columns % 256, rows % 256], axis=-1).astype(np.uint8)
    return image, depth


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def abs_rel(prediction, depth, mask, low, high, space="disparity", fit_on=None):
    """AbsRel of one image by hand: least squares, clip at 1e-3, invert, clip to the range, mean over the mask."""
    prediction, depth = prediction.astype(np.float64), depth.astype(np.float64)
    fit_on = slice(None) if fit_on is None else fit_on
    p, d, m = prediction[fit_on], depth[fit_on], mask[fit_on]
    seen = m & (p > 0) if space == "disparity" else m
    target = 1 / d[seen] if space == "disparity" else d[seen]
    n, x, y = seen.sum(), p[seen], target
    scale = (n * (x * y).sum() - x.sum() * y.sum()) / (n * (x * x).sum() - x.sum() ** 2)
    shift = (y.sum() - scale * x.sum()) / n
    aligned = prediction * scale + shift
    if space == "disparity":
        aligned = 1 / np.maximum(aligned, 1e-3)
    aligned = np.clip(aligned, low, high)
    return float(np.mean(np.abs(aligned[mask] - depth[mask]) / depth[mask]))


def check(name, root, maps, low, high, space="disparity", **options):
    """The benchmark's mean AbsRel equals the reference over `maps` of (image, depth, mask)."""
    estimator = FromBrightness(space)
    result = evaluate_benchmark(BENCHMARKS[name], root, estimator, **options)
    by_hand = [abs_rel(prediction_of(p), d, m, low, high, space) for p, d, m in maps]
    assert result.metrics["abs_rel"] == pytest.approx(np.mean(by_hand), rel=2e-5)
    assert len(result.by_image) == result.images == len(maps)
    return result, estimator


# --- NYUv2 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nyu(tmp_path_factory):
    """Two images; the raw depth has holes and a stripe beyond 10 m, and lies outside the crop elsewhere."""
    root, maps, lines = tmp_path_factory.mktemp("nyu"), [], []
    for index in (1, 2):
        image, depth = scene_like(480, 640, index)
        stored = np.rint(depth * 1000).astype(np.uint16)
        stored[200:230, 100:300] = 0
        stored[60:80, 300:400] = 12_000 + 500 * index
        base = "test/kitchen_0004"
        write(
            root,
            {
                f"{base}/rgb_{index:04d}.png": png(image),
                f"{base}/depth_{index:04d}.png": png(stored),
                f"{base}/filled_{index:04d}.png": png(np.full((480, 640), 3000, np.uint16)),
            },
        )
        lines.append(" ".join(f"{base}/{kind}_{index:04d}.png" for kind in ("rgb", "depth", "filled")))
        maps.append((image, stored.astype(np.float32) / 1000))
    write(root, {"filename_list_test.txt": "\n".join(lines) + "\n"})
    return root, maps


def nyu_mask(depth, crop=True, valid=True):
    mask = np.ones(depth.shape, bool)
    if crop:
        mask[:45], mask[471:], mask[:, :41], mask[:, 601:] = False, False, False, False
    return mask & (depth > 1e-3) & ((depth < 10) if valid else True)


def test_nyu_equals_the_protocol_by_hand_and_crop_mask_scale_and_alignment_each_matter(nyu):
    root, maps = nyu
    masked = [(p, d, nyu_mask(d)) for p, d in maps]
    result, estimator = check("nyuv2", root, masked, 1e-3, 10.0)
    assert estimator.long_sides == [None, None]
    assert result.listed == 2
    assert result.is_whole
    found = result.metrics["abs_rel"]

    def by_hand(change, space="disparity"):
        return np.mean([abs_rel(prediction_of(p), *change(d), 1e-3, 10.0, space) for p, d in maps])

    assert by_hand(lambda d: (d, nyu_mask(d))) == pytest.approx(found, rel=2e-5)
    assert by_hand(lambda d: (d, nyu_mask(d, crop=False))) != pytest.approx(found, rel=1e-2)
    assert by_hand(lambda d: (d, nyu_mask(d, valid=False))) != pytest.approx(found, rel=1e-2)
    # read as 1/5000 m, as some RGB-D sets store depth
    assert by_hand(lambda d: (d / 5, nyu_mask(d / 5))) != pytest.approx(found, rel=1e-2)
    assert by_hand(lambda d: (d, nyu_mask(d)), "depth") != pytest.approx(found, rel=1e-2)


def test_alignment_in_depth_for_estimators_of_depth(nyu):
    root, maps = nyu
    result, _ = check("nyuv2", root, [(p, d, nyu_mask(d)) for p, d in maps], 1e-3, 10.0, "depth")
    assert result.alignment == "depth"


def test_a_tar_archive_reads_as_the_folder_does(nyu, tmp_path):
    root, _ = nyu
    archive = tmp_path / "nyu_labeled_extracted.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, arcname=".")
    one = evaluate_benchmark(BENCHMARKS["nyuv2"], root, FromBrightness())
    other = evaluate_benchmark(BENCHMARKS["nyuv2"], archive, FromBrightness())
    assert other.by_image == one.by_image


def test_a_limit_takes_the_first_images_and_says_so(nyu):
    root, _ = nyu
    done = []
    result = evaluate_benchmark(
        BENCHMARKS["nyuv2"], root, FromBrightness(), limit=1, on_image=lambda *progress: done.append(progress)
    )
    assert (result.images, result.listed, result.is_whole) == (1, 2, False)
    assert list(result.by_image) == ["test/kitchen_0004/rgb_0001.png"]
    assert done == [(1, 1)]


# --- KITTI ----------------------------------------------------------------------------------------------------------


def test_kitti_equals_the_protocol_by_hand_and_its_crops_and_unit_matter(tmp_path):
    height, width = 375, 1242
    image, depth = scene_like(height, width, 3, far=70.0)
    stored = np.rint(depth * 256).astype(np.uint16)
    stored[(np.arange(height) % 3 != 0), :] = 0  # a lidar's sparse rows
    stored[150:160, 400:500] = 85 * 256
    drive = "2011_09_26/2011_09_26_drive_0002_sync"
    rgb_name = f"{drive}/image_02/data/0000000069.png"
    depth_name = "2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000069.png"
    lines = f"{rgb_name} {depth_name} 721.5377\n{drive}/image_02/data/0000000075.png None 721.5377\n"
    write(tmp_path, {rgb_name: png(image), depth_name: png(stored), "eigen_test_files_with_gt.txt": lines})
    # by hand: bottom 352 rows, columns 13 to 1229; then rows 117:321 and columns 43:1172 of those
    p, d = image[23:375, 13:1229], (stored.astype(np.float32) / 256)[23:375, 13:1229]
    inside = np.zeros((352, 1216), bool)
    inside[117:321, 43:1172] = True
    known = (d > 1e-5) & (d < 80)
    result, _ = check("kitti", tmp_path, [(p, d, inside & known)], 1e-5, 80.0)
    assert result.listed == 1  # the line without depth is left out

    found = result.metrics["abs_rel"]
    whole, whole_depth = prediction_of(image), stored.astype(np.float32) / 256
    without_crop = np.zeros((height, width), bool)
    without_crop[int(0.3324324 * height) : int(0.91351351 * height), 44:1197] = True
    seen = (whole_depth > 1e-5) & (whole_depth < 80)
    assert abs_rel(whole, whole_depth, without_crop & seen, 1e-5, 80.0) != pytest.approx(found, rel=1e-3)
    assert abs_rel(prediction_of(p), d, known, 1e-5, 80.0) != pytest.approx(found, rel=1e-2)
    assert abs_rel(prediction_of(p), d, inside & (d > 1e-5), 1e-5, 80.0) != pytest.approx(found, rel=1e-2)
    wrong = d * 256 / 1000
    assert abs_rel(prediction_of(p), wrong, inside & (wrong > 1e-5), 1e-5, 80.0) != pytest.approx(found, rel=1e-2)


# --- ETH3D ----------------------------------------------------------------------------------------------------------


def test_eth3d_reads_bare_float32_and_fits_on_1024_pixels_a_side(tmp_path):
    height, width = 48, 2048  # long, so that the fit sees every second column and row only
    image, depth = scene_like(height, width, 4)
    # Where the fit does not look, the image says something else: fitting on all pixels would show.
    image[1::2, :, 0] //= 2
    depth = depth.astype("<f4")
    depth[5:9, 100:900] = math.inf
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")  # lossless, under the set's name for JPEGs
    rgb_name = "rgb/office/images/dslr_images/DSC_0219.JPG"
    depth_name = "depth/office_dslr_depth/office/ground_truth_depth/dslr_images/DSC_0219.JPG"
    write(
        tmp_path,
        {
            rgb_name: stream.getvalue(),
            depth_name: depth.tobytes(),
            "eth3d_filename_list.txt": f"{rgb_name} {depth_name}\n",
        },
    )
    estimator = FromBrightness()
    result = evaluate_benchmark(BENCHMARKS["eth3d"], tmp_path, estimator)
    assert estimator.long_sides == [756]
    known = np.isfinite(depth)
    filled = np.where(known, depth, 0.0)
    every_second = (slice(None, None, 2), slice(None, None, 2))
    filled_safely = np.where(known, filled, 1.0)
    by_hand = abs_rel(prediction_of(image), filled_safely, known, 1e-5, math.inf, fit_on=every_second)
    assert result.metrics["abs_rel"] == pytest.approx(by_hand, rel=2e-5)
    on_all = abs_rel(prediction_of(image), filled_safely, known, 1e-5, math.inf)
    assert on_all != pytest.approx(by_hand, rel=1e-2)

    write(tmp_path, {depth_name: depth.astype("<f8").tobytes()})
    with pytest.raises(InputError, match=r"has 786432 bytes.*2048 x 48 pixels 393216"):
        evaluate_benchmark(BENCHMARKS["eth3d"], tmp_path, estimator)


# --- ScanNet, DIODE, scenes -----------------------------------------------------------------------------------------


def test_scannet_equals_the_protocol_by_hand_and_has_no_crop(tmp_path):
    image, depth = scene_like(96, 128, 5)
    stored = np.rint(depth * 1000).astype(np.uint16)
    stored[10:20, 30:60] = 0
    stored[70:75] = 10_500
    lines = "scene0406_02/color/000300.jpg scene0406_02/depth/000300.png\n"
    write(
        tmp_path,
        {
            "scene0406_02/color/000300.jpg": png(image),
            "scene0406_02/depth/000300.png": png(stored),
            "scannet_val_sampled_list_800_1.txt": lines,
        },
    )
    d = stored.astype(np.float32) / 1000
    mask = (d > 1e-3) & (d < 10)
    result, _ = check("scannet", tmp_path, [(image, d, mask)], 1e-3, 10.0)
    unmasked = abs_rel(prediction_of(image), d, d > 1e-3, 1e-3, 10.0)
    assert unmasked != pytest.approx(result.metrics["abs_rel"], rel=1e-2)


def test_diode_takes_the_mask_from_its_file_alone_and_clips_to_its_range(tmp_path):
    image, depth = scene_like(96, 128, 6)
    depth[:30], image[:30, :, 0] = 380.0, 0  # far buildings beyond the range: known, so they count
    depth[80:, :40] = np.nan
    mask = np.isfinite(depth) & (np.arange(128) > 20)
    base = "outdoor/scene_00022/scan_00193/00022_00193_outdoor_010_000"
    write(
        tmp_path,
        {
            f"{base}.png": png(image),
            f"{base}_depth.npy": npy(depth.astype(np.float32)[..., None]),
            f"{base}_depth_mask.npy": npy(mask.astype(np.float32)),
            "diode_val_all_filename_list.txt": f"{base}.png {base}_depth.npy {base}_depth_mask.npy\n",
        },
    )
    d = np.where(mask, depth, 1.0).astype(np.float32)
    result, estimator = check("diode", tmp_path, [(image, d, mask)], 0.6, 350.0)
    assert estimator.long_sides == [640]
    found = result.metrics["abs_rel"]
    assert abs_rel(prediction_of(image), d, mask & (d < 350), 0.6, 350.0) != pytest.approx(found, rel=1e-2)
    assert abs_rel(prediction_of(image), d, mask, 0.6, 80.0) != pytest.approx(found, rel=1e-2)


def test_scenes_are_what_the_scenes_command_writes(tmp_path):
    from jobs.scenes import write_scenes

    assert list(write_scenes(tmp_path / "scenes", 2, 7, 96, 64)) == [1, 2]
    scenes = [render_scene(seed, 96, 64) for seed in (7, 8)]
    listed, samples = read_samples(BENCHMARKS["scenes"], tmp_path / "scenes")
    assert listed == 2
    for sample, scene in zip(samples, scenes, strict=True):
        np.testing.assert_array_equal(sample.rgb, scene.rgb)
        np.testing.assert_array_equal(sample.depth, scene.depth)
        assert sample.mask.all()
    check("scenes", tmp_path / "scenes", [(s.rgb, s.depth, s.depth > 0) for s in scenes], 1e-3, 80.0)


# --- what can be wrong ----------------------------------------------------------------------------------------------


def test_a_missing_root_and_a_file_that_is_no_archive(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist: give the folder or the tar archive"):
        read_samples(BENCHMARKS["nyuv2"], tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(InputError, match=r"notes\.txt is not a tar archive"):
        read_samples(BENCHMARKS["nyuv2"], tmp_path / "notes.txt")


def test_a_missing_list_is_named_with_the_way_to_give_one(tmp_path):
    with pytest.raises(InputError, match=r"has no filename_list_test\.txt.*--list nyuv2=FILE"):
        read_samples(BENCHMARKS["nyuv2"], tmp_path)
    with pytest.raises(InputError, match=r"other\.txt cannot be read"):
        read_samples(BENCHMARKS["nyuv2"], tmp_path, tmp_path / "other.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no image with depth"),
        ("a.png None 721\n", "lists no image with depth"),
        ("a.png b.png\nc.png\n", "line 2: 1 of 2 columns"),
    ],
)
def test_a_list_that_does_not_fit(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_samples(BENCHMARKS["scannet"], tmp_path, tmp_path / "list.txt")


def small_scannet(root, rgb=(24, 32), depth=(24, 32), values=2000, dtype=np.uint16):
    files = {"rgb.png": png(np.zeros((*rgb, 3), np.uint8)), "depth.png": png(np.full(depth, values, dtype))}
    write(root, files | {"scannet_val_sampled_list_800_1.txt": "rgb.png depth.png\n"})
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": (24, 31)}, "rgb.png is 32 x 24 pixels, its depth 31 x 24"),
        ({"values": 0}, "depth.png has no valid pixel"),
        ({"values": 20_000}, "depth.png has no valid pixel"),
        ({"dtype": np.uint8, "values": 20}, "depth.png has mode L: depth must be a 16-bit"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        evaluate_benchmark(BENCHMARKS["scannet"], small_scannet(tmp_path, **change), FromBrightness())


def test_a_listed_file_that_is_missing_or_no_image(tmp_path):
    root = small_scannet(tmp_path)
    (root / "depth.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"depth\.png cannot be decoded as an image"):
        evaluate_benchmark(BENCHMARKS["scannet"], root, FromBrightness())
    (root / "depth.png").unlink()
    with pytest.raises(InputError, match=r"depth\.png is in the list of images but not in the data set"):
        evaluate_benchmark(BENCHMARKS["scannet"], root, FromBrightness())


def test_nyu_of_another_size_and_kitti_too_small_for_its_crop(tmp_path):
    root = small_scannet(tmp_path)
    with pytest.raises(InputError, match=r"depth\.png is 32 x 24 pixels: give 640 x 480 for NYUv2's crop"):
        evaluate_benchmark(BENCHMARKS["nyuv2"], root, FromBrightness(), root / "scannet_val_sampled_list_800_1.txt")
    with pytest.raises(InputError, match=r"give at least 1216 x 352 for KITTI's crop"):
        evaluate_benchmark(BENCHMARKS["kitti"], root, FromBrightness(), root / "scannet_val_sampled_list_800_1.txt")


def test_nan_under_diodes_mask_is_named(tmp_path):
    depth = np.full((24, 32), np.nan, np.float32)
    write(
        tmp_path,
        {
            "a.png": png(np.zeros((24, 32, 3), np.uint8)),
            "a_depth.npy": npy(depth),
            "a_depth_mask.npy": npy(np.ones((24, 32))),
            "diode_val_all_filename_list.txt": "a.png a_depth.npy a_depth_mask.npy\n",
        },
    )
    with pytest.raises(InputError, match=r"a_depth\.npy holds NaN"):
        evaluate_benchmark(BENCHMARKS["diode"], tmp_path, FromBrightness())
