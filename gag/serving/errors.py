"""A refusal as OpenAI's clients know it: a status, and what is wrong with which parameter."""

from gag.errors import ArtifactError, BusyError, DataError, GagError, RoutingError, SettingsError


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        param: the request's parameter that is wrong.
        code: a word for programs.
        retry_after: seconds after which to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The kind of error, as OpenAI names it."""
        named = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        named |= {429: "rate_limit_error"}
        return named.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """What clients read before they ask again."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def refused(error: GagError, param: str | None = None) -> RequestError:
    """Turn an error of the engine's into a refusal."""
    if isinstance(error, BusyError):
        status, code = (503, "stopping") if error.seconds > 1 else (429, "rate_limit_exceeded")
        return RequestError(status, str(error), code=code, retry_after=error.seconds)
    if isinstance(error, RoutingError):
        return RequestError(404, str(error), "model", "model_not_found")
    if isinstance(error, ArtifactError):
        return RequestError(503, str(error), "model", "domain_refused", retry_after=30)
    if isinstance(error, DataError):
        return RequestError(400, str(error), param or "messages", "invalid_value")
    if isinstance(error, SettingsError):
        return RequestError(400, str(error), param, "invalid_value")
    return RequestError(500, str(error), code="engine_error")
