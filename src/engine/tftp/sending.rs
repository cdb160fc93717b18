//! Packets on their way out: each transfer's by its own way, in batches, and what becomes of those that are refused.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;

use super::{Link, Payload, TftpSide, Way};
use crate::engine::core::{Owner, Turn};
use crate::engine::counters::Count;
use crate::engine::slab::Key;
use crate::proto::tftp::Run;
use crate::sys::mmap::Mapping;
use crate::sys::udp::{SEGMENTS_MAX, SEND_LEN_MAX, Source};
use crate::wire::MacAddr;
use crate::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_headers};
use crate::wire::tftp::{self, ErrorCode};

/// The first packets of a turn leave as soon as there are this many, and the rest in full batches: clients and switches
/// then work on the first ones while the rest is made, where else both sides would wait for each other in turns.
const FIRST_BATCH: usize = 16;
/// Time to live of what we send, as the kernel has it.
const TTL: u8 = 64;

impl TftpSide {
    /// Ends a transfer whose file is not what it was, or cannot be read, before its receiver takes it for the image.
    pub(super) fn cut(&mut self, key: Key, why: &str, turn: &mut Turn<'_>) {
        let Some(live) = self.transfers.get_mut(key) else { return };
        let (socket, client, source) = (live.socket.into(), live.client, live.source());
        let file = live.served.as_ref().map_or("", |served| served.name.as_str());
        match &live.payload {
            Payload::File(opened) if !opened.is_bad_news() => {
                tracing::debug!(file, %client, "{why}: the transfer is cut");
            }
            _ => tracing::warn!(file, %client, "{why}: the transfer is cut"),
        }
        turn.tally.add(Count::FilesChanged, 1);
        let mut reply = [0; 64];
        if let Some(len) = tftp::emit_error(&mut reply, ErrorCode::NotDefined, why) {
            self.push_bytes(socket, client, source, u64::MAX, &reply[..len], turn);
        }
        self.end(key, None, turn);
    }

    pub(super) fn push_run(&mut self, key: Key, run: &Run, turn: &mut Turn<'_>) {
        let Some(live) = self.transfers.get_mut(key) else { return };
        let (socket, client, source) = (live.socket.into(), live.client, live.source());
        let tag = Owner::Transfer(key).pack();
        turn.tally.add(Count::TftpBytes, run.bytes);
        turn.tally.add(Count::TftpBlocks, u64::from(run.count));
        match &live.payload {
            Payload::File(opened) => {
                // The last blocks: the last chance to see that the file is still the one that was promised.
                if run.offset + run.bytes == opened.len && !opened.still_same() {
                    return self.cut(key, "file changed", turn);
                }
                let block_len = usize::from(live.transfer.blksize()) + 4;
                let mapping = Arc::clone(&opened.mapping);
                let (per_send, way) = match live.way {
                    Way::Frame { link, to } => {
                        turn.tally.add(Count::TftpByFrame, u64::from(run.count));
                        for i in 0..run.count {
                            let mut head = [0; UDP_PAYLOAD_OFFSET + 4];
                            head[UDP_PAYLOAD_OFFSET..].copy_from_slice(&run.header(i));
                            let (offset, len) = run.slice(i);
                            let body = Some((&mapping, offset, usize::from(len)));
                            self.push_frame(key, link, to, &mut head, body);
                        }
                        return;
                    }
                    Way::Segments => {
                        ((SEND_LEN_MAX / block_len).clamp(1, SEGMENTS_MAX) as u16, Count::TftpBySegments)
                    }
                    Way::Datagrams => (1, Count::TftpByDatagram),
                };
                turn.tally.add(way, u64::from(run.count));
                let mut from = 0;
                while from < run.count {
                    let count = per_send.min(run.count - from);
                    let blocks = (from..from + count).map(|i| {
                        let (offset, len) = run.slice(i);
                        (run.header(i), offset, len)
                    });
                    self.reserve(socket, usize::from(count) * 2, usize::from(count) * 4, turn);
                    turn.send.push_blocks(client, source, tag, &mapping, blocks);
                    from += count;
                }
            }
            Payload::Text(text) => {
                let text = Arc::clone(text);
                let mut packet = Vec::with_capacity(usize::from(live.transfer.blksize()) + 4);
                for i in 0..run.count {
                    let (offset, len) = run.slice(i);
                    let start = offset as usize;
                    packet.clear();
                    packet.extend_from_slice(&run.header(i));
                    packet.extend_from_slice(text.get(start..start + usize::from(len)).unwrap_or_default());
                    self.push_bytes(socket, client, source, tag, &packet, turn);
                }
            }
        }
    }

