# What the rules share. Which files, settings and code belong to a job is said once, in kdsteps/jobs/graph.py
# and kdsteps/jobs/code_identity.py; here it is put into the words of Snakemake.
import sys

from kdsteps.jobs import code_identity, graph
from kdsteps.errors import KdstepsError
from kdsteps.jobs.resources import cores_there, gpus_there, real_cores
from kdsteps.jobs.snakemake_records import check_records, forget_dead_locks, use_this_python
from kdsteps.study.study import load_study


wildcard_constraints:
    dataset=r"[^/]+",
    teacher=r"[^/]+",
    views=r"[a-z0-9_]+",
    pair=r"[^/]+",
    method=r"[^/]+",
    seed=r"\d+",


def study_of(path):
    """The study in `path`; what the user can mend is said in one sentence, and nothing is run."""
    use_this_python()
    try:
        if config:
            raise KdstepsError(
                f"--config: {', '.join(config)} would not be seen; change the values in {path}"
            )
        if workflow.is_main_process:
            forget_dead_locks()
            check_records()
        return load_study(path)
    except KdstepsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def outputs_of(rule):
    """The files that a rule writes, by name."""
    return graph.outputs(rule)


def inputs_of(rule):
    """Input function: the files that a job reads, by name.

    Files whose digests are in a small file beside them are `ancient`: Snakemake compares that file
    instead of reading large ones for every job.
    """

    def inputs(wildcards):
        job = graph.node(study, rule, dict(wildcards.items()))
        return {
            name: ancient(paths) if name in job.covered else paths
            for name, paths in job.inputs.items()
        }

    return inputs


def settings_of(rule):
    """Param function: all that a job reads from params.yaml as one text, its reason to run again."""
    return lambda wildcards: graph.settings_text(study, rule, dict(wildcards.items()))


def code_of(rule):
    """Param function: the digest of the code behind a job, its other reason to run again."""
    return lambda wildcards: code_identity.code(study, rule, dict(wildcards.items()))


def hint_of(rule, name):
    """Resource function: what a job may know without resting on it; no reason to run again."""
    return lambda wildcards: graph.hints(study, rule, dict(wildcards.items()))[name]


def files(wildcards, input, output):
    """Param function: a job's files as its command takes them; no reason to run again."""
    return ["--inputs", *named(input), "--outputs", *named(output)]


def files_written(wildcards, output):
    """As `files`, for the report: what it reads is hundreds of files, which it finds by itself."""
    return ["--outputs", *named(output)]


def named(paths):
    """NAME=PATH for each file; a name with several files comes once for each."""
    lists = {name: [given] if isinstance(given, str) else given for name, given in paths.items()}
    return [f"{name}={path}" for name, given in lists.items() for path in given]


def reported(paths):
    """Files that `snakemake --report` shows as well, with a caption where workflow/report has one."""
    return {
        name: report(path, caption=f"../report/{name}.rst", category=category_of(path))
        for name, path in paths.items()
    }


def category_of(path):
    endings = {".html": "Report", ".png": "Plots", ".svg": "Plots"}
    return endings.get(path[path.rfind(".") :], "Numbers")


def all_cores():
    """All the cores that the user gave, for jobs that come alone."""
    return workflow.cores


def one_of_many():
    """Cores of one job of many: all where they queue for a GPU, else as many as make one real core.

    On a machine without a GPU students are trained side by side, one on each core, which loses
    nothing to threads that wait for each other; `--set-threads distil=8` gives each more.
    """
    if gpus_there():
        return all_cores()
    return max(1, all_cores() // cores_there())


def gpu_claim(wildcards):
    """Resource function: the GPU of a job; none where there is none to queue for."""
    return 1 if gpus_there() or not workflow.local_exec else 0


def cores_used(wildcards, threads):
    """Resource function: the cores a job computes on, out of those that there are.

    On a cluster they are those it claims: what the machine that submits it has says nothing.
    """
    return real_cores(threads, all_cores()) if workflow.local_exec else threads
