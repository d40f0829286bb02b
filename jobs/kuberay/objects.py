"""Kubernetes objects as frozen models: only fields that are used here, and an unknown one is an error.

Names are Kubernetes' own in snake_case; `manifest` gives them back in camelCase. The tests check what comes out against
the schemas that Kubernetes publishes. Source: https://kubernetes.io/docs/reference/kubernetes-api/
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Base of all parts of Kubernetes objects."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    def manifest(self) -> dict[str, Any]:
        """Return the object as the API server expects it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Metadata(Model):
    """Names and labels; with `generate_name` the API server completes the name."""

    name: str | None = None
    generate_name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None


class KubernetesObject(Model):
    """An object that can be sent to the API server."""

    api_version: str
    kind: str
    metadata: Metadata


class SecretKeyReference(Model):
    """One key of a Secret; without `optional` a pod waits until it exists."""

    name: str
    key: str
    optional: bool | None = None


class EnvironmentSource(Model):
    """Where a variable's value comes from."""

    secret_key_ref: SecretKeyReference


class EnvironmentVariable(Model):
    """A variable by its value, or by the secret that holds it."""

    name: str
    value: str | None = None
    value_from: EnvironmentSource | None = None


class ContainerPort(Model):
    """A port that a container listens on."""

    name: str
    container_port: int


class Resources(Model):
    """Requests and limits of a container."""

    requests: dict[str, str]
    limits: dict[str, str]


class Capabilities(Model):
    """Linux capabilities that are dropped."""

    drop: tuple[str, ...]


class ContainerSecurity(Model):
    """Security context of a container."""

    allow_privilege_escalation: bool
    read_only_root_filesystem: bool | None = None
    capabilities: Capabilities


class SeccompProfile(Model):
    """Profile of allowed system calls."""

    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class PodSecurity(Model):
    """User and group of a pod's processes."""

    run_as_non_root: bool
    run_as_user: int
    run_as_group: int
    fs_group: int
    seccomp_profile: SeccompProfile = SeccompProfile()


class VolumeMount(Model):
    """Mount path of a volume in a container."""

    name: str
    mount_path: str
    read_only: bool | None = None


class ConfigMapVolume(Model):
    """A ConfigMap's keys as files."""

    name: str


class SecretVolume(Model):
    """A Secret's keys as files."""

    secret_name: str
    optional: bool | None = None


class EmptyDirVolume(Model):
    """Scratch space of a pod."""

    size_limit: str | None = None


class Volume(Model):
    """A volume of one of the three kinds."""

    name: str
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    empty_dir: EmptyDirVolume | None = None


class ExecAction(Model):
    """A command in the container."""

    command: tuple[str, ...]


class LifecycleHandler(Model):
    """Action of a hook."""

    exec: ExecAction


class Lifecycle(Model):
    """Hooks of a container; `pre_stop` runs before the container is stopped, within the pod's grace period."""

    pre_stop: LifecycleHandler


class Toleration(Model):
    """Lets a pod onto nodes with this taint."""

    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Container(Model):
    """A container of a pod."""

    name: str
    image: str
    image_pull_policy: Literal["IfNotPresent", "Always"] = "IfNotPresent"
    command: tuple[str, ...] | None = None
    env: tuple[EnvironmentVariable, ...] | None = None
    ports: tuple[ContainerPort, ...] | None = None
    resources: Resources
    security_context: ContainerSecurity
    volume_mounts: tuple[VolumeMount, ...] | None = None
    lifecycle: Lifecycle | None = None


class PodSpec(Model):
    """A pod."""

    service_account_name: str
    automount_service_account_token: bool
    security_context: PodSecurity
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...] | None = None
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    restart_policy: Literal["Always", "OnFailure", "Never"] | None = None
    termination_grace_period_seconds: int | None = None


class PodTemplate(Model):
    """Labels and a pod."""

    metadata: Metadata
    spec: PodSpec


