from __future__ import annotations

from tests.mining.conftest import collection

__all__ = ["collection"]
