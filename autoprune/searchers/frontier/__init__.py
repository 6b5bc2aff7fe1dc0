"""A searcher that knows what pruning is: costs and losses are sums over groups, to be learnt."""

from autoprune.searchers.frontier.searcher import FrontierSearcher

__all__ = ["FrontierSearcher"]
