"""All objects of a job on Kubernetes, in the order in which they are made.

    ServiceAccount   of the job's pods; KubeRay gives it what the autoscaler needs
    ConfigMap        the spec, which never holds a secret
    NetworkPolicies  network.py
    RayJob           head without GPUs, GPU workers from none to as many as asked for, on demand and spot

With a schedule, instead of the RayJob: a ConfigMap with its manifest, an account that may make RayJobs (and so, through
one, any pod that the namespace admits), and a CronJob that makes one at each tick. (KubeRay's own RayCronJob is alpha
and off by default.) A tick that finds another one at work leaves after a look, before any GPU is asked for: its
entrypoint is `jointdit run --if-idle`.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from jobs.kuberay.network import OPERATOR_NAMESPACE, api_server_policy, cluster_policy, ticker_policy
from jobs.kuberay.objects import (
    ConfigMap,
    CronJob,
    CronJobSpec,
    JobTemplate,
    KubernetesObject,
    Metadata,
    PolicyRule,
    Role,
    RoleBinding,
    RoleReference,
    ServiceAccount,
    Subject,
    Toleration,
)
from jobs.kuberay.objects import JobSpec as KubernetesJobSpec
from jobs.kuberay.pods import AUTOSCALER_SECURITY, IMAGE, ROLE, SPEC_FILE, SPEC_FOLDER, Pods, Size
from jobs.kuberay.ray_job import (
    DNS_LABEL,
    LONGEST_NAME,
    AuthOptions,
    AutoscalerOptions,
    HeadGroup,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    WorkerGroup,
)
from jobs.kuberay.stores import HTTPS, StoreKind, store_of
from jobs.kuberay.yaml_text import yaml_text
from jointdit.errors import SpecError
from pipelines.spec.job import JobSpec

JOB_FILE = "rayjob.yaml"
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SPOT_LABEL = "jointdit.io/pool"  # nodes of a spot pool carry this label and this taint, with the value spot
SPOT_TOLERATION = Toleration(key=SPOT_LABEL, operator="Equal", value="spot", effect="NoSchedule")
TASK_LABELS = {"jointdit.io/tasks": "here"}
IDLE_SECONDS = 120  # before the autoscaler takes a GPU node away
CLUSTERS_AFTER_A_FAILURE = 2  # committed shards are not made again
START_DEADLINE_SECONDS = 3600  # to get a head and the image
FINISHED_SECONDS = 300  # the cluster stays for its logs


@dataclass(frozen=True)
class Deployment:
    """How much of the cluster, and how."""

    store: StoreKind
    endpoint: str | None = None  # of a MinIO-like store
    image: str = IMAGE
    namespace: str = "jointdit"
    gpus: int = 4  # workers on demand, at most
    spot_gpus: int = 4  # workers on spot nodes, at most; they come first
    schedule: str | None = None  # as in cron, UTC
    tasks_on_head: bool = False  # read and finish tasks: no CPU of a node with GPUs for them
    operator_namespace: str = OPERATOR_NAMESPACE  # KubeRay's; only from there the dashboard's API is reached
    run_options: tuple[str, ...] = ()  # of `jointdit run`
    head: Size = field(default=Size("4", "16Gi"))
    worker: Size = field(default=Size("4", "48Gi", gpus=1))


def manifests(spec: JobSpec, deployment: Deployment) -> list[KubernetesObject]:
    """The objects of a job.

    Raises:
        SpecError: an address that pods cannot reach, a name that Kubernetes does not take, no workers.
    """
    store = store_of(deployment.store, deployment.endpoint)
    _check(spec, deployment, store.scheme)
    if (spec.model.name != "tiny" or spec.notify.webhook_variable) and HTTPS not in store.egress:
        store = replace(store, egress=(*store.egress, HTTPS))  # weights come from the hub, a notice goes to the webhook
    name = name_of(spec)
    labels = {"app.kubernetes.io/name": "jointdit", "app.kubernetes.io/instance": name}
    about = Metadata(name=name, namespace=deployment.namespace, labels=labels)
    pods = Pods(deployment.image, name, labels, store, spec_map=f"{name}-spec")
    job = ray_job(about, deployment, pods)
    objects: list[KubernetesObject] = [
        ServiceAccount(metadata=about, automount_service_account_token=False),
        ConfigMap(metadata=_named(about, "spec"), data={SPEC_FILE: spec_text(spec, deployment)}),
        cluster_policy(about, labels, store, deployment.operator_namespace),
        api_server_policy(_named(about, "head"), {**labels, ROLE: "head"}),
    ]
    return objects + (scheduled(about, deployment, pods, job) if deployment.schedule else [job])


def ray_job(about: Metadata, deployment: Deployment, pods: Pods) -> RayJob:
    """The job with its cluster; made by a schedule, it gets a name of its own each time."""
    groups = [
        WorkerGroup(
            group_name=group,
            replicas=0,
            min_replicas=0,
            max_replicas=most,
            priority=priority,
            ray_start_params={},
            template=pods.worker(deployment.worker, selector, tolerations),
        )
        for group, most, priority, selector, tolerations in (
            ("spot", deployment.spot_gpus, 1, {SPOT_LABEL: "spot"}, (SPOT_TOLERATION,)),
            ("on-demand", deployment.gpus, 0, {}, ()),
        )
        if most
    ]
    cluster = RayClusterSpec(
        ray_version=version("ray"),
        enable_in_tree_autoscaling=True,
        autoscaler_options=AutoscalerOptions(
            version="v2",
            idle_timeout_seconds=IDLE_SECONDS,
            resources=Size("500m", "1Gi").resources,
            security_context=AUTOSCALER_SECURITY,
        ),
        auth_options=AuthOptions(mode="token"),
        head_group_spec=HeadGroup(
            labels=TASK_LABELS if deployment.tasks_on_head else None,
            ray_start_params={"num-gpus": "0", "dashboard-host": "0.0.0.0"},
            template=pods.head(deployment.head),
        ),
        worker_group_specs=tuple(groups),
    )
    # A run that stops at a limit has done what it was asked: with exit code 3 KubeRay would start a new cluster.
    command = ["jointdit", "run", f"{SPEC_FOLDER}/{SPEC_FILE}", "--zero-at-limit", *deployment.run_options]
    command += ["--if-idle"] if deployment.schedule and "--if-idle" not in command else []
    each = {"name": None, "generate_name": f"{about.name}-"} if deployment.schedule else {}
    return RayJob(
        metadata=about.model_copy(update=each),
        spec=RayJobSpec(
            entrypoint=shlex.join(command),
            backoff_limit=CLUSTERS_AFTER_A_FAILURE,
            shutdown_after_job_finishes=True,
            ttl_seconds_after_finished=FINISHED_SECONDS,
            pre_running_deadline_seconds=START_DEADLINE_SECONDS,
            ray_cluster_spec=cluster,
            submitter_pod_template=pods.submitter(),
        ),
    )


def scheduled(about: Metadata, deployment: Deployment, pods: Pods, job: RayJob) -> list[KubernetesObject]:
    """What makes a RayJob at each tick."""
    assert deployment.schedule is not None
    name = f"{about.name}-tick"
    labels = {**pods.labels, "app.kubernetes.io/instance": name, ROLE: "tick"}
    tick = about.model_copy(update={"name": name, "labels": labels})
    rights = PolicyRule(api_groups=("ray.io",), resources=("rayjobs",), verbs=("create",))
    return [
        ConfigMap(metadata=tick, data={JOB_FILE: as_yaml([job])}),
        ServiceAccount(metadata=tick, automount_service_account_token=False),
        Role(metadata=tick, rules=(rights,)),
        RoleBinding(
            metadata=tick,
            role_ref=RoleReference(name=name),
            subjects=(Subject(name=name, namespace=tick.namespace),),
        ),
        ticker_policy(tick, labels),
        CronJob(
            metadata=tick,
            spec=CronJobSpec(
                schedule=deployment.schedule,
                time_zone="Etc/UTC",
                concurrency_policy="Forbid",
                starting_deadline_seconds=600,
                successful_jobs_history_limit=3,
                failed_jobs_history_limit=3,
                job_template=JobTemplate(
                    metadata=Metadata(labels=labels),
                    spec=KubernetesJobSpec(
                        backoff_limit=2,
                        active_deadline_seconds=600,
                        ttl_seconds_after_finished=86400,
                        template=pods.ticker(name, labels, name, JOB_FILE),
                    ),
                ),
            ),
        ),
    ]


def spec_text(spec: JobSpec, deployment: Deployment) -> str:
    """The spec as the pods run it: for as many GPU workers as there can be, also before the first of them is there."""
    data = spec.as_sent()
    workers = deployment.gpus + deployment.spot_gpus
    given = data.get("resources", {})
    data["resources"] = {**given, "device": "cuda", "workers": given.get("workers", workers)}
    if data["resources"]["workers"] == "auto":
        data["resources"]["workers"] = workers
    if deployment.tasks_on_head:
        data["resources"]["task_labels"] = TASK_LABELS
    return yaml_text(data)


def as_yaml(objects: Sequence[KubernetesObject]) -> str:
    """The objects as one file for `kubectl apply -f` and for people."""
    return "---\n".join(yaml_text(each.manifest()) for each in objects)


def name_of(spec: JobSpec) -> str:
    """The spec's name as Kubernetes takes it: lower case, - for what it does not know.

    A name with other than ASCII letters gets a digest of the whole: what is left of it may be the same for others.

    Raises:
        SpecError: nothing is left of it, or it is too long.
    """
    name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")
    longest = LONGEST_NAME - len("-xxxxx")
    if not spec.name.isascii():
        digest = hashlib.sha256(spec.name.encode()).hexdigest()[:8]
        name = f"{name[: longest - 9].strip('-') or 'job'}-{digest}"
    if not DNS_LABEL.fullmatch(name) or len(name) > longest:
        raise SpecError(
            f"name {spec.name!r} gives {name!r}, which is no name for a RayJob: give at most {longest} lower-case "
            "letters, digits and -, a letter first."
        )
    return name


def _check(spec: JobSpec, deployment: Deployment, scheme: str) -> None:
    for field_name, uri in [("output.uri", spec.output.uri), *(("input.uri", uri) for uri in spec.input.uri)]:
        if not uri.startswith(f"{scheme}://"):
            raise SpecError(
                f"{field_name} {uri} is out of reach of pods: with --store {deployment.store} give {scheme}://."
            )
    for option, namespace in (
        ("--namespace", deployment.namespace),
        ("--operator-namespace", deployment.operator_namespace),
    ):
        if not NAMESPACE.fullmatch(namespace):
            raise SpecError(
                f"{option} {namespace[:100]!r} is no name of a namespace: give lower-case letters, digits and -."
            )
    if deployment.gpus < 0 or deployment.spot_gpus < 0 or deployment.gpus + deployment.spot_gpus < 1:
        raise SpecError("--gpus and --spot-gpus together must be at least 1: a job needs a GPU to run on.")


def _named(about: Metadata, suffix: str) -> Metadata:
    return about.model_copy(update={"name": f"{about.name}-{suffix}"})
