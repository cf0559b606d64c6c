"""A codec whose values are sealed."""

from __future__ import annotations

from typing import Any

from asgi_durable.codec.json_codec import Codec
from asgi_durable.codec.sealing import Sealer

__all__ = ["SealedCodec"]


class SealedCodec:
    """Seals what another codec writes."""

    def __init__(self, codec: Codec, sealer: Sealer) -> None:
        self.plain = codec
        self.sealer = sealer
        self.register = codec.register

    def encode(self, value: object) -> bytes:
        """See ``Codec.encode``."""
        return self.sealer.seal(self.plain.encode(value))

    def decode(self, data: bytes) -> Any:
        """See ``Codec.decode``."""
        return self.plain.decode(self.sealer.open(data))
