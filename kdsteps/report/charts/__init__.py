"""The report's charts: each module turns tables into Altair charts and reads no files."""
