import pytest

schemathesis = pytest.importorskip("schemathesis")
