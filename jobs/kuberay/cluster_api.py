"""Send objects to the cluster's API server.

A schedule's pod runs `python -m jobs.kuberay.cluster_api FILE`. Inside a cluster, address and credentials are those of
the pod's service account; elsewhere those of the kubeconfig.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from jointdit.errors import PermanentError

FIELD_MANAGER = "jointdit"
TIMEOUT_SECONDS = 30


def send(objects: Iterable[dict[str, Any]]) -> list[str]:
    """Apply objects (server-side), and create RayJobs; return kind/name of each.

    Raises:
        PermanentError: no cluster is configured or reached, or it refuses an object; objects sent before stay.
    """
    try:
        from kubernetes import client, config, dynamic
    except ImportError:
        raise PermanentError("the package kubernetes is missing: install jointdit[kube].") from None
    from urllib3.exceptions import HTTPError

    configuration = client.Configuration()
    inside = "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
    try:
        if inside:
            config.load_incluster_config(client_configuration=configuration)
        else:
            # The library itself reads KUBECONFIG once, when it is imported.
            config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
    except config.ConfigException as error:
        raise PermanentError(
            f"no Kubernetes cluster is configured ({_in_one_line(error)}): set KUBECONFIG, or print the manifest "
            "with --dry-run."
        ) from None
    configuration.retries = 2
    sent = []
    try:
        with client.ApiClient(configuration) as api, tempfile.TemporaryDirectory() as folder:
            cluster = dynamic.DynamicClient(
                api, cache_file=f"{folder}/kinds.json"
            )  # a new cache each time, since kinds may change
            for each in objects:
                label = f"{each['kind']} {each['metadata'].get('name') or each['metadata']['generateName']}"
                try:
                    sent.append(f"{each['kind']}/{_send(cluster, each)}")
                except dynamic.exceptions.ResourceNotFoundError:
                    needs = "install KubeRay's operator" if each["kind"] == "RayJob" else "update the cluster"
                    raise PermanentError(
                        f"{configuration.host} does not know {each['kind']} of {each['apiVersion']}: {needs}."
                    ) from None
                except dynamic.exceptions.DynamicApiError as error:
                    raise PermanentError(f"{label}: the cluster refused it: {_reason(error)}.") from None
    except HTTPError as error:
        raise PermanentError(
            f"the cluster at {configuration.host} cannot be reached ({type(error).__name__}): check it with "
            "`kubectl cluster-info`."
        ) from None
    except dynamic.exceptions.DynamicApiError as error:  # raised while the client lists the cluster's kinds
        raise PermanentError(
            f"the cluster at {configuration.host} refuses access ({_reason(error)}): check your rights."
        ) from None
    return sent


def _send(cluster: Any, each: dict[str, Any]) -> str:
    """Send an object and return its name. A RayJob is created once and never applied again: KubeRay updates it."""
    resource = cluster.resources.get(api_version=each["apiVersion"], kind=each["kind"])
    if each["kind"] == "RayJob":
        answer = resource.create(body=each, namespace=each["metadata"]["namespace"])
    else:
        answer = resource.server_side_apply(body=each, field_manager=FIELD_MANAGER, force_conflicts=True)
    return str(answer.metadata.name)


def _reason(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"]).rstrip(".")
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def main() -> int:
    """Send the objects of a manifest file and return the exit code."""
    objects = list(yaml.safe_load_all(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        print("\n".join(send(objects)))
    except PermanentError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
