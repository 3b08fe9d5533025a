# From a teacher to its students: one job for each pair, method and seed.


rule build:
    """The plan that joins a student and a teacher: stepping stones, or pairs of layers."""
    input:
        unpack(inputs_of("build")),
    output:
        **outputs_of("build"),
    log:
        "logs/build/{pair}/{method}.txt",
    priority: priority("build")
    resources:
        mem_mb=forecast_of("build", "memory"),
        runtime=forecast_of("build", "time"),
    params:
        settings=settings_of("build"),
        code=code_of("build"),
        files=files_of("build"),
    message:
        "plan {wildcards.method} for {wildcards.pair}"
    shell:
        r"""
        python -m kdsteps build \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {threads} --gpus 0 >{log:q} 2>&1
        """


rule distil:
    """A distilled student."""
    input:
        unpack(inputs_of("distil")),
    output:
        **outputs_of("distil"),
    log:
        "logs/distil/{pair}/{method}/{seed}.txt",
    priority: priority("distil")
    threads: threads_of("distil")
    resources:
        mem_mb=forecast_of("distil", "memory"),
        runtime=forecast_of("distil", "time"),
        gpu=gpus_of("distil"),
        gpu_slots=gpu_slots_of("distil", alone=False),
        jobs_per_gpu=shared_by_jobs("distil"),
        cores=cores_used,
        keep=hint_of("distil", "keep"),
        budget_mib=hint_of("distil", "budget_mib"),
        checkpoint_seconds=hint_of("distil", "checkpoint_seconds"),
    params:
        settings=settings_of("distil"),
        code=code_of("distil"),
        files=files_of("distil"),
    message:
        "distill {wildcards.pair} with {wildcards.method}, seed {wildcards.seed}"
    # `exec`: a shell in between would end at once at SIGTERM, while the job saves its state
    shell:
        r"""
        exec python -m kdsteps distil \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --keep {resources.keep} --budget-mib {resources.budget_mib} \
            --checkpoint-seconds {resources.checkpoint_seconds} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """


rule evaluate:
    """Metrics of a student, and its predictions for every test image."""
    input:
        unpack(inputs_of("evaluate")),
    output:
        **outputs_of("evaluate"),
    log:
        "logs/evaluate/students/{pair}/{method}/{seed}.txt",
    threads: sharing.cores_of_one_of_many
    resources:
        mem_mb=forecast_of("evaluate", "memory"),
        runtime=forecast_of("evaluate", "time"),
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("evaluate"),
        code=code_of("evaluate"),
        files=files_of("evaluate"),
    message:
        "evaluate {wildcards.pair} with {wildcards.method}, seed {wildcards.seed}"
    shell:
        r"""
        python -m kdsteps evaluate \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """


rule evaluate_latency:
    """Latency and throughput of every network of a pair, with nothing else running."""
    input:
        unpack(inputs_of("evaluate_latency")),
    output:
        **outputs_of("evaluate_latency"),
    log:
        "logs/evaluate/latency/{pair}.txt",
    threads: sharing.most_cores
    resources:
        mem_mb=forecast_of("evaluate_latency", "memory"),
        runtime=forecast_of("evaluate_latency", "time"),
        gpu=gpu_claim,
        gpu_slots=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("evaluate_latency"),
        code=code_of("evaluate_latency"),
        files=files_of("evaluate_latency"),
    message:
        "measure the speed of the networks of {wildcards.pair}"
    shell:
        r"""
        python -m kdsteps evaluate \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} --gpus {resources.gpu} >{log:q} 2>&1
        """