    /// Adds a frame to its link's batch: `head` has room for the headers before what it already holds.
    pub(super) fn push_frame(
        &mut self,
        key: Key,
        link: u8,
        to: MacAddr,
        head: &mut [u8],
        body: Option<(&Arc<Mapping>, u64, usize)>,
    ) {
        let is_first = self.is_first;
        let is_due = |link: &Link| link.sender.is_full() || (is_first && link.sender.len() >= FIRST_BATCH);
        if self.links.get(usize::from(link)).is_some_and(is_due) {
            self.flush_frames(usize::from(link));
        }
        let (Some(live), Some(link)) = (self.transfers.get_mut(key), self.links.get_mut(usize::from(link)))
        else {
            return;
        };
        link.ip_id = link.ip_id.wrapping_add(1);
        let port = self.sockets.get(live.socket as usize).map_or(0, |socket| socket.local().port());
        let header = UdpHeader {
            src_mac: link.interface.mac,
            dst_mac: to,
            src: SocketAddrV4::new(live.local, port),
            dst: live.client,
            ttl: TTL,
            ip_id: link.ip_id,
        };
        let payload_len = head.len() - UDP_PAYLOAD_OFFSET + body.map_or(0, |(_, _, len)| len);
        let Some(headers) = head.first_chunk_mut::<UDP_PAYLOAD_OFFSET>() else { return };
        // No UDP checksum (RFC 768): the file's bytes are not read here, and Ethernet's own covers them on the link.
        if emit_udp_headers(headers, &header, payload_len).is_some() {
            let pushed = link.sender.push(head, body, Owner::Transfer(key).pack());
            debug_assert!(pushed, "room was made, and no head is longer than an OACK");
        }
    }

    fn flush_frames(&mut self, link: usize) {
        let refused = &mut self.refused;
        if let Some(link) = self.links.get_mut(link)
            && !link.sender.is_empty()
        {
            self.is_first = false;
            link.sender.flush(|unsent| refused.push(unsent));
        }
    }

    /// Makes room in the batch, and makes it this socket's.
    fn reserve(&mut self, socket: u32, pieces: usize, bytes: usize, turn: &mut Turn<'_>) {
        let is_due = self.is_first && turn.send.len() >= FIRST_BATCH;
        if is_due || self.batch_socket != socket as usize || turn.send.is_full(pieces, bytes) {
            self.flush_batch(turn);
            self.batch_socket = socket as usize;
        }
    }

    pub(super) fn push_bytes(
        &mut self,
        socket: u32,
        to: SocketAddrV4,
        from: Source,
        tag: u64,
        bytes: &[u8],
        turn: &mut Turn<'_>,
    ) {
        self.reserve(socket, 1, bytes.len(), turn);
        turn.send.push_bytes(to, from, tag, bytes);
    }

    fn flush_batch(&mut self, turn: &mut Turn<'_>) {
        if !turn.send.is_empty() {
            self.is_first = false;
            let (refused, receiver) = (&mut self.refused, &self.sockets[self.batch_socket]);
            let socket = self.senders[self.batch_socket].as_ref().unwrap_or(receiver);
            turn.send.flush(socket, |unsent| refused.push(unsent));
        }
    }

    /// Hands everything collected in this turn to the kernel, and takes transfers whose sends it refused one rung
    /// down. Their own timers then send again.
    pub(in crate::engine) fn flush(&mut self, turn: &mut Turn<'_>) {
        self.flush_batch(turn);
        for link in 0..self.links.len() {
            self.flush_frames(link);
        }
        self.is_first = true;
        for unsent in std::mem::take(&mut self.refused) {
            turn.tally.add(Count::TftpSendErrors, 1);
            if unsent.error.kind() == io::ErrorKind::WouldBlock {
                continue;
            }
            let Some(Owner::Transfer(key)) = Owner::unpack(unsent.tag) else { continue };
            let Some(live) = self.transfers.get_mut(key) else { continue };
            tracing::debug!(client = %live.client, error = %unsent.error, "tftp send refused");
            let way = std::mem::replace(&mut live.way, Way::Datagrams);
            if way == Way::Segments && turn.shared.note_refused_segments(live.local) {
                tracing::info!(
                    address = %live.local,
                    error = %unsent.error,
                    "segmented UDP sends are refused here: blocks go out one by one"
                );
            }
        }
    }
}
