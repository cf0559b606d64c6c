"""The typed form: JSON that is read and written by annotations."""
