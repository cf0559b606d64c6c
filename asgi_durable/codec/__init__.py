"""How values are written into the step log, and read from it."""
