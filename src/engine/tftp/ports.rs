//! The ports that transfers are served from.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;

use crate::sys::SysError;
use crate::sys::udp::{UdpOptions, UdpSocket};

/// Data ports of one core.
pub(in crate::engine) const DATA_PORTS: usize = 8;
/// Receive buffer of each socket: a hall of machines asks at once, and peers lose requests in the default 212 KiB.
pub(super) const RECV_BUFFER: i32 = 8 << 20;
/// Send buffer of each socket: a quantum for a good many transfers fits, where the default loses a single window of the
/// largest blocks.
pub(super) const SEND_BUFFER: i32 = 4 << 20;
/// A data port: the address that a datagram comes to is its transfer's, so nobody asks for it.
pub(super) const DATA_PORT: UdpOptions<'static> = UdpOptions {
    reuse_port: false,
    broadcast: false,
    recv_buffer: RECV_BUFFER,
    send_buffer: SEND_BUFFER,
    fragment: true,
    device: None,
    anonymous: true,
};

/// The data ports of all cores: one run without a hole, in which a port belongs to the core it is congruent to, so
/// that a packet filter can tell both with a comparison.
pub(in crate::engine) struct DataPorts {
    sockets: Vec<Vec<UdpSocket>>,
    /// All of them.
    pub(in crate::engine) range: Range<u16>,
}

impl DataPorts {
    /// Where runs are looked for first: the dynamic ports (RFC 6335 §6).
    const FIRST: u16 = 49152;
    /// Runs tried before it is left to the kernel to find single ports.
    const TRIES: u16 = 64;

    /// Binds them. Where no run is free, ports anywhere do, but [`DataPorts::range`] is empty and frames cannot be
    /// told apart.
    pub(in crate::engine) fn bind(cores: usize, seed: u32) -> Result<Self, SysError> {
        let options = DATA_PORT;
        let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let len = (cores * DATA_PORTS) as u16;
        let runs = (u16::MAX - Self::FIRST) / len.max(1);
        for attempt in 0..Self::TRIES.min(runs.saturating_sub(1)) {
            // Servers started one after the other do not try the same runs first.
            let run = 1 + ((seed.wrapping_mul(0x9e37_79b1) >> 16) as u16).wrapping_add(attempt) % (runs - 1);
            // The first of a run is congruent to core 0.
            let first = (Self::FIRST + run * len).next_multiple_of(cores as u16);
            let Some(end) = first.checked_add(len) else { continue };
            let bound: Result<Vec<_>, _> =
                (first..end).map(|port| UdpSocket::bind(any(port), &options)).collect();
            let Ok(bound) = bound else { continue };
            let mut sockets: Vec<Vec<UdpSocket>> = (0..cores).map(|_| Vec::new()).collect();
            for socket in bound {
                sockets[usize::from(socket.local().port()) % cores].push(socket);
            }
            // Handed out from the end.
            sockets.reverse();
            return Ok(Self { sockets, range: first..end });
        }
        let single = || UdpSocket::bind(any(0), &options);
        let sockets = (0..cores)
            .map(|_| (0..DATA_PORTS).map(|_| single()).collect())
            .collect::<Result<Vec<Vec<_>>, SysError>>()?;
        Ok(Self { sockets, range: 0..0 })
    }

    /// None: the listeners send as well.
    pub(in crate::engine) fn none() -> Self {
        Self { sockets: Vec::new(), range: 0..0 }
    }

    /// The next core's.
    pub(super) fn take(&mut self) -> Vec<UdpSocket> {
        self.sockets.pop().unwrap_or_default()
    }
}
