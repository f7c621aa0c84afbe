"""What all tests share."""

import pytest

# Suites are no test modules themselves; their asserts should explain themselves all the same.
pytest.register_assert_rewrite("suites")
