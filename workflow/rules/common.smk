# Functions that all rules use. kdsteps/jobs/graph.py and kdsteps/jobs/code_identity.py define which files, settings
# and code belong to a job; the functions here pass that on to Snakemake.
import sys
from dataclasses import replace

from kdsteps.jobs import code_identity, graph, storage
from kdsteps.errors import KdstepsError
from kdsteps.jobs.failures import name_failures_at_end
from kdsteps.jobs.forecasts import forecast
from kdsteps.jobs.gpu_diagnosis import doubt
from kdsteps.jobs.gpus import gpus_there
from kdsteps.jobs.kubernetes_status import KUBERNETES_JOBS
from kdsteps.jobs.live import RULES as LOGGED
from kdsteps.jobs.outputs import ORDERING, optional_outputs
from kdsteps.jobs.provenance import provenance_file, was_made_with
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.schedule import claim, priority
from kdsteps.jobs.slurm_status import look_regularly
from kdsteps.jobs.snakemake_records import use_this_python
from kdsteps.jobs.starting import start_run
from kdsteps.study.loading import load_study
from kdsteps.study.loggers import as_text


wildcard_constraints:
    dataset=r"[^/]+",
    teacher=r"[^/]+",
    views=r"[a-z0-9_]+",
    pair=r"[^/]+",
    method=r"[^/]+",
    trial=r"\d+",
    seed=r"\d+",
    student=r"best|[^/]+/\d+",


# Whether the files of jobs are in storage, since machines share no folder.
STORED = workflow.storage_settings.default_storage_provider is not None


def study_of(path):
    """The study in `path`; a mistake that the user can fix is one sentence, and nothing is run.

    Snakemake's configuration may name another file, as `params`, and nothing else.
    """
    use_this_python()
    path = config.get("params", path)
    try:
        if others := [key for key in config if key != "params"]:
            raise KdstepsError(
                f"--config: {', '.join(others)} would have no effect; change the values in {path}"
            )
        if not workflow.is_main_process:
            return load_study(path)
        return start_run(path, sharing, stored=STORED)
    except KdstepsError as error:
        refuse(error)


def refuse(error):
    """End with a sentence for the user, before anything is run."""
    print(error, file=sys.stderr)
    raise SystemExit(2) from None


def outputs_of(rule):
    """The files that a rule writes, by name."""
    files = graph.outputs(rule)
    if not STORED:
        return files
    also = {name: str(path) for name, path in optional_outputs(rule, files).items()}
    return files | also | {"provenance": str(provenance_file(files))}


def job_of(rule, wildcards):
    """The job of a rule in the graph."""
    job = graph.node(study, rule, dict(wildcards.items()))
    return storage.with_stored_files(job) if STORED else job


def inputs_of(rule):
    """Input function: the files that a job reads, by name.

    Files whose digests are in a small file next to them are `ancient`: Snakemake compares that file
    instead of reading the large ones for every job. So are checks of teachers, which only have to be
    there; but not for a job that has to run again, since Snakemake overlooks that it has to where it
    depends on a job that runs by `ancient` files alone. Jobs that fetch their files from storage also
    read what is next to these.
    """

    def inputs(wildcards):
        job = job_of(rule, wildcards)
        also = storage.declared(study, job) if STORED else {}
        loose = job.covered | also.keys()
        if loose & ORDERING & job.inputs.keys() and not STORED and is_stale(job):
            loose -= ORDERING
        return {
            name: ancient(paths) if name in loose else paths
            for name, paths in (job.inputs | also).items()
        }

    return inputs


def is_stale(job):
    """Whether a job's result is missing, or made with other settings or code."""
    made = graph.outputs(job.rule, job.names)
    return not was_made_with(made, job.text, code_identity.code(study, job.rule, job.names))


def settings_of(rule):
    """Param function: all that a job reads from params.yaml, as one string; changes rerun the job."""
    return lambda wildcards: graph.settings_text(study, rule, dict(wildcards.items()))


def code_of(rule):
    """Param function: the digest of the code behind a job; changes rerun the job."""
    return lambda wildcards: code_identity.code(study, rule, dict(wildcards.items()))


def hint_of(rule, name):
    """Resource function: an option that does not affect the result; changes do not rerun the job."""
    return lambda wildcards: job_of(rule, wildcards).hints[name]


def files_of(rule):
    """Param function: a job's files as arguments of its command; changes do not rerun the job."""

    def files(wildcards, input, output):
        expected = code_identity.identities(study, job_of(rule, wildcards))
        arguments = ["--inputs", *named(input), "--outputs", *named(output)]
        arguments += ["--expect", *named(expected), *root_of(rule, wildcards, output)]
        logged = ["--loggers", as_text(study.loggers)] if rule in LOGGED and study.loggers else []
        return [*arguments, *logged]

    return files


def files_written(wildcards, output):
    """Like `files_of`, for the report, which reads hundreds of files and finds them from the settings."""
    return ["--outputs", *named(output), *root_of("report", wildcards, output)]


def named(paths):
    """NAME=PATH for each file; the name of a list is repeated for each of its files.

    What is only declared for storage is left out: a job finds it next to the others.
    """
    lists = {name: [given] if isinstance(given, str) else given for name, given in paths.items()}
    return [
        f"{name}={path}"
        for name, given in lists.items()
        if name not in storage.DECLARED
        for path in given
    ]


