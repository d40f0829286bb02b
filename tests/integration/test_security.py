"""Ray refuses clients without a token, and no output, log or object contains a secret."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import ray
import yaml

from jobs.report import PlainFormatter
from pipelines.stages.generate import DeviceFault
from pipelines.store.storage import Storage
from tests import stand_in

ROOT = Path(__file__).parents[2]
ASK = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10)) >= 0)
"""


OWN = """
import sys
from pipelines.engine.cluster import connect
with connect():
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


def ask_ray(token: str | None, address: str = "") -> subprocess.CompletedProcess[str]:
    """Run a client that asks a Ray, by default the session's, for its keys."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    address = address or ray.get_runtime_context().gcs_address
    return subprocess.run(
        [sys.executable, "-c", ASK, address], env=environment, capture_output=True, text=True, timeout=60
    )


def test_ray_refuses_clients_without_a_token_and_has_no_dashboard(ray_cluster: None) -> None:
    known = ask_ray(os.environ["RAY_AUTH_TOKEN"])
    assert known.stdout == "True\n", known.stderr
    for token in (secrets.token_hex(32), None):
        refused = ask_ray(token)
        assert refused.returncode != 0
        assert refused.stdout == ""
        assert "auth" in refused.stderr.lower()
    assert not ray._private.worker._global_node.address_info["webui_url"]


def test_an_own_ray_requires_a_token_in_any_environment() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_AUTH_MODE"] = "disabled"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", OWN], env=environment, **pipes) as driver:
        address = driver.stdout.readline().strip()
        refused = ask_ray(None, address)
        driver.stdin.close()
    assert ":" in address
    assert refused.returncode != 0
    assert "auth" in refused.stderr.lower()


class Leaking(stand_in.StandInWorker):
    """Raises errors that contain the credentials; the first one ends the worker."""

    def generate(self, part):
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        try:
            os.close(os.open(Path(self.context.spec.input.uri[0]).with_name("died"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().generate(part)
        raise DeviceFault(f"the store said no to {secret}")

    def load(self):
        class Pipeline(stand_in.StandInPipeline):
            def __call__(self, **arguments):
                if any("LEAK" in text for text in arguments["prompt"]):
                    raise RuntimeError(f"SignatureDoesNotMatch for {os.environ['AWS_SECRET_ACCESS_KEY']}")
                return super().__call__(**arguments)

        return Pipeline(self.context.height, self.context.width)


def everything_in(storage: Storage) -> bytes:
    """Return names and bytes of all objects, and the decompressed text of tables."""
    content = b""
    for file in storage.list(""):
        data = storage.read_bytes(file.path)
        content += file.path.encode() + data
        if file.path.endswith(".parquet"):
            content += repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
    return content


def test_a_secret_in_an_error_message_is_masked_everywhere(run_stand_in, make_spec, s3, capfd, caplog) -> None:
    output = s3.make_bucket() + "/out"
    spec = make_spec(["fine", "LEAK", "fine", "fine"], output={"uri": output})
    handler = logging.StreamHandler(log := io.StringIO())
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.getLogger("pipelines").addHandler(handler)
    try:
        with caplog.at_level("INFO"):
            summary = run_stand_in(spec, Leaking)
    finally:
        logging.getLogger("pipelines").removeHandler(handler)
    assert summary.version.counts == {"kept": 3, "rejected": 0, "quarantined": 1}
    kept = everything_in(Storage(output))
    assert b"SignatureDoesNotMatch for ***" in kept
    printed = "".join(capfd.readouterr()) + log.getvalue()
    assert "the store said no to ***" in log.getvalue()
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = b"".join(file.read_bytes() for file in (session / "logs").rglob("*") if file.is_file())
    assert len(logs) > 1000
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN"):
        secret = os.environ[name]
        assert secret not in printed, name
        assert secret.encode() not in kept, name
        assert secret.encode() not in logs, name


FAILURES = {
    "a wrong secret": {"AWS_SECRET_ACCESS_KEY": "planted-0123456789-planted"},
    "a wrong session token": {"AWS_SESSION_TOKEN": "planted-0123456789-planted"},
    "an endpoint that is down": {"AWS_ENDPOINT_URL": "http://key:planted-0123456789-planted@127.0.0.1:9"},
    "a proxy that is down": {
        "AWS_ENDPOINT_URL": "http://store.invalid",
        "HTTP_PROXY": "http://key:planted-0123456789-planted@127.0.0.1:9",
    },
}


CASES = [*((name, True) for name in FAILURES), ("a wrong secret", False)]
RUN = """
import json, os, sys
import pipelines.run.job
from jobs.cli import main
children = []
for number, (environment, options) in enumerate(json.load(sys.stdin)):
    children.append(os.fork())
    if children[-1] == 0:
        os.environ.update(environment)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        sys.argv = ["jointdit", "run", "spec.yaml", *options]
        sys.exit(main())
for child in children:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_planted_secret_is_not_printed_when_the_store_refuses(s3, tmp_path) -> None:
    """The cases are forks of one process, which has imported everything."""
    (tmp_path / "prompts.txt").write_text("a cube\n")
    paths = {"input": {"uri": str(tmp_path / "prompts.txt")}, "output": {"uri": s3.make_bucket() + "/out"}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"task": "joint", **paths}))
    cases = json.dumps([(FAILURES[name], ["--debug"] if debug else []) for name, debug in CASES])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(
        command, input=cases, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ["1"] * len(CASES), done.stderr
    for number, (name, debug) in enumerate(CASES):
        printed = (tmp_path / f"{number}.stderr").read_text() + (tmp_path / f"{number}.stdout").read_text()
        assert ("Traceback" in printed) == debug, name
        assert "planted" not in printed, name
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in printed, name
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if not name.endswith((".stdout", ".stderr"))} == {"prompts.txt", "spec.yaml"}
