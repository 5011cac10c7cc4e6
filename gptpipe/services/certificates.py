"""What the object store's services know one another by, so that nobody else calls them: a certificate and keys."""

from __future__ import annotations

import ipaddress
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gptpipe.services.supervisor import write_private

_COMPONENTS = ("master", "volume", "filer", "s3", "client")
_TOKENS = ("signing", "signing.read", "filer_signing", "filer_signing.read")
_YEARS = 20


def close_inner_ports(home: Path) -> None:
    """Make the services of a SeaweedFS whose HOME is this ask every caller of their inner ports who it is.

    Those ports take orders, new keys among them, and ask nobody by themselves. Over gRPC they ask for a certificate,
    which is its own authority and whose key stays here; over HTTP for a token, signed with a key that is here too.
    """
    folder = home / ".seaweedfs"
    configuration, certificate, key = folder / "security.toml", folder / "inner.pem", folder / "inner.key"
    if configuration.exists() and "[jwt." in configuration.read_text("utf-8"):  # earlier versions wrote no tokens' keys
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made, secret = _make()
    write_private(key, secret)
    write_private(certificate, made)
    lines = [f'[grpc]\nca = "{certificate}"\n']
    lines += [f'[grpc.{name}]\ncert = "{certificate}"\nkey = "{key}"\n' for name in _COMPONENTS]
    lines += [f'[jwt.{name}]\nkey = "{secrets.token_hex(32)}"\nexpires_after_seconds = 60\n' for name in _TOKENS]
    lines += ['[cors.allowed_origins]\nvalues = ""\n']
    write_private(configuration, "\n".join(lines))


def _make() -> tuple[str, str]:
    """A self-signed certificate for this machine's loopback, and its key, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gptpipe")])
    now = datetime.now(UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), secret.decode()
