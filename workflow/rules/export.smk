# From trained students to files for use elsewhere.


rule export:
    """A student as files, each evaluated again; alone, since they are timed."""
    input:
        unpack(inputs_of("export")),
    output:
        **outputs_of("export"),
    log:
        "logs/export/{pair}/{student}.txt",
    threads: sharing.most_cores
    resources:
        mem_mb=forecast_of("export", "memory"),
        runtime=forecast_of("export", "time"),
        cores=cores_used,
    params:
        settings=settings_of("export"),
        code=code_of("export"),
        files=files_of("export"),
    message:
        "export {wildcards.student} of {wildcards.pair}"
    shell:
        r"""
        python -m kdsteps export \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {resources.cores} --gpus 0 >{log:q} 2>&1
        """
