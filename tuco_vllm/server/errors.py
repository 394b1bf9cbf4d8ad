"""Refusals in OpenAI's shape, as vLLM answers them."""

from starlette.responses import JSONResponse

from tuco_vllm.errors import InputError


class RequestError(InputError):
    """A request that cannot be served as it stands; ``param`` names the field that is at fault."""

    def __init__(self, message: str, param: str, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status

    def response(self) -> JSONResponse:
        """``{"error": {"message", "type", "param", "code"}}`` under the error's status."""
        kind = "NotFoundError" if self.status == 404 else "BadRequestError"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.status}
        return JSONResponse({"error": error}, self.status)
