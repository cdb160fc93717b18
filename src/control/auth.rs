//! Who asks, and what they may.
//!
//! Over the Unix socket the kernel says who is there: root, the server's own user, and members of the socket's group
//! are administrators. Over TCP everybody shows a bearer token, except for `/healthz`, `/readyz` and `/metrics`.
//!
//! Handlers name the role they need in their arguments ([`Reader`], [`Operator`], [`Administrator`]); one that names
//! none answers whoever has come this far.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use super::Admin;
use super::door::Place;
use super::problem::Problem;

/// What somebody may do. Each role may what the ones before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at everything but tokens and the audit log.
    Read,
    /// Order jobs and say which machines are let in.
    Operate,
    /// Everything: tokens, the audit log, making machines one and forgetting them.
    Admin,
}

impl Role {
    /// The lower-case word of lists, JSON and the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Read, Self::Operate, Self::Admin]
            .into_iter()
            .find(|role| role.word() == text)
            .ok_or("expected read, operate or admin")
    }
}

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// The Unix socket, by this user as people name them, who may or may not be one of its administrators.
    Local { who: String, admitted: bool },
    /// TCP.
    Remote(SocketAddr),
}

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// As the audit log names them: `uid 0 (root)`, `token ci (a1b2c3d4)`.
    pub(super) name: String,
    pub(super) role: Role,
    /// The token's id, where there is one.
    pub(super) token: Option<String>,
}

/// Who may talk over the socket: root, the server's own user, and the socket file's group as it is at that moment, so
/// that `chgrp` needs no restart.
#[derive(Clone, Debug)]
pub(super) struct SocketRule {
    own: u32,
    socket: PathBuf,
}

impl SocketRule {
    /// Of this process, at this socket.
    pub(super) fn of(socket: &Path) -> Self {
        Self { own: Uid::effective().as_raw(), socket: socket.to_owned() }
    }

    /// `gid` is the peer's own group and `others` its further ones, as the kernel knows them: what decides must not hang
    /// on files of names, which are replaced while a server runs, out of reach of one that is held to its own.
    pub(super) fn admits(&self, uid: u32, gid: u32, others: &[u32]) -> bool {
        let group = || std::fs::metadata(&self.socket).ok().map(|socket| socket.gid());
        uid == 0 || uid == self.own || group().is_some_and(|group| gid == group || others.contains(&group))
    }
}

/// A user as the audit log names them; without the name where it cannot be looked up.
pub fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("uid {uid} ({})", user.name),
        _ => format!("uid {uid}"),
    }
}

