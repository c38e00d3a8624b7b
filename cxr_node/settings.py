"""One frozen tree of settings, from a TOML file, the environment and secret files.

Later wins: defaults, the file, `CXR_NODE__SECTION__KEY_FILE` (a path whose content is the value), and
`CXR_NODE__SECTION__KEY`. A list of tables (`senders`, `destinations`, `routes`) is given as JSON.

Over 300 lines: every key, with its bounds and its meaning, in one place.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableVariable

from cxr_node.errors import SettingsError
from cxr_node.peer_address import address_of, is_in, is_named_singly, network_of, plain_address, site_of
from cxr_node.records import DEFAULT_KINDS, ResultKind

_PREFIX = "CXR_NODE__"

AETitle = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")]
"""PS3.5 section 6.2: at most 16 characters of the default repertoire, no backslash, not spaces alone."""
Port = Annotated[int, Field(ge=0, le=65535)]
UserName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=255)]
Fingerprint = Annotated[
    str, BeforeValidator(lambda text: str(text).replace(":", "").lower()), StringConstraints(pattern=r"^[0-9a-f]{64}$")
]
"""SHA-256 of a certificate in hexadecimal digits, with or without colons."""

_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()\-]+)*/?")
"""Names of buckets are Amazon's rule; in the prefix stand the characters that every object store takes."""
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]*")


class Header(Protocol):
    """What routes need of a data set: pydicom's `Dataset` or a mapping."""

    def get(self, keyword: str, /) -> Any:
        """The value of an element, or None."""


