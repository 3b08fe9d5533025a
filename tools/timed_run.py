"""Run what fits of a study into a time limit, on a machine that has neither Snakemake nor DVC.

    python tools/timed_run.py run STUDY --minutes 25 --at-once 4
    python tools/timed_run.py pack STUDY --into FOLDER --mib 60
    python tools/timed_run.py unpack STUDY --from FOLDER
    python tools/timed_run.py missing STUDY

STUDY is a folder with a params.yaml. For a machine that is lent for minutes at a time: `run` starts
each job as soon as its inputs are there, all methods with the first seed before those with the
next, and stops at the limit; trainings save their state (`checkpoint_minutes`). With `--only
REGEX`, only those students run whose "METHOD SEED" fits. `pack` copies results and states into
files of at most 15 MiB, the most valuable first; after `unpack` in another STUDY, `run` continues
there. Prepared images and cached logits are not packed, since they are quickly made
again. `missing` lists the jobs that are left. The report is left to `snakemake`. If the machine can
be taken back at any time, call `run` for a few minutes at a time and `pack` after each.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kdsteps.cli.running import ON_GPU  # noqa: E402
from kdsteps.jobs import graph  # noqa: E402
from kdsteps.study.loading import load_study  # noqa: E402
from kdsteps.study.study import Study  # noqa: E402

PART_MIB = 15
GRACE = 20  # seconds between asking jobs to stop and killing them
ALONE = {"evaluate_latency", "export"}  # measure time
ONE_JOB = """
import json, logging, sys
from kdsteps.cli.calls import call_of
from kdsteps.cli.running import run_call
from kdsteps.study.loading import load_study
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
rule, names, threads, at_once = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
run_call(call_of(load_study("params.yaml"), rule, names), threads=threads, jobs_per_gpu=at_once)
"""


@dataclass(frozen=True)
class Work:
    """One job: its rule, its names, and the files it reads and writes."""

    rule: str
    names: dict[str, str]
    reads: frozenset[str]
    writes: frozenset[str]

    def __str__(self) -> str:
        return " ".join([self.rule, *self.names.values()])

    @property
    def log(self) -> Path:
        return Path("logs", "-".join([self.rule, *self.names.values()]) + ".txt")


def work_of(study: Study) -> list[Work]:
    """All jobs but the report, those of the first seed and method first, latency last."""
    methods = list(study.params.methods)
    found = []
    for rule in graph.OUTPUTS:
        if rule == "report":
            continue
        for names in graph.jobs(study, rule):
            node = graph.node(study, rule, names)
            writes = frozenset(graph.outputs(rule, names).values())
            found.append(Work(rule, names, frozenset(node.read), writes))
    rules = list(graph.OUTPUTS)

    def urgency(work: Work) -> tuple[bool, int, int, int]:
        method = methods.index(work.names["method"]) if "method" in work.names else -1
        seed = int(work.names.get("seed", -1))
        return (work.rule in ALONE, seed, method, rules.index(work.rule))

    return sorted(found, key=urgency)


def is_done(work: Work, all_work: list[Work]) -> bool:
    """Whether its files are there, or a student's are no longer needed: it has been evaluated."""
    if all(Path(path).exists() for path in work.writes):
        return True
    if work.rule != "distil":
        return False
    after = [other for other in all_work if other.rule == "evaluate" and other.names == work.names]
    return all(Path(path).exists() for other in after for path in other.writes)


def is_wanted(work: Work, only: str) -> bool:
    """Whether it is not a student's, or the student's method and seed fit the pattern `only`."""
    if "seed" not in work.names:
        return True
    return re.fullmatch(only, f"{work.names['method']} {work.names['seed']}") is not None


