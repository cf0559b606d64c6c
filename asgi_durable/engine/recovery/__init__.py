"""Resumes workflows after a crash, and takes over those of dead executors."""
