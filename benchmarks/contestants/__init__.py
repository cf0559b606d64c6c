"""What is measured: the library, its peers, and hand-written code that is the limit."""
