# From images to a teacher, its cached features and logits, and the scores of its layers.


rule prepare:
    """Images, labels and a fixed split of one dataset."""
    input:
        unpack(inputs_of("prepare")),
    output:
        **outputs_of("prepare"),
    log:
        "logs/prepare/{dataset}.txt",
    threads: sharing.most_cores
    resources:
        mem_mb=forecast_of("prepare", "memory"),
        runtime=forecast_of("prepare", "time"),
        cores=cores_used,
    params:
        settings=settings_of("prepare"),
        code=code_of("prepare"),
        files=files_of("prepare"),
    message:
        "prepare the images of {wildcards.dataset}"
    shell:
        r"""
        python -m kdsteps prepare \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} --gpus 0 >{log:q} 2>&1
        """


rule train:
    """A teacher, trained or loaded from a checkpoint."""
    input:
        unpack(inputs_of("train")),
    output:
        **outputs_of("train"),
    log:
        "logs/train/{dataset}/{teacher}.txt",
    priority: priority("train")
    threads: threads_of("train")
    resources:
        mem_mb=forecast_of("train", "memory"),
        runtime=forecast_of("train", "time"),
        gpu=gpus_of("train"),
        gpu_slots=gpu_slots_of("train", alone=True),
        cores=cores_used,
        checkpoint_seconds=hint_of("train", "checkpoint_seconds"),
    params:
        settings=settings_of("train"),
        code=code_of("train"),
        files=files_of("train"),
    message:
        "train the teacher {wildcards.teacher} on {wildcards.dataset}"
    # `exec`: a shell in between would end at once at SIGTERM, while the job saves its state
    shell:
        r"""
        exec python -m kdsteps train \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --checkpoint-seconds {resources.checkpoint_seconds} \
            --threads {resources.cores} --gpus {resources.gpu} >{log:q} 2>&1
        """


rule train_check:
    """Whether a teacher is good enough to learn from."""
    input:
        unpack(inputs_of("train_check")),
    output:
        **outputs_of("train_check"),
    log:
        "logs/train/{dataset}/{teacher}/check.txt",
    priority: priority("train_check")
    threads: sharing.cores_of_one_of_many
    resources:
        mem_mb=forecast_of("train_check", "memory"),
        runtime=forecast_of("train_check", "time"),
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("train_check"),
        code=code_of("train_check"),
        files=files_of("train_check"),
    message:
        "check the teacher {wildcards.teacher} on {wildcards.dataset}"
    shell:
        r"""
        python -m kdsteps train \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """


rule train_audit:
    """How the teachers of a pair compare, where a pair has several."""
    input:
        unpack(inputs_of("train_audit")),
    output:
        **outputs_of("train_audit"),
    log:
        "logs/train/audits/{pair}/audit.txt",
    priority: priority("train_audit")
    threads: sharing.cores_of_one_of_many
    resources:
        mem_mb=forecast_of("train_audit", "memory"),
        runtime=forecast_of("train_audit", "time"),
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("train_audit"),
        code=code_of("train_audit"),
        files=files_of("train_audit"),
    message:
        "compare the teachers of {wildcards.pair}"
    shell:
        r"""
        python -m kdsteps train \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """


rule cache:
    """A teacher's features at every layer, for a sample of the training images."""
    input:
        unpack(inputs_of("cache")),
    output:
        **outputs_of("cache"),
    log:
        "logs/cache/{dataset}/{teacher}.txt",
    priority: priority("cache")
    threads: threads_of("cache")
    resources:
        mem_mb=forecast_of("cache", "memory"),
        runtime=forecast_of("cache", "time"),
        gpu=gpu_claim,
        gpu_slots=sharing.jobs_per_gpu,
        cores=cores_used,
        budget_mib=hint_of("cache", "budget_mib"),
    params:
        settings=settings_of("cache"),
        code=code_of("cache"),
        files=files_of("cache"),
    message:
        "cache the features of {wildcards.teacher} on {wildcards.dataset}"
    shell:
        r"""
        python -m kdsteps cache \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --budget-mib {resources.budget_mib} \
            --threads {resources.cores} --gpus {resources.gpu} >{log:q} 2>&1
        """


rule cache_outputs:
    """A teacher's logits for every view of every training image, cached if that saves time."""
    input:
        unpack(inputs_of("cache_outputs")),
    output:
        **outputs_of("cache_outputs"),
    log:
        "logs/cache/{dataset}/{teacher}/outputs_{views}.txt",
    priority: priority("cache_outputs")
    threads: threads_of("cache_outputs")
    resources:
        mem_mb=forecast_of("cache_outputs", "memory"),
        runtime=forecast_of("cache_outputs", "time"),
        gpu=gpu_claim,
        gpu_slots=sharing.jobs_per_gpu,
        cores=cores_used,
        keep=hint_of("cache_outputs", "keep"),
        budget_mib=hint_of("cache_outputs", "budget_mib"),
        passes=hint_of("cache_outputs", "passes"),
    params:
        settings=settings_of("cache_outputs"),
        code=code_of("cache_outputs"),
        files=files_of("cache_outputs"),
    message:
        "cache the logits of {wildcards.teacher} on {wildcards.dataset}"
    shell:
        r"""
        python -m kdsteps cache \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --keep {resources.keep} --passes {resources.passes} \
            --budget-mib {resources.budget_mib} \
            --threads {resources.cores} --gpus {resources.gpu} >{log:q} 2>&1
        """


rule score:
    """Knowledge quality of every layer of a teacher."""
    input:
        unpack(inputs_of("score")),
    output:
        **outputs_of("score"),
    log:
        "logs/score/{dataset}/{teacher}.txt",
    priority: priority("score")
    threads: threads_of("score")
    resources:
        mem_mb=forecast_of("score", "memory"),
        runtime=forecast_of("score", "time"),
        cores=cores_used,
    params:
        settings=settings_of("score"),
        code=code_of("score"),
        files=files_of("score"),
    message:
        "score the layers of {wildcards.teacher} on {wildcards.dataset}"
    shell:
        r"""
        python -m kdsteps score \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} --gpus 0 >{log:q} 2>&1
        """


rule evaluate_teacher:
    """Metrics of a teacher, and its predictions for every test image."""
    input:
        unpack(inputs_of("evaluate_teacher")),
    output:
        **outputs_of("evaluate_teacher"),
    log:
        "logs/evaluate/teachers/{dataset}/{teacher}.txt",
    priority: priority("evaluate_teacher")
    threads: sharing.cores_of_one_of_many
    resources:
        mem_mb=forecast_of("evaluate_teacher", "memory"),
        runtime=forecast_of("evaluate_teacher", "time"),
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    params:
        settings=settings_of("evaluate_teacher"),
        code=code_of("evaluate_teacher"),
        files=files_of("evaluate_teacher"),
    message:
        "evaluate the teacher {wildcards.teacher} on {wildcards.dataset}"
    shell:
        r"""
        python -m kdsteps evaluate \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} \
            --gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu} >{log:q} 2>&1
        """
