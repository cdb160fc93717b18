//! Connections: who is let in, how many at once, and how long a head may take.
//!
//! Over TCP anybody may connect, and nobody is anybody before a request has shown a token. So strangers have few places by
//! address, and where there is none left the one that has been silent longest makes room: whoever opens connections and
//! says nothing takes them from themselves.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Sleep;
use tower::Service;

use super::Admin;
use super::auth::{Origin, SocketRule, stranger, user_name};
use crate::sys::peer;

/// Connections at the same time, over either way. The one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Of these from one address (IPv6: from one /64), as long as they have shown no good token.
const STRANGERS_MAX: usize = 32;
/// How long a request's head may take, and a connection may say nothing between requests.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a receiver over TCP may take nothing of what is sent to it.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// The same on this host, where a pager may stand still.
const LOCAL_PATIENCE: Duration = Duration::from_secs(10 * 60);
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
                let router = router.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    let stream = Patient { stream, patience: LOCAL_PATIENCE, stalled: None };
                    talk(stream, router, origin, None).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept on the admin socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves the network, for ever.
pub(super) async fn remote(listener: TcpListener, router: Router, admin: Arc<Admin>) {
    let places = Arc::<Places>::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let place = places.find(peer.ip(), &admin).await;
                let (router, places) = (router.clone(), Arc::clone(&places));
                tokio::spawn(async move {
                    let _leaving = Leaving { places, place: Arc::clone(&place) };
                    let stream = Patient { stream, patience: WRITE_PATIENCE, stalled: None };
                    // In this order: one that makes room must not begin to answer what is then left half done. Who is known
                    // makes no room.
                    tokio::select! {
                        biased;
                        () = place.makes_room.notified() => {
                            tracing::debug!(%peer, "an admin connection made room for another");
                        }
                        () = talk(stream, router, Origin::Remote(peer), Some(Arc::clone(&place))) => {}
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn talk<S>(stream: S, router: Router, origin: Origin, place: Option<Arc<Place>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(origin.clone());
        let at_work = place.as_ref().map(|place| {
            request.extensions_mut().insert(Arc::clone(place));
            place.begin(Instant::now())
        });
        let mut router = router.clone();
        async move {
            let answer = router.call(request).await;
            drop(at_work);
            answer
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
    // How a connection ends is the peer's affair.
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "an admin connection ended");
    }
}

/// A connection over TCP.
#[derive(Debug)]
pub(super) struct Place {
    /// Whose it is, as strangers are told apart.
    of: IpAddr,
    /// It has shown a good token, and is left alone from then on.
    known: AtomicBool,
    /// A request of it is being answered.
    at_work: AtomicBool,
    /// When it was opened, or a request came last.
    heard: Mutex<Instant>,
    makes_room: Notify,
}

impl Place {
    fn new(of: IpAddr, now: Instant) -> Self {
        Self {
            of,
            known: AtomicBool::new(false),
            at_work: AtomicBool::new(false),
            heard: Mutex::new(now),
            makes_room: Notify::new(),
        }
    }

    /// A good token was shown.
    pub(super) fn know(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// A request has come, and is answered until what is returned is dropped.
    fn begin(self: &Arc<Self>, now: Instant) -> AtWork {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.at_work.store(true, Ordering::Relaxed);
        AtWork(Arc::clone(self))
    }

    /// Strangers make room in this order.
    fn order(&self) -> (bool, Instant) {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        (self.at_work.load(Ordering::Relaxed), heard)
    }
}

struct AtWork(Arc<Place>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::Relaxed);
    }
}

/// The connections over TCP.
#[derive(Debug, Default)]
struct Places {
    open: Mutex<Vec<Arc<Place>>>,
    freed: Notify,
}

impl Places {
    fn open(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, and the one that made room for it; none where all are taken by who has shown a token.
    fn admit(&self, from: IpAddr, now: Instant) -> Option<(Arc<Place>, Option<Arc<Place>>)> {
        let of = stranger(from);
        let mut open = self.open();
        let oldest = |open: &[Arc<Place>], wanted: &dyn Fn(&Place) -> bool| {
            let strangers =
                open.iter().enumerate().filter(|(_, place)| !place.is_known() && wanted(place.as_ref()));
            strangers.min_by_key(|(_, place)| place.order()).map(|(at, _)| at)
        };
        let strangers = open.iter().filter(|place| place.of == of && !place.is_known()).count();
        let leaves = if strangers >= STRANGERS_MAX {
            oldest(&open, &|place| place.of == of)
        } else if open.len() >= CONNECTIONS_MAX {
            Some(oldest(&open, &|_| true)?)
        } else {
            None
        };
        let left = leaves.map(|at| open.swap_remove(at));
        if let Some(left) = &left {
            left.makes_room.notify_one();
        }
        let place = Arc::new(Place::new(of, now));
        open.push(Arc::clone(&place));
        Some((place, left))
    }

    /// A place, once there is one.
    async fn find(&self, from: IpAddr, admin: &Admin) -> Arc<Place> {
        loop {
            let freed = self.freed.notified();
            if let Some((place, left)) = self.admit(from, Instant::now()) {
                if left.is_some() {
                    admin.refused.made_room();
                }
                return place;
            }
            freed.await;
        }
    }
}

/// Gives a place back, however its connection ends.
struct Leaving {
    places: Arc<Places>,
    place: Arc<Place>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.places.open().retain(|place| !Arc::ptr_eq(place, &self.place));
        self.places.freed.notify_one();
    }
}

/// A stream whose receiver may not take nothing for too long.
struct Patient<S> {
    stream: S,
    patience: Duration,
    /// Until when something of what waits must be taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: Unpin> Patient<S> {
    /// What became of a try to send: an error where it is not the first and the time is up.
    fn judge<T>(&mut self, cx: &mut Context<'_>, tried: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if tried.is_ready() {
            self.stalled = None;
            return tried;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, tried)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.judge(cx, tried)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, tried)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, tried)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn strangers_make_room_for_strangers_of_their_own_address_first() {
        let places = Places::default();
        let start = Instant::now();
        let after = |n: usize| start + Duration::from_millis(n as u64);
        let admit = |from: u8, n: usize| places.admit(address(from), after(n)).unwrap();
        let other = admit(2, 0).0;
        let mine: Vec<_> = (0..STRANGERS_MAX).map(|n| admit(1, 1 + n)).collect();
        assert!(mine.iter().all(|(_, left)| left.is_none()));
        // One that asked since, one that is being answered, one that has shown a token.
        drop(mine[0].0.begin(after(100)));
        let at_work = mine[1].0.begin(after(2));
        mine[2].0.know();
        assert!(admit(1, 101).1.is_none(), "who is known takes no stranger's place");
        let left = admit(1, 102).1.expect("one makes room");
        assert!(Arc::ptr_eq(&left, &mine[3].0), "the one that has been silent longest");
        assert!(!places.open().iter().any(|place| Arc::ptr_eq(place, &left)));
        drop(at_work);
        assert!(Arc::ptr_eq(&admit(1, 103).1.expect("one makes room"), &mine[1].0));
        assert!(places.open().iter().any(|place| Arc::ptr_eq(place, &other)));
    }

    #[test]
    fn the_door_is_bounded_and_never_shut_by_strangers() {
        let places = Places::default();
        let start = Instant::now();
        let after = |n: usize| start + Duration::from_millis(n as u64);
        let mut all = Vec::new();
        for n in 0..1_000 {
            let (place, _) = places.admit(address((n % 200) as u8), after(n)).expect("there is always room");
            all.push(place);
            assert!(places.open().len() <= CONNECTIONS_MAX);
        }
        assert_eq!(places.open().len(), CONNECTIONS_MAX);
        places.open().iter().for_each(|place| place.know());
        assert!(places.admit(address(1), after(2_000)).is_none(), "who has shown a token is left alone");
        let place = Arc::clone(&places.open()[0]);
        let places = Arc::new(places);
        drop(Leaving { places: Arc::clone(&places), place });
        assert!(places.admit(address(1), after(2_001)).is_some());
    }

    #[test]
    fn a_receiver_that_takes_nothing_is_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (here, _there) = tokio::io::duplex(16);
            let mut stream = Patient { stream: here, patience: Duration::from_millis(50), stalled: None };
            stream.write_all(&[0; 16]).await.unwrap();
            let error = stream.write_all(&[0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }
}
