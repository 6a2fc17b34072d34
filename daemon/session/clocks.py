"""Public clocks: what RFC 3161 authorities and OpenTimestamps calendars answer, once a day.

An authority's token dates a note at once. A calendar promises to bring a hash into Bitcoin; hours
later it has the way to a block, and then ``ots verify`` says on which day the note existed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentimestamps.core.timestamp import DetachedTimestampFile, Timestamp

QUERY: Final = "application/timestamp-query"
ANSWER: Final = "application/vnd.opentimestamps.v1"

Send = Callable[[str, bytes | None, str], Awaitable[tuple[int, bytes]]]
"""Posts a body to an address, or gets what is there without one; returns status and answer.

The last argument is the type of the body, and of the answer that is wanted.
"""


class ClockFault(ValueError):
    """The answer of a clock dates nothing; the text is a clause that says why."""


async def answer_of(send: Send, url: str, body: bytes | None, kind: str) -> bytes:
    """Return the answer of *url*; raise ``ClockFault`` for an error, and what *send* raises."""
    status, answer = await send(url, body, kind)
    if status != 200:
        raise ClockFault(f"answers {status}")
    return answer


async def authority_token(url: str, text: str, send: Send) -> bytes:
    """Return the token by which the authority at *url* dates *text*.

    Raises ``ClockFault``, also if the token is of another hash, and what *send* raises.
    """
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder, decode_timestamp_response

    request = (
        TimestampRequestBuilder()
        .data(text.encode())
        .hash_algorithm(HashAlgorithm.SHA256)
        .cert_request(cert_request=False)
        .build()
    )
    answer = await answer_of(send, url, request.as_bytes(), QUERY)
    try:
        response = decode_timestamp_response(answer)
        info = response.tst_info
        token = response.time_stamp_token()
    except ValueError:
        raise ClockFault("answers nonsense") from None
    asked = request.message_imprint.message, request.nonce
    if (info.message_imprint.message, info.nonce) != asked:
        raise ClockFault("signs another hash")
    return token


async def calendar_promise(url: str, note: str, send: Send) -> bytes:
    """Return the file of a hash of *note* that the calendar at *url* brings into Bitcoin.

    Raises ``ClockFault`` and what *send* raises.
    """
    from opentimestamps.core.op import OpSHA256
    from opentimestamps.core.timestamp import DetachedTimestampFile

    digest = sha256(note.encode()).digest()
    answer = await answer_of(send, f"{url}/digest", digest, ANSWER)
    return _packed(DetachedTimestampFile(OpSHA256(), _timestamp(answer, digest)))


async def calendar_proof(url: str, promise: bytes, send: Send) -> bytes:
    """Return the file of *promise* with the way to a block of Bitcoin; empty if it is not there.

    Raises ``ClockFault`` and what *send* raises.
    """
    from opentimestamps.core.notary import BitcoinBlockHeaderAttestation
    from opentimestamps.core.serialize import BytesDeserializationContext
    from opentimestamps.core.timestamp import DetachedTimestampFile

    file = DetachedTimestampFile.deserialize(BytesDeserializationContext(promise))
    for each in [*_promised(file.timestamp)]:
        status, answer = await send(f"{url}/timestamp/{each.msg.hex()}", None, ANSWER)
        if status == 200:
            each.merge(_timestamp(answer, each.msg))
    kinds = {type(attestation) for _, attestation in file.timestamp.all_attestations()}
    return _packed(file) if BitcoinBlockHeaderAttestation in kinds else b""


def _promised(timestamp: Timestamp) -> Iterator[Timestamp]:
    from opentimestamps.core.notary import PendingAttestation

    if any(isinstance(each, PendingAttestation) for each in timestamp.attestations):
        yield timestamp
    for each in timestamp.ops.values():
        yield from _promised(each)


def _timestamp(answer: bytes, message: bytes) -> Timestamp:
    from opentimestamps.core.serialize import BytesDeserializationContext, DeserializationError
    from opentimestamps.core.timestamp import Timestamp

    context = BytesDeserializationContext(answer)
    try:
        timestamp = Timestamp.deserialize(context, message)
        context.assert_eof()
    except DeserializationError:
        raise ClockFault("answers nonsense") from None
    return timestamp


def _packed(file: DetachedTimestampFile) -> bytes:
    from opentimestamps.core.serialize import BytesSerializationContext

    context = BytesSerializationContext()
    file.serialize(context)
    return context.getbytes()
