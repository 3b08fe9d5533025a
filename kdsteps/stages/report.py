"""Placeholder until the report stands."""
