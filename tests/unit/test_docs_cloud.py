"""What the documents say about load balancers that send their header late."""

import re

import pytest

from tests.docs import ROOT, Document, read_document

HOW_TO = read_document(ROOT / "docs" / "how-to" / "haproxy.md")
RUNBOOK = read_document(ROOT / "docs" / "runbook.md")

ATTRIBUTE = "proxy_protocol_v2.client_to_server.header_placement"


@pytest.mark.parametrize(
    ("document", "heading"),
    [(RUNBOOK, "header_timeout"), (HOW_TO, "Cloud load balancers")],
    ids=["runbook", "how-to"],
)
def test_the_attribute_that_makes_aws_send_its_header_at_once_is_named(
    document: Document, heading: str
) -> None:
    section = document.section(heading)
    assert "AWS Network Load Balancer" in re.sub(r"\s+", " ", section.text)
    assert ATTRIBUTE in section.code
    assert "on_first_ack" in section.code


def test_the_runbook_links_to_the_cure() -> None:
    assert (
        "how-to/haproxy.md#cloud-load-balancers"
        in RUNBOOK.section("header_timeout").text
    )
    assert "cloud-load-balancers" in HOW_TO.anchors
