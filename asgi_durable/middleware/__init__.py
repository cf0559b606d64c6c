"""Raw ASGI middlewares, each usable alone on any ASGI app."""
