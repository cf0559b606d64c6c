"""Databases that tests use: servers, proxies and copies of older files."""
