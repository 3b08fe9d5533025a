"""Live metrics: one module per logger, and the process that runs it while a job trains."""