def run(study: Study, seconds: float, at_once: int, only: str) -> None:
    """Run jobs until all are done or the time is over; a job that fails is not started again."""
    all_work = work_of(study)
    left = [work for work in all_work if not is_done(work, all_work) and is_wanted(work, only)]
    running: dict[subprocess.Popen[bytes], Work] = {}
    end = time.monotonic() + seconds
    cores = len(os.sched_getaffinity(0))
    try:
        while (left or running) and time.monotonic() < end:
            for process, work in list(running.items()):
                if process.poll() is not None:
                    del running[process]
                    _say(f"{'done' if process.returncode == 0 else 'FAILED'}: {work}")
            alone = any(work.rule in ALONE for work in running.values())
            for work in list(left):
                if len(running) >= at_once or alone:
                    break
                must_wait = work.rule in ALONE and running
                if not must_wait and all(Path(path).exists() for path in work.reads):
                    left.remove(work)
                    # few jobs compute on the CPU alone, and those on the GPU wait for them
                    share = at_once if graph.stage_of(work.rule) in ON_GPU else 2
                    running[_started(work, max(1, cores // share), at_once)] = work
                    _say(f"started: {work}")
                    alone = work.rule in ALONE
            if left and not running:
                _say(f"{len(left)} jobs wait for files that no job made")
                return
            time.sleep(0.2)
    finally:
        _stop(running)
        _say(f"{len(left) + len(running)} jobs are left")


def _stop(running: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to stop, so that they save their states; kill those that do not."""
    for process in running:
        process.terminate()
    stop = time.monotonic() + GRACE
    for process in running:
        try:
            process.wait(max(0.1, stop - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _started(work: Work, threads: int, at_once: int) -> subprocess.Popen[bytes]:
    work.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", ONE_JOB, work.rule, json.dumps(work.names)]
    command += [str(threads), str(at_once)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with work.log.open("ab") as log:
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def pack(study: Study, folder: Path, mib: int) -> None:
    """Copy what cannot be made again quickly into part-0, part-1, ..., together at most `mib`."""
    room, buffer = mib * 2**20, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in _worth_keeping(study):
            size = path.stat().st_size + 1024
            if buffer.tell() + size > room:
                _say(f"left out, no room: {path}")
                continue
            archive.add(path)
    content, each = buffer.getvalue(), PART_MIB * 2**20
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-len(content) // each)):
        folder.joinpath(f"part-{number}").write_bytes(content[number * each : (number + 1) * each])
    _say(f"packed {len(content) / 2**20:.1f} MiB")


def _worth_keeping(study: Study) -> Iterator[Path]:
    """Small results and logs, the teacher, states of runs, then students that are not evaluated."""
    all_work = work_of(study)
    made = [Path(path) for work in all_work for path in sorted(work.writes)]
    there = [path for path in made if path.exists() and path.name != "images.npy"]
    large = [path for path in there if path.suffix == ".safetensors"]
    yield from (path for path in there if path not in large)
    yield from sorted(Path("results").rglob("*.provenance.json"))
    yield from sorted(Path("logs").glob("*.txt"))
    yield from (path for path in large if path.name == "teacher.safetensors")
    yield from sorted(Path(".kdsteps/resume").glob("*.pt"))
    for work in all_work:
        if work.rule == "evaluate" and not is_done(work, all_work):
            yield from (path for path in large if str(path) in work.reads)


def unpack(folder: Path) -> None:
    """Put packed files back."""
    parts = sorted(folder.glob("part-*"), key=lambda path: int(path.name.removeprefix("part-")))
    content = b"".join(path.read_bytes() for path in parts)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(filter="data")


def missing(study: Study) -> None:
    """Print what is left to do."""
    all_work = work_of(study)
    for work in all_work:
        if not is_done(work, all_work):
            print(work)


def _exit_once(*_: object) -> None:
    """Exit, and ignore SIGTERM from now on: what runs is being stopped."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "pack", "unpack", "missing"):
        command = commands.add_parser(name)
        command.add_argument("study", type=Path, help="folder with a params.yaml")
        if name == "run":
            command.add_argument("--minutes", type=float, default=25, help="(%(default)s)")
            command.add_argument("--at-once", type=int, default=4, help="jobs (%(default)s)")
            command.add_argument(
                "--only", default=".*", help='regex of "METHOD SEED" (%(default)s)'
            )
        if name == "pack":
            command.add_argument("--into", type=Path, required=True)
            command.add_argument("--mib", type=int, default=60, help="(%(default)s)")
        if name == "unpack":
            command.add_argument("--from", dest="source", type=Path, required=True)
    args = parser.parse_args()
    folder = {name: getattr(args, name).resolve() for name in ("into", "source") if name in args}
    os.chdir(args.study)
    signal.signal(signal.SIGTERM, _exit_once)
    study = load_study("params.yaml")
    if args.command == "run":
        run(study, 60 * args.minutes, args.at_once, args.only)
    elif args.command == "pack":
        pack(study, folder["into"], args.mib)
    elif args.command == "unpack":
        unpack(folder["source"])
    else:
        missing(study)


if __name__ == "__main__":
    main()
