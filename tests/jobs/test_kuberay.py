"""Manifests of jobs: valid by the schemas of Kubernetes and the rules of KubeRay, and consistent with the code."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from typer.main import get_command
from typer.testing import CliRunner

from jobs.cli import app, main
from jobs.kuberay.cluster_api import FIELD_MANAGER
from jobs.kuberay.manifests import Deployment, as_yaml, manifests, name_of
from jobs.kuberay.network import PORTS
from jobs.kuberay.objects import Metadata
from jobs.kuberay.pods import HOME, IMAGE, SPEC_FILE, SPEC_FOLDER, USER
from jobs.kuberay.ray_job import DNS_LABEL, LONGEST_NAME, RayJob
from jointdit.errors import JointDiTError, SpecError
from pipelines.run.notify import ADDRESS_VARIABLE, SECRET_VARIABLE
from pipelines.spec.file import refuse_credentials
from pipelines.spec.job import load_spec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kuberay"
SPEC = "infra/kuberay/job.yaml"
GS = ["--set", "input.uri=gs://corpus/prompts/*.parquet", "--set", "output.uri=gs://datasets/nightly-indoor"]
COMMITTED = {  # file -> options of `jointdit submit infra/kuberay/job.yaml --kube --dry-run`
    "s3.yaml": ["--store", "s3"],
    "gcs.yaml": ["--store", "gcs", *GS],
    "minio.yaml": ["--store", "minio"],
    "nightly.yaml": ["--store", "s3", "--schedule", "0 1 * * *"],
}
ON_KUBERNETES = "1.33"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def rendered(options: list[str]) -> str:
    done = CliRunner().invoke(app, ["submit", SPEC, "--kube", "--dry-run", *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def objects_of(name: str) -> list[dict[str, Any]]:
    """Return the objects of a committed file, and the RayJob that its schedule creates."""
    found = list(yaml.safe_load_all((FOLDER / name).read_text()))
    inner = [each["data"]["rayjob.yaml"] for each in found if "rayjob.yaml" in each.get("data", {})]
    return found + [each for text in inner for each in yaml.safe_load_all(text)]


EVERY = [each for name in COMMITTED for each in objects_of(name)]


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of all mappings in an object."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name, item
            yield from walk(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item, key)


def named(key: str) -> list[Any]:
    return [value for each in EVERY for name, value in walk(each) if name == key]


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_manifests_are_the_printed_ones(name: str) -> None:
    assert (FOLDER / name).read_text() == rendered(COMMITTED[name]), f"make manifests renews infra/kuberay/{name}"


def test_a_command_prints_each_committed_manifest() -> None:
    assert {file.name for file in FOLDER.glob("*.yaml")} == {*COMMITTED, "job.yaml"}


@pytest.mark.parametrize("name", COMMITTED)
def test_each_object_is_valid_by_kubernetes_own_schemas(name: str) -> None:
    kinds = []
    for each in objects_of(name):
        kinds.append(each["kind"])
        if each["kind"] == "RayJob":  # pods and all that is Kubernetes' own in it
            RayJob.model_validate(each)
            cluster = each["spec"]["rayClusterSpec"]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            for template in [*(group["template"] for group in groups), each["spec"]["submitterPodTemplate"]]:
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
                kubernetes_validate.validate({**pod, "spec": template["spec"]}, ON_KUBERNETES, strict=True)
        else:
            kubernetes_validate.validate(each, ON_KUBERNETES, strict=True)
    assert {"ServiceAccount", "ConfigMap", "NetworkPolicy", "RayJob"} <= set(kinds)
    assert ("CronJob" in kinds) == (name == "nightly.yaml")


def test_an_unknown_field_of_kubernetes_is_found() -> None:
    policy = next(each for each in EVERY if each["kind"] == "NetworkPolicy")
    spoilt = {**policy, "spec": {**policy["spec"], "podSelektor": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, ON_KUBERNETES, strict=True)
    job = next(each for each in EVERY if each["kind"] == "RayJob")
    with pytest.raises(ValidationError, match="rayClusterSpeck"):
        RayJob.model_validate({**job, "spec": {**job["spec"], "rayClusterSpeck": {}}})
    with pytest.raises(ValidationError, match="shutdown"):
        RayJob.model_validate({**job, "spec": {**job["spec"], "shutdownAfterJobFinishes": False}})
    with pytest.raises(ValidationError, match="no name for a RayJob"):
        RayJob.model_validate({**job, "metadata": Metadata(name="7-nights").manifest()})


def test_the_images_and_ports_are_those_of_the_project() -> None:
    assert set(named("image")) == {IMAGE}
    assert f"jointdit-engine:{version_of_the_project()}" == IMAGE
    assert set(named("containerPort")) == set(PORTS.values())
    in_policies = {
        port for each in EVERY if each["kind"] == "NetworkPolicy" for key, port in walk(each) if key == "port"
    }
    assert {PORTS["dashboard"], PORTS["metrics"], 53, 443, 9000} <= in_policies


def version_of_the_project() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_each_variable_is_read_by_this_package_or_a_library() -> None:
    from botocore.credentials import EnvProvider
    from huggingface_hub import constants

    google = pytest.importorskip("google.auth.environment_vars")
    known = {EnvProvider.ACCESS_KEY, EnvProvider.SECRET_KEY, google.CREDENTIALS, "HOME"}
    assert "HF_TOKEN" in Path(constants.__file__).read_text()
    sources = [p for folder in ("jointdit", "pipelines", "jobs") for p in (ROOT / folder).rglob("*.py")]
    sources = [path for path in sources if path.parent.name != "kuberay"]
    code = "\n".join(path.read_text() for path in sources)
    variables = {each["name"] for listed in named("env") for each in listed}
    assert {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN"} <= variables
    assert {name for name in variables - known - {"HF_TOKEN"} if f'"{name}"' not in code} == set()


def test_secrets_are_only_referred_to() -> None:
    assert [each for each in EVERY if each["kind"] == "Secret"] == []
    refuse_credentials([text for each in EVERY for text in each.get("data", {}).values()])
    values = {each["name"] for listed in named("env") for each in listed if "value" in each}
    assert values == {"HOME", "JOINTDIT_LOG", "AWS_ENDPOINT_URL", "GOOGLE_APPLICATION_CREDENTIALS"}, (
        "the others come by reference"
    )
    references = {(each["name"], each["key"]) for each in named("secretKeyRef")}
    assert ("jointdit-store", "AWS_SECRET_ACCESS_KEY") in references
    text = (ROOT / "infra" / "README.md").read_text()
    assert [name for name, _ in references if f"generic {name}" not in text] == [], "the README says how to make each"


def test_no_container_is_root_or_writes_to_its_image() -> None:
    specs = [value for key, value in ((k, v) for each in EVERY for k, v in walk(each)) if key == "spec"]
    pods = [spec for spec in specs if isinstance(spec, dict) and "containers" in spec]
    assert len(pods) >= 4 * len(COMMITTED)
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == USER
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert {"/tmp", HOME} <= {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}


def test_only_workers_have_gpus_and_spot_nodes_are_drained() -> None:
    (job,) = [each for each in objects_of("s3.yaml") if each["kind"] == "RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(head["template"]["spec"])
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert {name: group["minReplicas"] for name, group in groups.items()} == {"spot": 0, "on-demand": 0}
    spot = groups["spot"]["template"]["spec"]
    assert {each["key"] for each in spot["tolerations"]} == {"nvidia.com/gpu", "jointdit.io/pool"}
    (container,) = spot["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert importlib.util.find_spec(command[2]), "the hook's module is in the image"
    assert int(command[-1]) < spot["terminationGracePeriodSeconds"]
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_pods_run_the_spec_of_the_config_map() -> None:
    (job,) = [each for each in objects_of("s3.yaml") if each["kind"] == "RayJob"]
    (map_,) = [each for each in objects_of("s3.yaml") if each["kind"] == "ConfigMap"]
    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["jointdit", "run", f"{SPEC_FOLDER}/{SPEC_FILE}"]
    options = {name for parameter in get_command(app).commands["run"].params for name in parameter.opts}  # type: ignore[attr-defined]
    assert {word for word in words if word.startswith("-")} <= options
    spec = load_spec(yaml.safe_load(map_["data"][SPEC_FILE]))
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert spec.resources.workers == sum(group["maxReplicas"] for group in groups)
    assert spec.resources.device == "cuda", "it waits for GPUs that are not there yet"


def test_tasks_can_be_kept_off_nodes_with_gpus() -> None:
    objects = [each.manifest() for each in manifests(load_spec(SPEC), Deployment("s3", tasks_on_head=True))]
    (map_,) = [each for each in objects if each["kind"] == "ConfigMap"]
    labels = load_spec(yaml.safe_load(map_["data"][SPEC_FILE])).resources.task_labels
    cluster = objects[-1]["spec"]["rayClusterSpec"]
    assert labels
    assert cluster["headGroupSpec"]["labels"] == labels
    assert not any("labels" in group for group in cluster["workerGroupSpecs"])


def test_a_schedule_may_create_rayjobs_and_nothing_else() -> None:
    objects = objects_of("nightly.yaml")
    (role,) = [each for each in objects if each["kind"] == "Role"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    (cron,) = [each for each in objects if each["kind"] == "CronJob"]
    command = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert importlib.util.find_spec(command[2])
    (job,) = [each for each in objects if each["kind"] == "RayJob"]
    assert "name" not in job["metadata"], "each tick makes one of its own"
    assert job["spec"]["entrypoint"].endswith("--if-idle")


def test_the_dashboard_is_closed_and_the_store_is_the_only_egress() -> None:
    policy = next(each for each in objects_of("minio.yaml") if each["kind"] == "NetworkPolicy")["spec"]
    among, operator, prometheus = policy["ingress"]
    assert among["from"] == [{"podSelector": policy["podSelector"]}]
    assert "ports" not in among
    assert [port["port"] for port in operator["ports"]] == [PORTS["dashboard"]]
    (peer,) = operator["from"]
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    assert [port["port"] for port in prometheus["ports"]] == [PORTS["metrics"]]
    tiny = load_spec(load_spec(SPEC).as_given(), ["model={name: tiny}"])
    offline = next(each for each in manifests(tiny, Deployment("minio")) if each.kind == "NetworkPolicy").manifest()
    to = [{port["port"] for port in rule["ports"]} for rule in offline["spec"]["egress"] if "ports" in rule]
    assert to == [{53}, {9000}], "DNS and the store"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "output.uri=runs/here"], "cannot be reached by pods: with --store s3 give s3://"),
        (["--store", "gcs"], "cannot be reached by pods: with --store gcs give gs://"),
        (["--endpoint", "http://store:9000"], "--endpoint is for --store minio"),
        (["--store", "minio", "--endpoint", "store"], "--endpoint 'store' is no http address"),
        (["--store", "minio", "--endpoint", "http://u:p@store:9000"], "--endpoint holds a user name"),
        (["--gpus", "0", "--spot-gpus", "0"], "a job needs a GPU to run on"),
        (["--set", "name=7 nights"], "is no name for a RayJob"),
        (["--operator-namespace", "a b"], "--operator-namespace 'a b' is no name of a namespace"),
        (["--set", "notify.webhook=https://h/x"], "notify.webhook would be readable by all users of the cluster"),
    ],
)
def test_a_job_that_cannot_run_on_kubernetes_gets_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", SPEC, "--kube", "--dry-run", *options]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_peers_of_ports_that_run_code_are_selected_by_namespace() -> None:
    """Any namespace may put any label on its pods, so a peer without a namespace reaches the metrics at most."""
    anywhere = []
    for each in EVERY:
        if each["kind"] == "NetworkPolicy":
            for rule in each["spec"].get("ingress", ()):
                if any(peer.get("namespaceSelector") == {} for peer in rule["from"]):
                    anywhere += [port["port"] for port in rule["ports"]]
    assert set(anywhere) == {PORTS["metrics"]}
    deployment = Deployment("s3", operator_namespace="operators")
    policy = next(each for each in manifests(load_spec(SPEC), deployment) if each.kind == "NetworkPolicy").manifest()
    names = [found for key, found in walk(policy) if key == "kubernetes.io/metadata.name"]
    assert set(names) == {"operators", "kube-system"}


def test_the_address_of_a_webhook_is_sent_as_the_name_of_a_variable() -> None:
    options = ["--set", "notify.webhook_variable=JOINTDIT_WEBHOOK_URL", "--dry-run"]
    sent = json.loads(CliRunner().invoke(app, ["submit", SPEC, "--ray", "http://head:8265", *options]).stdout)
    spec = load_spec(yaml.safe_load(sent["files"]["spec.yaml"]))
    assert spec.notify.webhook_variable == "JOINTDIT_WEBHOOK_URL"
    objects = manifests(spec, Deployment("minio"))
    map_ = next(each for each in objects if each.kind == "ConfigMap").manifest()
    assert load_spec(yaml.safe_load(map_["data"][SPEC_FILE])).notify == spec.notify
    variables = {each["name"] for listed in named("env") for each in listed}
    assert {ADDRESS_VARIABLE, SECRET_VARIABLE} <= variables
    refused = CliRunner().invoke(
        app, ["submit", SPEC, "--ray", "http://h:1", "--dry-run", "--set", "notify.webhook=http://h/x"]
    )
    assert isinstance(refused.exception, SpecError)


def test_names_in_any_script_stay_distinct() -> None:
    given = ["größe", "grüße", "数据", "数", "👩‍🎨", "\u202eשלום", "e\u0301", "é", "ü" * 200, "a\tü\n"]
    names = [name_of(load_spec(SPEC, [f"name={json.dumps(name, ensure_ascii=False)}"])) for name in given]
    assert len(set(names)) == len(given)
    for name in names:
        assert DNS_LABEL.fullmatch(name)
        assert len(name) + len("-xxxxx") <= LONGEST_NAME
    assert name_of(load_spec(SPEC, ["name=Nightly, indoor"])) == "nightly-indoor"


def test_a_ray_cluster_gets_the_same_command() -> None:
    done = CliRunner().invoke(app, ["submit", SPEC, "--ray", "http://head:8265", "--dry-run", "--if-idle"])
    asked = json.loads(done.stdout)
    assert asked["entrypoint"] == "jointdit run spec.yaml --zero-at-limit --if-idle"
    assert load_spec(yaml.safe_load(asked["files"]["spec.yaml"])) == load_spec(SPEC)


def test_the_printed_yaml_is_the_objects() -> None:
    objects = manifests(load_spec(SPEC), Deployment("s3", schedule="0 1 * * *"))
    assert list(yaml.safe_load_all(as_yaml(objects))) == [each.manifest() for each in objects]
    assert FIELD_MANAGER == "jointdit"
    with pytest.raises(JointDiTError):
        manifests(load_spec(SPEC), Deployment("s3", gpus=0, spot_gpus=0))
