"""Programs and servers that tests start, load and kill."""
