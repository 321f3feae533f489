"""The data port's wire: fixed little-endian structs, one hello a connection, then requests and answers.

The same frames go over the Unix socket (same host) and TCP (another host). A connection is about one dataset
generation, named in the hello; a caller that reads two datasets opens two connections.

    caller   HELLO, grant bytes                       -> server
    server   HELLO_ANSWER, detail bytes               -> caller        status OK, or a refusal and the end
    caller   REQUEST, count x RANGE                   -> server        requests may be pipelined; answers keep order
    server   ANSWER, payload                          -> caller

READ: the answer's payload is the ranges' bytes, one after the other, in request order. If `failed_count` > 0 the
payload begins with a u32 length and a msgpack list of `[range number, failure code, message]`; the ranges not in it
follow in order. A status other than OK refuses the whole request; its payload is a UTF-8 message; after BAD_REQUEST
the server ends the connection.

DESCRIPTORS (Unix socket only; at most DESCRIPTORS_MAX blocks, only `index` of each range counts): the payload is one byte
a block, PASSED, NOT_FULL or NOT_HERE; the passed descriptors ride on the answer's first byte (SCM_RIGHTS), in order. That
connection is the loan of the descriptors: for an eviction the server sends an unasked ANSWER with op DROP,
request_id 0 and u32 block indexes as payload; the caller closes them and sends RETURNED with the blocks as ranges
(no answer). The end of the connection returns everything. Where the dataset was removed, the server ends its side; the caller
sends RETURNED of what it let go, one with count 0 ("I read nothing more") if views of it still hold blocks, and each of these
as it goes.

CRCS: the payload is, for the one full block asked for, u32 CRC-32C a page.
REFRESH (count 0): the payload is msgpack `{"placement": ..., "slots": ...}` (stoker.executor.messages), the newest this executor knows.
PING: empty payload.

Every ANSWER carries the newest placement and dataset versions that the executor knows: a caller that is behind asks REFRESH.

Numbers here never change meaning; a new field needs a new protocol version.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

MAGIC = b"STKR"
PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

RANGES_MAX = 4096  # in one request
REQUEST_BYTES_MAX = 256 * 1024 * 1024  # sum of the lengths of one request's ranges
DESCRIPTORS_MAX = 64  # in one message; the kernel takes 253
GRANT_BYTES_MAX = 4096
DETAIL_BYTES_MAX = 4096
HELLO_TIMEOUT_MS = 10_000  # a caller that connects and says nothing is cut off
FAILURE_MESSAGE_BYTES_MAX = 512

_HELLO = struct.Struct("<4sBBBBHH16sQQQII")
_HELLO_ANSWER = struct.Struct("<4sBBH16sQQII")
REQUEST = struct.Struct("<BBHIQ")  # op, flags, range count, request id, sum of the lengths
RANGE = struct.Struct("<III")  # block index, start, length; bytes inside the block
ANSWER = struct.Struct(
    "<BBHIQII"
)  # op, status, failed count, request id, payload bytes, placement, dataset version

HELLO_BYTES = _HELLO.size
HELLO_ANSWER_BYTES = _HELLO_ANSWER.size


class Caller(enum.IntEnum):
    CLIENT = 0
    EXECUTOR = 1
    SCHEDULER = 2


class HelloStatus(enum.IntEnum):
    OK = 0
    VERSION = 1  # no common protocol version
    CLUSTER = 2  # another cluster's executor answers here: refresh
    LAUNCH = 3  # another launch or incarnation answers here: refresh
    DATASET = 4  # this executor does not know the dataset or generation (yet): refresh, retry
    GRANT = 5  # the grant was refused
    BUSY = 6  # too many connections: go elsewhere, come back
    BAD_HELLO = 7


class Op(enum.IntEnum):
    READ = 1
    DESCRIPTORS = 2
    CRCS = 3
    REFRESH = 4
    PING = 5
    RETURNED = 16
    DROP = 32


class ReadFlag(enum.IntFlag):
    NONE = 0
    LOCAL_ONLY = 1  # only what is valid here; else the range fails with MISSING
    CHECK = 2  # verify page checksums before sending


class Status(enum.IntEnum):
    OK = 0
    BAD_REQUEST = 1
    UNAVAILABLE = 2
    INTERNAL = 3


class Failure(enum.IntEnum):
    MISSING = 1  # not resident, and LOCAL_ONLY
    CHANGED = 2  # the file changed in the under store since this dataset version was listed
    UNDER_STORE = 3  # the under store refused or could not be reached
    OUT_OF_RANGE = 4  # not inside the block or the address space
    CORRUPT = 5  # a checksum does not match; the block is quarantined
    OVERLOADED = 6  # too many misses are waiting: try another replica, or later
    INTERNAL = 7


class DescriptorStatus(enum.IntEnum):
    PASSED = 0
    NOT_FULL = 1
    NOT_HERE = 2


class Hello(NamedTuple):
    """The first bytes of a connection. `launch_id` and `incarnation` 0: whoever answers will do."""

    cluster: bytes
    launch_id: int
    incarnation: int
    dataset_id: int
    generation: int
    dataset_version: int
    caller: Caller = Caller.CLIENT
    grant: bytes = b""
    version_min: int = PROTOCOL_MIN
    version_max: int = PROTOCOL_MAX


class HelloAnswer(NamedTuple):
    status: HelloStatus
    version: int
    cluster: bytes
    launch_id: int
    incarnation: int
    placement_version: int
    dataset_version: int
    detail: str = ""


class WireError(Exception):
    """The other side sent bytes that are not this protocol."""


def encode_hello(hello: Hello) -> bytes:
    """Return HELLO and the grant; `len(hello.grant) <= GRANT_BYTES_MAX`, `len(hello.cluster) == 16`."""
    assert len(hello.cluster) == 16 and len(hello.grant) <= GRANT_BYTES_MAX
    return (
        _HELLO.pack(
            MAGIC,
            hello.version_min,
            hello.version_max,
            hello.caller,
            0,
            len(hello.grant),
            0,
            hello.cluster,
            hello.launch_id,
            hello.incarnation,
            hello.dataset_id,
            hello.generation,
            hello.dataset_version,
        )
        + hello.grant
    )


def decode_hello(data: bytes) -> tuple[Hello, int]:
    """Return the hello (grant still empty) and the number of grant bytes that follow; `len(data) == HELLO_BYTES`.

    :raises WireError: not a hello of this protocol.
    """
    (
        magic,
        low,
        high,
        caller,
        _,
        grant_bytes,
        _,
        cluster,
        launch,
        incarnation,
        dataset,
        generation,
        version,
    ) = _HELLO.unpack(data)
    if magic != MAGIC:
        raise WireError(f"not a Stoker hello: the first bytes are {magic!r}")
    if grant_bytes > GRANT_BYTES_MAX:
        raise WireError(f"a grant of {grant_bytes} bytes; at most {GRANT_BYTES_MAX} are allowed")
    if caller not in Caller._value2member_map_:
        raise WireError(f"unknown kind of caller {caller}")
    hello = Hello(cluster, launch, incarnation, dataset, generation, version, Caller(caller), b"", low, high)
    return hello, grant_bytes


def encode_hello_answer(answer: HelloAnswer) -> bytes:
    detail = answer.detail.encode()[:DETAIL_BYTES_MAX]
    return (
        _HELLO_ANSWER.pack(
            MAGIC,
            answer.version,
            answer.status,
            len(detail),
            answer.cluster,
            answer.launch_id,
            answer.incarnation,
            answer.placement_version,
            answer.dataset_version,
        )
        + detail
    )


def decode_hello_answer(data: bytes) -> tuple[HelloAnswer, int]:
    """Return the answer (detail still empty) and the number of detail bytes that follow.

    :raises WireError: not an answer of this protocol.
    """
    magic, version, status, detail_bytes, cluster, launch, incarnation, placement, dataset = (
        _HELLO_ANSWER.unpack(data)
    )
    if magic != MAGIC or status not in HelloStatus._value2member_map_ or detail_bytes > DETAIL_BYTES_MAX:
        raise WireError("whoever answers here does not speak Stoker's protocol")
    return (
        HelloAnswer(HelloStatus(status), version, cluster, launch, incarnation, placement, dataset),
        detail_bytes,
    )


def encode_request(op: Op, ranges: list[tuple[int, int, int]], *, request_id: int, flags: int = 0) -> bytes:
    """Return REQUEST and its RANGEs; `len(ranges) <= RANGES_MAX`."""
    assert len(ranges) <= RANGES_MAX
    total = sum(r[2] for r in ranges)
    flat = [n for r in ranges for n in r]
    return REQUEST.pack(op, flags, len(ranges), request_id, total) + struct.pack(f"<{len(flat)}I", *flat)


def decode_ranges(data: bytes | bytearray | memoryview) -> list[tuple[int, int, int]]:
    """Return (block index, start, length) a range; `len(data)` is a multiple of RANGE.size."""
    return list(RANGE.iter_unpack(data))
