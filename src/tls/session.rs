//! One connection's TLS, without a socket.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::{Error, ServerConfig, ServerConnection};

/// Why a peer's bytes ended its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// They are no TLS: plain HTTP on the wrong port, or noise.
    NotTls,
    /// No version, cipher suite, group or signature that both sides have.
    Incompatible,
    /// The peer gave up: it does not trust the certificate, most likely.
    Alert,
    /// Everything else that breaks the protocol.
    Broken,
}

impl Refusal {
    /// For logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotTls => "not-tls",
            Self::Incompatible => "incompatible",
            Self::Alert => "peer-alert",
            Self::Broken => "broken",
        }
    }

    fn of(error: &Error, handshaking: bool) -> Self {
        match error {
            Error::InvalidMessage(_) if handshaking => Self::NotTls,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Incompatible,
            Error::AlertReceived(_) => Self::Alert,
            _ => Self::Broken,
        }
    }
}

/// A server's side of one TLS connection.
#[derive(Debug)]
pub struct Session {
    connection: ServerConnection,
}

impl Session {
    /// A session before its first byte; `None` when the configuration cannot begin one.
    pub fn new(config: &Arc<ServerConfig>) -> Option<Self> {
        let mut connection = ServerConnection::new(Arc::clone(config)).ok()?;
        // The sender seals only as much as it can send at once.
        connection.set_buffer_limit(None);
        Some(Self { connection })
    }

    /// Takes what came from the peer; what it said is appended to `plain`. There may be something to send afterwards,
    /// after an error too (the alert that tells the peer).
    ///
    /// # Errors
    /// The session is over.
    pub fn receive(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let handshaking = self.connection.is_handshaking();
            // From a slice this fails only when plaintext was left behind, which it never is.
            let taken = self.connection.read_tls(&mut bytes).map_err(|_| Refusal::Broken)?;
            let state = match self.connection.process_new_packets() {
                Ok(state) => state,
                Err(error) => return Err(Refusal::of(&error, handshaking)),
            };
            let (start, len) = (plain.len(), state.plaintext_bytes_to_read());
            plain.resize(start + len, 0);
            self.connection.reader().read_exact(&mut plain[start..]).map_err(|_| Refusal::Broken)?;
            if taken == 0 {
                // After a close_notify nothing more is taken.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Encrypts all of `bytes`; they leave with [`Session::flush`].
    pub fn seal(&mut self, bytes: &[u8]) {
        // Without a limit the buffer takes everything, and a Vec does not fail.
        let _ = self.connection.writer().write_all(bytes);
    }

    /// Something waits for [`Session::flush`].
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Hands waiting bytes to `socket`, as many as it takes in one call.
    ///
    /// # Errors
    /// The socket's.
    pub fn flush(&mut self, socket: &mut impl Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Keys are not agreed on yet.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// `1.2` or `1.3`, once agreed on.
    pub fn version(&self) -> Option<&'static str> {
        Some(match self.connection.protocol_version()? {
            rustls::ProtocolVersion::TLSv1_3 => "1.3",
            _ => "1.2",
        })
    }

    /// Queues the end of the stream, without which a receiver must take what it has for cut short.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
