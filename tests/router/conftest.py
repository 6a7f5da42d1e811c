"""The router's schema, for tests of what it stores."""

from collections.abc import AsyncIterator

import pytest

from chassis.postgres import Database
from deploy.local.stack import Address
from tests.conftest import opened


@pytest.fixture
async def database(address: Address, prefix: str) -> AsyncIterator[Database]:
    """An empty schema of the router."""
    async with opened(address, f"{prefix}_router", "chassis", "services.router") as database:
        yield database