def root_of(rule, wildcards, output):
    """The option for the folder into which a job's files are fetched from storage, if they are."""
    if not STORED:
        return []
    in_study = next(iter(graph.outputs(rule, dict(wildcards.items())).values()))
    return ["--root", storage.root_of(str(output[0]), in_study)]


def reported(paths):
    """Files that `snakemake --report` also shows, with their captions from workflow/report."""
    return {
        name: (
            path
            if name in storage.DECLARED
            else report(path, caption=f"../report/{name}.rst", category=category_of(path))
        )
        for name, path in paths.items()
    }


def category_of(path):
    endings = {".html": "Report", ".png": "Plots", ".svg": "Plots"}
    return endings.get(path[path.rfind(".") :], "Numbers")


def limit_of(name):
    """The amount of a resource for all jobs together, from --resources or the profile; None: any."""
    found = workflow.global_resources.get(name)
    return None if found is None else found.value


def sharing_of_run():
    """How the jobs of this run share the cores and GPUs of this machine, or of a cluster.

    With several jobs per GPU, Snakemake counts `gpu_slots` instead of `gpu`: a small job takes one,
    and a job that has its GPU alone takes `jobs_per_gpu` of them. A job on a cluster has the GPU that
    it requests alone, and all of its memory. `cores` are those of one job there, since Snakemake only
    counts the jobs that it submits.
    """
    limit, jobs_per_gpu = limit_of("gpu"), limit_of("jobs_per_gpu")
    jobs = workflow.nodes if submits() else None
    gpus = jobs or gpus_there()
    try:
        found = Sharing(
            workflow.cores,
            gpus if limit is None else min(limit, gpus),
            1 if jobs_per_gpu is None else jobs_per_gpu,
            max_threads=workflow.resource_settings.max_threads,
            jobs=jobs,
        )
    except KdstepsError as error:
        refuse(error)
    if jobs_per_gpu is not None:
        workflow.register_resource("jobs_per_gpu", None)  # says how to count, and is not used up
    if jobs:
        most = found.most_cores
        return replace(found, cores=jobs * most, jobs_per_gpu=1, max_threads=most)
    if found.gpus and workflow.is_main_process and (problem := doubt()):
        print(problem, file=sys.stderr)
    if found.jobs_per_gpu > 1 and found.gpus:
        workflow.register_resource("gpu", None)
        workflow.register_resource("gpu_slots", found.slots)
    return found


def submits():
    """Whether this process submits jobs to a cluster.

    While Snakemake reads the workflow, it does not have the executor yet, but already the number of
    jobs, which only an executor that submits them needs.
    """
    here = workflow.nodes is None if workflow.executor_plugin is None else workflow.local_exec
    return workflow.is_main_process and not here


sharing = sharing_of_run()


def gpu_claim(wildcards):
    """Resource function: the GPU of a job; 0 on a machine without one, and with --resources gpu=0.

    Within a job that was submitted to a cluster, it is the one that the job was given.
    """
    return 1 if submits() or gpus_there() else 0


def gpus_of(rule):
    """Resource function: the GPUs of a job that may train on several (`gpus` in params.yaml)."""
    return lambda wildcards: gpu_claim(wildcards) * gpus_wanted(rule, wildcards)


def gpus_wanted(rule, wildcards):
    """GPUs of a job that is given as many as it can use."""
    return graph.settings(study, rule, dict(wildcards.items())).gpus


def shared_by_jobs(rule):
    """Resource function: jobs that may share a GPU with this one; a job with several has them alone."""
    return lambda wildcards: 1 if gpus_wanted(rule, wildcards) > 1 else sharing.jobs_per_gpu


def gpu_slots_of(rule, alone):
    """Resource function: slots of a job on the GPUs that it takes.

    `alone`: whether it has its GPU alone even if it uses only one.
    """

    def slots(wildcards):
        gpus = gpus_wanted(rule, wildcards)
        return gpus * sharing.jobs_per_gpu if alone or gpus > 1 else 1

    return slots


def threads_of(rule):
    """Threads function: the cores that a job claims, as forecasts count them."""
    return lambda wildcards: claim(study, job_of(rule, wildcards), sharing).threads


def cores_used(wildcards, threads):
    """Resource function: the cores that a job computes on."""
    return sharing.real_cores(threads)


def forecast_of(rule, name):
    """Resource function: the `memory` or the `time` that a job requests on a cluster.

    It is a forecast times `<name>_percent`, doubled at each retry, at most `<name>_limit`, which are
    resources of the profile. 0, which requests nothing, for a job that is not submitted.
    """

    def requested(wildcards, attempt, threads):
        percent, limit = limit_of(f"{name}_percent"), limit_of(f"{name}_limit")
        if percent is None:
            percent = 0 if workflow.local_exec else 100
        if not workflow.is_main_process or not percent:
            return 0
        names = dict(wildcards.items())
        found = forecast(study, rule, names, threads, gpu=limit_of("gpu") != 0)
        value = round(getattr(found, name) * percent / 100) * 2 ** (attempt - 1)
        return value if limit is None else min(value, limit)

    return requested
