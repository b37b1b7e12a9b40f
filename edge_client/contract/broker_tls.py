"""TLS to an MQTT broker: settings that contradict each other, the context, and what its failures mean.

Shared by device and pipeline, whose settings have the same names in `[broker]`. A failure is one sentence
with the way out: OpenSSL names neither the file nor the setting.
"""

from __future__ import annotations

import datetime
import re
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_client.contract.errors import EdgeError

PLAIN_PORT, TLS_PORT, HTTPS_PORT = 1883, 8883, 443
# What is written for "no broker" elsewhere, as in `install-device --broker none`.
_NO_HOSTS = frozenset({"none", "null", "nil", "off", "false", "no", "-"})
# ALPN name by which AWS IoT Core knows MQTT with a client certificate on port 443, where HTTPS is the usual
# guest.
AWS_ALPN = "x-amzn-mqtt-ca"
# No broker's certificate is older; a clock before is the one of a board without a battery.
_OLDEST_CLOCK = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)
# Return codes 2 and 3 of CONNACK (MQTT 3.1.1, section 3.2.2.3), in paho's words.
_BAD_ID, _UNAVAILABLE = "Client identifier not valid", "Server unavailable"


class BrokerAddress(Protocol):
    """What both sides' `[broker]` have in common."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def username(self) -> str: ...
    @property
    def password_file(self) -> str: ...
    @property
    def tls(self) -> bool: ...
    @property
    def ca_file(self) -> str: ...
    @property
    def certificate_file(self) -> str: ...
    @property
    def key_file(self) -> str: ...
    @property
    def alpn(self) -> str | tuple[str, ...]: ...


def is_aws_endpoint(host: str) -> bool:
    """Whether a host is an endpoint of AWS IoT Core."""
    name = host.lower().rstrip(".")
    return bool(re.search(r"(^|\.)iot(-fips)?\.", name)) and name.endswith(
        (".amazonaws.com", ".amazonaws.com.cn")
    )


def is_aws(broker: BrokerAddress) -> bool:
    """Whether a broker is AWS IoT Core, by its endpoint or, under a name of one's own, by its ALPN name."""
    return is_aws_endpoint(broker.host) or AWS_ALPN in _alpn_names(broker)


def find_broker_faults(broker: BrokerAddress) -> tuple[str, ...]:
    """Return one sentence for each contradiction with which no connection can come about."""
    if not broker.host:
        return ()
    return (*_address_faults(broker), *_tls_faults(broker))


def _address_faults(broker: BrokerAddress) -> Iterator[str]:
    host = broker.host.lower()
    if host in _NO_HOSTS:
        yield f"host {broker.host}: for no broker leave it empty"
    if not 1 <= broker.port <= 65535:
        yield "port: 1 to 65535"
    if re.search(r"[/\s]", host) or host.count(":") == 1:
        yield (
            f"host {shown_address(broker.host)!r}: give the name alone; port has the port, tls = true means "
            "TLS, and WebSockets (ws, wss) are not spoken: use port 8883, or 443 with alpn"
        )
    if host.startswith("["):
        yield f"host {broker.host}: an IPv6 address is written without brackets here"
    if ".credentials.iot." in host or (
        is_aws_endpoint(host) and host.startswith(("iot.", "iot-fips.", "data."))
    ):
        yield (
            f"host {broker.host}: not the endpoint of a broker; give what `aws iot describe-endpoint "
            "--endpoint-type iot:Data-ATS` prints"
        )


def _tls_faults(broker: BrokerAddress) -> Iterator[str]:
    aws = is_aws_endpoint(broker.host)
    if bool(broker.certificate_file) != bool(broker.key_file):
        yield "certificate_file and key_file: give both or none"
    if not broker.tls and (broker.ca_file or broker.certificate_file or broker.alpn):
        yield "ca_file, certificate_file and alpn need tls = true"
    if aws and not broker.tls:
        yield (
            f"host {broker.host}: AWS IoT Core speaks TLS alone; set tls = true, port = {TLS_PORT}, "
            "certificate_file and key_file"
        )
    if aws and broker.tls and not (broker.certificate_file or broker.username):
        yield (
            f"host {broker.host}: AWS IoT Core knows a client by its certificate; give certificate_file and "
            "key_file"
        )
    if aws and broker.tls and broker.port == HTTPS_PORT and not broker.alpn:
        yield f'port = {HTTPS_PORT} of AWS IoT Core: set alpn = "{AWS_ALPN}", or port = {TLS_PORT}'


def broker_doubt(broker: BrokerAddress) -> str | None:
    """Warning of settings that hardly any broker fits; None without one."""
    if broker.host and not broker.tls and broker.port in {TLS_PORT, HTTPS_PORT}:
        return (
            f"[broker] port = {broker.port} is a port of TLS, and tls = false; set tls = true, or port = 1883"
        )
    if broker.host and broker.tls and broker.port == PLAIN_PORT:
        return f"[broker] tls = true, and port = {PLAIN_PORT} is the one without TLS; set port = {TLS_PORT}"
    if broker.password_file and not broker.username:
        return "[broker] password_file without username: the password is not sent; give username"
    return None


