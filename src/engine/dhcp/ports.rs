//! The ways in and out: an interface's frames, the UDP sockets, and interfaces that come up later.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use mio::Registry;

use super::DhcpSide;
use crate::engine::core::{Owner, Turn, watch};
use crate::engine::filters;
use crate::proto::dhcp::{Interface, ServerPort};
use crate::sys::SysError;
use crate::sys::packet::BpfInstruction;
use crate::sys::ring::{FrameBatch, FrameRing, RingUse};
use crate::sys::udp::UdpSocket;

/// An interface's frames, and the way out of it.
#[derive(Debug)]
pub(in crate::engine) struct RawPort {
    /// Out on loan while their frames are handled.
    pub(super) ring: Option<FrameRing>,
    pub(super) discovers: Option<FrameRing>,
    /// Both rings' descriptors, which they own.
    readable: [RawFd; 2],
    /// The way out, apart from the rings.
    pub(super) fd: OwnedFd,
    pub(super) batch: FrameBatch,
    pub(super) unsent: u64,
    pub(super) ip_id: u16,
    pub(super) interface: Arc<Interface>,
}

impl RawPort {
    /// # Errors
    /// As [`FrameRing::open`].
    pub(in crate::engine) fn open(
        interface: &Arc<Interface>,
        rest: (&[BpfInstruction], &RingUse),
        discovers: (&[BpfInstruction], &RingUse),
    ) -> Result<Self, SysError> {
        let open = |(filter, ring): (&[BpfInstruction], &RingUse)| {
            FrameRing::open(&interface.name, interface.index, filter, ring)
        };
        let (ring, discovers) = (open(rest)?, open(discovers)?);
        let fail = |e| SysError::new(format!("send frames on {}", interface.name), e);
        let fd = ring.sender().map_err(fail)?;
        let interface = Arc::clone(interface);
        Ok(Self {
            readable: [ring.as_raw_fd(), discovers.as_raw_fd()],
            ring: Some(ring),
            discovers: Some(discovers),
            fd,
            batch: FrameBatch::new(),
            unsent: 0,
            ip_id: 0,
            interface,
        })
    }

    /// Watches both rings; the DISCOVERs' number is one above the other's.
    pub(super) fn watch(&self, registry: &Registry, index: usize) -> io::Result<()> {
        let [rest, discovers] = self.readable;
        watch(registry, rest, Owner::DhcpRaw(index as u32 * 2))?;
        watch(registry, discovers, Owner::DhcpRaw(index as u32 * 2 + 1))
    }
}

/// A UDP socket and which of the two ports it serves.
#[derive(Debug)]
pub(in crate::engine) struct UdpPort {
    pub(in crate::engine) socket: UdpSocket,
    pub(in crate::engine) port: ServerPort,
}

/// An interface that had no address when the server started, and has one now.
#[derive(Debug)]
pub(in crate::engine) struct Arrival {
    pub(in crate::engine) interface: Arc<Interface>,
    pub(in crate::engine) raw: Option<RawPort>,
    /// With this one every interface has a raw socket: UDP must leave broadcasts to them.
    pub(in crate::engine) raw_everywhere: bool,
}

impl DhcpSide {
    pub(super) fn welcome(&mut self, arrival: Arrival, turn: &Turn<'_>) {
        if arrival.raw_everywhere
            && let Some(udp) = self.udps.iter().find(|udp| udp.port == ServerPort::Dhcp)
            && let Err(error) = udp.socket.attach_filter(&filters::udp())
        {
            // Without the filter a broadcast would be answered twice: the raw socket is let go instead.
            tracing::warn!(interface = arrival.interface.name, %error, "answered by UDP broadcast only");
            self.interfaces.push(arrival.interface);
            return;
        }
        if let Some(raw) = arrival.raw {
            if let Err(error) = raw.watch(turn.registry, self.raws.len()) {
                tracing::warn!(interface = raw.interface.name, %error, "cannot watch the raw socket");
                return;
            }
            self.ready_raw.extend([self.raws.len() as u32 * 2, self.raws.len() as u32 * 2 + 1]);
            self.raws.push(raw);
        }
        tracing::info!(interface = arrival.interface.name, address = %arrival.interface.addr, "answered on from now on");
        self.interfaces.push(arrival.interface);
    }
}