_OVERLAY_SYNTAXES = {
    "raw": "1.2.840.10008.1.2.1",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NodeSettings(_Section):
    """[node]"""

    ae_title: AETitle = "CXRNODE"
    """The node's AE title, at most 16 characters; case-sensitive."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all addresses of this machine."""
    port: Port = 11112
    """DICOM port. 0: the system chooses a free one, which the line printed at start names."""
    data_dir: Path = Path("var")
    """Folder of received instances, results and the SQLite database, all on one local file system."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages to log."""


class DatabaseSettings(_Section):
    """[database]"""

    url: str = ""
    """SQLAlchemy URL, such as postgresql+psycopg://USER:PASSWORD@HOST/NAME (extra `scale`). Empty: SQLite in node.data_dir."""
    backup_dir: Path | None = None
    """Folder of the hourly copies of the SQLite database, best on another disk. Absent: `backup` in node.data_dir."""


class StorageSettings(_Section):
    """[storage]"""

    url: str = ""
    """Bucket for received instances and results, as s3://BUCKET/PREFIX (extra `scale`). Empty: node.data_dir."""
    endpoint: str = ""
    """Address of an S3-compatible object store, such as https://minio.example.org:9000. Empty: Amazon S3."""
    region: str = "us-east-1"
    """Region of the bucket."""
    access_key_id: str = ""
    """Access key ID. Empty: AWS_ACCESS_KEY_ID and the other variables of the AWS tools, or the role of the machine."""
    secret_access_key: SecretStr = SecretStr("")
    """Secret access key; give it as CXR_NODE__STORAGE__SECRET_ACCESS_KEY_FILE."""
    virtual_hosted: bool = False
    """Address the bucket as BUCKET.ENDPOINT rather than ENDPOINT/BUCKET."""
    ca: Path | None = None
    """PEM file: certificate authorities for the endpoint, in addition to the system's."""
    timeout_s: float = Field(30, gt=0)
    """Time limit for a request to the object store; a failed one is repeated for as long again."""
    spool: bool = False
    """Acknowledge an image once it is on this host's disk, and upload it afterwards: for a network that is slower than the
    modalities. Until then only that disk has the image: if the disk is lost, so is the image."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url and not _BUCKET.fullmatch(url):
            raise ValueError("write it as s3://BUCKET or s3://BUCKET/PREFIX")
        return url.rstrip("/")

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint and not re.fullmatch(r"https?://[^/@\s?#]+/?", endpoint):
            raise ValueError("write it as https://HOST or https://HOST:PORT")
        return endpoint.rstrip("/")

    @model_validator(mode="after")
    def _check_whole(self) -> StorageSettings:
        if bool(self.access_key_id) != bool(self.secret_access_key.get_secret_value()):
            raise ValueError("access_key_id and secret_access_key go together: give both, or neither")
        if self.spool and not self.url:
            raise ValueError("spool keeps images until a bucket has them: give its url, or leave spool out")
        return self


class ReceiveSettings(_Section):
    """[receive]"""

    max_associations: int = Field(64, ge=1)
    """Most associations at the same time; further ones are rejected as transient."""
    max_associations_per_sender: int = Field(32, ge=1)
    """Most associations at the same time from one address."""
    max_instances_per_minute: int = Field(0, ge=0)
    """Most instances per minute from one sender, counted over all `processes`; further ones get A700. 0: no limit."""
    max_instance_mb: int = Field(1024, ge=1)
    """Size limit of a data set in MiB; a larger one gets A700."""
    processes: int = Field(0, ge=0, le=64)
    """Number of receiver processes. 0: one for each processor, at most four."""
    accept_unknown_senders: Literal["anywhere"] | bool = True
    """Accept AE titles without a [[senders]] entry. true: only while no other machine can reach node.host; "anywhere": always;
    false: never."""
    require_called_ae_title: bool = True
    """Reject associations whose called AE title is not node.ae_title."""
    other_storage_classes: Literal["refuse", "keep"] = "refuse"
    """Instances of other storage classes than radiographs: refuse them with 0122, or keep them without analysis."""
    changed_instance: Literal["new_revision", "keep", "refuse"] = "new_revision"
    """Same SOP instance UID, other content: analyse it as a new revision, keep it without analysis, or refuse it with 0124."""
    commitment_requests: Literal["known_senders", "anyone"] = "known_senders"
    """Who may request storage commitment: only [[senders]], or every accepted sender."""
    network_timeout_s: float = Field(60, gt=0)
    """An association without traffic for this long is ended."""
    min_free_mb: int = Field(1024, ge=0)
    """With less free disk space than this (MiB), instances get A700, so the sender keeps them."""


class TlsSettings(_Section):
    """[tls]"""

    listen: bool = False
    """Accept associations over TLS."""
    port: Port | None = None
    """TLS port beside plain DICOM on node.port. Absent: node.port itself, for TLS only. 0: the system chooses a free one."""
    certificate: Path | None = None
    """PEM file: the node's certificate and the rest of its chain, for connecting peers and for destinations with `tls`."""
    key: Path | None = None
    """PEM file: the private key. Absent: it is in `certificate`."""
    key_passphrase: SecretStr = SecretStr("")
    """Passphrase of the private key; give it as CXR_NODE__TLS__KEY_PASSPHRASE_FILE."""
    ca: Path | None = None
    """PEM file: the certificate authorities to trust."""
    require_client_certificate: bool = True
    """False: peers may connect without a certificate."""
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    """The oldest TLS version to accept."""
    warn_days: int = Field(30, ge=0)
    """`status` and the log warn this many days before a certificate expires."""


class SenderSettings(_Section):
    """[[senders]]"""

    ae_title: AETitle
    """The sender's AE title."""
    hosts: tuple[str, ...] = ()
    """Addresses or networks (10.1.0.0/16) it may connect from. Empty: any."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port on which it listens for storage commitment reports; needs `hosts`. Absent: its own association only."""
    certificate_sha256: tuple[Fingerprint, ...] = ()
    """SHA-256 fingerprints of the certificates that it may present. Empty: any certificate that tls.ca has signed."""
    certificate_names: tuple[str, ...] = ()
    """Its certificate must contain one of these names (subject alternative name or common name). Empty: any."""
    user: UserName = ""
    """User name that it must send (user identity negotiation, PS3.7 annex D.3.3.7). Empty: none is required."""
    passcode_file: Path | None = None
    """File that contains the passcode for `user` and nothing else. Absent: the name is enough."""
    tls: bool = False
    """Send reports to `port` over TLS. (tls.listen controls whether it may send over TLS.)"""
    tls_ca: Path | None = None
    """PEM file: the authorities for its certificate at `port`. Absent: tls.ca."""
    tls_name: str = ""
    """The name in that certificate. Empty: the address its request came from."""
    tls_check_name: bool = True
    """False: accept any name in a certificate that `tls_ca` has signed."""
    priority: int = Field(0, ge=-1000, le=1000)
    """Images of a sender with a higher priority are analysed first, for example from an emergency department."""
    may_correct: bool = False
    """It may replace images of other senders under the same SOP instance UID, as a PACS that sends corrected images again."""

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            try:
                network_of(host)
            except ValueError:
                raise ValueError(f'{host!r} is neither an IP address nor a network such as "10.1.0.0/16"') from None
        return hosts

    def may_call_from(self, host: str) -> bool:
        """Whether an address, IPv4 or IPv6, is among `hosts`, or any will do."""
        return not self.hosts or is_in(host, self.hosts)


class DestinationSettings(_Section):
    """[[destinations]]"""

    name: str = Field(min_length=1, max_length=64)
    """A name of your own for routes, commands and logs."""
    ae_title: AETitle
    """The destination's AE title."""
    host: str = Field("", max_length=255)
    """Host name or address. The addresses of a name are tried in turn."""
    hosts: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] = ()
    """Instead of `host`, or in addition: hosts to try in turn, such as a failover pair."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """DICOM port (not the web port)."""
    calling_ae_title: AETitle | None = None
    """The AE title that the node uses for this destination. Absent: node.ae_title."""
    send: tuple[ResultKind, ...] = DEFAULT_KINDS
    """Kinds of result to send: overlay, lungs, heatmap, heatvalues, presentation, report."""
    report_as: Literal["auto", "comprehensive_3d", "comprehensive", "enhanced", "basic_text"] = "auto"
    """SOP class of the report; auto: the first of the others, in this order, that the destination accepts."""
    withdraw: Literal["none", "rejection_note"] = "none"
    """Whether to withdraw the results of an image that was corrected later, by an IOCM rejection note."""
    timeout_s: float = Field(30, gt=0)
    """Time limit for connecting and for each response."""
    max_attempts: int = Field(200, ge=1)
    """A delivery that failed this often is held until an operator acts; the growing delays add up to about a week."""
    storage_commitment: bool = False
    """Count a result as sent only after the destination has committed to it (N-EVENT-REPORT)."""
    commitment_timeout_s: float = Field(600, gt=0)
    """Without a report the node repeats the request after this time, then after twice that time, and so on."""
    commitment_host: str = Field("", max_length=255)
    """Host for storage commitment requests. Empty: the host that results are sent to."""
    commitment_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port for storage commitment requests. Absent: `port`."""
    commitment_ae_title: AETitle | None = None
    """AE title for storage commitment requests. Absent: `ae_title`."""
    delay_s: float = Field(0, ge=0)
    """Least age of a result when it is sent, for a PACS that must have the image before its results."""
    tls: bool = False
    """Connect over TLS."""
    tls_ca: Path | None = None
    """PEM file: the authorities for its certificate. Absent: tls.ca."""
    tls_name: str = ""
    """The name in its certificate. Empty: `host`."""
    tls_check_name: bool = True
    """False: accept any name in a certificate that `tls_ca` has signed."""
    user: UserName = ""
    """User name to send (user identity negotiation, PS3.7 annex D.3.3.7). Empty: none."""
    passcode_file: Path | None = None
    """File that contains the passcode to send with `user`. Absent: only the name is sent."""

    @field_validator("send")
    @classmethod
    def _check_send(cls, send: tuple[ResultKind, ...]) -> tuple[ResultKind, ...]:
        if ResultKind.WITHDRAWAL in send:
            raise ValueError('send: "withdrawal" is not for `send`; use withdraw = "rejection_note"')
        return send

    @model_validator(mode="before")
    @classmethod
    def _take_first_host(cls, given: Any) -> Any:
        """`host` is the first of `hosts` where it isn't given itself."""
        if not isinstance(given, dict) or given.get("host"):
            return given
        hosts = given.get("hosts")
        if not hosts or not isinstance(hosts, list | tuple):
            raise ValueError("host: give a host name or an address, or several as hosts = [...]")
        return {**given, "host": hosts[0]}

    @property
    def all_hosts(self) -> tuple[str, ...]:
        """`host` and `hosts`, each once, in the order in which they are tried."""
        return tuple(dict.fromkeys((self.host, *self.hosts)))


