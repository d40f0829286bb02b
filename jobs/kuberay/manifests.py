"""All objects of a job on Kubernetes, in the order of creation.

    ServiceAccount   of the job's pods; KubeRay gives it what the autoscaler needs
    ConfigMap        the spec, which never holds a secret
    NetworkPolicies  network.py
    RayJob           head without GPUs; GPU workers, on demand and spot, from zero to the requested number

With a schedule, instead of the RayJob: a ConfigMap with its manifest, an account that may create RayJobs (and so,
through one, any pod that the namespace admits), and a CronJob that creates one at each tick. (KubeRay's own RayCronJob
is alpha and off by default.) Its entrypoint is `jointdit run --if-idle`: if another run is active, it exits before it
requests a GPU.
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
IDLE_SECONDS = 120  # before the autoscaler removes a GPU node
CLUSTERS_AFTER_A_FAILURE = 2  # committed shards are not computed again
START_DEADLINE_SECONDS = 3600  # to schedule the head and pull the image
FINISHED_SECONDS = 300  # the cluster stays, so that its logs can be read


@dataclass(frozen=True)
class Deployment:
    """Options of `jointdit submit --kube`."""

    store: StoreKind
    endpoint: str | None = None  # of a MinIO-like store
    image: str = IMAGE
    namespace: str = "jointdit"
    gpus: int = 4  # maximum number of on-demand workers
    spot_gpus: int = 4  # maximum number of workers on spot nodes, which start first
    schedule: str | None = None  # as in cron, UTC
    tasks_on_head: bool = False  # run read and finish tasks on the head only
    operator_namespace: str = OPERATOR_NAMESPACE  # of KubeRay's operator, which alone reaches the dashboard's API
    run_options: tuple[str, ...] = ()  # of `jointdit run`
    head: Size = field(default=Size("4", "16Gi"))
    worker: Size = field(default=Size("4", "48Gi", gpus=1))


def manifests(spec: JobSpec, deployment: Deployment) -> list[KubernetesObject]:
    """Return the objects of a job.

    Raises:
        SpecError: an address that pods cannot reach, a name that Kubernetes does not accept, or no workers.
    """
    store = store_of(deployment.store, deployment.endpoint)
    _check(spec, deployment, store.scheme)
    if (spec.model.name != "tiny" or spec.notify.webhook_variable) and HTTPS not in store.egress:
        store = replace(store, egress=(*store.egress, HTTPS))  # for weights from the hub, and for the webhook
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
    """Return the job with its cluster; with a schedule, the API server completes its name at each tick."""
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
    # Exit code 3, stopped at a limit, would be a failure for KubeRay: it would start a new cluster.
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
    """Return the objects that create a RayJob at each tick."""
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
    """Return the spec for the pods: with the maximum number of GPU workers, also before the first one has started."""
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
    """Return the objects as one YAML file for `kubectl apply -f`."""
    return "---\n".join(yaml_text(each.manifest()) for each in objects)


def name_of(spec: JobSpec) -> str:
    """Return the spec's name as Kubernetes accepts it: lower case, with - for other characters.

    A name with non-ASCII characters gets a digest, because different names may have the same ASCII letters.

    Raises:
        SpecError: no letter is left, or the name is too long.
    """
    name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")
    longest = LONGEST_NAME - len("-xxxxx")
    if not spec.name.isascii():
        digest = hashlib.sha256(spec.name.encode()).hexdigest()[:8]
        name = f"{name[: longest - 9].strip('-') or 'job'}-{digest}"
    if not DNS_LABEL.fullmatch(name) or len(name) > longest:
        raise SpecError(
            f"name {spec.name!r} gives {name!r}, which is no name for a RayJob: use at most {longest} lower-case "
            "letters, digits and -, with a letter first."
        )
    return name


def _check(spec: JobSpec, deployment: Deployment, scheme: str) -> None:
    for field_name, uri in [("output.uri", spec.output.uri), *(("input.uri", uri) for uri in spec.input.uri)]:
        if not uri.startswith(f"{scheme}://"):
            raise SpecError(
                f"{field_name} {uri} cannot be reached by pods: with --store {deployment.store} give {scheme}://."
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
