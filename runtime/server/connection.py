"""HTTP connections that end when their client holds them and does nothing: uvicorn bounds the time between requests only."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgelm.runtime.server.errors import RefusedError


class Connection(H11Protocol):
    """One connection.

    Attributes:
        headers_s: seconds in which the headers of a request must be here, from the connection's beginning or the last answer's end.
        body_s: seconds that the body may take after them.
        write_s: seconds for which a client may take nothing of what is sent to it.
        most: connections at once; a further one is closed unheard.
    """

    headers_s = 10.0
    body_s = 60.0
    write_s = 30.0
    most = 768  # where a process may have 1,024 files open, which is usual, models and the cache must be read, too

    _awaited: type[h11.IDLE] | type[h11.SEND_BODY] | None = None
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        """See to it that what the client has to send next comes in time. Sending slowly does not give it more."""
        state = self.conn.their_state
        awaited = state if state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing() else None
        if awaited is self._awaited:
            return
        self._awaited = awaited
        if self._reading is not None:
            self._reading.cancel()
        if awaited is h11.IDLE:
            self._reading = self.loop.call_later(self.headers_s, self.transport.close)
        elif awaited is h11.SEND_BODY:
            self._reading = self.loop.call_later(self.body_s, self._refuse_body)

    def _refuse_body(self) -> None:
        """Tell that it took too long, if nothing else was said yet, and hang up."""
        if not self.cycle.response_started:
            self.cycle.response_started = True
            refusal = RefusedError(408, f"the request's body took longer than {self.body_s:g} s", "timeout_error", code="timeout")
            headers = [("Content-Type", "application/json"), ("Connection", "close")]
            for event in (
                h11.Response(status_code=refusal.status, headers=headers),
                h11.Data(data=json.dumps(refusal.body()).encode()),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.cycle.disconnected = True  # the application must not answer, too
        self.cycle.message_event.set()
        self.transport.close()
