//! The admin side: a REST API over the Unix socket of the local commands and over TCP, with health and metrics.
//!
//! ```text
//!  door ── auth ── idempotency ── routes/* ── keeper (orders, looks) ── answers
//!  who       what     said        one file       the one writer of
//!  connects  they may before?     a resource     jobs, machines, logs
//! ```
//!
//! Runs on a thread of its own (tokio, one thread) and never on a packet's core. What it changes, it changes through
//! the keeper, which stores the change and its audit entry together.
#![forbid(unsafe_code)]

mod auth;
pub mod client;
pub mod csv;
mod door;
pub mod explain;
mod idempotency;
mod loaders;
mod openapi;
mod problem;
mod routes;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use self::auth::{Caller, Failures, Refused, SocketRule};
pub use self::auth::{Role, user_name};
use self::idempotency::Answers;
pub use self::loaders::{loader_document, loader_entry, ways};
use self::problem::Problem;
pub use self::problem::RowError;
use self::tokens::Tokens;
use crate::files::library::Library;
use crate::history::History;
use crate::history::alarms::Alarms;
use crate::jobs::Identity;
use crate::jobs::book::{Book, Refusal};
use crate::jobs::script::Explained;
use crate::keeper::{Done, Keeper, Order};
use crate::store::{Store, Transition};

