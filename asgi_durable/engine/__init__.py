"""The durable engine: runs workflows, keeps their step logs, knows nothing of HTTP."""
