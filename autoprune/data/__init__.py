"""Data sources: each returns train, val and test splits."""

from autoprune.data.digits import digits
from autoprune.data.huggingface import huggingface
from autoprune.data.splits import Splits, TensorSplit, stratified

__all__ = ["Splits", "TensorSplit", "digits", "huggingface", "stratified"]