/// What the API works on.
pub struct State {
    /// Jobs, machines, logs.
    pub keeper: Keeper,
    /// Images and loaders.
    pub library: Arc<Library>,
    /// Timelines.
    pub history: Arc<History>,
    /// What someone should look at.
    pub alarms: Arc<Mutex<Alarms>>,
    /// The script a machine would get now.
    pub script: Box<dyn Fn(&Identity) -> Explained + Send + Sync>,
    /// Reads the configuration again, for whoever is named; why it is refused otherwise.
    pub reload: Box<dyn Fn(&str) -> Result<Reloaded, String> + Send + Sync>,
    /// Why not every listener answers, if that is so.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The metrics text.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// A folder of this server's own, with room for a second copy of the store.
    pub folder: PathBuf,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

/// A configuration that is in force.
#[derive(Debug)]
pub struct Reloaded {
    /// The tables that changed.
    pub changed: Vec<&'static str>,
    /// Whether it is in the audit log.
    pub noted: Result<(), Refusal>,
}

/// Longest request body, bytes; a bulk order's is longer.
const BODY_MAX: usize = 1 << 20;
const BULK_BODY_MAX: usize = 16 << 20;

/// What still works on folders when the server stops has so long to come to its end; then the process ends without it.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

fn body_max(path: &str) -> usize {
    if path == "/v1/jobs/bulk" { BULK_BODY_MAX } else { BODY_MAX }
}

/// How long a request's body may take. A client that lost its power in the middle of one would keep its place for ever.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

async fn in_time<T>(read: impl Future<Output = T>) -> Result<T, Problem> {
    let late = |_| {
        Problem::new(
            axum::http::StatusCode::REQUEST_TIMEOUT,
            "body-timeout",
            "the body did not come within a minute: send the order again",
        )
    };
    tokio::time::timeout(BODY_PATIENCE, read).await.map_err(late)
}

/// What every request shares.
struct Admin {
    state: Arc<State>,
    tokens: Tokens,
    failures: Failures,
    refused: Refused,
    answers: Answers,
    streams: Arc<tokio::sync::Semaphore>,
    /// A backup is made, or on its way.
    backups: Arc<tokio::sync::Semaphore>,
    /// An image is being read again.
    verifying: Arc<AtomicBool>,
    /// The admin side ends: whatever takes long breaks off.
    stopping: AtomicBool,
}

impl Admin {
    fn new(state: Arc<State>) -> Result<Self, ControlError> {
        let tokens = match state.keeper.look_and_wait(|_, store| Tokens::load(store)) {
            Ok(Ok(tokens)) => tokens,
            Ok(Err(error)) => return Err(ControlError::Tokens(error.to_string())),
            Err(refusal) => return Err(ControlError::Tokens(refusal.to_string())),
        };
        routes::backup::clear(&state.folder);
        Ok(Self {
            state,
            tokens,
            failures: Failures::default(),
            refused: Refused::default(),
            answers: Answers::default(),
            streams: Arc::new(tokio::sync::Semaphore::new(routes::events::STREAMS_MAX)),
            backups: Arc::new(tokio::sync::Semaphore::new(1)),
            verifying: Arc::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Gives an order in the caller's name, and waits until it is stored.
    async fn order(&self, order: Order, by: &Caller) -> Result<Done, Problem> {
        let (sender, receiver) = oneshot::channel();
        self.state.keeper.order(order, by.name.clone(), move |result| {
            // Whoever asked has gone.
            let _ = sender.send(result);
        });
        receiver.await.unwrap_or(Err(Refusal::Busy)).map_err(Problem::from)
    }

    /// Looks at the book and the store on the keeper's thread.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Book, &mut dyn Store) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (sender, receiver) = oneshot::channel();
        let sent = self.state.keeper.look(move |book, store| {
            // Whoever asked has gone.
            let _ = sender.send(look(book, store));
        });
        if !sent {
            return Err(Problem::busy());
        }
        receiver.await.map_err(|_| Problem::busy())
    }

    /// Stores an entry of the audit log.
    async fn append(&self, entry: Transition) -> Result<(), Refusal> {
        let stored = self.look(move |_, store| store.commit(&[entry]).map(drop)).await;
        let stored = stored.map_err(|_| Refusal::Busy)?;
        stored.map_err(|error| Refusal::StoreUnavailable { reason: error.to_string() })
    }

    /// Notes that a token was used, and stores it now and then. Nobody waits for that.
    fn note_token_use(&self, id: &str) {
        if self.tokens.used(id, SystemTime::now()) {
            let (tokens, id) = (self.tokens.clone(), id.to_owned());
            self.state.keeper.look(move |_, store| {
                if let Err(error) = tokens.store_use(&id, store) {
                    tracing::debug!(%error, "a token's last use was not stored");
                }
            });
        }
    }
}

/// Why the admin side did not start.
#[derive(Debug)]
pub enum ControlError {
    /// A live server has the socket.
    InUse(PathBuf),
    /// The stored tokens could not be read.
    Tokens(String),
    /// A listener could not be opened.
    Bind {
        /// Path or address.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(path) => write!(
                f,
                "{}: another bootstorm server answers there; stop it, or give this one its own --state",
                path.display()
            ),
            Self::Tokens(why) => write!(f, "read the API tokens: {why}"),
            Self::Bind { what, source } => {
                write!(f, "bind admin {what}: {source}")?;
                match source.kind() {
                    io::ErrorKind::AddrInUse => {
                        write!(
                            f,
                            "; another program has this port: set [admin] listen to another one, or to \"\""
                        )
                    }
                    io::ErrorKind::PermissionDenied => {
                        write!(f, "; the state folder must be writable for this user (--state names another)")
                    }
                    _ if what.starts_with("tcp ") => Ok(()),
                    _ => write!(f, "; --state names another state folder"),
                }
            }
        }
    }
}

impl std::error::Error for ControlError {}

impl ControlError {
    /// True when a privilege is missing.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// The admin side, running.
#[derive(Debug)]
pub struct Control {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    /// The TCP address really bound.
    pub tcp: Option<SocketAddr>,
}

impl Control {
    /// Opens both listeners, then serves on a thread.
    ///
    /// # Errors
    /// When a listener cannot be opened; a stale socket of a dead server is replaced.
    pub fn start(state: Arc<State>, socket: &Path, tcp: Option<SocketAddr>) -> Result<Self, ControlError> {
        let admin = Arc::new(Admin::new(state)?);
        let unix = bind_unix(socket)?;
        let rule = SocketRule::of(socket);
        let bind = |what: String| move |source| ControlError::Bind { what, source };
        let listener = match tcp {
            Some(addr) => {
                let listener = std::net::TcpListener::bind(addr).map_err(bind(format!("tcp {addr}")))?;
                listener.set_nonblocking(true).map_err(bind(format!("tcp {addr}")))?;
                Some(listener)
            }
            None => None,
        };
        let tcp = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || run(admin, unix, rule, listener, stopped))
            .map_err(bind("thread".into()))?;
        Ok(Self { stop: Some(stop), thread: Some(thread), socket: socket.to_owned(), tcp })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin thread ended by a panic");
        }
        // Gone already if somebody tidied up.
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn bind_unix(socket: &Path) -> Result<std::os::unix::net::UnixListener, ControlError> {
    let fail = |source| ControlError::Bind { what: socket.display().to_string(), source };
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    if socket.exists() {
        if UnixStream::connect(socket).is_ok() {
            return Err(ControlError::InUse(socket.to_owned()));
        }
        std::fs::remove_file(socket).map_err(fail)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(socket).map_err(fail)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660)).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

fn run(
    admin: Arc<Admin>,
    unix: std::os::unix::net::UnixListener,
    rule: SocketRule,
    tcp: Option<std::net::TcpListener>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the admin side cannot start"),
    };
    let ending = Arc::clone(&admin);
    runtime.block_on(async move {
        let router = routes::router(Arc::clone(&admin));
        let unix = tokio::net::UnixListener::from_std(unix);
        let tcp = tcp.map(tokio::net::TcpListener::from_std).transpose();
        let (unix, tcp) = match (unix, tcp) {
            (Ok(unix), Ok(tcp)) => (unix, tcp),
            (Err(error), _) | (_, Err(error)) => {
                return tracing::error!(%error, "the admin side cannot start");
            }
        };
        let remote_router = router.clone();
        let remote = async {
            match tcp {
                Some(listener) => door::remote(listener, remote_router, admin).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = door::local(unix, router, rule) => {}
            () = remote => {}
            _ = stopped => {}
        }
    });
    ending.stopping.store(true, Ordering::Relaxed);
    // Dropping it would wait for as long as it takes: a disk that hangs, or a hundred gigabytes that are read again.
    runtime.shutdown_timeout(STOP_PATIENCE);
}
