//! Replies on their way out: whole frames to who has no address yet, datagrams to everybody else, in batches.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use super::ports::RawPort;
use super::{Came, DhcpSide};
use crate::engine::core::Turn;
use crate::engine::counters::Count;
use crate::proto::dhcp::{DropReason, Output, ServerPort, To};
use crate::sys::udp::Source;
use crate::wire::MacAddr;
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_frame};

/// Where a reply goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    /// A whole frame, by this raw port.
    Frame(usize),
    /// A datagram, by this UDP port.
    Udp { port: usize, to: SocketAddrV4, source: Source },
}

impl DhcpSide {
    /// Addresses the reply just made, and sends it or holds it until its lease is stored.
    pub(super) fn reply(&mut self, output: &Output, came: &Came, turn: &mut Turn<'_>) {
        let real_port = match output.port {
            ServerPort::Dhcp => self.port,
            ServerPort::BootServer => self.boot_server_port,
        };
        let (mac, to) = match output.to {
            To::Broadcast => (Some(MacAddr::BROADCAST), SocketAddrV4::new(Ipv4Addr::BROADCAST, 68)),
            To::Link { mac, to } => (Some(mac), to),
            To::Unicast(to) => (None, to),
        };
        let udp = self.udps.iter().position(|udp| udp.port == output.port);
        let frame_to = mac.or_else(|| self.way_back(came, to, udp.is_none(), turn.now));
        let (route, range) = if let (Some(raw), Some(dst_mac)) = (came.raw, frame_to) {
            let port = &mut self.raws[raw];
            port.ip_id = port.ip_id.wrapping_add(1);
            let header = UdpHeader {
                src_mac: port.interface.mac,
                dst_mac,
                src: SocketAddrV4::new(output.from, real_port),
                dst: to,
                ttl: 64,
                ip_id: port.ip_id,
            };
            let Some(len) = emit_udp_frame(&mut self.reply[..], &header, output.len) else {
                return turn.tally.add(Count::DhcpSendErrors, 1);
            };
            (Route::Frame(raw), 0..len)
        } else {
            let Some(port) = udp else { return turn.tally.add(Count::DhcpSendErrors, 1) };
            let to = if mac.is_some() { SocketAddrV4::new(Ipv4Addr::BROADCAST, to.port()) } else { to };
            let interface = if to.ip().is_broadcast() { self.interfaces[came.interface].index } else { 0 };
            let source = Source { addr: output.from, interface };
            (Route::Udp { port, to, source }, UDP_PAYLOAD_OFFSET..UDP_PAYLOAD_OFFSET + output.len)
        };
        match &mut self.journal {
            Some(journal) if journal.is_awaited(output.stored) => {
                if !journal.hold(route, &self.reply[range]) {
                    turn.tally.drop_dhcp(DropReason::NotStored);
                }
            }
            _ => {
                let reply = std::mem::take(&mut self.reply);
                self.send(route, &reply[range], turn);
                self.reply = reply;
            }
        }
    }

    /// Where a unicast goes by frame: to the neighbour that the message came from. Otherwise it goes by UDP, where routing
    /// and ARP do their work; with another server on the port there is no socket to send it from.
    fn way_back(
        &mut self,
        came: &Came,
        to: SocketAddrV4,
        is_only_way: bool,
        now: Instant,
    ) -> Option<MacAddr> {
        let neighbour = came.src_mac?;
        let raw = self.raws.get(came.raw?)?;
        let may =
            raw.addressed.is_some() && !neighbour.is_group() && self.ways.leads_back(now, &raw.interface, to);
        (may || is_only_way).then_some(neighbour)
    }

    /// Adds a reply to the batch of its way out.
    pub(super) fn send(&mut self, route: Route, bytes: &[u8], turn: &mut Turn<'_>) {
        turn.tally.add(Count::DhcpReplies, 1);
        match route {
            Route::Frame(raw) => {
                let RawPort { batch, fd, .. } = &mut self.raws[raw];
                batch.push(fd, bytes.len(), |frame| {
                    frame.copy_from_slice(bytes);
                    Some(bytes.len())
                });
            }
            Route::Udp { port, to, source } => {
                if self.gathered != Some(port) {
                    self.flush_udp(turn);
                    self.gathered = Some(port);
                }
                if !turn.send.push_bytes(to, source, 0, bytes) {
                    self.flush_udp(turn);
                    self.gathered = Some(port);
                    turn.send.push_bytes(to, source, 0, bytes);
                }
            }
        }
    }

    /// Sends what was gathered.
    pub(super) fn flush(&mut self, turn: &mut Turn<'_>) {
        for raw in &mut self.raws {
            raw.batch.flush(&raw.fd);
            let unsent = raw.batch.unsent();
            turn.tally.add(Count::DhcpSendErrors, unsent - raw.unsent);
            raw.unsent = unsent;
        }
        self.flush_udp(turn);
    }

    fn flush_udp(&mut self, turn: &mut Turn<'_>) {
        let Some(port) = self.gathered.take() else { return };
        let tally = turn.tally;
        turn.send.flush(&self.udps[port].socket, |unsent| {
            tally.add(Count::DhcpSendErrors, 1);
            tracing::debug!(error = %unsent.error, "dhcp send");
        });
    }
}
