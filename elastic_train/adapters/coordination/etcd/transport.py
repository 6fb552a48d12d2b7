"""Calls to an etcd cluster: endpoint rotation, deadlines, tokens, and the end of it all from another thread."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.endpoints import AUTHENTICATE, Endpoint, EndpointPool, Method
from elastic_train.adapters.coordination.etcd.failures import Failure, classify, describe, translate, unavailable
from elastic_train.errors import CoordinationDenied, CoordinationUnavailable, UsageError

logger = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]

NEED_LEADER: Metadata = (("hasleader", "true"),)
"""Asks a member that is cut off from the others to say so, instead of leaving the caller to wait."""

_BACKOFF_FLOOR_S = 0.05
_BACKOFF_CEILING_S = 0.5


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take.

    Attributes:
        deadline_s: A call in all, over all tries and endpoints.
        try_s: One try at one endpoint.
        watch_silence_s: A watch that hears nothing for so long, although it asked half-way, takes another member.
    """

    deadline_s: float = 10.0
    try_s: float = 2.0
    watch_silence_s: float = 4.0


class Refused(Exception):
    """A call got an answer that another try cannot mend; the caller translates it or makes something of it."""

    def __init__(self, failure: Failure, endpoint: str, text: str, tries: int) -> None:
        super().__init__(text)
        self.failure = failure
        self.tries = tries
        self.endpoint = endpoint
        self.text = text

    def translated(self) -> Exception:
        """Return the error of ours for it."""
        return translate(self.failure, self.endpoint, self.text)


class Interrupt:
    """Ends, from any thread, what one other thread waits for: the call under way and every later wait."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._call: Any = None

    def set(self) -> None:
        """End the call under way, and make every later wait return at once."""
        with self._lock:
            self._event.set()
            call = self._call
        if call is not None:
            call.cancel()

    def is_set(self) -> bool:
        """Say whether `set` was called."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait so long; return True at once when set."""
        return self._event.wait(timeout_s)

    @contextlib.contextmanager
    def ends(self, call: Any) -> Iterator[None]:
        """Let `set` cancel this call while the block runs."""
        with self._lock:
            self._call = call
            if self._event.is_set():
                call.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._call = None


