"""The benchmark: aggregation, epochs and search, against every peer in one run."""
