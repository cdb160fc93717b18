//! The local commands' side of the Unix socket.

use std::fmt;
use std::io;
use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// Asks a running server.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens there.
    NoServer {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server said no.
    Refused {
        /// HTTP status.
        status: u16,
        /// One word.
        code: String,
        /// One line.
        detail: String,
    },
    /// The conversation broke off.
    Broken(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServer { socket, source } if source.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "{}: this user may not talk to the server; run the command as root or as the server's user",
                socket.display()
            ),
            Self::NoServer { socket, source } => write!(
                f,
                "no server answers on {}: {source}; is `bootstorm serve` running, with the same --state and --config?",
                socket.display()
            ),
            Self::Refused { detail, .. } => f.write_str(detail),
            Self::Broken(why) => write!(f, "the server broke off: {why}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl ClientError {
    /// True when this user may not talk to the server.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::NoServer { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl Client {
    /// For the server whose socket this is.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask("GET", path, String::new())
    }

    /// POST.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.ask("POST", path, body.to_string())
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.ask("DELETE", path, String::new())
    }

    fn ask(&self, method: &str, path: &str, body: String) -> Result<Value, ClientError> {
        let broken = |error: &dyn fmt::Display| ClientError::Broken(error.to_string());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| broken(&e))?;
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::NoServer { socket: self.socket.clone(), source })?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
            // Ends by itself with the last answer.
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("Host", "localhost")
                .body(Full::new(Bytes::from(body)))
                .map_err(|e| broken(&e))?;
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let status = response.status();
            let bytes = response.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
            let value: Value = serde_json::from_slice(&bytes).map_err(|e| broken(&e))?;
            if status.is_success() {
                return Ok(value);
            }
            let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            Err(ClientError::Refused { status: status.as_u16(), code: text("code"), detail: text("detail") })
        })
    }
}
