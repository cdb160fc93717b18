//! The commands' side of the API: over the Unix socket of this machine's server, or over TCP with a token.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a connection to another host may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take: ten thousand jobs are stored in well under a second, a slow disk may need more.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// How long the making of what is downloaded may take.
const MAKING_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// A server over TCP, as `--api` names it: `http://10.77.0.1:8081`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerUrl {
    host: String,
    port: u16,
}

/// A text is no server's URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAServerUrl;

impl fmt::Display for NotAServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a URL such as http://10.77.0.1:8081 (plain HTTP only, without a path)")
    }
}

impl std::error::Error for NotAServerUrl {}

impl FromStr for ServerUrl {
    type Err = NotAServerUrl;

    fn from_str(text: &str) -> Result<Self, NotAServerUrl> {
        let uri: hyper::Uri = text.parse().map_err(|_| NotAServerUrl)?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if uri.scheme_str() != Some("http") || !bare {
            return Err(NotAServerUrl);
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(NotAServerUrl)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(80) })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "http://[{}]:{}", self.host, self.port),
            false => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

#[derive(Clone)]
enum Endpoint {
    Socket(PathBuf),
    Remote { server: ServerUrl, token: Option<String> },
}

/// Asks a running server.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token is not for logs.
        match &self.endpoint {
            Endpoint::Socket(path) => write!(f, "Client({})", path.display()),
            Endpoint::Remote { server, .. } => write!(f, "Client({server})"),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens on the socket.
    NoServer {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens at the URL.
    Unreachable {
        /// Where.
        server: ServerUrl,
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
        /// The whole problem document.
        problem: Box<Value>,
    },
    /// The conversation broke off.
    Broken(String),
    /// What was downloaded could not be written.
    Sink(io::Error),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServer { socket, source } if source.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "{}: this user may not talk to the server; run the command as root, as the server's user, or as a \
                 member of the socket's group",
                socket.display()
            ),
            Self::NoServer { socket, source } => write!(
                f,
                "no server answers on {}: {source}; is `bootstorm serve` running, with the same --state and --config?",
                socket.display()
            ),
            Self::Unreachable { server, source } => write!(
                f,
                "no server answers on {server}: {source}; [admin] listen there must be an address that this host can \
                 reach"
            ),
            Self::Refused { detail, problem, .. } => {
                f.write_str(detail)?;
                for row in problem["errors"].as_array().into_iter().flatten() {
                    let text = |key: &str| row[key].as_str().unwrap_or_default();
                    write!(f, "\n  row {}: {} ({})", row["row"], text("detail"), text("code"))?;
                }
                let shown = problem["errors"].as_array().map_or(0, Vec::len) as u64;
                match problem["errors_total"].as_u64() {
                    Some(total) if total > shown => write!(f, "\n  and {} more", total - shown),
                    _ => Ok(()),
                }
            }
            Self::Broken(why) => write!(f, "the server broke off: {why}"),
            Self::Sink(error) => write!(f, "write what comes: {error}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl ClientError {
    /// True when this user, or this token, may not do that.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::NoServer { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Refused { status, .. } => matches!(status, 401 | 403),
            Self::Unreachable { .. } | Self::Broken(_) | Self::Sink(_) => false,
        }
    }
}

/// An answer and the version of what it shows.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The document; null where the answer has none.
    pub document: Value,
    /// Its ETag.
    pub etag: Option<String>,
}

impl Client {
    /// For the server whose socket this is.
    pub fn new(socket: PathBuf) -> Self {
        Self { endpoint: Endpoint::Socket(socket) }
    }

    /// For a server on another host. Requests and the token travel in the clear: for networks that may see them.
    pub fn remote(server: ServerUrl, token: Option<String>) -> Self {
        Self { endpoint: Endpoint::Remote { server, token } }
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask("GET", path, &[], String::new()).map(|answer| answer.document)
    }

