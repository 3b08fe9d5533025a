# Functions that all rules use. kdsteps/jobs/graph.py and kdsteps/jobs/code_identity.py define which files, settings
# and code belong to a job; the functions here pass that on to Snakemake.
import sys

from kdsteps.jobs import code_identity, graph
from kdsteps.errors import KdstepsError
from kdsteps.jobs.gpu_diagnosis import doubt
from kdsteps.jobs.gpus import gpus_there
from kdsteps.jobs.resources import Sharing, real_cores
from kdsteps.jobs.snakemake_records import use_this_python
from kdsteps.jobs.starting import start_run
from kdsteps.study.study import load_study


wildcard_constraints:
    dataset=r"[^/]+",
    teacher=r"[^/]+",
    views=r"[a-z0-9_]+",
    pair=r"[^/]+",
    method=r"[^/]+",
    seed=r"\d+",


def study_of(path):
    """The study in `path`; a mistake that the user can fix is one sentence, and nothing is run."""
    use_this_python()
    try:
        if config:
            raise KdstepsError(
                f"--config: {', '.join(config)} would have no effect; change the values in {path}"
            )
        return start_run(path) if workflow.is_main_process else load_study(path)
    except KdstepsError as error:
        refuse(error)


def refuse(error):
    """End with a sentence for the user, before anything is run."""
    print(error, file=sys.stderr)
    raise SystemExit(2) from None


def outputs_of(rule):
    """The files that a rule writes, by name."""
    return graph.outputs(rule)


def inputs_of(rule):
    """Input function: the files that a job reads, by name.

    Files whose digests are in a small file next to them are `ancient`: Snakemake compares that file
    instead of reading the large ones for every job.
    """

    def inputs(wildcards):
        job = graph.node(study, rule, dict(wildcards.items()))
        return {
            name: ancient(paths) if name in job.covered else paths
            for name, paths in job.inputs.items()
        }

    return inputs


def settings_of(rule):
    """Param function: all that a job reads from params.yaml, as one string; changes rerun the job."""
    return lambda wildcards: graph.settings_text(study, rule, dict(wildcards.items()))


def code_of(rule):
    """Param function: the digest of the code behind a job; changes rerun the job."""
    return lambda wildcards: code_identity.code(study, rule, dict(wildcards.items()))


def hint_of(rule, name):
    """Resource function: an option that does not affect the result; changes do not rerun the job."""
    return lambda wildcards: graph.hints(study, rule, dict(wildcards.items()))[name]


def files_of(rule):
    """Param function: a job's files as arguments of its command; changes do not rerun the job."""

    def files(wildcards, input, output):
        node = graph.node(study, rule, dict(wildcards.items()))
        expected = code_identity.identities(study, node)
        arguments = ["--inputs", *named(input), "--outputs", *named(output)]
        return [*arguments, "--expect", *named(expected)]

    return files


def files_written(wildcards, output):
    """Like `files_of`, for the report, which reads hundreds of files and finds them from the settings."""
    return ["--outputs", *named(output)]


def named(paths):
    """NAME=PATH for each file; the name of a list is repeated for each of its files."""
    lists = {name: [given] if isinstance(given, str) else given for name, given in paths.items()}
    return [f"{name}={path}" for name, given in lists.items() for path in given]


def reported(paths):
    """Files that `snakemake --report` also shows, with their captions from workflow/report."""
    return {
        name: report(path, caption=f"../report/{name}.rst", category=category_of(path))
        for name, path in paths.items()
    }


def category_of(path):
    endings = {".html": "Report", ".png": "Plots", ".svg": "Plots"}
    return endings.get(path[path.rfind(".") :], "Numbers")


def limit_of(name):
    """The amount of a resource for all jobs together, from --resources or the profile; None: any."""
    found = workflow.global_resources.get(name)
    return None if found is None else found.value


def sharing_of_gpus():
    """How jobs share this machine's GPUs and cores, by the resources `gpu` and `jobs_per_gpu`.

    With several jobs per GPU, Snakemake counts `gpu_slots` instead of `gpu`: a small job takes one,
    and a job that has its GPU alone takes `jobs_per_gpu` of them. A job on a cluster has the GPU that
    it requests alone.
    """
    limit, jobs_per_gpu = limit_of("gpu"), limit_of("jobs_per_gpu")
    gpus = gpus_there() if workflow.local_exec else 0
    gpus = gpus if limit is None else min(limit, gpus)
    try:
        found = Sharing(all_cores(), gpus, 1 if jobs_per_gpu is None else jobs_per_gpu)
    except KdstepsError as error:
        refuse(error)
    if gpus and workflow.is_main_process and (problem := doubt()):
        print(problem, file=sys.stderr)
    if jobs_per_gpu is not None:
        workflow.register_resource("jobs_per_gpu", None)  # says how to count, and is not used up
    if found.jobs_per_gpu > 1 and gpus:
        workflow.register_resource("gpu", None)
        workflow.register_resource("gpu_slots", found.slots)
    return found


def all_cores():
    """All cores that the user allows, for jobs that run alone."""
    return workflow.cores


sharing = sharing_of_gpus()


def gpu_claim(wildcards):
    """Resource function: the GPU of a job; 0 on a machine without one, and with --resources gpu=0."""
    return 1 if gpus_there() or not workflow.local_exec else 0


def cores_used(wildcards, threads):
    """Resource function: the cores a job computes on, at most those of this machine.

    On a cluster they are those it requests, since the submitting machine is not where it runs.
    """
    return real_cores(threads, all_cores()) if workflow.local_exec else threads
