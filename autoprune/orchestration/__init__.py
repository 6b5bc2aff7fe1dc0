"""Sweeps: executors, journal, tracking, dashboard and registry. All input and output is here."""
