"""Studies: experiments about a network and a machine that are no search."""
