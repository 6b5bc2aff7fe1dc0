"""From Hydra's config to plain objects: the last place that knows of Hydra."""