def open_tls_context(
    broker: BrokerAddress, on_unreadable: Callable[[OSError, Path, str], EdgeError]
) -> ssl.SSLContext:
    """Return the context for a connection to the broker.

    Args:
        broker: Settings.
        on_unreadable: Returns the error for (error, file, name of its setting).
    Raises: SettingsError that names the file which does not do; what `on_unreadable` returns.
    """

    def read(setting: str) -> bytes:
        file = Path(getattr(broker, setting)).expanduser()
        try:
            return file.read_bytes()
        except OSError as e:
            raise on_unreadable(e, file, f"[broker] {setting} {file}") from e

    # Not create_default_context: its strict checks, from Python 3.13 on, refuse CAs made by common recipes.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if broker.ca_file:
        _load_authority(context, broker.ca_file, read("ca_file"))
    else:
        context.load_default_certs()
    if broker.certificate_file:
        _check_pem(broker.certificate_file, "certificate_file", read("certificate_file"), is_key=False)
        _check_pem(broker.key_file, "key_file", read("key_file"), is_key=True)
        _load_pair(context, broker)
    if broker.alpn:
        try:
            context.set_alpn_protocols(_alpn_names(broker))
        except (ssl.SSLError, ValueError, NotImplementedError) as e:
            msg = f"[broker] alpn {_alpn_shown(broker)}: no list of names of up to 255 ASCII characters ({e})"
            raise SettingsError(msg) from e
    return context


def explain_connect_failure(error: Exception, broker: BrokerAddress) -> str:
    """Return what a failed connection means, with the way out.

    Args:
        error: What `connect` raised.
        broker: Settings.
    """
    address = f"MQTT broker {broker.host}:{broker.port}"
    return f"{address}: {_first_line(error)}; {_meaning(error, broker)}"


def is_passing_refusal(reason: str) -> bool:
    """Whether a broker refuses a connection for its own state, and not for who connects."""
    return reason == _UNAVAILABLE


def explain_refusal(broker: BrokerAddress, client_id: str, reason: str) -> str:
    """Return what it means that a broker refuses a connection by word, with the way out.

    Args:
        broker: Settings.
        client_id: Id that was used.
        reason: What CONNACK says.
    """
    if is_passing_refusal(reason):
        way_out = "it starts, or is overloaded: wait, and see its log"
    elif reason == _BAD_ID:
        way_out = f"it does not take the client id {client_id}: allow it there"
    else:
        way_out = f"check [broker] username and password_file, and whether {client_id} may connect"
    return f"MQTT broker {broker.host}:{broker.port}: refuses the connection: {reason}; {way_out}"


def explain_early_end(
    broker: BrokerAddress, client_id: str, *, will_topic: str = "", last_words: str = ""
) -> str:
    """Return what it may mean that a broker ends a connection before it has answered CONNECT.

    Args:
        broker: Settings.
        client_id: Id that was used.
        will_topic: Topic of the last will; empty: none.
        last_words: Error of the connection, where a broker says in TLS what it does not like: in TLS 1.3 it
            judges the client certificate after the handshake.
    """
    what = f"MQTT broker {broker.host}:{broker.port}: ended the connection without an answer"
    if doubt := broker_doubt(broker):
        return f"{what}; {doubt}"
    if alert := re.search(r"\[SSL: (\w*ALERT\w*)", last_words):
        return f"{what}, but with the TLS alert {alert[1].lower()}; {_alert_meaning(alert[1], broker)}"
    will = (
        f", and iot:Publish and iot:RetainPublish of the last will's topic {will_topic}" if will_topic else ""
    )
    policy = (
        f"its policy or ACL does not let a client connect as {client_id} (AWS IoT Core: iot:Connect on "
        f"client/{client_id}{will})"
    )
    if not broker.tls:
        other = "or it wants TLS, or is no MQTT port (9001 and 8083 are often WebSockets)"
        return f"{what}: {policy}, {other}; correct [broker] host, port and tls"
    if not broker.certificate_file:
        return f"{what}: {policy}, or it wants a client certificate ([broker] certificate_file, key_file)"
    return (
        f"{what}: {policy}, or it does not take the client certificate {broker.certificate_file}: it must be "
        "active, with a policy, and attached to the thing. Mend that there, or correct [broker] "
        "certificate_file, host, port and alpn"
    )


def _load_authority(context: ssl.SSLContext, file: str, data: bytes) -> None:
    try:
        context.load_verify_locations(cadata=data.decode("ascii", "ignore"))  # comments may be in any script
    except (ssl.SSLError, ValueError) as e:
        msg = (
            f"[broker] ca_file {file}: no PEM certificate ({_first_line(e)}); give the file of the CA's "
            "certificate, or leave ca_file empty for the system's CAs"
        )
        raise SettingsError(msg) from e


