//! A blocking client for tests: it trusts one authority and nothing else.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

/// What a client trusts and speaks.
pub(crate) type Config = ClientConfig;

/// A connection that reads and writes like any other.
pub(crate) type Client = StreamOwned<ClientConnection, TcpStream>;

/// The versions that there are, oldest first.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// Trust in one authority, and one version.
pub(crate) fn config(authority: &Path, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// A session towards 127.0.0.1.
pub(crate) fn session(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    ClientConnection::new(Arc::clone(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

/// Shakes hands over `stream`.
pub(crate) fn connect(config: &Arc<ClientConfig>, mut stream: TcpStream) -> io::Result<Client> {
    let mut session = session(config, "127.0.0.1");
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(session, stream))
}
