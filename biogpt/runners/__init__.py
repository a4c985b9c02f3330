"""How rows are computed: plain torch on any device, and what makes a CPU fast."""
