//! Connections: who is let in, how many at once, and how long a head may take.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::auth::{Origin, SocketRule, user_name};
use crate::sys::peer;

/// Connections at the same time, over either way. The one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// How long a request's head may take, and a connection may say nothing between requests.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// After an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the local commands, for ever.
pub(super) async fn local(listener: UnixListener, router: Router, rule: SocketRule) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without credentials nobody is anybody.
                let Ok(who) = stream.peer_cred() else { continue };
                let groups = peer::groups(&stream).unwrap_or_default();
                let admitted = rule.admits(who.uid(), who.gid(), &groups);
                let origin = Origin::Local { who: user_name(who.uid()), admitted };
                tokio::spawn(talk(stream, router.clone(), origin, permit));
            }
            Err(error) => {
                tracing::debug!(%error, "accept on the admin socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves the network, for ever.
pub(super) async fn remote(listener: TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(talk(stream, router.clone(), Origin::Remote(peer), permit));
            }
            Err(error) => {
                tracing::debug!(%error, "accept on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn talk<S>(stream: S, router: Router, origin: Origin, _permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(origin.clone());
        router.clone().call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
    // How a connection ends is the peer's affair.
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "an admin connection ended");
    }
}