/// Paths that need no token.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Finds out who asks, before anything else is looked at.
pub(super) async fn identify(State(admin): State<Arc<Admin>>, mut request: Request, next: Next) -> Response {
    let origin = request.extensions().get::<Origin>().cloned();
    let caller = match &origin {
        Some(Origin::Local { who, admitted: true }) => {
            Ok(Some(Caller { name: who.clone(), role: Role::Admin, token: None }))
        }
        Some(Origin::Local { who, .. }) => {
            admin.refused.peer.fetch_add(1, Ordering::Relaxed);
            Err(Problem::new(
                StatusCode::FORBIDDEN,
                "not-your-socket",
                format!(
                    "{who} is not root, not the server's user and not in the socket's group; run the command as one \
                     of them, or use a token over TCP"
                ),
            ))
        }
        Some(Origin::Remote(peer)) => remote(&admin, request.headers(), request.uri().path(), *peer),
        None => Err(Problem::new(StatusCode::FORBIDDEN, "no-origin", "it is not known who asks")),
    };
    match caller {
        Ok(caller) => {
            if let Some(caller) = caller {
                if let Some(id) = &caller.token {
                    admin.note_token_use(id);
                    if let Some(place) = request.extensions().get::<Arc<Place>>() {
                        place.know();
                    }
                }
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

fn remote(
    admin: &Admin,
    headers: &HeaderMap,
    path: &str,
    peer: SocketAddr,
) -> Result<Option<Caller>, Problem> {
    let counted = |counter: &AtomicU64| _ = counter.fetch_add(1, Ordering::Relaxed);
    check_host(headers).inspect_err(|_| counted(&admin.refused.host))?;
    if OPEN.contains(&path) {
        return Ok(None);
    }
    let Some(shown) = bearer(headers) else {
        counted(&admin.refused.no_token);
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "token-needed",
            "over TCP this needs `Authorization: Bearer TOKEN`; `bootstorm token add` on the server makes one",
        ));
    };
    // A good token is looked at before anything is counted: it is never refused for somebody else's bad ones.
    admin.tokens.check(shown, SystemTime::now()).map(Some).map_err(|why| {
        counted(&admin.refused.token);
        tracing::debug!(%peer, %why, "an API request was refused");
        match admin.failures.count(peer.ip(), Instant::now()) {
            Ok(()) => Problem::new(StatusCode::UNAUTHORIZED, why.code(), why.to_string()),
            Err(seconds) => Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-failures",
                "too many requests with bad tokens from this address",
            )
            .retry_after(seconds),
        }
    })
}

/// Requests that nobody in particular made and that were refused, for `/metrics`.
#[derive(Debug, Default)]
pub(super) struct Refused {
    peer: AtomicU64,
    host: AtomicU64,
    no_token: AtomicU64,
    token: AtomicU64,
    room: AtomicU64,
}

impl Refused {
    /// A connection that nobody was known on was closed for another one.
    pub(super) fn made_room(&self) {
        self.room.fetch_add(1, Ordering::Relaxed);
    }

    /// As Prometheus text.
    pub(super) fn metrics(&self) -> String {
        let mut text = String::from(
            "# HELP bootstorm_admin_refused_total Admin requests refused before anything was looked at.\n# TYPE \
             bootstorm_admin_refused_total counter\n",
        );
        let reasons = [
            ("peer", &self.peer),
            ("host", &self.host),
            ("no-token", &self.no_token),
            ("token", &self.token),
            ("room", &self.room),
        ];
        for (reason, count) in reasons {
            let count = count.load(Ordering::Relaxed);
            text.push_str(&format!("bootstorm_admin_refused_total{{reason=\"{reason}\"}} {count}\n"));
        }
        text
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A page on the Internet must not reach this port through the administrator's browser under a name of its own
/// (DNS rebinding): only literal addresses and localhost are taken.
fn check_host(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "wrong-host", "ask by address or as localhost"))
}

/// Somebody who may look.
pub(super) struct Reader;
/// Somebody who may order.
pub(super) struct Operator(pub(super) Caller);
/// Somebody who may do everything.
pub(super) struct Administrator(pub(super) Caller);

fn caller(parts: &Parts, needed: Role) -> Result<Caller, Problem> {
    let caller = parts
        .extensions
        .get::<Caller>()
        .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "token-needed", "this needs a token"))?;
    if caller.role < needed {
        let detail = format!(
            "{} has the role {}, and this needs {needed}; `bootstorm token add --role {needed}` makes such a token",
            caller.name, caller.role
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, "role-too-low", detail));
    }
    Ok(caller.clone())
}

impl<S: Send + Sync> FromRequestParts<S> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        caller(parts, Role::Read).map(|_| Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        caller(parts, Role::Operate).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Administrator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        caller(parts, Role::Admin).map(Self)
    }
}

/// As whom somebody unknown counts: an address, of IPv6 the /64 that one machine can have all of.
pub(super) fn stranger(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            let prefix = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        other => other.to_canonical(),
    }
}

/// Requests with bad tokens, by address (IPv6: by /64). Bounded: the table forgets the addresses whose budgets are
/// fullest first, and past it everybody unknown shares one.
#[derive(Debug, Default)]
pub(super) struct Failures {
    budgets: Mutex<HashMap<IpAddr, Budget>>,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    const BURST: f64 = 20.0;
    const PER_SECOND: f64 = 0.5;

