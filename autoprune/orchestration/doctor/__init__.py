"""What a sweep would run on, examined before it runs: driver, nodes, storage and tracking."""
