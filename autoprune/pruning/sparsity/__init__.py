"""Training that drives whole units to exactly zero, so that a cut takes nothing that counts.

`prox` is the mathematics, `blocks` says which weights belong to a unit, `cost` what units cost,
`shrink` takes the proximal steps, and `training` puts them behind the steps of an optimizer.
"""