class ConfigMap(KubernetesObject):
    """Files for pods; never secrets."""

    api_version: Literal["v1"] = "v1"
    kind: Literal["ConfigMap"] = "ConfigMap"
    data: dict[str, str]


class ServiceAccount(KubernetesObject):
    """Who a pod is to the API server."""

    api_version: Literal["v1"] = "v1"
    kind: Literal["ServiceAccount"] = "ServiceAccount"
    automount_service_account_token: bool


class PolicyRule(Model):
    """What may be done to which objects."""

    api_groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]


class Role(KubernetesObject):
    """Rights in one namespace."""

    api_version: Literal["rbac.authorization.k8s.io/v1"] = "rbac.authorization.k8s.io/v1"
    kind: Literal["Role"] = "Role"
    rules: tuple[PolicyRule, ...]


class RoleReference(Model):
    """The role that is given."""

    api_group: Literal["rbac.authorization.k8s.io"] = "rbac.authorization.k8s.io"
    kind: Literal["Role"] = "Role"
    name: str


class Subject(Model):
    """Who gets it."""

    kind: Literal["ServiceAccount"] = "ServiceAccount"
    name: str
    namespace: str | None = None


class RoleBinding(KubernetesObject):
    """Gives a role to a service account."""

    api_version: Literal["rbac.authorization.k8s.io/v1"] = "rbac.authorization.k8s.io/v1"
    kind: Literal["RoleBinding"] = "RoleBinding"
    role_ref: RoleReference
    subjects: tuple[Subject, ...]


class LabelSelector(Model):
    """Objects with these labels; an empty one means all."""

    match_labels: dict[str, str] | None = None


class IpBlock(Model):
    """A range of addresses, and what of it is left out."""

    cidr: str
    except_: tuple[str, ...] | None = Field(None, alias="except")


class NetworkPeer(Model):
    """Pods, by their labels and those of their namespace, or addresses."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IpBlock | None = None


class NetworkPort(Model):
    """A port of a rule."""

    port: int
    protocol: Literal["TCP", "UDP"] = "TCP"


class IngressRule(Model):
    """Who may come in, and where."""

    from_: tuple[NetworkPeer, ...] = Field(alias="from")
    ports: tuple[NetworkPort, ...] | None = None


class EgressRule(Model):
    """Where one may go; without `to`, to these ports anywhere."""

    to: tuple[NetworkPeer, ...] | None = None
    ports: tuple[NetworkPort, ...] | None = None


class NetworkPolicySpec(Model):
    """Pods, and all that they may hear and say."""

    pod_selector: LabelSelector
    policy_types: tuple[Literal["Ingress", "Egress"], ...] = ("Ingress", "Egress")
    ingress: tuple[IngressRule, ...] = ()
    egress: tuple[EgressRule, ...] = ()


class NetworkPolicy(KubernetesObject):
    """What is not allowed by a policy that selects a pod is refused."""

    api_version: Literal["networking.k8s.io/v1"] = "networking.k8s.io/v1"
    kind: Literal["NetworkPolicy"] = "NetworkPolicy"
    spec: NetworkPolicySpec


class JobSpec(Model):
    """A pod that runs to its end."""

    backoff_limit: int
    active_deadline_seconds: int
    ttl_seconds_after_finished: int
    template: PodTemplate


class JobTemplate(Model):
    """Labels and a job."""

    metadata: Metadata
    spec: JobSpec


class CronJobSpec(Model):
    """A job at times given as in cron."""

    schedule: str
    time_zone: str
    concurrency_policy: Literal["Allow", "Forbid", "Replace"]
    starting_deadline_seconds: int
    successful_jobs_history_limit: int
    failed_jobs_history_limit: int
    job_template: JobTemplate


class CronJob(KubernetesObject):
    """Runs a job on a schedule."""

    api_version: Literal["batch/v1"] = "batch/v1"
    kind: Literal["CronJob"] = "CronJob"
    spec: CronJobSpec
