//! TLS for the data port: sessions that are handed bytes and give bytes back, and the certificate they show.
//!
//! | who can | with what |
//! |---|---|
//! | curl, browsers, openssl, UEFI HTTP Boot with the CA enrolled | TLS 1.3 or 1.2 |
//! | iPXE since January 2024, if built with `DOWNLOAD_PROTO_HTTPS` | TLS 1.2, ECDHE with an RSA certificate |
//! | iPXE before (RSA and DHE key exchange only) | nothing here: plain HTTP is for it |
//!
//! Whatever a peer names in SNI, an IP literal included, gets the one certificate there is; the extended master secret
//! is used where offered and never insisted on (iPXE before October 2025 has none); a wish for shorter records is
//! ignored, as RFC 6066 lets a server do.
#![forbid(unsafe_code)]

mod authority;
mod certificates;
mod dial;
mod session;

pub use authority::{AUTHORITY_FILE, OWN_FOLDER};
pub use certificates::{Certificates, Source, TlsError};
pub use dial::{Dialer, Dialled};
pub use session::{Refusal, Session};

#[cfg(test)]
pub(crate) mod client;
#[cfg(test)]
mod tests;
