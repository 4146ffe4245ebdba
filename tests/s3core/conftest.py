"""Shared by the store tests: assertions in the conformance suite are explained as those in test files are."""

import pytest

pytest.register_assert_rewrite("s3core.conformance", "s3core.bucket_conformance")