def _as_patterns(value: Any) -> Any:
    """Keyword to patterns, where one pattern may stand without a list around it."""
    if not isinstance(value, dict):
        return value
    return {keyword: (found,) if isinstance(found, str) else found for keyword, found in value.items()}


class RouteSettings(_Section):
    """[[routes]]"""

    calling_ae_title: str = "*"
    """AE title of the sender, with the wildcards * and ?."""
    match: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_as_patterns)] = {}
    """DICOM keywords with a pattern or a list of patterns. Every keyword must match one of its patterns; case is ignored."""
    destinations: tuple[str, ...]
    """Names of the destinations; an empty list sends the results nowhere."""

    @field_validator("match")
    @classmethod
    def _check_keywords(cls, match: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for keyword in match:
            if not _KEYWORD.fullmatch(keyword):
                raise ValueError(f'{keyword!r} is not a DICOM keyword: write it as in "StationName"')
        return match

    def is_for(self, calling_ae_title: str, header: Header) -> bool:
        """Whether an instance of this sender with this header takes this route."""
        return fnmatchcase(calling_ae_title, self.calling_ae_title) and all(
            any(fnmatchcase(value.upper(), pattern.upper()) for value in _values(header, keyword) for pattern in patterns)
            for keyword, patterns in self.match.items()
        )


class InferenceSettings(_Section):
    """[inference]"""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda, or cuda:0 and so on; auto: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Number format of the networks; int8 needs OpenVINO. auto: the fastest that the hardware and the weights support."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """Inference engine. OpenVINO (extra `openvino`) is faster on a CPU and starts some seconds later. auto: OpenVINO on a CPU
    where it is installed, otherwise torch."""
    max_batch: int = Field(8, ge=1)
    """Most images in one pass through the networks."""
    max_attempts: int = Field(3, ge=1)
    """A job that failed this often is held until an operator acts."""
    max_worker_deaths: int = Field(2, ge=1)
    """An image that ended the worker this often (crash, time limit, memory limit) is held until an operator acts."""
    lease_s: float = Field(120, gt=0)
    """Duration of a worker's lease on a job; without renewal another worker may claim it."""
    job_timeout_s: float = Field(120, gt=0)
    """A batch that takes longer ends the worker. Its images are then tried one at a time, each with the same limit."""
    job_memory_mb: int = Field(4096, ge=0)
    """Memory in MiB that the worker may use beyond what it uses after its start; an image that needs more fails. 0: no limit."""
    weights_dir: Path | None = None
    """Folder of other weights. Absent: the weights that come with the program."""


class OverlaySettings(_Section):
    """[overlay]"""

    max_side_px: int = Field(1280, ge=256)
    """Longest side of the overlay."""
    compression: Literal["raw", "rle", "jpeg-ls", "jpeg2000"] = "raw"
    """Lossless compression of the overlay. A destination that refuses it gets the overlay uncompressed."""
    side_by_side: bool = False
    """Show the radiograph without heat map to the left of the overlay."""

    @property
    def transfer_syntax_uid(self) -> str:
        """What `compression` is in DICOM (PS3.5 section 10)."""
        return _OVERLAY_SYNTAXES[self.compression]


class NotAnalysedSettings(_Section):
    """[not_analysed]"""

    report: bool = False
    """Send a structured report that says why an image was rejected, to destinations that receive reports."""
    overlay: bool = False
    """Send a picture that says why an image was rejected, to destinations that receive overlays."""

    @property
    def kinds(self) -> frozenset[ResultKind]:
        """The kinds of object to make."""
        wanted = {ResultKind.OVERLAY: self.overlay, ResultKind.REPORT: self.report}
        return frozenset(kind for kind in wanted if wanted[kind])


class RetentionSettings(_Section):
    """[retention]"""

    received_days: float = Field(7, ge=0)
    """Days to keep received instances."""
    results_days: float = Field(30, ge=0)
    """Days to keep results."""
    unparsed_days: float = Field(30, ge=0)
    """Days to keep data sets that could not be parsed."""


class RepositorySettings(_Section):
    """[[audit.repositories]]"""

    name: str = Field(min_length=1, max_length=64)
    """A name of your own, for status and logs."""
    host: str = Field(min_length=1, max_length=255)
    """Host name or address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 6514
    """Port of the syslog receiver."""
    transport: Literal["tls", "udp"] = "tls"
    """Syslog over TLS (RFC 5425), or in datagrams (RFC 5426), which are unencrypted and can get lost."""
    tls_ca: Path | None = None
    """PEM file: the authorities for its certificate. Absent: tls.ca. The node presents tls.certificate."""
    tls_name: str = ""
    """The name in its certificate; empty: `host`."""
    tls_check_name: bool = True
    """False: accept any name in a certificate that `tls_ca` has signed."""
    timeout_s: float = Field(30, gt=0)
    """Time limit for the repository to accept a message, or to confirm a batch of messages."""


class AuditSettings(_Section):
    """[audit]"""

    key: Path | None = None
    """PEM file: the Ed25519 key that signs checkpoints. Absent: the node creates audit/signing-key.pem in the data folder."""
    source_id: str = Field("", max_length=64)
    """AuditSourceID of messages; empty: node.ae_title."""
    enterprise_site_id: str = Field("", max_length=64)
    """AuditEnterpriseSiteID of messages; empty: none."""
    keep_days: float = Field(0, ge=0)
    """Older rows are exported to archive_dir and removed once a day. 0: rows stay in the database until they are exported."""
    archive_dir: Path | None = None
    """Folder for archives. Absent: audit/archive in node.data_dir."""
    repositories: tuple[RepositorySettings, ...] = ()
    """Audit record repositories, one table for each."""

    @model_validator(mode="after")
    def _check_names(self) -> AuditSettings:
        names = [repository.name for repository in self.repositories]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"repositories: the name {name!r} is used twice; give each repository its own name")
        return self


class OidcSettings(_Section):
    """[web.oidc]"""

    issuer: str = ""
    """The issuer URL of the provider (https://login.example.org/realms/hospital). Empty: no single sign-on."""
    client_id: str = ""
    """Client ID at the provider."""
    client_secret: SecretStr = SecretStr("")
    """Client secret at the provider; give it as a secret file."""
    scopes: tuple[str, ...] = ("openid", "profile")
    """Scopes to request."""
    name_claim: str = "preferred_username"
    """The claim of the ID token with the user's name, for the web pages and the audit log."""
    roles_claim: str = "roles"
    """The claim that lists the user's groups or roles; a dot addresses nested claims (realm_access.roles)."""
    roles: dict[str, Literal["viewer", "operator", "auditor", "admin"]] = {}
    """Maps values of that claim to roles, such as { "cxr-readers" = "viewer" }. Users without any of them are refused."""
    label: str = "Sign in with your organisation's account"
    """Text of the login button."""

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, issuer: str) -> str:
        if issuer and not re.match(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])(:|/|$)", issuer):
            raise ValueError("write it as https://…: over plain HTTP anyone on the network path could sign in")
        return issuer.rstrip("/")