    fn refilled(self, now: Instant) -> f64 {
        (self.left + now.duration_since(self.at).as_secs_f64() * Self::PER_SECOND).min(Self::BURST)
    }
}

impl Failures {
    const ADDRESSES_MAX: usize = 4_096;

    /// Counts one; `Err` with seconds to wait when there were too many.
    pub(super) fn count(&self, from: IpAddr, now: Instant) -> Result<(), u32> {
        let key = stranger(from);
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= Self::ADDRESSES_MAX && !budgets.contains_key(&key) {
            budgets.retain(|_, budget| budget.refilled(now) < Budget::BURST);
        }
        let key = if budgets.len() >= Self::ADDRESSES_MAX && !budgets.contains_key(&key) {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            key
        };
        let budget = budgets.entry(key).or_insert(Budget { left: Budget::BURST, at: now });
        budget.left = budget.refilled(now);
        budget.at = now;
        if budget.left < 1.0 {
            return Err(((1.0 - budget.left) / Budget::PER_SECOND).ceil() as u32);
        }
        budget.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn roles_are_ordered_and_read_what_they_print() {
        assert!(Role::Read < Role::Operate && Role::Operate < Role::Admin);
        for role in [Role::Read, Role::Operate, Role::Admin] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn failures_are_counted_by_address_and_forgiven_with_time() {
        let failures = Failures::default();
        let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let start = Instant::now();
        let allowed = (0..100).filter(|_| failures.count(here, start).is_ok()).count();
        assert_eq!(allowed, 20);
        assert!(failures.count(there, start).is_ok(), "one address does not use up another's");
        assert_eq!(failures.count(here, start), Err(2));
        assert!(failures.count(here, start + Duration::from_secs(2)).is_ok());
    }

    #[test]
    fn one_ipv6_network_is_one_stranger_and_the_table_is_bounded() {
        let failures = Failures::default();
        let start = Instant::now();
        let of = |n: u32| format!("2001:db8::{n:x}").parse::<IpAddr>().unwrap();
        assert_eq!((0..100).filter(|n| failures.count(of(*n), start).is_ok()).count(), 20);
        for n in 0..20_000u32 {
            let _ = failures.count(IpAddr::from([10, (n >> 16) as u8, (n >> 8) as u8, n as u8]), start);
        }
        assert!(failures.budgets.lock().unwrap().len() <= Failures::ADDRESSES_MAX + 1);
    }

    #[test]
    fn the_socket_is_for_root_its_own_user_and_its_group() {
        // Whatever group this process has, the file has it too.
        let file = std::env::temp_dir().join(format!("bootstorm-rule-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let group = std::fs::metadata(&file).unwrap().gid();
        let rule = SocketRule { own: 1234, socket: file.clone() };
        assert!(rule.admits(0, 60_002, &[]) && rule.admits(1234, 60_002, &[]));
        assert!(rule.admits(60_001, group, &[]) && rule.admits(60_001, 60_002, &[60_003, group]));
        assert!(!rule.admits(60_001, 60_002, &[60_003]));
        std::fs::remove_file(&file).unwrap();
        assert!(!rule.admits(60_001, group, &[group]), "a socket that is gone admits no group");
    }

    #[test]
    fn only_literal_hosts_and_localhost_are_taken() {
        let host = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, text.parse().unwrap());
            check_host(&headers).is_ok()
        };
        for good in ["127.0.0.1:8081", "localhost", "LOCALHOST:1", "[::1]:8081", "10.0.0.1"] {
            assert!(host(good), "{good}");
        }
        for bad in ["", "evil.example", "localhost.evil.example:8081", "[evil]", "127.0.0.1.nip.io"] {
            assert!(!host(bad), "{bad}");
        }
    }
}
