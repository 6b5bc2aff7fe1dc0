"""Reinforcement-learning agents that steer a search through the Searcher protocol."""
