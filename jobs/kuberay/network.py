"""Who may talk to whom: what is not named here is refused, by every network plug-in that enforces NetworkPolicies.

    into a job's pods   from each other on all ports (Ray uses many, also random ones); from KubeRay's operator to the
                        dashboard's API; from Prometheus to the metrics. Nobody else reaches the dashboard.
    out of them         to each other, to DNS, to the store; the head also to the API server, for the autoscaler
    the schedule's pod  out to DNS and to the API server, nothing in

The dashboard's API runs what it is sent, and a label of a pod is whatever its namespace says. So the operator is known
by the name of its namespace too, which the API server sets; Prometheus, which only reads, by its label anywhere.

A Service's port is not what a policy sees: it sees the pods behind it. So the API server is let through on both of its
usual ports.
"""

from __future__ import annotations

from jobs.kuberay.objects import (
    EgressRule,
    IngressRule,
    LabelSelector,
    Metadata,
    NetworkPeer,
    NetworkPolicy,
    NetworkPolicySpec,
    NetworkPort,
)
from jobs.kuberay.stores import OUTSIDE, Store

# Ray's ports as KubeRay sets them (ray-operator/controllers/ray/utils/constant.go).
GCS_PORT, CLIENT_PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 10001, 8265, 8080
PORTS = {"gcs-server": GCS_PORT, "client": CLIENT_PORT, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
API_SERVER_PORTS = (443, 6443)
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}  # as its Helm chart labels it
OPERATOR_NAMESPACE = "kuberay-system"  # where infra/README.md installs it
NAMESPACE_NAME = "kubernetes.io/metadata.name"  # label that the API server gives each namespace, and keeps
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}  # as the Prometheus operator and its Helm charts label it

DNS = EgressRule(
    to=(NetworkPeer(namespace_selector=LabelSelector(match_labels={NAMESPACE_NAME: "kube-system"})),),
    ports=(NetworkPort(port=53, protocol="UDP"), NetworkPort(port=53)),
)
API_SERVER = EgressRule(to=(OUTSIDE,), ports=tuple(NetworkPort(port=port) for port in API_SERVER_PORTS))


def cluster_policy(
    metadata: Metadata, pods: dict[str, str], store: Store, operator_namespace: str = OPERATOR_NAMESPACE
) -> NetworkPolicy:
    """For all pods with the labels `pods`: head, workers, submitter."""
    among_themselves = NetworkPeer(pod_selector=LabelSelector(match_labels=pods))
    operator = NetworkPeer(
        namespace_selector=LabelSelector(match_labels={NAMESPACE_NAME: operator_namespace}),
        pod_selector=LabelSelector(match_labels=OPERATOR),
    )
    prometheus = NetworkPeer(namespace_selector=LabelSelector(), pod_selector=LabelSelector(match_labels=PROMETHEUS))
    return NetworkPolicy(
        metadata=metadata,
        spec=NetworkPolicySpec(
            pod_selector=LabelSelector(match_labels=pods),
            ingress=(
                IngressRule(from_=(among_themselves,)),
                IngressRule(from_=(operator,), ports=(NetworkPort(port=DASHBOARD_PORT),)),
                IngressRule(from_=(prometheus,), ports=(NetworkPort(port=METRICS_PORT),)),
            ),
            egress=(EgressRule(to=(among_themselves,)), DNS, *store.egress),
        ),
    )


def api_server_policy(metadata: Metadata, pods: dict[str, str]) -> NetworkPolicy:
    """For pods with these labels: on top of what other policies give them, the way to the API server."""
    return NetworkPolicy(
        metadata=metadata,
        spec=NetworkPolicySpec(
            pod_selector=LabelSelector(match_labels=pods), policy_types=("Egress",), egress=(DNS, API_SERVER)
        ),
    )


def ticker_policy(metadata: Metadata, pods: dict[str, str]) -> NetworkPolicy:
    """For the pod of the schedule: it makes a RayJob, and that is all."""
    return NetworkPolicy(
        metadata=metadata,
        spec=NetworkPolicySpec(pod_selector=LabelSelector(match_labels=pods), egress=(DNS, API_SERVER)),
    )
