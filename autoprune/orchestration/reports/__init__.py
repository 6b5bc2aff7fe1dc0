"""A sweep as people read it: tables, files, the live console, the dashboard."""
