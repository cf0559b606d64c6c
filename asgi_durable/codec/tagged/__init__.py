"""The tagged form: JSON that describes its own types."""
