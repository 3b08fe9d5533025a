"""The report: the results of a study in words, tables and charts, on one page.

Nothing here reads settings. `results` reads the files of all stages, `predicted` reads predictions
and `thumbnails` images. pandas and Altair are imported by the modules that need them.
"""
