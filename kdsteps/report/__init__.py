"""The report: the results of a study in words, tables and charts, on one page.

Nothing here reads settings, and only `results` reads files. pandas and Altair are imported by the
modules that need them.
"""
