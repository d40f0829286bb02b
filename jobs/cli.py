"""The command line, one short function for each command.

Heavy libraries are imported inside the commands, so that help and usage errors appear at once. An error of this
package, of the system or of the network is one sentence on stderr; `--debug`, anywhere on the line, shows its
traceback. Any other error is a bug, and keeps its traceback.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 stopped at a limit with work left, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

import typer

from jobs import calibration, datasets
from jobs.as_json import AsJson, show_json, stdout_for_json
from jobs.datasets import Overrides, SpecFile
from jobs.export import export
from jobs.init import init
from jobs.interruption import INTERRUPTED, noting_interruptions
from jobs.submit import submit
from jointdit.errors import JointDiTError
from jointdit.loading.network_errors import network_errors, network_reason
from pipelines.store.safe_text import mask_secrets, printable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATASETS, IMAGES, MODEL = "Datasets", "One image at a time, on this machine", "The model itself"

Folder = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the results; created if missing.")
]
Model = Annotated[str, typer.Option(help="tiny (the packaged checkpoint), a checkpoint folder or a hub name.")]
Samples = Annotated[
    int, typer.Option("-n", "--samples", min=1, help="Number of images, with seeds SEED, SEED + 1, ...")
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")]
Guidance = Annotated[
    float | None, typer.Option(min=0.0, help="Guidance scale; default: 3.5, for depth the checkpoint's own.")
]
Size = Annotated[int | None, typer.Option(min=16, help="Pixels, a multiple of 16; default: the checkpoint's own size.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"jointdit {version('jointdit')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


@app.callback(
    epilog="Exit codes: 0 done, 1 error, 2 wrong usage, 3 stopped at a limit with work left, 130 interrupted."
)
def root(debug: Debug = False, version: Version = False) -> None:
    """RGB-D datasets from prompts, images or depth maps, with JointDiT."""


for command, example in (
    (init, "init depth"),
    (datasets.run, "run jobs/joint.yaml --set model.steps=4"),
    (datasets.plan, "plan jobs/depth.yaml"),
    (submit, "submit infra/kuberay/job.yaml --kube --dry-run"),
    (calibration.calibrate, "calibrate jobs/joint.yaml -n 64 --reject 0.02"),
    (datasets.status, "status s3://datasets/nightly-indoor --watch"),
    (datasets.publish, "publish s3://datasets/nightly-indoor"),
    (datasets.validate, "validate runs/joint"),
    (datasets.retry, "retry s3://datasets/nightly-indoor --quarantined"),
    (datasets.refilter, "refilter s3://datasets/nightly-indoor --set quality.filters.0.min_span=0.3"),
    (export, "export s3://datasets/nightly-indoor --webdataset tars --hf nightly-indoor"),
    (datasets.gc, "gc s3://datasets/nightly-indoor --dry-run --older-than 7d"),
    (datasets.versions, "versions s3://datasets/nightly-indoor"),
    (datasets.files, "files s3://datasets/nightly-indoor --version 3"),
    (datasets.diff, "diff s3://datasets/nightly-indoor 1 2"),
    (datasets.gallery, "gallery s3://datasets/nightly-indoor -o gallery --rows 5000 --open"),
):
    app.command(rich_help_panel=DATASETS, epilog=f"Example: jointdit {example}")(command)


@app.command(rich_help_panel=IMAGES, epilog='Example: jointdit generate "a red cube on a blue floor" -o images')
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the image shows.")],
    output: Folder,
    samples: Samples = 1,
    model: Model = "tiny",
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Generate images with their depth and points from a prompt."""
    from jobs.images import Sampling, generate_images
    from jobs.report import show_files

    show_files(generate_images(prompt, samples, output, Sampling(model, seed, steps, guidance, height, width)))


