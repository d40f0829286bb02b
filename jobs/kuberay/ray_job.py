"""KubeRay's RayJob as frozen models, with the fields of its API reference that are used here.

Source: https://ray-project.github.io/kuberay/reference/api/ (ray.io/v1). `auth_options.secret_name` and what else is
used is in KubeRay 1.6 and later. Of the rules that KubeRay's validation adds to the schema, those that can be met here
are validators (ray-operator/controllers/ray/utils/validation.go).
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.kuberay.objects import ContainerSecurity, KubernetesObject, Metadata, Model, PodTemplate, Resources

LONGEST_NAME = 47  # characters: KubeRay adds its own to make names of clusters and services
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


class AuthOptions(Model):
    """With mode token KubeRay makes a Secret with a token for each cluster, and gives it to all of its pods."""

    mode: Literal["disabled", "token"]
    secret_name: str | None = None


class AutoscalerOptions(Model):
    """The autoscaler is a container beside the head."""

    version: Literal["v1", "v2"] | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    idle_timeout_seconds: int | None = Field(None, ge=0)
    resources: Resources | None = None
    security_context: ContainerSecurity | None = None


class HeadGroup(Model):
    """The head: Ray's own services, the driver, read and finish tasks."""

    service_type: Literal["ClusterIP"] = "ClusterIP"
    labels: dict[str, str] | None = None  # of the Ray node
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(Model):
    """Pods of one kind, `min_replicas` to `max_replicas` of them as the autoscaler sees fit."""

    group_name: str
    replicas: int = Field(ge=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=0)
    priority: int | None = None  # the autoscaler prefers higher ones, in Ray 2.56 and later
    labels: dict[str, str] | None = None  # of the Ray node
    ray_start_params: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError("min_replicas <= replicas <= max_replicas must hold")
        return self


class RayClusterSpec(Model):
    """A Ray cluster for one job."""

    ray_version: str
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    auth_options: AuthOptions
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [group.group_name for group in self.worker_group_specs]
        if len(set(names)) < len(names):
            raise ValueError("worker groups must have names of their own")
        return self


class RayJobSpec(Model):
    """A job and the cluster it runs on."""

    entrypoint: str
    entrypoint_num_cpus: float | None = Field(None, ge=0)
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoff_limit: int = Field(ge=0)  # clusters after the first
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int = Field(ge=0)
    pre_running_deadline_seconds: int = Field(ge=1)
    ray_cluster_spec: RayClusterSpec
    submitter_pod_template: PodTemplate

    @model_validator(mode="after")
    def _as_kuberay_validates(self) -> Self:
        if self.ttl_seconds_after_finished > 0 and not self.shutdown_after_job_finishes:
            raise ValueError("ttl_seconds_after_finished needs shutdown_after_job_finishes")
        if self.submission_mode == "SidecarMode":
            raise ValueError("SidecarMode takes no submitter_pod_template")
        if self.submitter_pod_template.spec.restart_policy not in ("Never", "OnFailure"):
            raise ValueError("the submitter's restart_policy must be Never or OnFailure")
        return self


class RayJob(KubernetesObject):
    """KubeRay makes the cluster, submits the entrypoint, and takes the cluster away when it has ended."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayJob"] = "RayJob"
    spec: RayJobSpec

    @field_validator("metadata")
    @classmethod
    def _name(cls, value: Metadata) -> Metadata:
        # A generated name gets five characters more.
        name = value.name or f"{value.generate_name}xxxxx"
        if len(name) > LONGEST_NAME or not DNS_LABEL.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name for a RayJob: give at most {LONGEST_NAME} lower-case letters, digits and -, "
                "a letter first"
            )
        return value
