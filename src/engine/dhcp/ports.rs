//! The ways in and out: an interface's frames, the UDP sockets, and interfaces that come up later.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use mio::Registry;

use super::{DhcpSide, FRAME_LEN};
use crate::engine::core::{Owner, Turn, watch};
use crate::engine::filters::{self, DISCOVER_LEN_MAX, Part, Taken};
use crate::proto::dhcp::{Interface, ServerPort};
use crate::sys::SysError;
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
    /// What is sent to this address of the interface comes and goes by frame.
    pub(super) addressed: Option<Ipv4Addr>,
}

/// DHCP's rings on one interface: 8,192 messages of up to an Ethernet frame, and 16,384 DISCOVERs, so that a hall that is
/// switched on at once waits there and is not dropped: firmware asks four times, and all of it in step. UEFI machines that
/// were offered an address together ask for it together. Whoever looks for an answer with a capture on this host has to see it.
const RING: RingUse =
    RingUse { snapshot: FRAME_LEN, len: 16 << 20, all: false, outgoing: false, captured: true };
const DISCOVER_RING: RingUse = RingUse { snapshot: DISCOVER_LEN_MAX as usize, ..RING };

/// What raw ports take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Reach {
    /// What has no relay behind it and is sent to everybody.
    Broadcasts,
    /// And what is sent to the interface's own address.
    Addressed,
    /// All, and what this host's other server on this port answers.
    Everything,
}

impl RawPort {
    /// # Errors
    /// As [`FrameRing::open`].
    pub(in crate::engine) fn open(
        interface: &Arc<Interface>,
        port: u16,
        reach: Reach,
    ) -> Result<Self, SysError> {
        let taken = match reach {
            Reach::Broadcasts => Taken::Broadcasts,
            Reach::Addressed => Taken::Addressed(interface.addr),
            Reach::Everything => Taken::Everything,
        };
        let open = |part, ring: &RingUse| {
            let filter = filters::raw(port, taken, part);
            FrameRing::open(&interface.name, interface.index, &filter, ring)
        };
        // The other server on this very host is heard by what it sends.
        let rest = RingUse { outgoing: reach == Reach::Everything, ..RING };
        let (ring, discovers) = (open(Part::Rest, &rest)?, open(Part::Discovers, &DISCOVER_RING)?);
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
            addressed: (reach == Reach::Addressed).then_some(interface.addr),
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
}

impl DhcpSide {
    /// Leaves to the raw ports what is theirs, so that nothing is answered twice.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub(in crate::engine) fn divide(&self) -> io::Result<()> {
        let Some(udp) = self.udps.iter().find(|udp| udp.port == ServerPort::Dhcp) else { return Ok(()) };
        let has_raw = |index| self.raws.iter().any(|raw| raw.interface.index == index);
        let heard: Vec<u32> = self
            .interfaces
            .iter()
            .map(|interface| interface.index)
            .filter(|index| !has_raw(*index))
            .collect();
        let addressed = |raw: &RawPort| Some((raw.interface.index, raw.addressed?));
        let frames: Vec<_> = self.raws.iter().filter_map(addressed).collect();
        udp.socket.attach_filter(&filters::udp(&heard, &frames))
    }

    pub(super) fn welcome(&mut self, arrival: Arrival, turn: &Turn<'_>) {
        let Arrival { interface, raw } = arrival;
        if let Some(raw) = raw {
            if let Err(error) = raw.watch(turn.registry, self.raws.len()) {
                tracing::warn!(interface = interface.name, %error, "cannot watch the raw socket");
                return;
            }
            self.ready_raw.extend([self.raws.len() as u32 * 2, self.raws.len() as u32 * 2 + 1]);
            self.raws.push(raw);
        }
        self.interfaces.push(Arc::clone(&interface));
        if let Err(error) = self.divide() {
            // What both take is answered twice, with the same answer.
            tracing::warn!(interface = interface.name, %error, "cannot filter the UDP socket");
        }
        tracing::info!(interface = interface.name, address = %interface.addr, "answered on from now on");
    }
}
