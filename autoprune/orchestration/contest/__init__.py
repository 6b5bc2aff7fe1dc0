"""Contests: several searchers, several seeds, one budget."""
