"""Write the report: which method did best, by how much, and whether that is more than noise.

reads   image_files, indexes, summaries, image_digests
                             images.npy, index.parquet, summary.json, digest.json of every dataset
        teacher_histories, teacher_measures, teacher_predictions
                             of every teacher: history.parquet, measures.json, predictions.parquet
        teacher_checks       check.json of every teacher
        layer_scores         scores.parquet of every teacher whose layers were scored
        audits               audit.json of every pair with several teachers
        plans                plan.json of every pair and method with a plan
        tunings              trials.json of every pair and method that is tuned
        histories, measures, predictions
                             of every student: history.parquet, measures.json, predictions.parquet
        latencies            latency.json of every pair
        exports              export.json of every exported student
        probes, teacher_probes, untrained_probes
                             probe.json of every network, if there is a section `probe`
        accepted             accepted.json, if results of earlier code were accepted
writes  page                 index.html, self-contained
        runs                 runs.parquet: one row per student, one column per metric
        metrics              metrics.json, for `dvc metrics`
        accuracy, curves, quality, size
                             PNG images of the page's main charts
        accuracy_table, curves_table, quality_table
                             CSV tables, for `dvc plots`
"""

from __future__ import annotations

import logging

from kdsteps.files.tables import write_table
from kdsteps.files.text import write_bytes, write_json, write_text
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import ReportSettings
from kdsteps.report.figures import pictures, scale_of
from kdsteps.report.metrics import metrics, plot_tables
from kdsteps.report.page import render
from kdsteps.report.probes import pair_probes, probe_metrics
from kdsteps.report.results import load_results, run_columns, run_rows
from kdsteps.report.several import several_teachers
from kdsteps.report.tables import pair_tables
from kdsteps.report.verdict import verdict
from kdsteps.study.loading import parse_study

log = logging.getLogger("kdsteps")


def run(job: Job[ReportSettings]) -> None:
    """Compare the methods and write the report."""
    study = parse_study(job.settings.study)
    results = load_results(job.lists, study)
    confidence = study.params.report.confidence
    tables = pair_tables(results, study.references, confidence)
    columns = run_columns(results.metrics)
    write_table(job.outputs["runs"], run_rows(results), columns, job.settings.as_json())
    probes = pair_probes(job.lists, results, study)
    features = {"features": probe_metrics(probes)} if probes else {}
    write_json(job.outputs["metrics"], metrics(results, tables) | features)
    for name, rows in plot_tables(results, tables).items():
        write_text(job.outputs[f"{name}_table"], rows.to_csv(index=False))
    for name, content in pictures(results, tables, study.params.report.title).items():
        write_bytes(job.outputs[name], content)
    several = several_teachers(job.lists, results, study)
    write_text(job.outputs["page"], render(results, tables, study, probes, several))
    for table in tables:
        found = verdict(table)
        scale = scale_of(table)
        log.info("%s: %s (%s). %s.", table.pair, found.headline, scale, found.answer)
