"""A Slurm of one node on this machine, without accounting, for as long as a test needs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from _ports import free_port

CONF = Path("/etc/slurm")  # jobs look only here: the plugin hides SLURM_CONF from them
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
PLUGIN = "snakemake_executor_plugin_slurm"
FOLDER = "KDSTEPS_SLURM_PLUGIN"  # environment variable: where it is, if not in this environment
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")

_SLURM = """
ClusterName=kdsteps
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/node
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
# by process group: ends what a canceled job leaves behind
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,batch_sched_delay=0
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 CoresPerSocket=16 RealMemory=64000 Gres=gpu:1
PartitionName=main Nodes={host} Default=YES State=UP
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None if it can."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"Slurm is not installed: {', '.join(absent)}"
    if find_spec(PLUGIN) is None and FOLDER not in os.environ:
        return f"{PLUGIN} is not installed"
    if os.geteuid() != 0:
        return "only root can start a Slurm"
    if (CONF / "slurm.conf").exists() and not _left_by_a_killed_test(CONF / "slurm.conf"):
        return f"{CONF} has the configuration of another Slurm"
    return None


def _left_by_a_killed_test(configuration: Path) -> bool:
    text = configuration.read_text()
    port = re.search(r"^SlurmctldPort=(\d+)$", text, re.MULTILINE)
    if "\nClusterName=kdsteps\n" not in text or port is None:
        return False
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", int(port[1]))) != 0


@contextmanager
def slurm(state: Path) -> Iterator[None]:
    """A Slurm with 16 CPUs and one GPU, which it only claims to have; it ends with the block."""
    with ExitStack() as ending:
        for name in ("controller", "node"):
            (state / name).mkdir(parents=True)
        state.chmod(0o755)
        _run("mungekey", "--create", f"--keyfile={state}/munge.key")
        _daemon(
            ending,
            *("munged", "--foreground", "--force", f"--key-file={state}/munge.key"),
            *(f"--socket={state}/munge.socket", f"--pid-file={state}/munged.pid"),
            *(f"--log-file={state}/munged.log", f"--seed-file={state}/munge.seed"),
        )
        host = socket.gethostname().partition(".")[0]
        ports = {name: free_port() for name in ("controller", "node")}
        existed = CONF.is_dir()
        CONF.mkdir(exist_ok=True)
        if not existed:
            ending.callback(CONF.rmdir)
        for name, text in (
            ("slurm.conf", _SLURM.format(host=host, state=state, **ports)),
            ("gres.conf", f"NodeName={host} Name=gpu File=/dev/null\n"),
        ):
            ending.callback((CONF / name).unlink)
            (CONF / name).write_text(text)
        _wait(lambda: (state / "munge.socket").exists(), "munged")
        _daemon(ending, "slurmctld", "-D")
        _daemon(ending, "slurmd", "-D", "-N", host)
        ending.callback(_cancel_all)
        _wait(lambda: "idle" in _run("sinfo", "--noheader", check=False), "the node")
        yield


def _cancel_all() -> None:
    """End what still runs, since jobs outlive their daemons."""
    _run("scancel", "--partition=main", check=False)
    _wait(lambda: not _run("squeue", "--noheader", check=False), "the end of the jobs")


def _daemon(ending: ExitStack, name: str, *arguments: str) -> None:
    process = subprocess.Popen(
        [_program(name) or name, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    ending.callback(end)


def _run(name: str, *arguments: str, check: bool = True) -> str:
    command = [_program(name) or name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=check)
    return done.stdout


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(_SBIN))


def _wait(done: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)
