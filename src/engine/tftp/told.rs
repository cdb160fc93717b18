//! What the flight recorder is told of requests and transfers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::SystemTime;

use super::{Live, TftpSide, Way};
use crate::engine::shared::Shared;
use crate::files::served::Served;
use crate::jobs::evidence::{self, Evidence, Over, Seen, TransferFacts};
use crate::proto::tftp::Outcome;
use crate::wire::capture;

/// Tells the flight recorder of a request, if it comes from where a machine was seen.
pub(super) fn note_request(shared: &Shared, client: Ipv4Addr, seen: Seen, packets: Vec<capture::Packet>) {
    let Some(sighting) = shared.sightings.at(client) else { return };
    let mut evidence = Evidence::new(SystemTime::now(), seen);
    evidence.mac = Some(sighting.mac);
    evidence.address = Some(client);
    evidence.packets = packets;
    shared.note(evidence);
}

/// Tells the flight recorder how a transfer ended. A size query that was aborted, as firmware does before every
/// download, is no event.
pub(super) fn note(shared: &Shared, live: &Live, served: &Served, outcome: Option<Outcome>, took_ms: u32) {
    let over = Over::Tftp;
    let bytes = live.transfer.acked_bytes();
    let line = live.line.as_ref().map(|line| &line.at);
    let seen = match (outcome, served.image()) {
        (Some(Outcome::ProbeAborted), _) => return,
        (Some(Outcome::Complete), None) => Seen::LoaderFetched { name: served.name.clone(), bytes, over },
        (Some(Outcome::Complete), Some(image)) => Seen::FileDone {
            job: line.map(|line| line.job),
            image: image.to_owned(),
            file: served.name.get(image.len() + 1..).unwrap_or_default().to_owned(),
            bytes,
            part: false,
            last: line.is_some(),
            over,
        },
        (outcome, _) => Seen::TransferFailed {
            job: None,
            file: served.name.clone(),
            bytes,
            reason: match outcome {
                Some(Outcome::ClientError(code)) => {
                    format!("the machine gave up with TFTP error {}", code.code())
                }
                Some(_) => "the machine fell silent".to_owned(),
                None => "it was cut or replaced by another request".to_owned(),
            },
            over,
        },
    };
    let mut evidence = Evidence::new(SystemTime::now(), seen);
    evidence.transfer = Some(TransferFacts {
        blksize: live.transfer.blksize(),
        windowsize: live.transfer.windowsize(),
        took_ms,
        rtt_us: live.transfer.rtt().map(|rtt| rtt.as_micros() as u32),
        resends: live.transfer.resends(),
        way: match live.way {
            Way::Frame { .. } => evidence::Way::Frame,
            Way::Segments => evidence::Way::Segments,
            Way::Datagrams => evidence::Way::Datagram,
        },
    });
    evidence.mac = shared.sightings.at(*live.client.ip()).map(|seen| seen.mac);
    evidence.boot = line.map(|line| line.boot);
    evidence.address = Some(*live.client.ip());
    shared.note(evidence);
}

impl TftpSide {
    /// A request and the answer that is no data, for a capture file.
    pub(super) fn exchange(
        &self,
        request: &[u8],
        client: SocketAddrV4,
        listener: SocketAddrV4,
        socket: u32,
        reply: &[u8],
    ) -> Vec<capture::Packet> {
        let mut packets = vec![capture::Packet::tftp(client, listener, false, request)];
        if !reply.is_empty() {
            let port = self.sockets.get(socket as usize).map_or(0, |socket| socket.local().port());
            let from = SocketAddrV4::new(*listener.ip(), port);
            packets.push(capture::Packet::tftp(from, client, true, reply));
        }
        packets
    }
}