class Transport:
    """Calls procedures of an etcd cluster, on whichever member answers.

    Every request sent through `call` may be sent more than once: what must be applied once says so in itself
    (`commits`), all else is idempotent.

    Args:
        pool: The members.
        credentials: User and password; None where the cluster asks for none.
        timing: Deadlines.
        token: A token to begin with, where somebody has authenticated already.
    """

    def __init__(
        self,
        pool: EndpointPool,
        *,
        credentials: tuple[str, str] | None = None,
        timing: Timing | None = None,
        token: str | None = None,
    ) -> None:
        self.pool = pool
        self.timing = timing or Timing()
        self._credentials = credentials
        self._metadata: Metadata = (("token", token),) if token else ()
        self._anonymous = False  # the cluster said that it does not ask for credentials
        self._token_lock = threading.Lock()
        self._closed = Interrupt()
        self._pid = os.getpid()

    # ------------------------------------------------------------------ calls

    def call(
        self, method: Method, request: Any, *, deadline_s: float | None = None, interrupt: Interrupt | None = None
    ) -> Any:
        """Call a procedure and return its answer, trying members in turn until the deadline.

        Raises:
            CoordinationUnavailable: No member answered in time, or the client was closed.
            CoordinationDenied: Wrong credentials or no permission.
            Refused: An answer that the caller has to judge.
        """
        return self.call_counting(method, request, deadline_s=deadline_s, interrupt=interrupt)[0]

    def call_counting(
        self, method: Method, request: Any, *, deadline_s: float | None = None, interrupt: Interrupt | None = None
    ) -> tuple[Any, int]:
        """Do what `call` does; return also how many tries were sent.

        Raises:
            CoordinationUnavailable: No member answered in time, or the client was closed.
            CoordinationDenied: Wrong credentials or no permission.
            Refused: An answer that the caller has to judge.
        """
        budget_s = self.timing.deadline_s if deadline_s is None else deadline_s
        end = time.monotonic() + budget_s
        reasons: dict[str, str] = {}
        tries = 0
        while True:
            self.check_usable()
            endpoint = self.pool.current()
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise unavailable(reasons, budget_s)
            metadata = () if method is AUTHENTICATE else self.metadata(left_s)
            try:
                sent = metadata + NEED_LEADER
                answer = self._try(endpoint, method, request, min(self.timing.try_s, left_s), sent, interrupt)
            except grpc.RpcError as error:
                tries += 1
                reasons[endpoint.address] = describe(error)
                self._after_failure(endpoint, error, metadata, tries)
                self._pause(tries, end, interrupt)
            else:
                self.pool.succeeded(endpoint)
                return answer, tries + 1

    def call_endpoint(self, endpoint: Endpoint, method: Method, request: Any) -> Any:
        """Call a procedure of one member, once.

        Raises:
            CoordinationUnavailable: That member did not answer in time.
            CoordinationDenied: Wrong credentials or no permission.
            Refused: An answer that the caller has to judge.
        """
        self.check_usable()
        metadata = self.metadata(self.timing.try_s)
        try:
            return self._try(endpoint, method, request, self.timing.try_s, metadata, None)
        except grpc.RpcError as error:
            failure = classify(error)
            if failure is Failure.NO_ANSWER:
                raise unavailable({endpoint.address: describe(error)}, self.timing.try_s) from error
            raise Refused(failure, endpoint.address, describe(error), tries=1) from error

    @property
    def belongs_to_another_process(self) -> bool:
        """Say whether this process is a fork of the one that made the client."""
        return os.getpid() != self._pid

    def check_usable(self) -> None:
        """Refuse to go on in a forked child or after `close`.

        Raises:
            UsageError: This process is a fork of the one that made the client.
            CoordinationUnavailable: The client was closed.
        """
        if self.belongs_to_another_process:
            raise UsageError(
                f"this etcd client belongs to process {self._pid} and is used in its fork {os.getpid()}: gRPC does not "
                "survive a fork. Make a new client in the child with connect(url)."
            )
        if self._closed.is_set():
            raise CoordinationUnavailable("this etcd client was closed")

    def close(self) -> None:
        """Fail everything under way and end all threads. Idempotent."""
        if self._closed.is_set() or self.belongs_to_another_process:
            return
        self._closed.set()
        self.pool.close()

    # ------------------------------------------------------------------ tokens

    def metadata(self, budget_s: float) -> Metadata:
        """Return what goes with every call: the token, fetched where there is none yet."""
        if self._credentials is not None and not self._metadata and not self._anonymous:
            self.renew_token((), budget_s)
        return self._metadata

    def renew_token(self, stale: Metadata, budget_s: float) -> None:
        """Get a new token, unless another thread has replaced the stale one already.

        Raises:
            CoordinationDenied: Wrong user or password, or there are none.
            CoordinationUnavailable: No member answered in time.
        """
        if self._credentials is None:
            raise CoordinationDenied(
                "etcd asks who this client is, or no longer takes its token, and it has no credentials. "
                "Put user and password into the coordination URL."
            )
        with self._token_lock:
            if self._metadata != stale:
                return
            user, password = self._credentials
            try:
                answer = self.call(
                    AUTHENTICATE, pb.AuthenticateRequest(name=user, password=password), deadline_s=budget_s
                )
            except Refused as refusal:
                if refusal.failure is not Failure.AUTH_NOT_ENABLED:
                    raise refusal.translated() from refusal
                logger.warning("etcd at %s does not ask who we are: user and password are unused", refusal.endpoint)
                self._metadata, self._anonymous = (), True
            else:
                self._metadata, self._anonymous = (("token", answer.token),), False

    # ------------------------------------------------------------------ one try

    def _try(
        self,
        endpoint: Endpoint,
        method: Method,
        request: Any,
        timeout_s: float,
        metadata: Metadata,
        interrupt: Interrupt | None,
    ) -> Any:
        callable_ = endpoint.unary(method)
        try:
            if interrupt is None:
                return callable_(request, timeout=timeout_s, metadata=metadata)
            call = callable_.future(request, timeout=timeout_s, metadata=metadata)
            with interrupt.ends(call):
                return call.result()
        except (ValueError, grpc.FutureCancelledError) as error:  # gRPC's answers on a closed channel, a cancelled call
            self.check_usable()
            raise CoordinationUnavailable("the call was ended by close()") from error

    def _after_failure(self, endpoint: Endpoint, error: grpc.RpcError, metadata: Metadata, tries: int) -> None:
        """Prepare the next try, or raise where none can help."""
        self.check_usable()
        failure = classify(error)
        if failure is Failure.NO_ANSWER:
            self.pool.failed(endpoint)
        elif failure is Failure.TOKEN:
            self.renew_token(metadata, self.timing.deadline_s)
        else:
            raise Refused(failure, endpoint.address, describe(error), tries) from error

    def _pause(self, tries: int, end: float, interrupt: Interrupt | None) -> None:
        """Wait a little once every member has failed; the first failure of each costs no time."""
        rounds = tries - len(self.pool.endpoints)
        if rounds < 0:
            return
        ceiling_s = min(_BACKOFF_CEILING_S, _BACKOFF_FLOOR_S * 2.0 ** min(rounds, 8))
        pause_s = min(ceiling_s * random.uniform(0.5, 1.0), max(0.0, end - time.monotonic()))
        if (interrupt or self._closed).wait(pause_s) and interrupt is not None:
            raise CoordinationUnavailable("the call was ended by close()")
