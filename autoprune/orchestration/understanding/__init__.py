"""What users want to understand: groups, what a front cut, what a ratio would give."""
