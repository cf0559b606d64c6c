"""Encoded bytes before they are recorded: size limit, compression, encryption."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import zlib
from collections.abc import Callable
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_durable import (
    DecodeError,
    Durable,
    DurableUsageError,
    EncryptionKeyMissingError,
    Payloads,
    PayloadTooLargeError,
)
from asgi_durable.codec.sealing.keyed_fingerprints import KeyedFingerprints
from asgi_durable.codec.sealing.sealer import BODY, ERROR, PIECE, VALUE, Sealer
from asgi_durable.engine.process.spool import SpoolSpace
from asgi_durable.middleware.request_bodies.long_body import LongBody, SpooledBody

KEY, OTHER_KEY = bytes(range(32)), bytes(range(100, 132))
SETTINGS = {
    "plain": Payloads(),
    "compressed": Payloads(compress_from=8),
    "encrypted": Payloads(encryption_keys=[KEY]),
    "both": Payloads(compress_from=8, encryption_keys=[KEY]),
}
ZSTD_LIBRARIES = ("compression.zstd", "backports.zstd", "zstandard")
zstd = import_module(ZSTD_LIBRARIES[0 if sys.version_info >= (3, 14) else 1])
MiB = 1024 * 1024


@pytest.fixture(params=SETTINGS)
def payloads(request: pytest.FixtureRequest) -> Payloads:
    return SETTINGS[request.param]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def hide(*modules: str) -> None:
        for name in modules:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


# Round trips


@given(data=st.binary(), settings=st.sampled_from(sorted(SETTINGS)))
def test_any_bytes_come_back(data: bytes, settings: str) -> None:
    sealer = Sealer(SETTINGS[settings])

    assert sealer.open_bytes(sealer.seal_bytes(data, BODY), BODY) == data


@pytest.mark.parametrize("value", [b"null", b'{"a":1}', b"[" + b"1," * 500 + b"1]", b"t:[1]", b""])
def test_an_encoded_value_comes_back(payloads: Payloads, value: bytes) -> None:
    sealer = Sealer(payloads)

    assert sealer.open(sealer.seal(value)) == value


@pytest.mark.parametrize("start", [b"z:", b"s:", b"e:", b"\xffdurable", b"\xffdurablez:"])
def test_bytes_that_look_sealed_come_back(payloads: Payloads, start: bytes) -> None:
    sealer, data = Sealer(payloads), start + b"12345678"

    assert sealer.open_bytes(sealer.seal_bytes(data, PIECE), PIECE) == data


def test_without_settings_nothing_is_changed() -> None:
    sealer, data = Sealer(Payloads()), b'{"a":1}' * 100

    assert sealer.seal(data) is sealer.open(data) is data
    assert sealer.seal_bytes(data, BODY) is sealer.open_bytes(data, BODY) is data
    assert sealer.digest_keys() == ()


def test_plain_records_from_before_are_opened(payloads: Payloads) -> None:
    sealer = Sealer(payloads)

    assert sealer.open(b'{"a":1}') == b'{"a":1}'
    assert sealer.open_bytes(b"z: a plain body", BODY) == b"z: a plain body"


# Size


def test_a_value_above_the_limit_is_refused_with_both_sizes() -> None:
    sealer = Sealer(Payloads(max_size=100, compress_from=1))
    sealer.seal(b"1" * 100)

    with pytest.raises(PayloadTooLargeError, match=r"takes 101 bytes, and at most 100 .*max_size"):
        sealer.seal(b"1" * 101)
    assert not PayloadTooLargeError.retryable


def test_an_error_is_never_refused() -> None:
    assert Sealer(Payloads(max_size=100)).seal(b"1" * 101, ERROR) == b"1" * 101


# Compression


def test_only_what_is_long_enough_and_gets_smaller_is_compressed() -> None:
    sealer = Sealer(Payloads(compress_from=100))
    noise = os.urandom(1000)

    assert sealer.seal(b"1" * 99) == b"1" * 99
    assert len(sealer.seal(b"1" * 100)) < 100
    assert sealer.seal_bytes(noise, BODY) == noise
    assert sealer.seal_bytes(b"1" * 1000, BODY, may_compress=False) == b"1" * 1000


def test_zlib_is_used_where_there_is_no_zstd(without: Callable[..., None]) -> None:
    sealed = Sealer(Payloads(compress_from=1)).seal(b"1" * 1000)
    without(*ZSTD_LIBRARIES)
    sealer = Sealer(Payloads(compress_from=1))

    assert sealed.startswith(b"s:")
    assert sealer.seal(b"1" * 1000).startswith(b"z:")
    assert Sealer(Payloads()).open(sealer.seal(b"1" * 1000)) == b"1" * 1000
    with pytest.raises(DecodeError, match=r"install backports\.zstd"):
        sealer.open(sealed)


def test_each_zstd_library_reads_what_the_other_has_written(without: Callable[..., None]) -> None:
    data = b'{"a":1}' * 1000
    by_standard = Sealer(Payloads(compress_from=1)).seal(data)
    without(*ZSTD_LIBRARIES[:2])
    sealer = Sealer(Payloads(compress_from=1))
    by_zstandard = sealer.seal(data)

    assert by_zstandard[:2] == by_standard[:2] == b"s:"
    assert sealer.open(by_standard) == sealer.open(by_zstandard) == data
    for damaged in (by_standard[:-3], by_standard[:2], b"s:" + by_standard):
        with pytest.raises(DecodeError):
            sealer.open(damaged)


@pytest.mark.parametrize("hidden", [(), ZSTD_LIBRARIES[:2]])
@pytest.mark.parametrize("compress", [zlib.compress, zstd.compress])
def test_a_decompression_bomb_is_refused(
    compress: Callable[[bytes], bytes], hidden: tuple[str, ...], without: Callable[..., None]
) -> None:
    form = b"z:" if compress is zlib.compress else b"s:"
    bomb = form + compress(bytes(65 * MiB))
    without(*hidden)

    with pytest.raises(DecodeError, match=r"more than 67108864 bytes.*max_size"):
        Sealer(Payloads()).open(bomb)
    assert len(Sealer(Payloads(max_size=70 * MiB)).open(bomb)) == 65 * MiB


@pytest.mark.parametrize("compress", [zlib.compress, zstd.compress])
def test_damaged_compressed_bytes_are_a_decode_error(compress: Callable[[bytes], bytes]) -> None:
    form = b"z:" if compress is zlib.compress else b"s:"
    whole = compress(b'{"a":1}' * 100)

    for damaged in (b"", whole[:-1], whole + b"x", b"x" + whole, whole[: len(whole) // 2]):
        with pytest.raises(DecodeError):
            Sealer(Payloads()).open(form + damaged)


# Encryption


def test_equal_values_are_encrypted_differently() -> None:
    sealer = Sealer(Payloads(encryption_keys=[KEY]))

    assert sealer.seal(b"secret") != sealer.seal(b"secret")
    assert b"secret" not in sealer.seal(b"secret")


@pytest.mark.parametrize("compress_from", [None, 1])
def test_no_changed_byte_is_taken(compress_from: int | None) -> None:
    sealer = Sealer(Payloads(compress_from=compress_from, encryption_keys=[KEY]))
    sealed = sealer.seal(b"secret" * 10)

    for place in range(2, len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(DecodeError):
            sealer.open(bytes(changed))
    for length in range(2, len(sealed)):
        with pytest.raises(DecodeError):
            sealer.open(sealed[:length])


def test_what_is_sealed_as_one_thing_is_not_opened_as_another() -> None:
    sealer = Sealer(Payloads(encryption_keys=[KEY]))

    with pytest.raises(DecodeError):
        sealer.open(sealer.seal(b"secret", VALUE), ERROR)
    with pytest.raises(DecodeError):
        sealer.open_bytes(sealer.seal_bytes(b"secret", BODY), PIECE)


def test_a_new_key_encrypts_and_the_old_one_still_decrypts() -> None:
    old = Sealer(Payloads(encryption_keys=[KEY]))
    rotated = Sealer(Payloads(encryption_keys=[OTHER_KEY, KEY]))

    assert rotated.open(old.seal(b"secret")) == b"secret"
    with pytest.raises(EncryptionKeyMissingError):
        old.open(rotated.seal(b"secret"))
    assert rotated.digest_keys()[1:] == old.digest_keys()


@pytest.mark.parametrize("settings", [Payloads(), Payloads(encryption_keys=[OTHER_KEY])])
def test_a_missing_key_is_told_with_its_id_and_the_setting(settings: Payloads) -> None:
    owner = Sealer(Payloads(encryption_keys=[KEY]))

    with pytest.raises(EncryptionKeyMissingError) as caught:
        Sealer(settings).open(owner.seal(b"secret"))

    text = str(caught.value)
    assert owner.seal(b"x")[4:8].hex() in text
    assert "encryption_keys=" in text
    for key in (KEY, OTHER_KEY):
        assert key.hex() not in text
        assert base64.b64encode(key).decode() not in text


def test_keys_need_their_library_and_nothing_else_does(
    without: Callable[..., None], url: str
) -> None:
    without("cryptography.hazmat.primitives.ciphers.aead")

    with pytest.raises(DurableUsageError, match=r"asgi-durable\[encryption\]"):
        Durable(url, payloads=Payloads(encryption_keys=[KEY]))
    Durable(url, payloads=Payloads(compress_from=1))


async def body_of(spooled: SpooledBody) -> bytes:
    body, more = b"", True
    while more:
        message = await spooled.receive()
        body, more = body + message["body"], message["more_body"]
    return body


@pytest.mark.anyio
async def test_a_body_on_the_disk_is_encrypted_too() -> None:
    sealer = Sealer(Payloads(encryption_keys=[KEY]))
    pieces = [b"secret" * 20_000, b"more of it", b"secret"]
    whole = b"".join(pieces)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    class Hashing:
        def add(self, piece: bytes) -> None:
            pass

        def fingerprint(self) -> str:
            return ""

    body = LongBody(b"", receive, Hashing())
    spooled = await SpooledBody.of(body, SpoolSpace(MiB, sealer.disk_cipher))
    on_disk = os.pread(spooled._file._file.fileno(), MiB, 0)

    assert len(on_disk) == len(whole)
    assert b"secret" not in on_disk
    assert await asyncio.wait_for(body_of(spooled), 60) == whole
    spooled.close()


# Fingerprints


def keyed(*keys: bytes) -> KeyedFingerprints:
    return Sealer(Payloads(encryption_keys=keys)).fingerprints


def test_a_fingerprint_is_recognised_that_was_recorded_with_another_key_or_none() -> None:
    plain = "v2:0123"
    before, rotated = keyed(KEY).of(plain), keyed(OTHER_KEY, KEY)

    assert "0123" not in before
    assert rotated.of(plain) != before
    assert rotated.like(plain, before) == before
    assert rotated.like(plain, plain) == plain
    assert rotated.plain_version(before).startswith("v2:")
    assert set(rotated.all_of(plain)) == {rotated.of(plain), before, plain}
    assert keyed().of(plain) == plain
    assert rotated.like("v2:4567", before) != before


def test_a_fingerprint_with_a_missing_key_is_told_instead_of_taken_for_another_request() -> None:
    before = keyed(KEY).of("v2:0123")

    for other in (keyed(), keyed(OTHER_KEY)):
        with pytest.raises(EncryptionKeyMissingError, match="encryption_keys="):
            other.like("v2:0123", before)
        with pytest.raises(EncryptionKeyMissingError):
            other.plain_version(before)


# Settings


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        base64.b64encode(KEY).decode(),
        base64.b64encode(KEY) + b"\n",
        base64.urlsafe_b64encode(OTHER_KEY).decode().rstrip("="),
        # As Fernet.generate_key() returns it.
        base64.urlsafe_b64encode(OTHER_KEY),
    ],
)
def test_a_key_is_bytes_or_base64(key: bytes | str) -> None:
    (decoded,) = Payloads(encryption_keys=[key]).encryption_keys

    assert isinstance(decoded, bytes)
    assert len(decoded) == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_size": 0}, "max_size"),
        ({"max_size": 1.5}, "max_size"),
        ({"max_size": True}, "max_size"),
        ({"compress_from": 0}, "compress_from"),
        ({"encryption_keys": base64.b64encode(KEY).decode()}, "a list of keys"),
        ({"encryption_keys": KEY}, "a list of keys"),
        ({"encryption_keys": [KEY, KEY]}, "twice"),
        ({"encryption_keys": [KEY, base64.b64encode(KEY).decode()]}, "twice"),
        ({"encryption_keys": [KEY, KEY[:16]]}, "key 1.*openssl rand"),
        ({"encryption_keys": [KEY.hex()]}, "48 bytes instead of 32"),
        ({"encryption_keys": ["s3cr3t pass phrase!"]}, "key 0.*openssl rand"),
        ({"encryption_keys": ["schlüssel"]}, "key 0.*openssl rand"),
        ({"encryption_keys": [None]}, "NoneType"),
    ],
)
def test_wrong_settings_are_refused_without_showing_a_key(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DurableUsageError, match=message) as caught:
        Payloads(**settings)

    shown = str(caught.value) + repr(caught.value.__cause__)
    assert not any(secret in shown for secret in ("s3cr3t", "schl", KEY.hex(), repr(KEY[:8])[2:-1]))


def test_no_representation_shows_a_key() -> None:
    payloads = Payloads(encryption_keys=[KEY, OTHER_KEY])
    sealer = Sealer(payloads)

    shown = repr(payloads)
    assert shown == (
        "Payloads(max_size=16777216, compress_from=None, encryption_keys=<2 not shown>)"
    )
    for each in (payloads, sealer, sealer._keyring, *sealer._keyring.keys):
        assert repr(KEY)[2:20] not in repr(each)
