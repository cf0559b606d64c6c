"""Applications that the HTTP benchmark compares."""
