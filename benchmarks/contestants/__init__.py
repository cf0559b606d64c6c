"""The contestants: the library, its peers, and hand-written code as the limit."""
