"""The durable engine: runs workflows and records their step logs; knows nothing of HTTP."""
