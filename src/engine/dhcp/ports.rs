//! The ways in and out: an interface's frames, the UDP sockets, and interfaces that come up later.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use mio::Registry;

use super::{DhcpSide, FRAME_LEN};
use crate::engine::core::{Owner, Turn, watch};
use crate::engine::filters::{self, ADDRESSED_LEN_MAX, DISCOVER_LEN_MAX, DhcpRings, Part};
use crate::engine::probe::Prober;
use crate::engine::start::renew;
use crate::proto::dhcp::{Interface, ServerPort};
use crate::sys::ring::{FrameBatch, FrameRing, Group, RingUse};
use crate::sys::udp::UdpSocket;
use crate::sys::{SysError, interfaces};

/// The rings of one interface, in the order in which they are served: exchanges under way, which nobody is to drop, first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// What is sent to everybody and begins no exchange, and what other servers answer.
    Rest,
    /// What is sent to the interface's own address.
    Addressed,
    /// What is sent to everybody and begins an exchange.
    Discovers,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Rest, Self::Addressed, Self::Discovers];
}

/// An interface's frames, and the way out of it.
#[derive(Debug)]
pub(in crate::engine) struct RawPort {
    /// One for each [`Kind`]; out on loan while its frames are handled.
    pub(super) rings: [Option<FrameRing>; 3],
    /// The way out, apart from the rings.
    pub(super) fd: OwnedFd,
    pub(super) batch: FrameBatch,
    pub(super) unsent: u64,
    pub(super) ip_id: u16,
    pub(super) interface: Arc<Interface>,
    /// What is sent to this address of the interface comes and goes by frame.
    pub(super) addressed: Option<Ipv4Addr>,
    /// The rings' own, where they have one: others may join.
    group: Option<(Group, DhcpRings)>,
}

/// 8,192 messages of up to an Ethernet frame, and 16,384 DISCOVERs, so that a hall that is
/// switched on at once waits there and is not dropped: firmware asks four times, and all of it in step. UEFI machines that
/// were offered an address together ask for it together. Whoever looks for an answer with a capture on this host has to see it.
const RING: RingUse =
    RingUse { snapshot: FRAME_LEN, len: 16 << 20, all: false, outgoing: false, captured: true };
const DISCOVER_RING: RingUse = RingUse { snapshot: DISCOVER_LEN_MAX as usize, ..RING };
/// 4,096 messages, as many as a UDP socket's buffer would hold of them.
const ADDRESSED_RING: RingUse = RingUse { snapshot: 14 + ADDRESSED_LEN_MAX as usize, len: 8 << 20, ..RING };

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
    /// The interface is an Ethernet, or looks like one.
    ///
    /// # Errors
    /// As [`FrameRing::open`].
    pub(in crate::engine) fn open(
        interface: &Arc<Interface>,
        port: u16,
        reach: Reach,
    ) -> Result<Self, SysError> {
        let Interface { name, index, addr, .. } = &**interface;
        let raw = |part, ring: &RingUse| {
            let filter = filters::raw(port, *index, reach == Reach::Everything, part);
            FrameRing::open(name, *index, &filter, ring)
        };
        // The other server on this very host is heard by what it sends.
        let ring = raw(Part::Rest, &RingUse { outgoing: reach == Reach::Everything, ..RING })?;
        let discovers = raw(Part::Discovers, &DISCOVER_RING)?;
        let addressed = match reach {
            Reach::Addressed => {
                let filter = filters::addressed(port, *index, *addr);
                Some(FrameRing::open(name, *index, &filter, &ADDRESSED_RING)?)
            }
            Reach::Broadcasts | Reach::Everything => None,
        };
        let fd = ring.sender().map_err(|e| SysError::new(format!("send frames on {name}"), e))?;
        let members = DhcpRings { port, addressed: addressed.is_some() };
        let others = [Some(&discovers), addressed.as_ref()];
        let group = match reach {
            // That one hears frames of every protocol, and so can share with none of the others.
            Reach::Everything => None,
            Reach::Broadcasts | Reach::Addressed => share(&ring, others.into_iter().flatten(), members)
                // Then the kernel asks every ring's filter, and what each takes is the same.
                .inspect_err(|error| tracing::debug!(interface = name, %error, "DHCP's rings do not share"))
                .ok(),
        };
        Ok(Self {
            addressed: addressed.is_some().then_some(*addr),
            rings: [Some(ring), addressed, Some(discovers)],
            fd,
            batch: FrameBatch::new(),
            unsent: 0,
            ip_id: 0,
            interface: Arc::clone(interface),
            group: group.map(|group| (group, members)),
        })
    }

    /// Watches the rings.
    pub(super) fn watch(&self, registry: &Registry, index: usize) -> io::Result<()> {
        let first = index * self.rings.len();
        for (number, ring) in (first..).zip(&self.rings) {
            if let Some(ring) = ring {
                watch(registry, ring.as_raw_fd(), Owner::DhcpRaw(number as u32))?;
            }
        }
        Ok(())
    }

    /// What is sent to the interface's address is left to the UDP socket from now on.
    fn leave_addressed(&mut self) {
        tracing::info!(
            interface = self.interface.name,
            address = %self.interface.addr,
            "relays are answered by UDP from now on"
        );
        self.addressed = None;
        // It stays open: the positions of those that joined after it are counted with it.
        if let Some(ring) = &self.rings[Kind::Addressed as usize]
            && let Err(error) = ring.filter(&filters::nothing())
        {
            tracing::warn!(interface = self.interface.name, %error, "relays may be answered twice, by frame and by UDP");
        }
    }
}

