//! The admin side: an API over the Unix socket of the local commands, and health and metrics over TCP.
//!
//! Runs on a thread of its own (tokio, one thread) and never on a packet's core. What it changes, it changes through
//! the same doors as everyone: the job book, the library's scan.
//!
//! Over TCP only `/healthz` and `/metrics` answer: everything else needs tokens, which are not built yet.
#![forbid(unsafe_code)]

mod api;
pub mod client;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::files::library::Library;
use crate::history::History;
use crate::jobs::Identity;
use crate::jobs::script::Explained;
use crate::keeper::Keeper;

/// What the API works on.
pub struct State {
    /// Jobs and machines.
    pub keeper: Keeper,
    /// Images and loaders.
    pub library: Arc<Library>,
    /// Timelines.
    pub history: Arc<History>,
    /// The script a machine would get now.
    pub script: Box<dyn Fn(&Identity) -> Explained + Send + Sync>,
    /// The metrics text.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

/// Why the admin side did not start.
#[derive(Debug)]
pub enum ControlError {
    /// A live server has the socket.
    InUse(PathBuf),
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
                    _ => Ok(()),
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
        let unix = bind_unix(socket)?;
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
            .spawn(move || run(state, unix, listener, stopped))
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
    state: Arc<State>,
    unix: std::os::unix::net::UnixListener,
    tcp: Option<std::net::TcpListener>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the admin side cannot start"),
    };
    runtime.block_on(async move {
        let local = api::local(Arc::clone(&state));
        let public = api::public(state);
        let unix = async {
            match tokio::net::UnixListener::from_std(unix) {
                Ok(listener) => axum::serve(listener, local).await,
                Err(error) => Err(error),
            }
        };
        let tcp = async {
            match tcp.map(tokio::net::TcpListener::from_std).transpose() {
                Ok(Some(listener)) => axum::serve(listener, public).await,
                Ok(None) => std::future::pending().await,
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            result = unix => tracing::error!(?result, "the admin socket stopped answering"),
            result = tcp => tracing::error!(?result, "the admin port stopped answering"),
            _ = stopped => {}
        }
    });
}
