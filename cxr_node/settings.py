"""One frozen tree of settings, from a TOML file, the environment and secret files.

Later wins: defaults, the file, `CXR_NODE__SECTION__KEY_FILE` (a path whose content is the value), and
`CXR_NODE__SECTION__KEY`. A list of tables (`senders`, `destinations`, `routes`) is given as JSON.

Over 300 lines: every key, its bounds and what it means stand in one place.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
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
from cxr_node.records import DEFAULT_KINDS, ResultKind

_PREFIX = "CXR_NODE__"

AETitle = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")]
"""PS3.5 section 6.2: at most 16 characters of the default repertoire, no backslash, not only spaces."""
Port = Annotated[int, Field(ge=0, le=65535)]
UserName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=255)]
Fingerprint = Annotated[
    str, BeforeValidator(lambda text: str(text).replace(":", "").lower()), StringConstraints(pattern=r"^[0-9a-f]{64}$")
]
"""SHA-256 of a certificate in hexadecimal digits, with or without colons."""

_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]*")


class Header(Protocol):
    """What routes ask of a data set, as pydicom's `Dataset` or a mapping gives it."""

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
    host: str = "127.0.0.1"
    port: Port = 11112
    """0 lets the system choose; the line printed at start says which."""
    data_dir: Path = Path("var")
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class DatabaseSettings(_Section):
    """[database]"""

    url: str = ""
    """SQLAlchemy URL; empty: SQLite in node.data_dir."""
    backup_dir: Path | None = None
    """Where SQLite is copied to every hour; absent: the folder `backup` in node.data_dir. Another disk is better."""


class ReceiveSettings(_Section):
    """[receive]"""

    max_associations: int = Field(64, ge=1)
    max_associations_per_sender: int = Field(32, ge=1)
    """From one address."""
    max_instances_per_minute: int = Field(0, ge=0)
    """Of one sender, in all `processes` together; more are refused with A700 for the moment. 0: no limit."""
    max_instance_mb: int = Field(1024, ge=1)
    """A larger data set is refused with A700."""
    processes: int = Field(0, ge=0, le=64)
    """How many share the associations; 0: as many as there are processors, at most four."""
    accept_unknown_senders: bool = True
    require_called_ae_title: bool = True
    """Refuse associations that call the node by another AE title than its own."""
    other_storage_classes: Literal["refuse", "keep"] = "refuse"
    """What to do with instances that are no radiographs: refuse (0122) or keep them unanalysed."""
    changed_instance: Literal["new_revision", "keep", "refuse"] = "new_revision"
    """Same SOP instance UID, other content: keep as a new revision and analyse it, keep it without analysing, or refuse it."""
    network_timeout_s: float = Field(60, gt=0)
    min_free_mb: int = Field(1024, ge=0)
    """Below this much free disk an instance is refused with A700, so that the sender keeps it."""


class TlsSettings(_Section):
    """[tls]"""

    listen: bool = False
    """Take associations over TLS."""
    port: Port | None = None
    """Where; absent: on node.port, which then speaks nothing else. 0 lets the system choose."""
    certificate: Path | None = None
    """PEM: what the node shows to whoever connects, and to destinations with `tls`; then the rest of its chain."""
    key: Path | None = None
    """PEM; absent: in `certificate`."""
    key_passphrase: SecretStr = SecretStr("")
    ca: Path | None = None
    """PEM: the authorities whose certificates are trusted."""
    require_client_certificate: bool = True
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    warn_days: int = Field(30, ge=0)
    """From so many days before the end of a certificate on, `status` and the log warn of it."""


class SenderSettings(_Section):
    """[[senders]]"""

    ae_title: AETitle
    hosts: tuple[str, ...] = ()
    """Addresses or networks (10.1.0.0/16) it may call from; empty: any."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Where it listens for reports of storage commitment, if it doesn't wait for them on its own association."""
    certificate_sha256: tuple[Fingerprint, ...] = ()
    """It has to show one of these certificates; empty: any that tls.ca vouches for."""
    certificate_names: tuple[str, ...] = ()
    """Its certificate has to bear one of these names (subject alternative name or common name); empty: any."""
    user: UserName = ""
    """It has to give this user name (PS3.7 annex D.3.3.7); empty: none is asked for."""
    passcode_file: Path | None = None
    """Holds the passcode that it has to give with the name; absent: the name alone will do."""
    tls: bool = False
    """Reports go to `port` over TLS; what it sends comes over TLS if tls.listen says so."""
    tls_ca: Path | None = None
    """PEM: who vouches for its certificate at `port`; absent: tls.ca."""
    tls_name: str = ""
    """The name in that certificate; empty: the address that its request came from."""
    tls_check_name: bool = True
    """False: any certificate that `tls_ca` vouches for will do, whatever its name."""
    priority: int = Field(0, ge=-1000, le=1000)
    """Images of a sender with a higher one are analysed first, such as those of an emergency room."""

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            try:
                ip_network(host, strict=False)
            except ValueError:
                raise ValueError(f'{host!r} is no IP address and no network such as "10.1.0.0/16"') from None
        return hosts

    def may_call_from(self, host: str) -> bool:
        """Whether an address, IPv4 or IPv6, is among `hosts`, or any will do."""
        if not self.hosts:
            return True
        address = ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 sender on a socket that listens on "::"
        return any((mapped or address) in ip_network(network, strict=False) for network in self.hosts)


