"""Requests to the API server, received by a small server on loopback that speaks its protocol.

The server supports discovery, server-side apply, creation with a generated name, and refusals. It is no real cluster.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from jobs.cli import main
from jobs.kuberay.cluster_api import send
from jobs.kuberay.manifests import Deployment, manifests
from jointdit.errors import PermanentError
from pipelines.spec.job import load_spec

ROOT = Path(__file__).parents[2]
KINDS = {  # group version -> kinds
    "v1": ["ConfigMap", "ServiceAccount"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "batch/v1": ["CronJob"],
    "ray.io/v1": ["RayJob"],
}


class ApiServer(BaseHTTPRequestHandler):
    kept: ClassVar[list[tuple[str, str, dict[str, Any]]]] = []
    refuses: ClassVar[str] = ""
    kinds: ClassVar[dict[str, list[str]]] = KINDS

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/version":
            self.answer({"major": "1", "minor": "33"})
        elif path == "/api":
            self.answer({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            groups = [name.split("/")[0] for name in self.kinds if "/" in name]
            versions = [{"groupVersion": f"{group}/v1", "version": "v1"} for group in groups]
            named = zip(groups, versions, strict=True)
            self.answer(
                {
                    "kind": "APIGroupList",
                    "groups": [{"name": g, "versions": [v], "preferredVersion": v} for g, v in named],
                }
            )
        else:
            group = path.removeprefix("/api/").removeprefix("/apis/")
            verbs = ["create", "patch"]
            resources = [
                {"name": plural(kind), "singularName": "", "kind": kind, "namespaced": True, "verbs": verbs}
                for kind in self.kinds[group]
            ]
            self.answer({"kind": "APIResourceList", "groupVersion": group, "resources": resources})

    def do_POST(self) -> None:
        self.keep()

    def do_PATCH(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        assert query["fieldManager"] == ["jointdit"]
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        self.keep()

    def keep(self) -> None:
        body = yaml.safe_load(self.rfile.read(int(self.headers["Content-Length"])))
        if body["kind"] == self.refuses:
            self.answer({"kind": "Status", "message": "roles is forbidden: you may not.", "code": 403}, 403)
            return
        self.kept.append((self.command, urlsplit(self.path).path, body))
        metadata = {**body["metadata"]}
        metadata.setdefault("name", f"{metadata.get('generateName')}abcde")
        self.answer({**body, "metadata": metadata}, 201)

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def plural(kind: str) -> str:
    return "networkpolicies" if kind == "NetworkPolicy" else f"{kind.lower()}s"


@pytest.fixture
def api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ApiServer]]:
    """A server on loopback that the kubeconfig names."""
    handler = type("Handler", (ApiServer,), {"kept": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {"token": "a-token"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(ROOT)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_submitted_objects_are_the_printed_ones(
    api_server: type[ApiServer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "infra/kuberay/job.yaml", "--kube"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "RayJob/nightly-indoor"
    printed = list(yaml.safe_load_all((ROOT / "infra" / "kuberay" / "s3.yaml").read_text()))
    assert [body for _, _, body in api_server.kept] == printed
    assert [method for method, _, _ in api_server.kept] == ["PATCH"] * (len(printed) - 1) + ["POST"]
    assert api_server.kept[-1][1] == "/apis/ray.io/v1/namespaces/jointdit/rayjobs"


def test_each_tick_creates_a_job_with_its_own_name(api_server: type[ApiServer]) -> None:
    objects = manifests(load_spec("infra/kuberay/job.yaml"), Deployment("s3", schedule="0 1 * * *"))
    (template,) = [o for o in (each.manifest() for each in objects) if "rayjob.yaml" in o.get("data", {})]
    assert send(yaml.safe_load_all(template["data"]["rayjob.yaml"])) == ["RayJob/nightly-indoor-abcde"]


def test_a_refusal_of_the_cluster_is_one_sentence(
    api_server: type[ApiServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = [each.manifest() for each in manifests(load_spec("infra/kuberay/job.yaml"), Deployment("s3"))]
    api_server.refuses = "ConfigMap"
    with pytest.raises(PermanentError, match=r"^ConfigMap nightly-indoor-spec: the cluster refused it: roles is forb"):
        send(objects)
    api_server.refuses, api_server.kinds = "", {name: kinds for name, kinds in KINDS.items() if name != "ray.io/v1"}
    with pytest.raises(PermanentError, match=r"does not know RayJob of ray.io/v1: install KubeRay's operator\.$"):
        send(objects[-1:])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(PermanentError, match=r"no Kubernetes cluster is configured .*: set KUBECONFIG, or print"):
        send(objects)
