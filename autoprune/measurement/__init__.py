"""Speed as an instrument: the quiet gate, the paired meter, the runtimes, static costs."""
