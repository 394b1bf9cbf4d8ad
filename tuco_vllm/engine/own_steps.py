"""vLLM's scheduler where PT runs on a stream of its own beside FT: no step holds requests of both.

OutputCo and the relative reward need PT's layers on PT's own stream, as requests of their own
(``own_stream``). Such a step runs other code than one of FT's stream, so the streams take turns. Within its
turn a stream is scheduled as vLLM would without the others; blocks of the cache are all streams'.
"""

from typing import Any

from tuco_vllm.steering import FT_STREAM, STREAMS


class TakesTurns:
    """Mixed into vLLM's schedulers. Every request has its stream's name as ``tuco_stream``."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._others: set[str] = set()
        self._turn = FT_STREAM

    def to_stream(self: Any, request: Any, stream: str) -> None:
        """Before a request is added. Blocks of one stream must serve no other."""
        request.tuco_stream = stream
        if stream != FT_STREAM:
            self._others.add(request.request_id)
            request.cache_salt = f"tuco-stream:{stream}|{request.cache_salt or ''}"
            request.block_hashes.clear()
            request.update_block_hashes()

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The next step, of one stream."""
        stock: Any = super()
        if self._others:
            self._others &= self.requests.keys()
        if not self._others:
            return stock.schedule(*args, **kwargs)
        able = {request.tuco_stream for request in self.running if _has_work(request)}
        if len(self.running) < self.max_num_active_reqs:
            able |= {request.tuco_stream for request in self.waiting}
        if self.kv_holding_waiting:  # texts whose input streams
            able.add(FT_STREAM)
        after = STREAMS.index(self._turn) + 1
        in_turn = [*STREAMS[after:], *STREAMS[:after]]
        self._turn = next((stream for stream in in_turn if stream in able), self._turn)
        return self._schedule_one(self._turn, *args, **kwargs)

    def _schedule_one(self: Any, stream: str, *args: Any, **kwargs: Any) -> Any:
        stock: Any = super()
        running, waiting = (
            [request for request in queue if request.tuco_stream != stream]
            for queue in (self.running, self.waiting)
        )
        self.running = [request for request in self.running if request.tuco_stream == stream]
        self.waiting.remove_requests(waiting)
        most, holding = self.max_num_active_reqs, self.kv_holding_waiting
        self.max_num_active_reqs = most - len(running)
        if stream != FT_STREAM:
            self.kv_holding_waiting = type(holding)()
        try:
            return stock.schedule(*args, **kwargs)
        finally:
            self.max_num_active_reqs, self.kv_holding_waiting = most, holding
            self.running += running
            for request in waiting:
                self.waiting.add_request(request)


def _has_work(request: Any) -> bool:
    """Whether a running request has tokens that no step has yet."""
    ahead = request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
    return bool(ahead > 0)
