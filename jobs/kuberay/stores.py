"""What a pod needs for each kind of store: environment, secrets by reference, and network egress.

The variables are those that the store's library reads: botocore (AWS_...), google-auth
(GOOGLE_APPLICATION_CREDENTIALS). Their values stay in a Secret of the namespace, which is created once by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from jobs.kuberay.objects import (
    EgressRule,
    EnvironmentSource,
    EnvironmentVariable,
    IpBlock,
    LabelSelector,
    NetworkPeer,
    NetworkPort,
    SecretKeyReference,
    SecretVolume,
    Volume,
    VolumeMount,
)
from jointdit.errors import SpecError

StoreKind = Literal["s3", "gcs", "minio"]
SECRET = "jointdit-store"
KEY_FOLDER = "/var/run/secrets/jointdit-store"
MINIO_ENDPOINT = "http://minio.minio.svc.cluster.local:9000"
# Pods must not reach the instance's metadata, which has the node's credentials.
OUTSIDE = NetworkPeer(ip_block=IpBlock(cidr="0.0.0.0/0", except_=("169.254.169.254/32",)))
HTTPS = EgressRule(to=(OUTSIDE,), ports=(NetworkPort(port=443),))


@dataclass(frozen=True)
class Store:
    """Environment, egress and volumes for one kind of store."""

    scheme: str  # of the addresses in the spec
    environment: tuple[EnvironmentVariable, ...]
    egress: tuple[EgressRule, ...]
    volumes: tuple[Volume, ...] = ()
    mounts: tuple[VolumeMount, ...] = ()


def store_of(kind: StoreKind, endpoint: str | None = None) -> Store:
    """Return what pods need for a kind of store; `endpoint` is the address of a MinIO-like one.

    Raises:
        SpecError: an endpoint for a store that has its own, or one that is no http address.
    """
    if endpoint is not None and kind != "minio":
        raise SpecError(f"--endpoint is for --store minio: {kind} has its own endpoint, so leave it out.")
    if kind == "gcs":
        return Store(
            scheme="gs",
            environment=(
                EnvironmentVariable(name="GOOGLE_APPLICATION_CREDENTIALS", value=f"{KEY_FOLDER}/credentials.json"),
            ),
            egress=(HTTPS,),
            volumes=(Volume(name="store-key", secret=SecretVolume(secret_name=SECRET)),),
            mounts=(VolumeMount(name="store-key", mount_path=KEY_FOLDER, read_only=True),),
        )
    if kind == "s3":
        # Optional: with an AWS role of the nodes or the service account there is no key.
        return Store(scheme="s3", environment=_aws_keys(optional=True), egress=(HTTPS,))
    address = endpoint or MINIO_ENDPOINT
    return Store(
        scheme="s3",
        environment=(EnvironmentVariable(name="AWS_ENDPOINT_URL", value=address), *_aws_keys()),
        egress=(_way_to(address),),
    )


def _aws_keys(optional: bool | None = None) -> tuple[EnvironmentVariable, ...]:
    return tuple(secret(name, SECRET, optional) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def secret(variable: str, name: str, optional: bool | None = None) -> EnvironmentVariable:
    """Return a variable whose value is the key of the same name in a Secret."""
    reference = SecretKeyReference(name=name, key=variable, optional=optional)
    return EnvironmentVariable(name=variable, value_from=EnvironmentSource(secret_key_ref=reference))


def _way_to(address: str) -> EgressRule:
    """Return egress to the pods of a service's namespace, or, outside of the cluster, to this port anywhere."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (KeyError, ValueError):
        raise SpecError(f"--endpoint {address!r} is no http address: give one such as {MINIO_ENDPOINT}.") from None
    if parts.username is not None:
        raise SpecError("--endpoint holds a user name, which the manifests would show: credentials come from a Secret.")
    labels = host.split(".")
    if len(labels) >= 3 and labels[2] == "svc":
        inside = LabelSelector(match_labels={"kubernetes.io/metadata.name": labels[1]})
        return EgressRule(to=(NetworkPeer(namespace_selector=inside),), ports=(NetworkPort(port=port),))
    return EgressRule(to=(OUTSIDE,), ports=(NetworkPort(port=port),))
