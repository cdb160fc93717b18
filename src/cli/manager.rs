//! What the service manager is told (sd_notify(3)), over one socket that is made while sockets of its kind still may be: from
//! then on a taken-over server can speak to no other service of this host.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;

/// How long a message may wait for the manager to read.
const PATIENCE: Duration = Duration::from_secs(3);

/// The manager that started this process, if one did.
pub(super) struct Manager(Option<UnixDatagram>);

impl Manager {
    /// Looks for it where `NOTIFY_SOCKET` says.
    pub(super) fn find() -> Self {
        let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return Self(None) };
        let addr = match place.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(Path::new(&place)),
        };
        let connected = addr.and_then(|addr| {
            let socket = UnixDatagram::unbound()?;
            // A manager that is busy is waited for, and one that never reads does not hold this process up.
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.connect_addr(&addr)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                tracing::warn!(%error, place = %place.display(), "the service manager cannot be told anything");
                Self(None)
            }
        }
    }

    /// Tells it, if there is one.
    pub(super) fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.0 else { return };
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if let Err(error) = socket.send(lines.join("\n").as_bytes()) {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}
