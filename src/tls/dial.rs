//! The other end, for loads: it takes whatever certificate it is shown.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};

/// Begins sessions with servers whose certificate nobody looks at. For measuring, and nothing that is to be believed.
#[derive(Clone, Debug)]
pub struct Dialer(Arc<ClientConfig>);

impl Dialer {
    /// TLS 1.3 and 1.2; every handshake is a whole one. `None` when the library refuses its own defaults.
    pub fn to_anybody() -> Option<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .ok()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Some(Self(Arc::new(config)))
    }

    /// A session over `stream`, which may be one that never waits. `None` when it cannot begin.
    pub fn dial<S: Read + Write>(&self, stream: S) -> Option<Dialled<S>> {
        let name = ServerName::try_from("server").ok()?;
        let session = ClientConnection::new(Arc::clone(&self.0), name).ok()?;
        Some(Dialled(StreamOwned::new(session, stream)))
    }
}

/// A session that reads and writes like the stream below it: handshake and records go on with each call, and
/// `WouldBlock` is the stream's own.
#[derive(Debug)]
pub struct Dialled<S: Read + Write>(StreamOwned<ClientConnection, S>);

impl<S: Read + Write> Dialled<S> {
    /// Something that was written waits for the stream.
    pub fn wants_write(&self) -> bool {
        self.0.conn.wants_write()
    }
}

impl<S: Read + Write> Read for Dialled<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<S: Read + Write> Write for Dialled<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
