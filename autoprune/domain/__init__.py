"""Facts and rules of a pruning search: no framework, no input or output."""
