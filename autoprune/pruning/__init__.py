"""Pruning a network: what hangs together, what matters least, the cut, and the healing.

Torch-Pruning 1.6.1 finds the dependencies (`graph`); scores, cuts and checks are our own.
"""