class DestinationSettings(_Section):
    """[[destinations]]"""

    name: str = Field(min_length=1, max_length=64)
    ae_title: AETitle
    host: str = Field("", max_length=255)
    """A name or an address; of a name with several addresses each is tried in turn."""
    hosts: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] = ()
    """In place of `host`, or after it: each is tried in turn, such as those of a pair of which one takes over."""
    port: Annotated[int, Field(ge=1, le=65535)]
    calling_ae_title: AETitle | None = None
    """By which the node calls this destination; absent: node.ae_title."""
    send: tuple[ResultKind, ...] = DEFAULT_KINDS
    report_as: Literal["auto", "comprehensive_3d", "comprehensive", "enhanced", "basic_text"] = "auto"
    """The class of structured report that the report goes as; auto: the first of these that the destination takes."""
    withdraw: Literal["none", "rejection_note"] = "none"
    """What tells the destination that results it has were of an image since corrected: nothing, or a rejection note (IOCM)."""
    timeout_s: float = Field(30, gt=0)
    max_attempts: int = Field(200, ge=1)
    """After as many failures a delivery is held for a person; with the growing waits, about a week."""
    storage_commitment: bool = False
    """A result counts as sent only when the destination has reported that it will keep it (N-EVENT-REPORT)."""
    commitment_timeout_s: float = Field(600, gt=0)
    """Without a report it is asked again after this time, and then after twice as long, and so on."""
    commitment_host: str = Field("", max_length=255)
    """Where storage commitment is asked for, if not where results are sent; likewise the next two."""
    commitment_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    commitment_ae_title: AETitle | None = None
    delay_s: float = Field(0, ge=0)
    """A result is sent no sooner than so long after it was made, for a PACS that has to know the image before."""
    tls: bool = False
    tls_ca: Path | None = None
    """PEM: who vouches for this destination; absent: tls.ca."""
    tls_name: str = ""
    """The name in its certificate; empty: `host`."""
    tls_check_name: bool = True
    """False: any certificate that `tls_ca` vouches for will do, whatever its name."""
    user: UserName = ""
    """The user name to give there (PS3.7 annex D.3.3.7); empty: none."""
    passcode_file: Path | None = None
    """Holds the passcode to give with the name; absent: the name alone is given."""

    @field_validator("send")
    @classmethod
    def _check_send(cls, send: tuple[ResultKind, ...]) -> tuple[ResultKind, ...]:
        if ResultKind.WITHDRAWAL in send:
            raise ValueError('send: a rejection note is no kind to be chosen here; withdraw = "rejection_note" asks for it')
        return send

    @model_validator(mode="before")
    @classmethod
    def _take_first_host(cls, given: Any) -> Any:
        """`host` is the first of `hosts` where it isn't given itself."""
        if not isinstance(given, dict) or given.get("host"):
            return given
        hosts = given.get("hosts")
        if not hosts or not isinstance(hosts, list | tuple):
            raise ValueError("host: say where it is: a name or an address, or several as hosts = [...]")
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
    match: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_as_patterns)] = {}
    """DICOM keywords (StationName) with a pattern, or a list of them: each keyword's value has to match one of its own."""
    destinations: tuple[str, ...]

    @field_validator("match")
    @classmethod
    def _check_keywords(cls, match: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for keyword in match:
            if not _KEYWORD.fullmatch(keyword):
                raise ValueError(f'{keyword!r} is no DICOM keyword, which is written like "StationName"')
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
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    engine: Literal["torch", "openvino"] = "torch"
    """What computes the networks; OpenVINO only on the CPU, where it is faster and takes seconds longer to start."""
    max_batch: int = Field(8, ge=1)
    max_attempts: int = Field(3, ge=1)
    lease_s: float = Field(120, gt=0)
    """A worker that hasn't renewed its claim for so long is taken for dead."""
    job_timeout_s: float = Field(120, gt=0)
    """A batch that takes longer ends the worker; its images are then tried one by one, each with as much time."""
    job_memory_mb: int = Field(4096, ge=0)
    """How much more memory than after its start the worker may use; an image that needs more fails. 0: no limit."""
    weights_dir: Path | None = None
    """Empty: the weights that come with the program."""


class OverlaySettings(_Section):
    """[overlay]"""

    max_side_px: int = Field(1280, ge=256)
    compression: Literal["raw", "rle", "jpeg-ls", "jpeg2000"] = "raw"
    """All without losses. A destination that doesn't take the compressed form is sent the raw one."""
    side_by_side: bool = False
    """The radiograph as it is, left of the overlay."""

    @property
    def transfer_syntax_uid(self) -> str:
        """What `compression` is in DICOM (PS3.5 section 10)."""
        return _OVERLAY_SYNTAXES[self.compression]


class NotAnalysedSettings(_Section):
    """[not_analysed]"""

    report: bool = False
    """A structured report that tells why an image was rejected, to destinations that take reports."""
    overlay: bool = False
    """A picture that tells it, to destinations that take overlays."""

    @property
    def kinds(self) -> frozenset[ResultKind]:
        """The kinds of object to make."""
        wanted = {ResultKind.OVERLAY: self.overlay, ResultKind.REPORT: self.report}
        return frozenset(kind for kind in wanted if wanted[kind])


class RetentionSettings(_Section):
    """[retention]"""

    received_days: float = Field(7, ge=0)
    results_days: float = Field(30, ge=0)
    unparsed_days: float = Field(30, ge=0)
    """Data sets that couldn't be understood, kept for a person to look at."""


class WebSettings(_Section):
    """[web]"""

    host: str = "127.0.0.1"
    port: Port = 8080


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=_PREFIX, env_nested_delimiter="__")

    node: NodeSettings = NodeSettings()
    database: DatabaseSettings = DatabaseSettings()
    receive: ReceiveSettings = ReceiveSettings()
    tls: TlsSettings = TlsSettings()
    senders: tuple[SenderSettings, ...] = ()
    destinations: tuple[DestinationSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    inference: InferenceSettings = InferenceSettings()
    overlay: OverlaySettings = OverlaySettings()
    not_analysed: NotAnalysedSettings = NotAnalysedSettings()
    retention: RetentionSettings = RetentionSettings()
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
                raise ValueError(f"destinations: the name {name!r} is used twice; give each destination a name of its own")
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
            if sender.tls and sender.port is None:
                raise ValueError(f"senders: {sender.ae_title!r} has tls = true and needs a port, to which reports go")
            if sender.tls and (sender.tls_ca or self.tls.ca) is None:
                raise ValueError(f"senders: {sender.ae_title!r} has tls = true and needs tls_ca, or tls.ca for all")
            asks = sender.certificate_sha256 or sender.certificate_names
            if asks and not (self.tls.listen and self.tls.ca):
                raise ValueError(f"senders: a certificate of {sender.ae_title!r} can be seen only with tls.listen and tls.ca")
        return self

    @model_validator(mode="after")
    def _check_ports(self) -> Settings:
        if self.tls.listen and self.tls.port and self.tls.port == self.node.port:
            raise ValueError("tls.port is node.port too: leave it out for TLS alone, or give plain DICOM another port")
        return self

    @model_validator(mode="after")
    def _check_users(self) -> Settings:
        names = [f"senders: {one.ae_title!r}" for one in self.senders if one.passcode_file and not one.user]
        names += [f"destinations: {one.name!r}" for one in self.destinations if one.passcode_file and not one.user]
        for name in names:
            raise ValueError(f"{name} has a passcode_file and needs a user")
        return self

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
                raise SettingsError(f"{name}: there is no such section; see conf/cxr-node.example.toml for those there are")
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
            raise SettingsError(f"{path}: not a text file in UTF-8, as TOML has to be") from error
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
        return f"{place}: no such key; see conf/cxr-node.example.toml for those there are"
    found = item.get("input")
    # a URL with a password, a passphrase; or a whole table, with these in it
    is_secret = place.startswith(("database", "tls")) or isinstance(found, dict | list | tuple | BaseModel)
    shown = "" if is_secret else f" (found: {found!r})"
    return f"{place}: {item['msg'].removeprefix('Value error, ')}{shown}"
