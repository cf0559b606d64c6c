"""What all benchmarks share: workers, databases, tables of figures."""
