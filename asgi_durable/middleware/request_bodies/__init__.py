"""Reads the bodies of keyed requests, in memory or spooled to disk.

The engine of keyed requests needs asyncio, so their bodies wait with asyncio's primitives: to
make an event takes 0.2 µs, three of them for each request, and 1.6 µs with anyio; a free lock
takes 0.5 µs, once for each chunk, and 2.0 to 7.6 µs with anyio. The parts that run before a
request is known to have a key run on trio too.
"""
