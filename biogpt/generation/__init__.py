"""Which token comes next: options, sampling, search; ids only."""
