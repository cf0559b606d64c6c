"""The parts of the engine that exist once per process."""