/// Has rings share an interface, in this order. Where it fails half-way, each of them still gets what is its own: those that have not
/// joined hear everything, and the first in a group gets what is for nobody in it.
fn share<'a>(
    first: &FrameRing,
    others: impl Iterator<Item = &'a FrameRing>,
    members: DhcpRings,
) -> io::Result<Group> {
    let group = first.found(&filters::chooser(Some(members), None))?;
    for ring in others {
        ring.join(group)?;
    }
    Ok(group)
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
    /// Whom other rings on this interface can share it with.
    pub(in crate::engine) fn group_on(&self, interface: u32) -> Option<(Group, DhcpRings)> {
        self.raws.iter().find(|raw| raw.interface.index == interface)?.group
    }

    /// Leaves to the raw ports what is theirs, so that nothing is answered twice. What the kernel refuses to tell apart, a
    /// hundred interfaces and more, comes by UDP.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub(in crate::engine) fn divide(&mut self) -> io::Result<()> {
        let Some(udp) = self.udps.iter().find(|udp| udp.port == ServerPort::Dhcp) else { return Ok(()) };
        if self.raws.is_empty() {
            return udp.socket.attach_filter(&filters::everything());
        }
        let has_raw = |index| self.raws.iter().any(|raw| raw.interface.index == index);
        let heard: Vec<u32> = self
            .interfaces
            .iter()
            .map(|interface| interface.index)
            .filter(|index| !has_raw(*index))
            .collect();
        let addressed = |raw: &RawPort| Some((raw.interface.index, raw.addressed?));
        let frames: Vec<_> = self.raws.iter().filter_map(addressed).collect();
        let Err(error) = udp.socket.attach_filter(&filters::udp(&heard, &frames)) else { return Ok(()) };
        if frames.is_empty() {
            return Err(error);
        }
        tracing::warn!(%error, "relays are answered by UDP: their frames cannot be kept from the UDP socket");
        self.raws.iter_mut().for_each(RawPort::leave_addressed);
        udp.socket.attach_filter(&filters::udp(&heard, &[]))
    }

    /// Takes over what the interfaces have become: other addresses, or an address that is another's now.
    pub(in crate::engine) fn readdress(&mut self, links: &[interfaces::Interface]) {
        for interface in &mut self.interfaces {
            let before = interface.addr;
            renew(interface, links);
            if interface.addr != before {
                tracing::warn!(
                    interface = interface.name,
                    %before,
                    now = %interface.addr,
                    "has another address: answers name that one from now on"
                );
            }
        }
        let raws = self.raws.iter_mut().map(|raw| &mut raw.interface);
        let probed = self.prober.iter_mut().flat_map(Prober::interfaces);
        raws.chain(probed).for_each(|interface| renew(interface, links));
        let has = |index, addr| links.iter().any(|link| link.index == index && link.addr == Some(addr));
        let mut lost = self
            .raws
            .iter_mut()
            .filter(|raw| raw.addressed.is_some_and(|addr| !has(raw.interface.index, addr)))
            .peekable();
        if lost.peek().is_none() {
            return;
        }
        lost.for_each(RawPort::leave_addressed);
        if let Err(error) = self.divide() {
            tracing::warn!(%error, "cannot filter the UDP socket");
        }
    }

    /// Answers on an interface that was waited for. One that was made anew takes the place of the one it was.
    pub(super) fn welcome(&mut self, arrival: Arrival, turn: &Turn<'_>) {
        let Arrival { interface, raw } = arrival;
        if let Some(raw) = raw {
            let old = self.raws.iter().position(|old| old.interface.name == interface.name);
            let at = old.unwrap_or(self.raws.len());
            if let Err(error) = raw.watch(turn.registry, at) {
                tracing::warn!(interface = interface.name, %error, "cannot watch the raw socket");
                return;
            }
            let first = (at * raw.rings.len()) as u32;
            self.ready_raw.extend(first..first + raw.rings.len() as u32);
            match self.raws.get_mut(at) {
                Some(place) => *place = raw,
                None => self.raws.push(raw),
            }
        }
        match self.interfaces.iter_mut().find(|old| old.name == interface.name) {
            Some(place) => *place = Arc::clone(&interface),
            None => self.interfaces.push(Arc::clone(&interface)),
        }
        if let Err(error) = self.divide() {
            // What both take is answered twice, with the same answer, and what neither does not at all.
            tracing::warn!(interface = interface.name, %error, "cannot filter the UDP socket");
        }
        tracing::info!(interface = interface.name, address = %interface.addr, "answered on from now on");
    }
}
