"""Configuration of two plain nginx hops: the same work as the tunnel, in C.

One process each, TLS 1.3 and kept connections between them, and what an operator sets for event
streams: no buffering of answers or requests, no limits of time and size. Everything, the
certificate too, lives in the folder of the run; the system's nginx is not touched.
"""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

_COMMON = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/{name}.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/{name}-body;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi;
    uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
    client_max_body_size 0;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_read_timeout 3600s;
    proxy_send_timeout 3600s;
    proxy_set_header Host $host;
    proxy_set_header Connection "";
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    upstream next {{
        server 127.0.0.1:{next};
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 3600s;
    }}
{server}}}
"""

_FRONT_SERVER = """\
    server {{
        listen 127.0.0.1:{listen} backlog=4096;
        location / {{
            proxy_pass https://next;
            proxy_ssl_protocols TLSv1.3;
        }}
    }}
"""

_INNER_SERVER = """\
    server {{
        listen 127.0.0.1:{listen} ssl backlog=4096;
        ssl_certificate {folder}/hop.crt;
        ssl_certificate_key {folder}/hop.key;
        ssl_protocols TLSv1.3;
        location / {{ proxy_pass http://next; }}
    }}
"""


def version(binary: str) -> str:
    done = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10)
    return done.stderr.strip().removeprefix("nginx version: ")


def front_conf(folder: Path, listen: int, inner: int) -> Path:
    """The hop that callers reach; returns its file."""
    return _write(folder, "front", _FRONT_SERVER.format(listen=listen), inner)


def inner_conf(folder: Path, listen: int, backend: int) -> Path:
    """The hop beside the backend, with the certificate made before; returns its file."""
    return _write(folder, "inner", _INNER_SERVER.format(listen=listen, folder=folder), backend)


def _write(folder: Path, name: str, server: str, following: int) -> Path:
    conf = folder / f"{name}.conf"
    conf.write_text(_COMMON.format(folder=folder, name=name, server=server, next=following))
    return conf


def make_certificate(folder: Path) -> None:
    """Make the certificate that `inner_conf` names, once in a folder."""
    if (folder / "hop.crt").exists():
        return
    # Needed only where nginx is measured.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .sign(key, hashes.SHA256())
    )
    (folder / "hop.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "hop.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
