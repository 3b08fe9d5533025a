# `snakemake` looks here first; the workflow itself is in workflow/Snakefile.
include: "workflow/Snakefile"


# The default target of an included file does not reach this one: name it again.
rule default:
    default_target: True
    input:
        rules.all.input,
    message:
        "complete the study; its report is results/report/index.html"
