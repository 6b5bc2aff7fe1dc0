"""A sweep as MLflow shows it: runs, artifacts, served models, pages."""
