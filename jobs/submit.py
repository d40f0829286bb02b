"""`jointdit submit`: send a job to Kubernetes, as objects that KubeRay runs, or to an existing Ray cluster."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.as_json import show_json
from jobs.datasets import Overrides, SpecFile
from jointdit.errors import PermanentError, SpecError

if TYPE_CHECKING:
    from pipelines.spec.job import JobSpec

SUBMITTED_SPEC = "spec.yaml"


def submit(
    spec: SpecFile,
    overrides: Overrides = None,
    kube: Annotated[bool, typer.Option("--kube", help="Submit to the Kubernetes cluster of your kubeconfig.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Submit to a Ray cluster: the address of its dashboard, http://head:8265."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; send nothing.")] = False,
    store: Annotated[
        Literal["s3", "gcs", "minio"], typer.Option(help="Kubernetes: the store of the spec's addresses.")
    ] = "s3",
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Kubernetes: address of the MinIO-like store.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Kubernetes: the image of infra/docker, preferably by digest.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Kubernetes: namespace of the objects.")] = "jointdit",
    operator_namespace: Annotated[
        str, typer.Option(help="Kubernetes: namespace of KubeRay's operator, which alone reaches the dashboard.")
    ] = "kuberay-system",
    gpus: Annotated[int, typer.Option(min=0, help="Kubernetes: maximum number of on-demand GPUs.")] = 4,
    spot_gpus: Annotated[int, typer.Option(min=0, help="Kubernetes: maximum number of GPUs of the spot pool.")] = 4,
    tasks_on_head: Annotated[
        bool,
        typer.Option(
            "--tasks-on-head", help="Kubernetes: run read and finish tasks on the head only, not on GPU nodes."
        ),
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="CRON", help='Kubernetes: run on a schedule, such as "0 1 * * *", in UTC.'),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Stop at this time of the cluster's clock, such as 06:00, after the current shards."
        ),
    ] = None,
    if_idle: Annotated[
        bool, typer.Option("--if-idle", help="Exit if another run is active; always on with --schedule.")
    ] = False,
) -> None:
    """Submit a job to Kubernetes or to a Ray cluster, or print what would be sent."""
    from jobs.report import say
    from pipelines.engine.limits import next_time
    from pipelines.spec.job import load_spec

    if kube == (ray is not None):
        raise typer.BadParameter(
            "the target is missing: give --kube, or --ray with the address of a cluster's dashboard."
        )
    job = load_spec(spec, overrides or ())
    if until is not None:
        next_time(until)  # report a mistake here and not on the cluster
    run_options = (*(("--until", until) if until is not None else ()), *(("--if-idle",) if if_idle else ()))
    if ray is not None:
        submission = ray_submission(job, run_options)
        if dry_run:
            show_json(submission)
        else:
            say(f"submitted as {submit_to_ray(ray, job, run_options)}: `ray job logs --follow` shows the progress.")
        return
    from jobs.kuberay.manifests import Deployment, as_yaml, manifests
    from jobs.kuberay.pods import IMAGE

    deployment = Deployment(
        store=store,
        endpoint=endpoint,
        image=image or IMAGE,
        namespace=namespace,
        gpus=gpus,
        spot_gpus=spot_gpus,
        schedule=schedule,
        tasks_on_head=tasks_on_head,
        operator_namespace=operator_namespace,
        run_options=run_options,
    )
    objects = manifests(job, deployment)
    if dry_run:
        print(as_yaml(objects), end="")
        return
    from jobs.kuberay.cluster_api import send

    for name in send(each.manifest() for each in objects):
        say(name)


def ray_submission(job: JobSpec, run_options: Sequence[str] = ()) -> dict[str, object]:
    """Return what a Ray cluster is asked to run: the command, and the spec as a file. Its nodes must have this package.

    A run that stops at a limit is a success there, so the command has --zero-at-limit.

    Raises:
        SpecError: an address is a local path, which the cluster's nodes do not have.
    """
    for name, uri in [("output.uri", job.output.uri), *(("input.uri", uri) for uri in job.input.uri)]:
        if "://" not in uri:
            raise SpecError(f"{name} {uri} is a local path: give s3://, gs:// or abfs:// for a cluster.")
    return {
        "entrypoint": shlex.join(["jointdit", "run", SUBMITTED_SPEC, "--zero-at-limit", *run_options]),
        "files": {SUBMITTED_SPEC: spec_yaml(job)},
    }


def submit_to_ray(address: str, job: JobSpec, run_options: Sequence[str] = ()) -> str:
    """Submit to the cluster whose dashboard is at `address`; return the id of the submission.

    Ray reads its token from RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or from ~/.ray/auth_token.

    Raises:
        PermanentError: the cluster cannot be reached, or refuses.
    """
    from ray.job_submission import JobSubmissionClient

    submission = ray_submission(job, run_options)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SUBMITTED_SPEC).write_text(spec_yaml(job), encoding="utf-8")
        try:
            client = JobSubmissionClient(address)
            return client.submit_job(
                entrypoint=str(submission["entrypoint"]),
                runtime_env={"working_dir": folder},
                metadata={"name": job.name, "output": job.output.uri},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise PermanentError(
                f"the Ray cluster at {address} refused the job: {' '.join(str(error).split())[:300]}"
            ) from None


def spec_yaml(job: JobSpec) -> str:
    """Return the spec as YAML. Raises SpecError if it holds the webhook's address itself."""
    from jobs.kuberay.yaml_text import yaml_text

    return yaml_text(job.as_sent())
