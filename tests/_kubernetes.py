"""A server that accepts jobs as Kubernetes does, and runs their commands on this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import yaml

_PIP = "#!/bin/sh\nexit 0\n"  # each pod installs storage plugins, which are installed already


@dataclass
class Cluster:
    """What was submitted, and the processes that run it.

    Attributes:
        folder: Each pod has an empty folder in it.
        environment: Of every pod, besides its secrets.
        jobs: As submitted, by name.
    """

    folder: Path
    environment: dict[str, str]
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The file for KUBECONFIG."""
        return self.folder / "config"

    def containers(self) -> list[dict[str, Any]]:
        """The container of each job."""
        return [job["spec"]["template"]["spec"]["containers"][0] for job in self.jobs.values()]

    def start(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        self.jobs[name] = job
        (container,) = job["spec"]["template"]["spec"]["containers"]
        place = self.folder / name
        place.mkdir()
        given = {entry["name"]: self._secret(entry["valueFrom"]) for entry in container["env"]}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.pods[name] = subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=place,
                env=self.environment | given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def status(self, name: str) -> dict[str, int]:
        code = self.pods[name].poll()
        return {"active": 1} if code is None else {"succeeded" if code == 0 else "failed": 1}

    def pod(self, name: str) -> dict[str, Any]:
        """The pod of a job, which has the job's name, as Kubernetes describes it."""
        code = self.pods[name].poll()
        ended = {"exitCode": code, "reason": "Error" if code else "Completed"}
        state = {"running": {}} if code is None else {"terminated": ended}
        about = {"image": "image", "imageID": "", "ready": code is None, "restartCount": 0}
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        return {
            "metadata": {"name": name, "labels": {"job-name": name}},
            "status": {
                "phase": phase,
                "containerStatuses": [{"name": "snakemake", "state": state, **about}],
            },
        }

    def _secret(self, source: dict[str, Any]) -> str:
        key = source["secretKeyRef"]
        return base64.b64decode(self.secrets[key["name"]][key["key"]]).decode()


@contextmanager
def kubernetes(folder: Path, environment: dict[str, str]) -> Iterator[Cluster]:
    """Such a server, until the block ends."""
    programs = folder / "programs"
    programs.mkdir(parents=True)
    (programs / "pip").write_text(_PIP)
    (programs / "pip").chmod(0o755)
    path = os.pathsep.join([str(programs), environment["PATH"]])
    cluster = Cluster(folder, environment | {"PATH": path})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/secrets"):
                cluster.secrets[body["metadata"]["name"]] = body["data"]
            else:
                cluster.start(body)
            self.answer(body)

        def do_GET(self) -> None:
            place, _, question = self.path.partition("?")
            if place.endswith("/pods"):
                name = parse_qs(question)["labelSelector"][0].removeprefix("job-name=")
                self.answer({"items": [cluster.pod(name)]})
            elif place.endswith("/log"):
                if "previous" in question:  # containers of jobs are not restarted
                    self.answer({"message": "previous terminated container not found"}, 400)
                    return
                name = place.removesuffix("/log").rpartition("/")[2]
                self.answer((cluster.folder / f"{name}.log").read_text())
            else:
                name = place.removesuffix("/status").rpartition("/")[2]
                self.answer(cluster.jobs[name] | {"status": cluster.status(name)})

        def do_DELETE(self) -> None:
            self.answer({"status": "Success"})

        def answer(self, content: dict[str, Any] | str, status: int = 200) -> None:
            kind = "text/plain" if isinstance(content, str) else "application/json"
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    entry = {"server": f"http://127.0.0.1:{server.server_port}"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": entry}],
        "users": [{"name": "user", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "user"}}],
    }
    cluster.config.write_text(yaml.safe_dump(config))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for pod in cluster.pods.values():
            pod.kill()
            pod.wait()
