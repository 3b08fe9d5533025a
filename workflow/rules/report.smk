# From the metrics of all students to the report.


rule report:
    """The report: a page, a table with one row per run, and numbers for `dvc metrics`."""
    input:
        unpack(inputs_of("report")),
    output:
        **reported(outputs_of("report")),
    log:
        "logs/report.txt",
    resources:
        mem_mb=forecast_of("report", "memory"),
        runtime=forecast_of("report", "time"),
    params:
        settings=settings_of("report"),
        code=code_of("report"),
        files=files_written,
    message:
        "write the report"
    shell:
        r"""
        python -m kdsteps report \
            --settings {params.settings:q} \
            --code {params.code} \
            {params.files:q} \
            --threads {threads} --gpus 0 >{log:q} 2>&1
        """
