"""Where trials run: in this process, or in slots of a Ray cluster."""
