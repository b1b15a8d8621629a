"""Requests that nobody would think of, made of the server's own OpenAPI."""

from __future__ import annotations

import pytest
from conftest import random_whisper
from hypothesis import HealthCheck, given, settings

from whisper_at.model import WhisperAT
from whisper_at.serve import create_app
from whisper_at.tagging.heads import make_head

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is for Python 3.11 and newer")

NOT_HERE = (
    "positive_data_acceptance",  # bytes that come up by chance are no sound
    "negative_data_rejection",  # fields that are not known are named in a header, and forms have text alone
    "missing_required_header",
    "unsupported_method",  # HEAD and OPTIONS are answered everywhere, and OpenAPI does not name them
)


MODEL = random_whisper(WhisperAT, 51864)
MODEL.head = make_head("tl_tr_1_8", n_layer=2, rep_dim=64)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_app(MODEL, "random", sample_len=2))
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_answer_is_one_that_the_schema_has(operation):
    checks = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ not in NOT_HERE]

    @given(case=operation.as_strategy())
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def ask(case):
        case.call_and_validate(checks=checks)

    ask()


def test_every_route_is_asked():
    assert len(OPERATIONS) == 13
