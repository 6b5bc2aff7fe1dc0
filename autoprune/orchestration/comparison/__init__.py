"""Two networks against each other, on the runtimes and at the batch sizes that are asked for."""
