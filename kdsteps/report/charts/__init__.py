"""The report's charts: each module turns tables into Altair charts and knows no files."""
