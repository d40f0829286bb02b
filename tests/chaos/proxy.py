"""A proxy in front of an S3 server that injects the faults of an object store, by a seed.

    client -> FaultProxy -> S3 server          the client's endpoint is the proxy

SigV4 signs the Host header and the path, so the proxy forwards both unchanged, and the server checks the signature
against the proxy's address. Faults of a request:

    slow-down           503 SlowDown; the server does not get the request
    server-error        500 InternalError; the server does not get the request
    reset               the connection is reset; the server does not get the request
    lost-response       the server executes it; the connection is reset before the answer    (writes)
    error-after-write   the server executes it; the answer is 500 InternalError              (writes)
    latency             the request is delayed
    truncated-body      the second half of the answer's body is missing                      (reads)

The fault of the n-th request depends only on the seed, n and the method. `inject` requests a single fault.
"""

from __future__ import annotations

import asyncio
import io
import logging
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

Fault = Literal["slow-down", "server-error", "reset", "lost-response", "error-after-write", "latency", "truncated-body"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
WRITES = ("PUT", "POST", "DELETE")
OF_WRITES: tuple[Fault, ...] = ("lost-response", "error-after-write")
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect")
ERRORS = {
    "slow-down": (503, "SlowDown"),
    "server-error": (500, "InternalError"),
    "error-after-write": (500, "InternalError"),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Injected:
    """An injected fault."""

    number: int  # number of the request, from 1
    fault: Fault
    method: str
    path: str


@dataclass
class _Request:
    fault: Fault
    method: str
    part: str
    left: int


class FaultProxy:
    """`with FaultProxy(endpoint, seed, rates) as proxy:` serves at `proxy.endpoint` on its own thread.

    `rates` is the probability of each fault for the requests that it applies to, `latency_seconds` the longest delay.
    Rates may change at any time.
    """

    def __init__(
        self,
        upstream: str,
        seed: int = 0,
        rates: Mapping[Fault, float] | None = None,
        latency_seconds: float = 1.0,
    ) -> None:
        self.upstream = upstream.rstrip("/")
        self.seed = seed
        self.rates: Mapping[Fault, float] = dict(rates or {})
        self.latency_seconds = latency_seconds
        self.requests = 0
        self.injected: list[Injected] = []
        self.endpoint = ""
        self._requested: list[_Request] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fault proxy", daemon=True)
        self._is_ready = threading.Event()
        self._failure: BaseException | None = None

    @property
    def counts(self) -> dict[Fault, int]:
        """The number of injected faults of each kind."""
        tally = Counter(injected.fault for injected in list(self.injected))
        return {fault: tally[fault] for fault in FAULTS}

    def inject(self, fault: Fault, method: str = "", part: str = "", times: int = 1) -> None:
        """Inject a fault into the next `times` requests of this method with `part` in their path and query."""
        assert fault in FAULTS
        with self._lock:
            self._requested.append(_Request(fault, method, part, times))

    def forget(self) -> None:
        """Drop requested faults that have not been injected."""
        with self._lock:
            self._requested.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_ready.wait(timeout=30)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=30)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except OSError as error:
            self._failure = error
        finally:
            self._is_ready.set()
            self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            self._session = session
            app = web.Application(client_max_size=0)  # objects of any size
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.endpoint = f"http://{host}:{port}"
            self._is_ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.read()
        except ConnectionResetError:
            return web.Response()  # the client was killed
        fault = self._choose(request)
        if fault in ("slow-down", "server-error"):
            return _error(request, fault)
        if fault == "reset":
            return _reset(request)
        if fault == "latency":
            share = random.Random(f"{self.seed}/{self.requests}/latency").random()
            await asyncio.sleep(share * self.latency_seconds)
        try:
            status, headers, answer = await self._forward(request, body)
        except aiohttp.ClientError as error:  # the server has ended
            logger.warning("%s %s: %s", request.method, request.path_qs, error)
            return _reset(request)
        if fault == "lost-response":
            return _reset(request)
        if fault == "error-after-write":
            return _error(request, fault)
        if fault == "truncated-body":
            return await _truncate(request, status, headers, answer)
        return web.Response(status=status, headers=headers, body=answer if request.method != "HEAD" else None)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, CIMultiDict[str], bytes]:
        """Forward a request unchanged; return status, headers and body of the answer."""
        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP)
        async with self._session.request(
            request.method,
            URL(f"{self.upstream}{request.raw_path}", encoded=True),
            headers=headers,
            data=io.BytesIO(body) if body else None,
            allow_redirects=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        ) as answer:
            content = await answer.read()
            kept = CIMultiDict((k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP)
            if request.method != "HEAD":
                kept.pop("Content-Length", None)  # the proxy sends the whole body
            return answer.status, kept, content

    def _choose(self, request: web.Request) -> Fault | None:
        """Return and count the fault of a request: a requested one, or one from the seed."""
        method, path = request.method, request.raw_path
        with self._lock:
            self.requests += 1
            fault = self._take_requested(method, path) or draw(self.seed, self.requests, method, self.rates)
            if fault is not None:
                self.injected.append(Injected(self.requests, fault, method, path))
                logger.info("request %d %s %s: %s", self.requests, method, path, fault)
        return fault

    def _take_requested(self, method: str, path: str) -> Fault | None:
        for entry in self._requested:
            if entry.left and entry.method in ("", method) and entry.part in path:
                entry.left -= 1
                return entry.fault
        return None


def draw(seed: int, number: int, method: str, rates: Mapping[Fault, float]) -> Fault | None:
    """Return the fault of a request by its number, or None."""
    share = random.Random(f"{seed}/{number}").random()
    for fault in FAULTS:
        if (fault in OF_WRITES and method not in WRITES) or (fault == "truncated-body" and method != "GET"):
            continue
        share -= rates.get(fault, 0.0)
        if share < 0:
            return fault
    return None


def _error(request: web.Request, fault: Fault) -> web.Response:
    status, code = ERRORS[fault]
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>from the proxy</Message></Error>'
    return web.Response(
        status=status, content_type="application/xml", body=body.encode() if request.method != "HEAD" else None
    )


def _reset(request: web.Request) -> web.Response:
    """Close the connection with a TCP reset."""
    transport = request.transport
    if transport is not None:
        link = transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()  # not sent


async def _truncate(request: web.Request, status: int, headers: CIMultiDict[str], answer: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(answer)
    await response.prepare(request)
    await response.write(answer[: len(answer) // 2])
    if request.transport is not None:
        request.transport.close()  # unlike a reset, this flushes the written half
    return response


def address_of(endpoint: str) -> str:
    """Return host:port of an endpoint."""
    return urlsplit(endpoint).netloc