def _check_pem(file: str, setting: str, data: bytes, *, is_key: bool) -> None:
    """Raise SettingsError if a file is none of PEM, or holds what the other one should."""
    key, certificate = b"PRIVATE KEY-----", b"BEGIN CERTIFICATE-----"
    wanted, other = (key, certificate) if is_key else (certificate, key)
    what = "private key" if is_key else "certificate"
    if b"ENCRYPTED" in data and is_key:
        msg = (
            f"[broker] key_file {file}: the key is encrypted, and nobody is there to type its passphrase; "
            "write it without one: openssl pkey -in KEY -out NEW, readable by this user alone"
        )
        raise SettingsError(msg)
    if wanted not in data:
        hint = "certificate_file and key_file are exchanged" if other in data else "give the one in PEM"
        if b"CERTIFICATE REQUEST-----" in data and not is_key:
            hint = "it is a request (CSR): give the certificate that the CA made of it"
        msg = f"[broker] {setting} {file}: holds no {what} in PEM; {hint}"
        raise SettingsError(msg)


def _load_pair(context: ssl.SSLContext, broker: BrokerAddress) -> None:
    certificate, key = (str(Path(one).expanduser()) for one in (broker.certificate_file, broker.key_file))
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError) as e:
        reason = getattr(e, "reason", None) or ""
        if "MISMATCH" in reason:
            msg = (
                f"[broker] key_file {broker.key_file} is not the key of certificate_file "
                f"{broker.certificate_file}; give the two that were made together"
            )
        else:
            msg = (
                f"[broker] certificate_file {broker.certificate_file} or key_file {broker.key_file}: damaged "
                f"({_first_line(e)}); copy both again"
            )
        raise SettingsError(msg) from e


def _meaning(error: Exception, broker: BrokerAddress) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, broker)
    if isinstance(error, ssl.SSLError):
        return _refused_by_tls(error, broker)
    if isinstance(error, socket.gaierror):
        return "no such host, or no network or DNS now; correct [broker] host"
    if doubt := broker_doubt(broker):
        return doubt
    if isinstance(error, TimeoutError):
        port = f'; where port {TLS_PORT} is blocked, use port 443 with alpn = "{AWS_ALPN}" (AWS IoT Core)'
        way_out = f"correct [broker] host and port{port if broker.tls else ''}"
        return f"a firewall in between, or nothing there; {way_out}"
    return "start it, or correct [broker] host, port and tls"


def _unverified(error: ssl.SSLCertVerificationError, broker: BrokerAddress) -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    shown = now.isoformat(timespec="minutes")
    if now < _OLDEST_CLOCK or error.verify_code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
        return f"the clock of this machine says {shown}: set it (timedatectl), and the certificate is valid"
    if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        return (
            "the broker's certificate, or that of its CA, has expired: renew it there, or set this machine's "
            f"clock, which says {shown}"
        )
    if error.verify_code in {62, 64} or "match" in str(
        error.verify_message
    ):  # of a host name, of an IP address
        return f"its certificate is for another name than {broker.host}: give that name as [broker] host"
    if broker.ca_file:
        return (
            f"its certificate is not signed by the CA in [broker] ca_file {broker.ca_file}: name the CA's "
            "that signed it (for a self-signed one, that certificate itself), or leave ca_file empty for a "
            "public CA"
        )
    way = "name the certificate of its CA in [broker] ca_file (a self-signed one is its own)"
    if is_aws_endpoint(broker.host) and "-ats." not in broker.host:
        way = (
            "use the endpoint with -ats in its name (aws iot describe-endpoint --endpoint-type iot:Data-ATS)"
        )
    return f"no CA of this system vouches for it: {way}"


def _refused_by_tls(error: ssl.SSLError, broker: BrokerAddress) -> str:
    reason = (error.reason or "").upper()
    if "ALERT" in reason:
        return _alert_meaning(reason, broker)
    if any(one in reason for one in ("WRONG_VERSION", "RECORD_LAYER", "EOF", "PACKET_LENGTH")):
        known = "correct [broker] host, port and tls"
        return f"what answers there does not speak TLS, or ended it; {broker_doubt(broker) or known}"
    return "correct [broker] host, port and tls"


def _alert_meaning(alert: str, broker: BrokerAddress) -> str:
    """Return what a TLS alert of the broker means."""
    if "APPLICATION_PROTOCOL" in alert:
        return (
            f"it does not know [broker] alpn {_alpn_shown(broker)}; leave it empty, or give that of its "
            "manual"
        )
    if "CERTIFICATE_REQUIRED" in alert or not broker.certificate_file:
        return "it wants a client certificate: give [broker] certificate_file and key_file"
    if "EXPIRED" in alert:
        why = "it has expired, or the clock of the broker or of this machine is wrong"
    elif "REVOKED" in alert:
        why = "it was revoked"
    else:
        why = "it is not active, expired, revoked, or of a CA that the broker does not know"
    return (
        f"it does not take the client certificate {broker.certificate_file}: {why}; replace it, or allow it "
        "there"
    )


def _alpn_names(broker: BrokerAddress) -> list[str]:
    """Return the names that TLS offers: of one text in the pipeline's settings, of a list in the device's."""
    names = broker.alpn.split(",") if isinstance(broker.alpn, str) else broker.alpn
    return [name.strip() for name in names if name.strip()]


def _alpn_shown(broker: BrokerAddress) -> str:
    return ", ".join(_alpn_names(broker))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
