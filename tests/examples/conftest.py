"""The demo models, which examples and documentation speak to."""

from __future__ import annotations

import pytest

from tests.server_process import ServerProcess, demo_server


@pytest.fixture(scope="session")
def server() -> ServerProcess:
    return demo_server()
