"""Zero-shot depth benchmarks in their own file layouts, with Marigold's protocol.

    files.py      a data set's folder or tar archive, its list of images, decoding of images and maps
    benchmark.py  the definition of a benchmark, and an estimator's scores on it
    nyu.py kitti.py eth3d.py scannet.py diode.py rendered.py

Lists are those of Marigold's `data_split` folder: one line per image, "image depth [third column]", with paths relative
to the root. Pixels outside mask and range are not compared; predictions are clipped to the range.

| name | depth file | metres | known where | compared in |
|---|---|---|---|---|
| nyuv2 | 16-bit PNG | / 1000 | 0.001 to 10 | rows 45:471, columns 41:601 of 480 x 640 |
| kitti | 16-bit PNG | / 256 | 0.00001 to 80 | bottom centre 352 x 1216 of image and map, Eigen's fractions of it |
| eth3d | float32, no header | as stored | above 0.00001, not inf | everywhere; fitted on at most 1024 pixels a side |
| scannet | 16-bit PNG | / 1000 | 0.001 to 10 | everywhere |
| diode | npy (H, W, 1) | as stored | the mask file says, range 0.6 to 350 | everywhere |
| scenes | npy (H, W) | as stored | everywhere, range 0.001 to 80 | everywhere; written by `jointdit scenes` |

Source of the first five: prs-eth/Marigold b1dffaa, src/dataset, config/dataset_depth, script/depth/eval.
"""

from jointdit.evaluation.benchmarks.benchmark import Benchmark, BenchmarkResult, evaluate_benchmark, read_samples
from jointdit.evaluation.benchmarks.diode import DIODE
from jointdit.evaluation.benchmarks.eth3d import ETH3D
from jointdit.evaluation.benchmarks.kitti import KITTI
from jointdit.evaluation.benchmarks.nyu import NYUV2
from jointdit.evaluation.benchmarks.rendered import SCENES
from jointdit.evaluation.benchmarks.scannet import SCANNET

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (NYUV2, KITTI, ETH3D, SCANNET, DIODE, SCENES)
}

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkResult", "evaluate_benchmark", "read_samples"]
