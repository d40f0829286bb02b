"""Images, containers and pods of a job: head with driver, GPU workers, submitter, and the schedule's pod.

No pod runs as root or writes to its image. Ray and libraries write to /tmp and the home folder, which are scratch
volumes. KubeRay adds the services of ports, probes and /dev/shm.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.kuberay.network import PORTS
from jobs.kuberay.objects import (
    Capabilities,
    ConfigMapVolume,
    Container,
    ContainerPort,
    ContainerSecurity,
    EmptyDirVolume,
    EnvironmentVariable,
    ExecAction,
    Lifecycle,
    LifecycleHandler,
    Metadata,
    PodSecurity,
    PodSpec,
    PodTemplate,
    Resources,
    Toleration,
    Volume,
    VolumeMount,
)
from jobs.kuberay.stores import Store, secret
from pipelines.model.fingerprint import code_version
from pipelines.run.notify import ADDRESS_VARIABLE, SECRET_VARIABLE

IMAGE = f"jointdit-engine:{code_version()}"  # what `make image` builds
USER = 1000  # the user of infra/docker/Dockerfile
HOME = "/home/jointdit"
SPEC_FOLDER, SPEC_FILE = "/etc/jointdit", "spec.yaml"
GPU = "nvidia.com/gpu"
GPU_TOLERATION = Toleration(key=GPU, operator="Exists", effect="NoSchedule")
DRAIN_SECONDS = 110  # AWS gives two minutes; GKE and Azure give 30 s and stop the pod earlier
GRACE_SECONDS = 120
ROLE = "app.kubernetes.io/component"  # label: head, worker, submitter or tick

POD_SECURITY = PodSecurity(run_as_non_root=True, run_as_user=USER, run_as_group=USER, fs_group=USER)
CONTAINER_SECURITY = ContainerSecurity(
    allow_privilege_escalation=False, read_only_root_filesystem=True, capabilities=Capabilities(drop=("ALL",))
)
# KubeRay mounts what the autoscaler needs; it may write to other places of its container.
AUTOSCALER_SECURITY = CONTAINER_SECURITY.model_copy(update={"read_only_root_filesystem": None})
SCRATCH = (Volume(name="tmp", empty_dir=EmptyDirVolume()), Volume(name="home", empty_dir=EmptyDirVolume()))
SCRATCH_MOUNTS = (VolumeMount(name="tmp", mount_path="/tmp"), VolumeMount(name="home", mount_path=HOME))
PLAIN = (EnvironmentVariable(name="HOME", value=HOME), EnvironmentVariable(name="JOINTDIT_LOG", value="json"))
# Optional secrets: the hub's token for gated weights, and key and address of the webhook for new versions.
OPTIONAL_SECRETS = (
    secret("HF_TOKEN", "jointdit-hub", optional=True),
    secret(SECRET_VARIABLE, "jointdit-webhook", optional=True),
    secret(ADDRESS_VARIABLE, "jointdit-webhook", optional=True),
)


@dataclass(frozen=True)
class Size:
    """Requests of a container. The memory limit equals the request, so that no node runs out of memory."""

    cpus: str
    memory: str
    gpus: int = 0

    @property
    def resources(self) -> Resources:
        """Requests and limits of Kubernetes."""
        gpu = {GPU: str(self.gpus)} if self.gpus else {}
        return Resources(
            requests={"cpu": self.cpus, "memory": self.memory, **gpu},
            limits={"memory": self.memory, **gpu},
        )


@dataclass(frozen=True)
class Pods:
    """Builds the pods of one job."""

    image: str
    account: str
    labels: dict[str, str]
    store: Store
    spec_map: str  # the ConfigMap with the spec

    def head(self, size: Size) -> PodTemplate:
        """Return the head of the Ray cluster, with the driver; its autoscaler needs the API server's token."""
        ports = tuple(ContainerPort(name=name, container_port=port) for name, port in PORTS.items())
        container = self._container("ray-head", size, ports=ports)
        return self._template("head", container, with_token=True)

    def worker(self, size: Size, selector: dict[str, str], tolerations: tuple[Toleration, ...]) -> PodTemplate:
        """Return a node with GPUs. It is drained before it ends."""
        drain = ("python", "-m", "jobs.drain", "--seconds", str(DRAIN_SECONDS))
        container = self._container(
            "ray-worker",
            size,
            ports=(ContainerPort(name="metrics", container_port=PORTS["metrics"]),),
            lifecycle=Lifecycle(pre_stop=LifecycleHandler(exec=ExecAction(command=drain))),
        )
        pod = self._template("worker", container)
        more = {
            "tolerations": (GPU_TOLERATION, *tolerations),
            "node_selector": selector or None,
            "termination_grace_period_seconds": GRACE_SECONDS,
        }
        return pod.model_copy(update={"spec": pod.spec.model_copy(update=more)})

    def submitter(self) -> PodTemplate:
        """Return the pod that runs `ray job submit`, a command that KubeRay fills in, and follows the log."""
        container = Container(
            name="ray-job-submitter",
            image=self.image,
            resources=Size("500m", "1Gi").resources,
            security_context=CONTAINER_SECURITY,
            volume_mounts=SCRATCH_MOUNTS,
        )
        pod = self._template("submitter", container)
        volumes = {"volumes": SCRATCH, "restart_policy": "Never"}
        return pod.model_copy(update={"spec": pod.spec.model_copy(update=volumes)})

    def ticker(self, account: str, labels: dict[str, str], job_map: str, job_file: str) -> PodTemplate:
        """Return the pod that creates a RayJob from the manifest in a ConfigMap."""
        container = Container(
            name="ticker",
            image=self.image,
            command=("python", "-m", "jobs.kuberay.cluster_api", f"{SPEC_FOLDER}/{job_file}"),
            resources=Size("100m", "256Mi").resources,
            security_context=CONTAINER_SECURITY,
            volume_mounts=(VolumeMount(name="job", mount_path=SPEC_FOLDER, read_only=True), *SCRATCH_MOUNTS),
        )
        pod = PodSpec(
            service_account_name=account,
            automount_service_account_token=True,
            security_context=POD_SECURITY,
            containers=(container,),
            volumes=(Volume(name="job", config_map=ConfigMapVolume(name=job_map)), *SCRATCH),
            restart_policy="Never",
        )
        return PodTemplate(metadata=Metadata(labels=labels), spec=pod)

    def _container(
        self, name: str, size: Size, ports: tuple[ContainerPort, ...], lifecycle: Lifecycle | None = None
    ) -> Container:
        return Container(
            name=name,
            image=self.image,
            env=(*PLAIN, *self.store.environment, *OPTIONAL_SECRETS),
            ports=ports,
            resources=size.resources,
            security_context=CONTAINER_SECURITY,
            volume_mounts=(
                VolumeMount(name="spec", mount_path=SPEC_FOLDER, read_only=True),
                *self.store.mounts,
                *SCRATCH_MOUNTS,
            ),
            lifecycle=lifecycle,
        )

    def _template(self, role: str, container: Container, with_token: bool = False) -> PodTemplate:
        pod = PodSpec(
            service_account_name=self.account,
            automount_service_account_token=with_token,
            security_context=POD_SECURITY,
            containers=(container,),
            volumes=(
                Volume(name="spec", config_map=ConfigMapVolume(name=self.spec_map)),
                *self.store.volumes,
                *SCRATCH,
            ),
        )
        return PodTemplate(metadata=Metadata(labels={**self.labels, ROLE: role}), spec=pod)
