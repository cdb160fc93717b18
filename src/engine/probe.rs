//! Asks the wire whether an address is free, for [`Verdict::Probe`](crate::proto::dhcp::Verdict::Probe): by ARP on the
//! link, by ICMP echo behind a relay. The DISCOVERs that wait for it wait here.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use mio::Registry;

use super::core::{Owner, watch};
use super::filters;
use crate::proto::dhcp::{Interface, Probe};
use crate::sys::SysError;
use crate::sys::icmp::EchoSocket;
use crate::sys::packet::PacketSocket;
use crate::wire::MacAddr;
use crate::wire::arp::{ARP_FRAME_LEN, Arp, emit_arp_frame, parse_arp_frame};
use crate::wire::icmp::{ECHO_LEN, Echo, emit_echo, parse_echo_reply};

/// Answers taken from one socket per turn.
const ANSWERS_PER_TURN: usize = 256;
/// DISCOVERs that wait. The machine's own bound is lower.
const WAITING_MAX: usize = 8192;

/// A DISCOVER that waits until an address is known to be free.
#[derive(Debug)]
pub(super) struct Waiting<C> {
    pub(super) came: C,
    pub(super) bytes: Box<[u8]>,
    ip: Ipv4Addr,
    until: Instant,
}

/// The sockets, and who waits. `C` says how a DISCOVER came.
#[derive(Debug)]
pub(super) struct Prober<C> {
    arp: Vec<(Arc<Interface>, PacketSocket)>,
    echo: EchoSocket,
    ident: u16,
    sequence: u16,
    waiting: VecDeque<Waiting<C>>,
    /// Some socket is readable.
    pub(super) ready: bool,
}

impl<C> Prober<C> {
    /// Sockets for these interfaces; those that have no frames, or come up later, are asked by echo.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub(super) fn open<'a>(interfaces: impl Iterator<Item = &'a Arc<Interface>>) -> Result<Self, SysError> {
        let arp = interfaces
            .map(|interface| {
                let socket =
                    PacketSocket::open_arp(&interface.name, interface.index, &filters::arp_replies())?;
                Ok((Arc::clone(interface), socket))
            })
            .collect::<Result<_, SysError>>()?;
        // An answer to somebody else's question of this host is told by it, so it need not be secret.
        let ident = std::process::id() as u16;
        Ok(Self { arp, echo: EchoSocket::open()?, ident, sequence: 0, waiting: VecDeque::new(), ready: true })
    }

    /// The interfaces that are asked on.
    pub(super) fn interfaces(&mut self) -> impl Iterator<Item = &mut Arc<Interface>> {
        self.arp.iter_mut().map(|(interface, _)| interface)
    }

    pub(super) fn register(&self, registry: &Registry) -> io::Result<()> {
        watch(registry, self.echo.as_raw_fd(), Owner::DhcpProbe(0))?;
        for (index, (_, socket)) in self.arp.iter().enumerate() {
            watch(registry, socket.as_raw_fd(), Owner::DhcpProbe(index as u32 + 1))?;
        }
        Ok(())
    }

    /// Asks, and keeps the DISCOVER. False when it cannot be kept.
    pub(super) fn ask(&mut self, interface: &Interface, probe: &Probe, came: C, bytes: &[u8]) -> bool {
        if self.waiting.len() >= WAITING_MAX {
            return false;
        }
        let link = self.arp.iter().find(|(of, _)| probe.relay.is_none() && of.index == interface.index);
        let sent = match link {
            Some((_, socket)) => {
                let arp = Arp {
                    reply: false,
                    sender_mac: interface.mac,
                    sender: interface.addr,
                    target_mac: MacAddr::default(),
                    target: probe.ip,
                };
                let mut frame = [0; ARP_FRAME_LEN];
                emit_arp_frame(&mut frame, &arp);
                socket.send(&frame).map(drop)
            }
            None => {
                self.sequence = self.sequence.wrapping_add(1);
                let mut message = [0; ECHO_LEN];
                emit_echo(&mut message, Echo { ident: self.ident, sequence: self.sequence });
                self.echo.send(probe.ip, &message)
            }
        };
        if let Err(error) = sent {
            // Unasked is as good as unanswered: it waits and is then offered.
            tracing::debug!(ip = %probe.ip, %error, "cannot be asked for");
        }
        let place = self.waiting.partition_point(|other| other.until <= probe.until);
        self.waiting.insert(place, Waiting { came, bytes: bytes.into(), ip: probe.ip, until: probe.until });
        true
    }

    /// A DISCOVER that has waited long enough.
    pub(super) fn due(&mut self, now: Instant) -> Option<Waiting<C>> {
        self.waiting.pop_front_if(|waiting| waiting.until <= now)
    }

    /// The DISCOVERs that waited for an address which turned out to be in use.
    pub(super) fn waited_for(&mut self, ip: Ipv4Addr) -> Vec<Waiting<C>> {
        let mut found = Vec::new();
        while let Some(place) = self.waiting.iter().position(|waiting| waiting.ip == ip) {
            found.extend(self.waiting.remove(place));
        }
        found
    }

    /// Who has answered: addresses, and by ARP whose they are. Once somebody has waited long enough the sockets are read
    /// whatever the poll said last: on a busy core the time may be up before its answer was told of.
    pub(super) fn answers(&mut self, now: Instant) -> Vec<(Ipv4Addr, Option<MacAddr>)> {
        let mut found = Vec::new();
        let is_due = self.waiting.front().is_some_and(|waiting| waiting.until <= now);
        if !std::mem::take(&mut self.ready) && !is_due {
            return found;
        }
        for (interface, socket) in &self.arp {
            let mut frame = [0; 64];
            for round in 0..ANSWERS_PER_TURN {
                let Ok(len) = socket.recv(&mut frame) else { break };
                self.ready |= round + 1 == ANSWERS_PER_TURN;
                let arp = parse_arp_frame(&frame[..len]).filter(|arp| arp.reply);
                found.extend(
                    arp.filter(|arp| arp.sender_mac != interface.mac)
                        .map(|arp| (arp.sender, Some(arp.sender_mac))),
                );
            }
        }
        let mut packet = [0; 128];
        for round in 0..ANSWERS_PER_TURN {
            match self.echo.recv(&mut packet) {
                Ok(len) => {
                    self.ready |= round + 1 == ANSWERS_PER_TURN;
                    let reply = parse_echo_reply(&packet[..len]);
                    let ours = reply.filter(|(_, echo)| echo.ident == self.ident);
                    found.extend(ours.map(|(from, _)| (from, None)));
                }
                // An error that an earlier question met is told here, and goes with that.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        found
    }
}