class WebSettings(_Section):
    """[web]"""

    enabled: bool = True
    """False: `serve` starts no web pages, REST or metrics."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """Port. 0: the system chooses a free one, which the line printed at start names."""
    certificate: Path | None = None
    """PEM file: HTTPS with this certificate and the rest of its chain. Absent: plain HTTP, for loopback or a reverse proxy."""
    key: Path | None = None
    """PEM file: the private key. Absent: it is in `certificate`."""
    public_url: str = ""
    """The address that browsers use (https://cxr.example.org), for single sign-on. Empty: the one of the request."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted. Empty: none."""
    metrics_from: tuple[str, ...] = ("127.0.0.0/8", "::1")
    """Addresses or networks that may read /metrics without an API token."""
    idle_minutes: float = Field(30, gt=0)
    """A session ends after this time without use."""
    session_hours: float = Field(12, gt=0)
    """A session ends after this time in any case."""
    max_upload_mb: int = Field(200, ge=1)
    """Size limit of an upload in MiB."""
    upload_timeout_s: float = Field(120, gt=0)
    """A request whose body takes longer to arrive is aborted."""
    oidc: OidcSettings = OidcSettings()
    """Single sign-on by OpenID Connect."""

    @field_validator("trusted_proxies", "metrics_from")
    @classmethod
    def _check_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                network_of(network)
            except ValueError:
                raise ValueError(f'{network!r} is neither an IP address nor a network such as "10.1.0.0/16"') from None
        return networks

    @model_validator(mode="after")
    def _check_single_sign_on(self) -> WebSettings:
        if self.oidc.issuer and not (self.oidc.client_id and self.oidc.roles):
            raise ValueError("oidc: single sign-on needs issuer, client_id and roles")
        return self


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=_PREFIX, env_nested_delimiter="__")

    node: NodeSettings = NodeSettings()
    database: DatabaseSettings = DatabaseSettings()
    storage: StorageSettings = StorageSettings()
    receive: ReceiveSettings = ReceiveSettings()
    tls: TlsSettings = TlsSettings()
    senders: tuple[SenderSettings, ...] = ()
    destinations: tuple[DestinationSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    inference: InferenceSettings = InferenceSettings()
    overlay: OverlaySettings = OverlaySettings()
    not_analysed: NotAnalysedSettings = NotAnalysedSettings()
    retention: RetentionSettings = RetentionSettings()
    audit: AuditSettings = AuditSettings()
    web: WebSettings = WebSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over the TOML file, which arrives as keyword arguments."""
        return _Environment(settings_cls), init_settings

    @model_validator(mode="after")
    def _check_names(self) -> Settings:
        names = [destination.name for destination in self.destinations]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"destinations: the name {name!r} is used twice; give each destination its own name")
        for route in self.routes:
            for name in route.destinations:
                if name not in names:
                    known = ", ".join(names) or "none"
                    raise ValueError(f"routes: no destination is named {name!r} (there are: {known})")
        return self

    @model_validator(mode="after")
    def _check_certificates(self) -> Settings:
        for destination in self.destinations:
            if destination.tls and (destination.tls_ca or self.tls.ca) is None:
                raise ValueError(f"destinations: {destination.name!r} has tls = true and needs tls_ca, or tls.ca for all")
        for sender in self.senders:
            if sender.port and not sender.hosts:
                raise ValueError(
                    f"senders: {sender.ae_title!r} has a port for reports and needs hosts, its addresses: otherwise "
                    "anyone could use that title to make the node connect to any machine"
                )
            if sender.tls and sender.port is None:
                raise ValueError(f"senders: {sender.ae_title!r} has tls = true and needs a port for its reports")
            if sender.tls and (sender.tls_ca or self.tls.ca) is None:
                raise ValueError(f"senders: {sender.ae_title!r} has tls = true and needs tls_ca, or tls.ca for all")
            asks = sender.certificate_sha256 or sender.certificate_names
            if asks and not (self.tls.listen and self.tls.ca):
                raise ValueError(f"senders: a certificate of {sender.ae_title!r} can be checked only with tls.listen and tls.ca")
        for repository in self.audit.repositories:
            if repository.transport == "tls" and (repository.tls_ca or self.tls.ca) is None:
                raise ValueError(f"audit.repositories: {repository.name!r} needs tls_ca, or tls.ca for all")
        return self

    @model_validator(mode="after")
    def _check_several_hosts(self) -> Settings:
        if self.storage.url and self.database.url and self.audit.key is None:
            raise ValueError(
                "audit.key: with storage.url and database.url any host may sign the audit log: make one key "
                "(`openssl genpkey -algorithm ed25519`), and name it on every host"
            )
        return self

    @model_validator(mode="after")
    def _check_ports(self) -> Settings:
        if self.tls.listen and self.tls.port and self.tls.port == self.node.port:
            raise ValueError("tls.port equals node.port: leave it out for TLS only, or give plain DICOM another port")
        return self

    @model_validator(mode="after")
    def _check_users(self) -> Settings:
        names = [f"senders: {one.ae_title!r}" for one in self.senders if one.passcode_file and not one.user]
        names += [f"destinations: {one.name!r}" for one in self.destinations if one.passcode_file and not one.user]
        for name in names:
            raise ValueError(f"{name} has a passcode_file and needs a user")
        return self

    @property
    def is_reachable_by_others(self) -> bool:
        """Whether other machines may reach where the node listens: node.host is no loopback address."""
        return not _is_loopback(self.node.host)

    @property
    def accepts_unknown_senders(self) -> bool:
        """Whether AE titles that no [[senders]] entry has may send."""
        unknown = self.receive.accept_unknown_senders
        return unknown == "anywhere" or (bool(unknown) and not self.is_reachable_by_others)

    @property
    def database_url(self) -> str:
        """The URL to connect to, SQLite in the data folder by default."""
        return self.database.url or f"sqlite:///{self.node.data_dir.absolute() / 'cxr-node.sqlite3'}"

    def listening_sender(self, ae_title: str, host: str) -> SenderSettings | None:
        """Of the [[senders]] with this AE title and address, the first that says at which `port` it listens; None: none does."""
        for sender in self.senders:
            if sender.ae_title == ae_title and sender.port and sender.may_call_from(host):
                return sender
        return None

    def priority_of(self, calling_ae_title: str, host: str) -> int:
        """The priority of the jobs of a sender: that of the first of the [[senders]] with its AE title and address; else 0."""
        for sender in self.senders:
            if sender.ae_title == calling_ae_title and sender.may_call_from(host):
                return sender.priority
        return 0

    def peer_of(self, host: str) -> str:
        """Who an address counts as where limits are per peer: of IPv6 its /64 network, unless [[senders]] name it singly.

        A modality whose address is in the settings shares nothing with its neighbours in the same network.
        """
        is_named = any(is_named_singly(host, sender.hosts) for sender in self.senders)
        return plain_address(host) if is_named else site_of(host)

    def destinations_for(self, calling_ae_title: str, header: Header | None = None) -> tuple[DestinationSettings, ...]:
        """Where results of an image go: the first route that it matches; all destinations where none does.

        Args:
            calling_ae_title: who sent it.
            header: its data set, for routes with `match`, or None where there is none: every value in it is empty then.
        """
        for route in self.routes:
            if route.is_for(calling_ae_title, header or {}):
                return tuple(d for d in self.destinations if d.name in route.destinations)
        return self.destinations

    @property
    def route_keywords(self) -> tuple[str, ...]:
        """The keywords that routes look at, each once; empty: no header is needed to find a route."""
        return tuple(dict.fromkeys(keyword for route in self.routes for keyword in route.match))


@lru_cache(maxsize=8)
def _is_loopback(host: str) -> bool:
    """Whether a host, a name or an address, is this machine's own address for itself; a name that nobody knows isn't."""
    if (address := address_of(host)) is not None:
        return address.is_loopback
    try:
        found = [entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return False
    return bool(found) and all((one := address_of(str(address))) is not None and one.is_loopback for address in found)


def _values(header: Header, keyword: str) -> list[str]:
    """The values of an element as text, without padding; one empty text where there is none."""
    try:
        found = header.get(keyword)
    except Exception:  # a value is read when it is asked for, and a broken one raises whatever it leads to
        found = None
    several = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
    return ["" if value is None else str(value).strip() for value in several] or [""]


class _Environment(EnvSettingsSource):
    """The environment, where `CXR_NODE__SECTION__KEY_FILE=PATH` stands for what the file holds."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        values: dict[str, str | None] = {}
        for name, value in os.environ.items():
            key = name.lower()
            if not key.startswith(_PREFIX.lower()):
                continue
            if key.removeprefix(_PREFIX.lower()).removesuffix("_file").split("__")[0] not in self.settings_cls.model_fields:
                raise SettingsError(f"{name}: there is no such section; cxr-node.example.toml shows all sections")
            if key.endswith("_file"):
                try:
                    values.setdefault(key.removesuffix("_file"), Path(value).read_text("utf-8").strip())
                except OSError as error:
                    raise SettingsError(f"{name}: {value} can't be read ({error.strerror})") from error
                except UnicodeDecodeError as error:
                    raise SettingsError(f"{name}: {value} is not a text file in UTF-8") from error
            else:
                values[key] = value
        return values


def load_settings(path: Path | None) -> Settings:
    """Settings from a TOML file (None: defaults and environment alone).

    Raises:
        SettingsError: the file can't be read, is not TOML, or holds a wrong key or value; says which.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: can't be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path}: not a UTF-8 text file, as TOML requires") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path}: not valid TOML: {error}") from error
    try:
        return Settings(**content)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise SettingsError("\n".join(f"{path or 'environment'}: {line}" for line in lines)) from error
    except UnreadableVariable as error:  # it names the key alone, not the value, which may be a secret
        raise SettingsError(
            f"environment: {error}: a section or a list of tables is given as JSON, a single key as CXR_NODE__SECTION__KEY"
        ) from error


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "settings"
    if item["type"] == "extra_forbidden":
        return f"{place}: no such key; cxr-node.example.toml shows all keys"
    found = item.get("input")
    # a URL with a password, a passphrase; or a whole table, with these in it
    is_secret = place.startswith(("database", "storage", "tls", "web.oidc")) or isinstance(found, dict | list | tuple | BaseModel)
    shown = "" if is_secret else f" (found: {found!r})"
    return f"{place}: {item['msg'].removeprefix('Value error, ')}{shown}"