@app.command(rich_help_panel=IMAGES, epilog="Example: jointdit depth photos/ -o depth")
def depth(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images of any size, or folders of images.")],
    output: Folder,
    model: Model = "tiny",
    seed: Seed = 0,
    steps: Steps = 8,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Estimate the depth of images, at their own size, with points."""
    from jobs.images import Sampling, estimate_depth
    from jobs.report import show_files

    show_files(estimate_depth(images, output, Sampling(model, seed, steps, guidance, height, width)))


@app.command(
    rich_help_panel=IMAGES,
    epilog='Example: jointdit restyle map.png "a green cube" --kind metric --scale 0.001 -o restyled',
)
def restyle(
    depth: Annotated[Path, typer.Argument(metavar="DEPTH", help="A depth map: 16-bit PNG or npy.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the image shows.")],
    output: Folder,
    kind: Annotated[
        Literal["disparity", "metric"] | None,
        typer.Option(
            help="disparity: near is high. metric: near is low. Needed unless the file is one that `jointdit` wrote."
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Stored value x scale = metres; needed for metric maps of integers.")
    ] = None,
    invalid: Annotated[
        float | None, typer.Option(help="This stored value marks a hole. Default: 0 in metric maps, else none.")
    ] = None,
    max_depth: Annotated[float | None, typer.Option("--max", help="Larger values, after the scale, are holes.")] = None,
    samples: Samples = 1,
    model: Model = "tiny",
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Generate images that have the geometry of a depth map."""
    from jobs.images import DepthOptions, Sampling, restyle_depth
    from jobs.report import show_files

    sampling = Sampling(model, seed, steps, guidance, height, width)
    options = DepthOptions(kind, scale, invalid, max_depth)
    show_files(restyle_depth(depth, options, prompt, samples, output, sampling))


@app.command(
    rich_help_panel=DATASETS,
    epilog="Example: jointdit prepare photos -o runs/prepared --teacher depth-anything/Depth-Anything-V2-Small-hf "
    "--captioner Salesforce/blip-image-captioning-base",
)
def prepare(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Folders, globs or tables of images, local or s3://.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="URI", help="The dataset: a folder or s3:// prefix.")
    ],
    teacher: Annotated[
        list[str],
        typer.Option(help="A depth model of transformers, folder or hub name; several models are averaged."),
    ],
    captioner: Annotated[
        str | None, typer.Option(help="A captioning model of transformers; default: the captions of the input.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Label images for training, with depth from teachers and captions from a captioner. Resumes where it stopped."""
    from jobs.report import log_progress
    from pipelines.run.job import run_job
    from pipelines.spec.job import load_spec

    log_progress()
    data = {"task": "prepare", "input": {"uri": images}, "output": {"uri": output}}
    spec = load_spec({**data, "teachers": teacher, "captioner": captioner}, overrides or ())
    datasets.end_run(run_job(spec), spec.price)


@app.command(rich_help_panel=MODEL, epilog="Example: jointdit train jobs/train_tiny.yaml")
def train(spec: SpecFile, overrides: Overrides = None) -> None:
    """Train a checkpoint, or resume from its last saved step."""
    from jobs.train import train_from_spec

    train_from_spec(spec, overrides or ())


@app.command(
    rich_help_panel=MODEL,
    epilog="Example: jointdit evaluate -o evaluation --benchmark nyuv2=data/nyu.tar --baseline models/depth-anything",
)
def evaluate(
    output: Folder,
    model: Annotated[
        str | None, typer.Option(help="tiny, a checkpoint folder or a hub name.", show_default="tiny")
    ] = None,
    base: Annotated[str | None, typer.Option(help="A FLUX pipeline, with --adapter, instead of --model.")] = None,
    adapter: Annotated[str | None, typer.Option(help="The published JointDiT adapter for --base.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision of the network.", show_default="float32 on a CPU, bfloat16 on a GPU"),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate on scenes: vae, depth, styles, lifting, steps, joint or restyle; can be repeated.",
            show_default="all, or none where benchmarks are given",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Number of held-out scenes.")] = 200,
    prompts: Annotated[int, typer.Option(min=2, help="Number of generated images for each task.")] = 36,
    depth_steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps for depth.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps for images.")] = 20,
    ensemble: Annotated[int, typer.Option(min=1, max=50, help="Number of depth estimates merged into one.")] = 1,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A depth model of transformers to compare with, folder or hub name; can be repeated.",
        ),
    ] = None,
    baseline_space: Annotated[
        Literal["depth", "disparity"] | None,
        typer.Option(help="Space in which the baselines' maps are affine.", show_default="by the kind of model"),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="nyuv2, kitti, eth3d, scannet, diode or scenes, and its folder or tar; can be repeated.",
        ),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", metavar="NAME=FILE", help="A benchmark's list of images, if its folder has none."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images of each benchmark.", show_default="all")] = None,
    long_side: Annotated[
        int | None,
        typer.Option(min=16, help="Processing resolution on benchmarks, in pixels.", show_default="the protocol's"),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="For FID and IS: Inception-v3 as safetensors, a vision model of transformers, or vae (the model's).",
        ),
    ] = None,
    clip: Annotated[str | None, typer.Option(metavar="MODEL", help="For the CLIP score: a CLIP model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on held-out scenes and on benchmarks, with published figures beside the results."""
    from jobs.evaluate import EvaluationSettings, evaluation_json, run_evaluation
    from jobs.evaluation.benchmarks import parse_choices
    from jobs.evaluation.context import Sizes
    from jobs.report import say

    settings = EvaluationSettings(
        output=output,
        model=model,
        base=base,
        adapter=adapter,
        dtype=dtype,
        sizes=Sizes(count, prompts, depth_steps, steps, ensemble),
        baselines=baseline or (),
        baseline_space=baseline_space,
        benchmarks=parse_choices(benchmark or (), lists or ()),
        limit=limit,
        long_side=long_side,
        features=features,
        clip=clip,
        parts=part or (),
    )
    with stdout_for_json(as_json):
        report = run_evaluation(settings)
        say(report)
    if as_json:
        show_json(evaluation_json(report))


if find_spec("jobs.tools") is not None:  # a checkout: benches do not ship in the wheel
    from jobs.tools.bench.command import bench

    app.command(rich_help_panel=MODEL, epilog="Example: jointdit bench pipeline --json")(bench)


@app.command(rich_help_panel=MODEL, epilog="Example: jointdit scenes -n 24 -o runs/scenes")
def scenes(
    output: Folder,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of scenes.")] = 100,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the first scene; default: the first that training does not use.")
    ] = None,
    height: Annotated[int, typer.Option(min=16, help="Height in pixels.")] = 128,
    width: Annotated[int, typer.Option(min=16, help="Width in pixels.")] = 128,
) -> None:
    """Render scenes with exact depth: images, disparity, depth in metres, captions and intrinsics."""
    from jobs.report import show_progress
    from jobs.scenes import write_scenes
    from jointdit.scenes.sampling import HELD_OUT_SEED

    first = HELD_OUT_SEED if seed is None else seed
    show_progress(write_scenes(output, count, first, width, height), count, f"scenes in {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code, as the module's docstring lists them."""
    if arguments is None:
        arguments, sys.excepthook = sys.argv[1:], _print_traceback
        _print_any_text()
    words = list(arguments)
    debug = "--debug" in words
    with noting_interruptions() as interrupted:
        try:
            app([word for word in words if word != "--debug"], prog_name="jointdit")
        except SystemExit as stop:  # typer always ends with it
            return INTERRUPTED if interrupted else int(stop.code or 0)
        except Exception as error:
            if interrupted:
                return INTERRUPTED
            if debug or not isinstance(error, network_errors(JointDiTError, OSError)):
                raise
            print(f"Error: {_sentence(error)}", file=sys.stderr)
            return 1
    return 0


def _print_any_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes, since names and texts come in all scripts."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an uncaught error, without credentials."""
    print(mask_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror.lower()}: check the path and its permissions"
    elif not isinstance(error, JointDiTError) and isinstance(error, network_errors()):
        text = f"a server cannot be reached ({network_reason(error)}): check the network and the server's address"
    text = printable(mask_secrets(" ".join(text.split())))
    return text if text.endswith((".", "!", "?")) else f"{text}."


if __name__ == "__main__":
    sys.exit(main())
