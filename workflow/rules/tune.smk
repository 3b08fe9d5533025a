# Trials of methods' values, and the choice among them.


rule tune:
    """A student with the values of one trial, judged on the validation images."""
    input:
        unpack(inputs_of("tune")),
    output:
        **outputs_of("tune"),
    log:
        "logs/tune/{pair}/{method}/{trial}/{seed}.txt",
    priority: priority("tune")
    threads: threads_of("tune")
    resources:
        mem_mb=forecast_of("tune", "memory"),
        runtime=forecast_of("tune", "time"),
        gpu=gpus_of("tune"),
        gpu_slots=gpu_slots_of("tune", alone=False),
        jobs_per_gpu=shared_by_jobs("tune"),
        cores=cores_used,
        keep=hint_of("tune", "keep"),
        budget_mib=hint_of("tune", "budget_mib"),
        checkpoint_seconds=hint_of("tune", "checkpoint_seconds"),
    params:
        settings=settings_of("tune"),
        code=code_of("tune"),
        files=files_of("tune"),
    message:
        "trial {wildcards.trial} of {wildcards.method} for {wildcards.pair}, seed {wildcards.seed}"
    # `exec`: a shell in between would end at once at SIGTERM, while the job saves its state
    shell:
        r"""
        exec python -m kdsteps tune \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --keep {resources.keep} --budget-mib {resources.budget_mib} \
            --checkpoint-seconds {resources.checkpoint_seconds} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """


rule tune_choose:
    """The values of the best trial, with which the students are trained."""
    input:
        unpack(inputs_of("tune_choose")),
    output:
        **outputs_of("tune_choose"),
    log:
        "logs/tune/{pair}/{method}.txt",
    resources:
        mem_mb=forecast_of("tune_choose", "memory"),
        runtime=forecast_of("tune_choose", "time"),
    params:
        settings=settings_of("tune_choose"),
        code=code_of("tune_choose"),
        files=files_of("tune_choose"),
    message:
        "choose among the trials of {wildcards.method} for {wildcards.pair}"
    shell:
        r"""
        python -m kdsteps tune \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {threads} --gpus 0 >{log:q} 2>&1
        """
