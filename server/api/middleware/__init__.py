"""What happens to a request before and after the app: its id and log line, its client, its limits."""

from server.api.middleware.anthropic import AnthropicErrors
from server.api.middleware.authentication import Authentication, client_of
from server.api.middleware.body import BodyLimits
from server.api.middleware.draining import Draining
from server.api.middleware.hosts import AllowedHosts
from server.api.middleware.log import RequestLog
from server.api.middleware.paths import RequestLine, RootPath
from server.api.middleware.rates import RateHeaders

__all__ = [
    "AllowedHosts",
    "AnthropicErrors",
    "Authentication",
    "BodyLimits",
    "Draining",
    "RateHeaders",
    "RequestLine",
    "RequestLog",
    "RootPath",
    "client_of",
]
