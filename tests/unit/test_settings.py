"""Settings from a file, the environment and secret files: what is wrong is named, what is secret is not."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, SecretStr

from cxr_node.errors import SettingsError
from cxr_node.settings import Settings, load_settings

_VALUES = {
    "spool": "True",
    "ae_title": "OTHER",
    "enabled": "False",
    "host": "0.0.0.0",
    "data_dir": "/elsewhere",
    "log_level": "debug",
    "url": "sqlite:///other",
    "accept_unknown_senders": "False",
    "require_called_ae_title": "False",
    "other_storage_classes": "keep",
    "changed_instance": "refuse",
    "device": "cpu",
    "precision": "fp32",
    "engine": "openvino",
    "weights_dir": "/weights",
    "max_side_px": "300",
    "compression": "jpeg-ls",
    "side_by_side": "True",
    "report": "True",
    "overlay": "True",
    "listen": "True",
    "certificate": "/node.pem",
    "key": "/node.key",
    "key_passphrase": "a secret",
    "ca": "/ca.pem",
    "require_client_certificate": "False",
    "minimum_version": "1.3",
    "commitment_requests": "anyone",
    ("storage", "url"): "s3://bucket/prefix",
    "endpoint": "https://minio.example.org",
    "secret_access_key": "a secret",
    "virtual_hosted": "True",
}
_TOGETHER = {
    "spool": {"CXR_NODE__STORAGE__URL": "s3://bucket"},
    "access_key_id": {"CXR_NODE__STORAGE__SECRET_ACCESS_KEY": "a secret"},
    "secret_access_key": {"CXR_NODE__STORAGE__ACCESS_KEY_ID": "an id"},
}
"""What these keys are refused without."""
_KEYS = [
    (section, key)
    for section, field in Settings.model_fields.items()
    if not isinstance(field.default, tuple)
    for key, inner in type(field.default).model_fields.items()
    if not isinstance(inner.default, tuple | BaseModel)  # JSON, or a section of its own
]


@pytest.mark.parametrize(("section", "key"), _KEYS)
@pytest.mark.parametrize("as_file", [False, True])
def test_every_key_is_taken_from_the_environment_and_from_a_secret_file(monkeypatch, tmp_path, section, key, as_file):
    value = _VALUES.get((section, key)) or _VALUES.get(key, "7")
    for other, its_value in _TOGETHER.get(key, {}).items():
        monkeypatch.setenv(other, its_value)
    name = f"CXR_NODE__{section.upper()}__{key.upper()}"
    if as_file:
        (tmp_path / "secret").write_text(f"{value}\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    else:
        monkeypatch.setenv(name, value)
    found = getattr(getattr(load_settings(None), section), key)
    if isinstance(found, SecretStr):
        assert value not in repr(found)
        found = found.get_secret_value()
    assert type(found)(value) == found if isinstance(found, (int, float)) and value != "False" else str(found) == value


def test_lists_are_given_as_json_and_a_section_s_own_section_by_its_name(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("a secret\n")
    monkeypatch.setenv("CXR_NODE__WEB__TRUSTED_PROXIES", '["10.0.0.1"]')
    monkeypatch.setenv("CXR_NODE__WEB__OIDC__LABEL", "Sign in")
    monkeypatch.setenv("CXR_NODE__WEB__OIDC__CLIENT_SECRET_FILE", str(tmp_path / "secret"))
    web = load_settings(None).web
    assert web.trusted_proxies == ("10.0.0.1",)
    assert (web.oidc.label, web.oidc.client_secret.get_secret_value()) == ("Sign in", "a secret")


@pytest.mark.parametrize(
    ("web", "words"),
    [
        ({"trusted_proxies": ["proxy.example"]}, "is neither an IP address"),
        ({"oidc": {"issuer": "http://login.example.org"}}, "anyone on the network path"),
        ({"oidc": {"issuer": "https://login.example.org"}}, "client_id and roles"),
        ({"oidc": {"roles": {"x": "king"}}}, "viewer"),
    ],
)
def test_wrong_settings_of_the_page_are_said(tmp_path, monkeypatch, web, words):
    monkeypatch.setenv("CXR_NODE__WEB", json.dumps(web))
    with pytest.raises(SettingsError, match=words):
        load_settings(None)


def test_repositories_are_taken_from_the_environment_as_json(monkeypatch):
    monkeypatch.setenv("CXR_NODE__TLS__CA", "/ca.pem")
    monkeypatch.setenv("CXR_NODE__AUDIT__REPOSITORIES", '[{"name": "hospital", "host": "audit.example"}]')
    (found,) = load_settings(None).audit.repositories
    assert (found.name, found.host, found.port, found.transport) == ("hospital", "audit.example", 6514, "tls")


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ('[{"name": "a", "host": "h"}]', "needs tls_ca"),
        ('[{"name": "a", "host": "h", "transport": "udp"}, {"name": "a", "host": "i", "transport": "udp"}]', "used twice"),
        ('[{"name": "a", "host": "h", "transport": "tcp"}]', "'tls' or 'udp'"),
    ],
)
def test_says_what_is_wrong_with_repositories(monkeypatch, tables, says):
    monkeypatch.setenv("CXR_NODE__AUDIT__REPOSITORIES", tables)
    with pytest.raises(SettingsError, match=says):
        load_settings(None)


def test_the_variable_wins_over_its_file_and_both_over_toml(monkeypatch, tmp_path):
    config, secret = tmp_path / "node.toml", tmp_path / "secret"
    config.write_text("[node]\nport = 1\n")
    secret.write_text("2")
    assert load_settings(config).node.port == 1
    monkeypatch.setenv("CXR_NODE__NODE__PORT_FILE", str(secret))
    assert load_settings(config).node.port == 2
    monkeypatch.setenv("CXR_NODE__NODE__PORT", "3")
    assert load_settings(config).node.port == 3


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CXR_NODE__NOD__PORT", "1", "CXR_NODE__NOD__PORT"),
        ("CXR_NODE__NODE__PROT", "1", "node.prot"),
        ("CXR_NODE__SENDERS", "[{", "senders"),
        ("CXR_NODE__NODE", "x", "node"),
        ("CXR_NODE__NODE__PORT_FILE", "/nowhere/at/all", "CXR_NODE__NODE__PORT_FILE"),
        ("CXR_NODE__NODE__LOG_LEVEL", "loud", "node.log_level"),
        ("CXR_NODE__INFERENCE__DEVICE", "gpu", "inference.device"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=told):
        load_settings(None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[node\n", "not valid TOML"),
        (b'[node]\nae_title = "\xe9"\n', "UTF-8"),
        (b'[[senders]]\nae_title = "A"\nhosts = ["modality.local"]\n', "modality.local"),
        (b'[[destinations]]\nname = "p"\nae_title = "A"\nhost = ""\nport = 1\n', "host"),
        (b'[[destinations]]\nname = "p"\nae_title = "A"\nhost = "h"\nport = 0\n', "port"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, content, told):
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=told):
        load_settings(path)


def test_a_secret_that_is_no_text_is_named(monkeypatch, tmp_path):
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("CXR_NODE__DATABASE__URL_FILE", str(tmp_path / "secret"))
    with pytest.raises(SettingsError, match="CXR_NODE__DATABASE__URL_FILE"):
        load_settings(None)


def test_no_message_shows_the_database_s_password(monkeypatch, tmp_path):
    path = tmp_path / "node.toml"
    path.write_text('database = "postgresql://user:hunter2@host/name"\n')
    with pytest.raises(SettingsError) as told:
        load_settings(path)
    assert "hunter2" not in str(told.value)
    monkeypatch.setenv("CXR_NODE__DATABASE", "postgresql://user:hunter2@host/name")
    with pytest.raises(SettingsError) as told:
        load_settings(None)
    assert "hunter2" not in str(told.value)


def test_a_message_about_the_whole_file_shows_no_value_of_it(tmp_path):
    path = tmp_path / "node.toml"
    destination = '[[destinations]]\nname = "twice"\nae_title = "A"\nhost = "h"\nport = 1\n'
    secrets = '[database]\nurl = "postgresql://user:hunter2@host/name"\n[tls]\nkey_passphrase = "hunter2"\n'
    path.write_text(secrets + 2 * destination)
    with pytest.raises(SettingsError, match="'twice' is used twice") as told:
        load_settings(path)
    assert "hunter2" not in str(told.value)
