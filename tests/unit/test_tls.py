"""When certificates end, as `status` and the log tell it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from cxr_node.dicom import certificates
from cxr_node.errors import SettingsError
from cxr_node.settings import DestinationSettings, SenderSettings, Settings, TlsSettings
from tests.certificates import Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def settings(pair, authority, **changes):
    return Settings(tls=TlsSettings(certificate=pair.certificate, key=pair.key, ca=authority.certificate, **changes))


@pytest.mark.parametrize(("days", "state"), [(31, "ok"), (29, "ends soon"), (0.5, "ends soon"), (-1, "expired")])
def test_a_certificate_is_well_until_thirty_days_before_its_end(authority, days, state):
    first, *_ = certificates.certificates(settings(authority.issue("node.example", days=days), authority))
    assert (first.use, first.subject, first.state) == ("tls.certificate", "CN=node.example", state)
    assert first.days_left == pytest.approx(days, abs=0.1)


def test_a_certificate_may_not_have_begun(authority):
    found = certificates.certificates(settings(authority.issue("node.example", since_days=-1), authority))
    assert found[0].state == "not yet valid"


def test_the_time_of_the_warning_is_set(authority):
    pair = authority.issue("node.example", days=50)
    assert certificates.certificates(settings(pair, authority, warn_days=60))[0].state == "ends soon"
    later = datetime.now(UTC) + timedelta(days=45)
    assert certificates.certificates(settings(pair, authority, warn_days=10), later)[0].state == "ends soon"


def test_all_that_the_settings_name_are_told_and_the_first_to_end_first(authority, tmp_path):
    theirs = Authority(tmp_path / "theirs")
    destination = DestinationSettings(name="pacs", ae_title="PACS", host="pacs", port=1, tls=True, tls_ca=theirs.certificate)
    sender = SenderSettings(ae_title="CT1", port=104, hosts=("10.0.0.0/8",), tls=True, tls_ca=theirs.certificate)
    pair = authority.issue("node.example")
    configured = settings(pair, authority).model_copy(update={"destinations": (destination,), "senders": (sender,)})
    described = certificates.certificate_status(configured)
    assert {item["use"] for item in described} == {"tls.certificate", "tls.ca", "tls_ca of pacs", "tls_ca of CT1"}
    assert described[0]["use"] == "tls.certificate"
    assert described[0]["not_after"].startswith("20")


def test_the_log_warns_of_what_is_not_well(authority):
    with capture_logs() as lines:
        certificates.warn_of_ends(settings(authority.issue("node.example", days=10), authority))
    assert [(line["log_level"], line["state"]) for line in lines] == [("warning", "ends soon")]


def test_what_is_no_certificate_is_named_and_status_goes_on(authority, tmp_path):
    (tmp_path / "wrong.pem").write_text("no certificate")
    configured = Settings(tls=TlsSettings(ca=tmp_path / "wrong.pem"))
    with pytest.raises(SettingsError, match="contains no certificate"):
        certificates.certificates(configured)
    assert "wrong.pem" in certificates.certificate_status(configured)[0]["state"]
    with capture_logs() as lines:
        certificates.warn_of_ends(configured)
    assert lines[0]["log_level"] == "error"


def test_without_tls_there_is_nothing_to_tell():
    assert certificates.certificate_status(Settings()) == []


@pytest.mark.parametrize(
    ("days", "mode", "severities"),
    [(90, 0o600, []), (10, 0o600, ["warning"]), (-1, 0o600, ["error"]), (90, 0o644, ["warning"])],
)
def test_check_config_tells_what_is_wrong(authority, days, mode, severities):
    pair = authority.issue("node.example", days=days)
    pair.key.chmod(mode)
    assert [severity for severity, _ in certificates.problems(settings(pair, authority, listen=True))] == severities


def test_check_config_tries_the_key(authority):
    pair, other = authority.issue("node.example"), authority.issue("other.example")
    configured = Settings(
        tls=TlsSettings(listen=True, certificate=pair.certificate, key=other.key, ca=authority.certificate),
    )
    assert ("error", True) in [(severity, "don't work together" in text) for severity, text in certificates.problems(configured)]
