"""The report: what a study found, in words, tables and charts, on one page.

Nothing here reads settings or knows where files lie, but `results`; pandas and Altair come with the
modules that need them.
"""
