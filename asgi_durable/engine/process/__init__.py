"""The parts of the engine that a process has one of, and the definitions of its functions."""
