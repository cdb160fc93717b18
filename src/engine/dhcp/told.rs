//! What the flight recorder and the other cores are told of messages.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use crate::engine::core::Turn;
use crate::engine::counters::Count;
use crate::engine::sightings::Sighting;
use crate::jobs::evidence::{Asker, Evidence, Seen};
use crate::proto::dhcp::{CLIENT_PORT, DhcpEvent, DhcpStep, DropReason, Input, Output, ServerPort, To};
use crate::proto::firmware::{Firmware, FirmwareKind};
use crate::wire::capture::Packet;
use crate::wire::dhcp::{Message, OP_REQUEST};

/// Offers the flight recorder is told of: a burst, then so many a second. No hall of machines starts faster.
pub(super) const RECORDED_BURST: f64 = 16_384.0;
pub(super) const RECORDED_PER_SECOND: f64 = 5_000.0;

/// So many at once, then so many a second.
#[derive(Debug)]
pub(super) struct Budget {
    left: f64,
    burst: f64,
    per_second: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(burst: f64, per_second: f64) -> Self {
        Self { left: burst, burst, per_second, at: Instant::now() }
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * self.per_second).min(self.burst);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// Passes on what a message told: to the other cores who is where, to the flight recorder what happened. In a storm most
/// of it goes no further, so nothing is made of it before that is known.
pub(super) fn note(
    event: &DhcpEvent,
    input: &Input<'_>,
    reply: Option<(&Output, &[u8])>,
    recorded: &mut Budget,
    turn: &Turn<'_>,
) {
    let told_address = matches!(
        event.what,
        DhcpStep::Offered
            | DhcpStep::Acked
            | DhcpStep::BootServerAnswered
            | DhcpStep::OverheardRequest { .. }
    );
    if let (true, Some(mac), Some(addr), Some(arch)) = (told_address, event.mac, event.ip, event.arch)
        && !addr.is_unspecified()
    {
        // What goes past the relay, to port 4011 or to renew, names no circuit; some firmware names itself once. Each exchange
        // begins with what its own first message says.
        let goes_on = matches!(event.what, DhcpStep::Acked | DhcpStep::BootServerAnswered);
        let before = if goes_on { turn.shared.sightings.at(addr) } else { None };
        let before = before.filter(|before| before.mac == mac);
        let uuid = event.uuid.or(before.and_then(|before| before.uuid));
        let circuit = event.circuit.or(before.and_then(|before| before.circuit));
        turn.shared.sightings.record(addr, Sighting { mac, arch, uuid, circuit, exchange: 0 });
    }
    if !is_news(event) {
        return;
    }
    if !recorded.take(turn.now) {
        return turn.tally.add(Count::DhcpUnrecorded, 1);
    }
    let Some(seen) = seen(event) else { return };
    let mut evidence = Evidence::new(turn.wall, seen);
    evidence.mac = event.mac;
    evidence.uuid = event.uuid;
    evidence.address = event.ip;
    if turn.shared.is_recording() {
        evidence.packets = packets(input, reply);
    }
    turn.shared.note(evidence);
}

/// Whether an event means something for a boot: whether [`seen`] makes anything of it.
fn is_news(event: &DhcpEvent) -> bool {
    match event.what {
        DhcpStep::Offered | DhcpStep::Acked | DhcpStep::OverheardRequest { .. } => event.kind.is_some(),
        DhcpStep::BootServerAnswered => !event.file.is_empty(),
        DhcpStep::OtherServerOffer { .. } | DhcpStep::OtherServerAck { .. } => true,
        DhcpStep::Informed | DhcpStep::Naked | DhcpStep::Released | DhcpStep::Declined => false,
    }
}

/// What an event means for a boot; nothing for who is not booting.
fn seen(event: &DhcpEvent) -> Option<Seen> {
    let file = || event.file.as_str().to_owned();
    let named = !event.file.is_empty();
    Some(match event.what {
        DhcpStep::Offered if named => {
            let asker = asker(event.kind?);
            Seen::DhcpOffered { asker, arch: event.arch, relay: event.relay, file: file() }
        }
        // An address and nothing to boot: what the screen says is that there is no boot file.
        DhcpStep::Offered => {
            let asker = Some(asker(event.kind?));
            Seen::DhcpIgnored {
                reason: DropReason::NoBoot.word().into(),
                asker,
                arch: event.arch,
                relay: event.relay,
                boot_server: false,
            }
        }
        DhcpStep::BootServerAnswered if named => Seen::BootServerAnswered { arch: event.arch, file: file() },
        DhcpStep::Acked => {
            event.kind?;
            Seen::AddressGiven { relay: event.relay }
        }
        DhcpStep::OverheardRequest { server } => {
            event.kind?;
            Seen::ServerChosen { server }
        }
        DhcpStep::OtherServerOffer { server, next_server, has_file, pxe, sends_to_4011, leases } => {
            let file = (has_file && named).then(file);
            Seen::OtherOffered { server, file, next_server, leases, pxe, sends_to_4011 }
        }
        DhcpStep::OtherServerAck { server } => Seen::OtherAcked { server },
        DhcpStep::BootServerAnswered
        | DhcpStep::Informed
        | DhcpStep::Naked
        | DhcpStep::Released
        | DhcpStep::Declined => return None,
    })
}

fn asker(kind: FirmwareKind) -> Asker {
    match kind {
        FirmwareKind::Pxe => Asker::Firmware,
        FirmwareKind::HttpBoot => Asker::Http,
        FirmwareKind::Ipxe(_) => Asker::Ipxe,
    }
}

/// Tells the flight recorder of boot firmware that got no answer, where the reason is about it and not about the packet.
pub(super) fn note_ignored(reason: DropReason, input: &Input<'_>, recorded: &mut Budget, turn: &Turn<'_>) {
    let about_the_machine = matches!(
        reason,
        DropReason::Silent
            | DropReason::Excluded
            | DropReason::NoBoot
            | DropReason::NoBootFile
            | DropReason::Deferred
            | DropReason::UnknownSubnet
            | DropReason::NoRange
            | DropReason::PoolExhausted
            | DropReason::PoolKept
            | DropReason::ReplyTooBig
    );
    let boot_server = input.port == ServerPort::BootServer;
    if !turn.shared.is_recording() || !(about_the_machine || boot_server && reason == DropReason::OtherServer)
    {
        return;
    }
    let Ok(message) = Message::parse(input.bytes) else { return };
    let (Some(mac), Some(firmware)) = (message.mac(), Firmware::recognise(&message)) else { return };
    if !recorded.take(turn.now) {
        return turn.tally.add(Count::DhcpUnrecorded, 1);
    }
    let seen = Seen::DhcpIgnored {
        reason: reason.word().into(),
        asker: Some(asker(firmware.kind)),
        arch: firmware.arch_stated.then_some(firmware.arch),
        relay: Some(message.giaddr()).filter(|relay| !relay.is_unspecified()),
        boot_server,
    };
    let mut evidence = Evidence::new(turn.wall, seen);
    evidence.mac = Some(mac);
    evidence.uuid = message.uuid();
    evidence.packets = packets(input, None);
    turn.shared.note(evidence);
}

/// A message and our answer to it, for a capture file: on the ports of the standards, whatever ours are.
fn packets(input: &Input<'_>, reply: Option<(&Output, &[u8])>) -> Vec<Packet> {
    let is_request = input.bytes.first() == Some(&OP_REQUEST);
    let port = if is_request { input.port.number() } else { CLIENT_PORT };
    let asked = Packet::dhcp(input.src, SocketAddrV4::new(input.dst, port), !is_request, input.bytes);
    let answer = reply.map(|(output, bytes)| {
        let to = match output.to {
            To::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
            To::Link { to, .. } | To::Unicast(to) => to,
        };
        Packet::dhcp(SocketAddrV4::new(output.from, output.port.number()), to, true, bytes)
    });
    std::iter::once(asked).chain(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::dhcp::BootFile;

    #[test]
    fn what_is_news_is_what_something_is_seen_in() {
        let addr = Ipv4Addr::new(10, 77, 0, 1);
        let mut named = BootFile::new();
        std::fmt::Write::write_str(&mut named, "ipxe.efi").unwrap();
        let offer = |has_file| DhcpStep::OtherServerOffer {
            server: addr,
            next_server: None,
            has_file,
            pxe: true,
            sends_to_4011: false,
            leases: true,
        };
        for what in [
            DhcpStep::Offered,
            DhcpStep::Acked,
            DhcpStep::BootServerAnswered,
            DhcpStep::Informed,
            DhcpStep::Naked,
            DhcpStep::Released,
            DhcpStep::Declined,
            DhcpStep::OverheardRequest { server: Some(addr) },
            offer(true),
            offer(false),
            DhcpStep::OtherServerAck { server: addr },
        ] {
            for kind in [None, Some(FirmwareKind::Pxe), Some(FirmwareKind::HttpBoot)] {
                for file in [BootFile::new(), named] {
                    // A server that names a file knows for whom.
                    if what == DhcpStep::Offered && kind.is_none() && !file.is_empty() {
                        continue;
                    }
                    let event = DhcpEvent {
                        what,
                        mac: None,
                        uuid: None,
                        xid: 1,
                        arch: None,
                        kind,
                        relay: None,
                        circuit: None,
                        ip: Some(addr),
                        file,
                    };
                    assert_eq!(is_news(&event), seen(&event).is_some(), "{event:?}");
                }
            }
        }
    }
}
