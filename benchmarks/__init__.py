"""Measurements: each compares things side by side in one run and writes its figures as JSON."""
