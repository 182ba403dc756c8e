"""How a client is told what this server does not do."""

from typing import Any


class Refused(Exception):
    """What was asked for is not done; the message is a sentence for the client.

    Attributes:
        status: of HTTP.
        param: the field of the request that is at fault, if one is.
        code: a word for programs, if there is one.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict[str, Any]:
        """The error object of OpenAI's API."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}
