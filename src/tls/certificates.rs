//! Which certificate is shown, and how a new one takes its place while connections run.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{self, CERTIFICATE, KEY};

/// Where the certificate comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// PEM files that somebody else keeps: the chain, leaf first, and its key.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// PKCS#8, PKCS#1 or SEC1.
        key: PathBuf,
    },
    /// An own authority in this folder.
    Own {
        /// The folder.
        folder: PathBuf,
        /// This server's name, if it has one.
        host: Option<String>,
    },
}

/// What is wrong with a certificate or its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsError(String);

impl TlsError {
    pub(super) fn file(path: &Path, error: &io::Error) -> Self {
        Self(format!("{}: {error}", path.display()))
    }

    pub(super) fn bad(path: &Path, error: &dyn std::fmt::Display) -> Self {
        Self(format!("{}: {error}", path.display()))
    }
}

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// What tells one version of a file from the next.
type Stamp = (u64, u64, Option<SystemTime>);

/// The certificate in force. Sessions begin with [`Certificates::config`]; those that run keep what they began with.
#[derive(Debug)]
pub struct Certificates {
    source: Source,
    config: ArcSwap<ServerConfig>,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    stamps: [Option<Stamp>; 2],
    /// Said once.
    complaint: Option<TlsError>,
}

impl Certificates {
    /// Reads the files, or makes what is missing of an own authority with a certificate for `addresses`.
    ///
    /// # Errors
    /// A file that cannot be read or written, is no PEM, or holds another key than the certificate's.
    pub fn open(source: Source, addresses: &[Ipv4Addr]) -> Result<Self, TlsError> {
        if let Source::Own { folder, host } = &source {
            authority::prepare(folder, addresses, host.as_deref())?;
        }
        let (certificate, key) = source.paths();
        let stamps = [stamp(&certificate), stamp(&key)];
        let config = ArcSwap::from(load(&certificate, &key)?);
        Ok(Self { source, config, looked: Mutex::new(Looked { stamps, complaint: None }) })
    }

    /// What a new session begins with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Looks whether the files have changed (or, with an own authority, whether the addresses have, or the certificate
    /// is old) and takes the new certificate from then on. True when it did. To be called every few seconds.
    ///
    /// # Errors
    /// What is wrong with the new files, once; the certificate in force stays, and the next look tries again.
    pub fn look(&self, addresses: &[Ipv4Addr]) -> Result<bool, TlsError> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = match &self.source {
            Source::Own { folder, host } => authority::prepare(folder, addresses, host.as_deref()),
            Source::Files { .. } => Ok(()),
        };
        let (certificate, key) = self.source.paths();
        let stamps = [stamp(&certificate), stamp(&key)];
        let loaded = renewed.and_then(|()| match stamps == looked.stamps {
            true => Ok(None),
            false => load(&certificate, &key).map(Some),
        });
        match loaded {
            Ok(loaded) => {
                looked.complaint = None;
                looked.stamps = stamps;
                let new = loaded.is_some();
                loaded.into_iter().for_each(|config| self.config.store(config));
                Ok(new)
            }
            Err(error) if looked.complaint.as_ref() == Some(&error) => Ok(false),
            Err(error) => {
                looked.complaint = Some(error.clone());
                Err(error)
            }
        }
    }
}

impl Source {
    fn paths(&self) -> (PathBuf, PathBuf) {
        match self {
            Self::Files { certificate, key } => (certificate.clone(), key.clone()),
            Self::Own { folder, .. } => (folder.join(CERTIFICATE), folder.join(KEY)),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.modified().ok()))
}

fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = fs::read(certificate).map_err(|e| TlsError::file(certificate, &e))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| TlsError::bad(certificate, &e))?;
    if chain.is_empty() {
        return Err(TlsError::bad(certificate, &"no CERTIFICATE in it"));
    }
    let pem = fs::read(key).map_err(|e| TlsError::file(key, &e))?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| TlsError::bad(key, &e))?;
    let fail = |error: rustls::Error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError(format!("{}: not the key of {}", key.display(), certificate.display()))
        }
        error => TlsError::bad(certificate, &error),
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(fail)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(fail)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A hall comes back for every file; whoever was here before proves it with a ticket instead of a signature of ours.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(fail)?;
    Ok(Arc::new(config))
}