    /// GET of what is neither JSON nor text.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; every status but 2xx is a refusal.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let raw = self.ask_raw("GET", path, &[], String::new(), None)?;
        if !raw.status.is_success() {
            return Err(raw.refused());
        }
        Ok(raw.bytes.to_vec())
    }

    /// GET of what may be long, handed over piece by piece as it comes; how many bytes that were.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; what was handed over before is then not all.
    pub fn download(&self, path: &str, mut sink: impl io::Write) -> Result<u64, ClientError> {
        let mut taken = 0;
        let mut take = |bytes: &[u8]| {
            taken += bytes.len() as u64;
            sink.write_all(bytes)
        };
        let raw = self.ask_raw("GET", path, &[], String::new(), Some(&mut take))?;
        sink.flush().map_err(ClientError::Sink)?;
        if raw.status.is_success() { Ok(taken) } else { Err(raw.refused()) }
    }

    /// GET of a text, such as `/metrics`.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; every status but 2xx is a refusal.
    pub fn text(&self, path: &str) -> Result<String, ClientError> {
        let raw = self.ask_raw("GET", path, &[], String::new(), None)?;
        if !raw.status.is_success() {
            return Err(raw.refused());
        }
        Ok(String::from_utf8_lossy(&raw.bytes).into_owned())
    }

    /// POST.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.ask("POST", path, &[], body.to_string()).map(|answer| answer.document)
    }

    /// PATCH.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.ask("PATCH", path, &[], body.to_string()).map(|answer| answer.document)
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.ask("DELETE", path, &[], String::new()).map(|answer| answer.document)
    }

    /// Any request with headers of one's own.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; every status but 2xx is a refusal.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Answer, ClientError> {
        let raw = self.ask_raw(method, path, headers, body, None)?;
        if !raw.status.is_success() {
            return Err(raw.refused());
        }
        let document = match raw.bytes.is_empty() {
            true => Value::Null,
            false => {
                serde_json::from_slice(&raw.bytes).map_err(|error| ClientError::Broken(error.to_string()))?
            }
        };
        Ok(Answer { document, etag: raw.etag })
    }

    fn ask_raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
        sink: Option<Sink<'_>>,
    ) -> Result<Raw, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        runtime.block_on(async {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if !body.is_empty() && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            {
                request = request.header("Content-Type", "application/json");
            }
            match &self.endpoint {
                Endpoint::Socket(socket) => {
                    let no_server = |source| ClientError::NoServer { socket: socket.clone(), source };
                    let stream = tokio::net::UnixStream::connect(socket).await.map_err(no_server)?;
                    converse(stream, request.header("Host", "localhost"), body, sink).await
                }
                Endpoint::Remote { server, token } => {
                    let unreachable = |source| ClientError::Unreachable { server: server.clone(), source };
                    let connect = tokio::net::TcpStream::connect((server.host.as_str(), server.port));
                    let stream = match tokio::time::timeout(CONNECT_PATIENCE, connect).await {
                        Ok(stream) => stream.map_err(unreachable)?,
                        Err(_) => return Err(unreachable(io::ErrorKind::TimedOut.into())),
                    };
                    // By address: the server takes no names, so that no web page can point one of its own there.
                    let host = stream.peer_addr().map_err(unreachable)?.to_string();
                    let mut request = request.header("Host", host);
                    if let Some(token) = token {
                        request = request.header("Authorization", format!("Bearer {token}"));
                    }
                    converse(stream, request, body, sink).await
                }
            }
        })
    }
}

/// An answer as it came.
struct Raw {
    status: hyper::StatusCode,
    etag: Option<String>,
    bytes: Bytes,
}

impl Raw {
    /// What a status other than 2xx says.
    fn refused(&self) -> ClientError {
        let document: Value = match serde_json::from_slice(&self.bytes) {
            Ok(document) => document,
            Err(error) => return ClientError::Broken(error.to_string()),
        };
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        ClientError::Refused {
            status: self.status.as_u16(),
            code: text("code"),
            detail: text("detail"),
            problem: Box::new(document),
        }
    }
}

/// Takes a body piece by piece.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

async fn converse<S>(
    stream: S,
    request: hyper::http::request::Builder,
    body: String,
    sink: Option<Sink<'_>>,
) -> Result<Raw, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: &dyn fmt::Display| ClientError::Broken(error.to_string());
    let late = |_| ClientError::Broken(format!("no answer within {} s", ANSWER_PATIENCE.as_secs()));
    let ask = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        // Ends by itself with the last answer.
        tokio::spawn(connection);
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| broken(&e))?;
        sender.send_request(request).await.map_err(|e| broken(&e))
    };
    let patience = if sink.is_some() { MAKING_PATIENCE } else { ANSWER_PATIENCE };
    let late_at = |_| ClientError::Broken(format!("no answer within {} s", patience.as_secs()));
    let response = tokio::time::timeout(patience, ask).await.map_err(late_at)??;
    let status = response.status();
    let etag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
    let mut body = response.into_body();
    let bytes = match sink.filter(|_| status.is_success()) {
        None => {
            let all = tokio::time::timeout(ANSWER_PATIENCE, body.collect()).await.map_err(late)?;
            all.map_err(|e| broken(&e))?.to_bytes()
        }
        Some(sink) => {
            while let Some(frame) = tokio::time::timeout(ANSWER_PATIENCE, body.frame()).await.map_err(late)? {
                let frame = frame.map_err(|e| broken(&e))?;
                if let Some(bytes) = frame.data_ref() {
                    sink(bytes).map_err(ClientError::Sink)?;
                }
            }
            Bytes::new()
        }
    };
    Ok(Raw { status, etag, bytes })
}

/// A text as one part of a path or query: everything but letters, digits and `-._~` percent-encoded.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_urls_are_plain_http_without_a_path() {
        for (text, shown) in [
            ("http://10.77.0.1:8081", "http://10.77.0.1:8081"),
            ("http://boot.example/", "http://boot.example:80"),
            ("http://[::1]:8081", "http://[::1]:8081"),
        ] {
            assert_eq!(text.parse::<ServerUrl>().unwrap().to_string(), shown);
        }
        for bad in
            ["", "10.77.0.1:8081", "https://10.77.0.1", "http://", "http://10.77.0.1/v1", "http://x/?a=b"]
        {
            assert!(bad.parse::<ServerUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_does_not_print_its_token() {
        let client = Client::remote("http://127.0.0.1:1".parse().unwrap(), Some("bst-secret".into()));
        assert!(!format!("{client:?}").contains("secret"));
    }

    #[test]
    fn path_parts_are_escaped() {
        assert_eq!(escaped("52:54 a/b?c&d=ä"), "52%3A54%20a%2Fb%3Fc%26d%3D%C3%A4");
    }
}
