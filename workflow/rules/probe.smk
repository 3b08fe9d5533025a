# How good the frozen features of teachers and students are, on the labeled images of `probe`.


rule evaluate_probe:
    """The features of a student."""
    input:
        unpack(inputs_of("evaluate_probe")),
    output:
        **outputs_of("evaluate_probe"),
    log:
        "logs/evaluate/probes/students/{pair}/{method}/{seed}.txt",
    threads: sharing.cores_of_one_of_many
    resources:
        mem_mb=forecast_of("evaluate_probe", "memory"),
        runtime=forecast_of("evaluate_probe", "time"),
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("evaluate_probe"),
        code=code_of("evaluate_probe"),
        files=files_of("evaluate_probe"),
    message:
        "probe the features of {wildcards.pair} with {wildcards.method}, seed {wildcards.seed}"
    shell:
        r"""
        python -m kdsteps evaluate \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """


rule evaluate_probe_teacher:
    """The features of a teacher."""
    input:
        unpack(inputs_of("evaluate_probe_teacher")),
    output:
        **outputs_of("evaluate_probe_teacher"),
    log:
        "logs/evaluate/probes/teachers/{dataset}/{teacher}.txt",
    threads: sharing.cores_of_one_of_many
    resources:
        mem_mb=forecast_of("evaluate_probe_teacher", "memory"),
        runtime=forecast_of("evaluate_probe_teacher", "time"),
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("evaluate_probe_teacher"),
        code=code_of("evaluate_probe_teacher"),
        files=files_of("evaluate_probe_teacher"),
    message:
        "probe the features of the teacher {wildcards.teacher} on {wildcards.dataset}"
    shell:
        r"""
        python -m kdsteps evaluate \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """


rule evaluate_probe_untrained:
    """The features of a student before its training, to compare with."""
    input:
        unpack(inputs_of("evaluate_probe_untrained")),
    output:
        **outputs_of("evaluate_probe_untrained"),
    log:
        "logs/evaluate/probes/untrained/{pair}/{seed}.txt",
    threads: sharing.cores_of_one_of_many
    resources:
        mem_mb=forecast_of("evaluate_probe_untrained", "memory"),
        runtime=forecast_of("evaluate_probe_untrained", "time"),
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("evaluate_probe_untrained"),
        code=code_of("evaluate_probe_untrained"),
        files=files_of("evaluate_probe_untrained"),
    message:
        "probe the features of the untrained student of {wildcards.pair}, seed {wildcards.seed}"
    shell:
        r"""
        python -m kdsteps evaluate \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """
