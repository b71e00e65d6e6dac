"""What happens to a request before and after the app: its id and log line, its client, its limits."""

from server.api.middleware.anthropic import AnthropicErrors
from server.api.middleware.authentication import Authentication, client_of
from server.api.middleware.body import BodyLimits
from server.api.middleware.log import RequestLog

__all__ = ["AnthropicErrors", "Authentication", "BodyLimits", "RequestLog", "client_of"]
