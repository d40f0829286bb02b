"""Network policies of a job.

Network plug-ins that enforce NetworkPolicies refuse all other traffic.

    ingress of a job's pods   each other, all ports (Ray uses many, also random ones); KubeRay's operator to the
                              dashboard's API; Prometheus to the metrics. Nothing else reaches the dashboard.
    egress of a job's pods    each other, DNS, the store; the head also the API server, for the autoscaler
    the schedule's pod        egress to DNS and the API server, no ingress

The dashboard's API runs any code that it receives, and anyone in a namespace can label pods there. So the operator is
selected by its namespace too, whose name label the API server sets. Prometheus only reads and is selected by its label.

A policy sees the pods behind a Service and not the Service's port. So both usual ports of the API server are open.
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
NAMESPACE_NAME = "kubernetes.io/metadata.name"  # label that the API server sets on each namespace
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}  # as the Prometheus operator and its Helm charts label it

DNS = EgressRule(
    to=(NetworkPeer(namespace_selector=LabelSelector(match_labels={NAMESPACE_NAME: "kube-system"})),),
    ports=(NetworkPort(port=53, protocol="UDP"), NetworkPort(port=53)),
)
API_SERVER = EgressRule(to=(OUTSIDE,), ports=tuple(NetworkPort(port=port) for port in API_SERVER_PORTS))


def cluster_policy(
    metadata: Metadata, pods: dict[str, str], store: Store, operator_namespace: str = OPERATOR_NAMESPACE
) -> NetworkPolicy:
    """Return the policy of all pods with the labels `pods`: head, workers, submitter."""
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
    """Return a policy that adds egress to the API server for pods with these labels."""
    return NetworkPolicy(
        metadata=metadata,
        spec=NetworkPolicySpec(
            pod_selector=LabelSelector(match_labels=pods), policy_types=("Egress",), egress=(DNS, API_SERVER)
        ),
    )


def ticker_policy(metadata: Metadata, pods: dict[str, str]) -> NetworkPolicy:
    """Return the policy of the schedule's pod, which only creates a RayJob."""
    return NetworkPolicy(
        metadata=metadata,
        spec=NetworkPolicySpec(pod_selector=LabelSelector(match_labels=pods), egress=(DNS, API_SERVER)),
    )
