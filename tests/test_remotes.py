"""A finished study travels through DVC remotes: servers of S3, SSH and Google Cloud, all here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from _ports import free_port
from _study import TINY, Study

pytestmark = [pytest.mark.stories, pytest.mark.slow]

PARAMS: dict[str, Any] = TINY | {"methods": {"labels": {}}}
RESULTS = "results/**/*.*"


@dataclass(frozen=True)
class Remote:
    """A remote of DVC.

    Attributes:
        url: Of the folder for the study.
        options: Of the remote, as `dvc remote modify` takes them.
        environment: What a user has to set, such as keys.
    """

    url: str
    options: Mapping[str, str]
    environment: dict[str, str] = field(default_factory=dict)


@contextmanager
def s3_server(folder: Path) -> Iterator[Remote]:
    """An S3 server with one bucket."""
    needed("dvc_s3", "moto", "flask_cors")
    from moto.server import ThreadedMotoServer

    keys = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = import_module("boto3").client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="user",
            aws_secret_access_key="secret",
        )
        client.create_bucket(Bucket="bucket")
        yield Remote("s3://bucket/study", {"endpointurl": endpoint}, keys)
    finally:
        server.stop()


@contextmanager
def ssh_server(folder: Path) -> Iterator[Remote]:
    """An SSH server that accepts one key, with a folder as its root."""
    needed("dvc_ssh", "asyncssh")
    import asyncssh

    key, root = asyncssh.generate_private_key("ssh-ed25519"), folder / "root"
    root.mkdir()
    key.write_private_key(folder / "key")
    accepted = asyncssh.import_authorized_keys(key.export_public_key().decode())

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=accepted,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=bytes(root)),
        )

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
        url = f"ssh://user@127.0.0.1:{server.get_port()}/study"
        yield Remote(url, {"keyfile": str(folder / "key")}, {"HOME": str(folder)})
        loop.call_soon_threadsafe(server.close)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def google_server(folder: Path) -> Iterator[Remote]:
    """A server that answers as Google Cloud Storage does, with one bucket."""
    needed("dvc_gs", "gcp_storage_emulator")
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    try:
        # the variable tells Google's client that it needs no credentials
        yield Remote(
            "gs://bucket/study", {"endpointurl": endpoint}, {"STORAGE_EMULATOR_HOST": endpoint}
        )
    finally:
        server.stop()


def needed(*modules: str) -> None:
    """Skip the test unless the packages of requirements-remotes.lock are installed."""
    for module in modules:
        pytest.importorskip(module, reason="needs requirements-remotes.lock (make remotes)")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that is finished and recorded with DVC, committed."""
    study = Study.new(tmp_path_factory.mktemp("remotes") / "study", PARAMS)
    study.record()
    study.commit()
    return study


@pytest.fixture(params=[s3_server, ssh_server, google_server])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    with request.param(tmp_path) as remote:
        yield remote


def test_a_colleague_pulls_what_was_pushed_and_computes_nothing(
    remote: Remote, finished: Study, tmp_path: Path
):
    study = finished.copy(tmp_path / "ours")
    study.dvc("remote", "add", "--default", "storage", remote.url)
    for name, value in remote.options.items():
        study.dvc("remote", "modify", "storage", name, value)
    study.commit()
    study.dvc("push", **remote.environment)

    clone = study.clone(tmp_path / "theirs")
    clone.dvc("pull", **remote.environment)
    assert clone.bytes_of(RESULTS) == study.bytes_of(RESULTS)
    assert clone.planned() == {}
    assert "up to date" in clone.dvc("status")
    assert "in sync" in clone.dvc("status", "--cloud", **remote.environment)
