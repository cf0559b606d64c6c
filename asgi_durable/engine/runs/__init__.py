"""One execution of a workflow in this process."""
