//! Responses on their way out: what leaves now, what waits for room, for a disk or for the ring, and what comes of it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::delivery::PROGRESS_EVERY;
use super::parked::ParkedAnswer;
use super::{ACK_CHECK, COLD_PAUSE, HttpSide, IDLE_PATIENCE};
use crate::engine::core::{Owner, Turn};
use crate::engine::counters::{Count, Tally};
use crate::engine::sender::{self, Means, Moved, Piece, Pumped};
use crate::engine::slab::Key;
use crate::sys::tcp;
use crate::sys::uring::{Completion, Shot};

/// Requests of one connection answered before the others have their turn: a client may send thousands at once.
const ANSWERS_PER_VISIT: usize = 16;
/// From so many answers on they leave in one call: what that call costs, these calls cost as well.
const BURST_MIN: usize = 4;
/// So much of a response, or its rest, must leave within this time. A machine that hashes or unpacks while downloading may
/// pause; one that takes a segment a minute to keep its place may not.
pub(super) const SEND_PATIENCE: Duration = Duration::from_secs(120);
pub(super) const PROGRESS_MIN: u64 = 64 << 10;
/// What a visit counts for that finds nothing in memory, in bytes sent: it has looked, and asked.
const COLD_VISIT: u64 = 256 << 10;

impl HttpSide {
    /// Goes on with one connection as far as it can; the bytes that it sent of its queue.
    pub(super) fn drive(&mut self, key: Key, turn: &mut Turn<'_>) -> u64 {
        let (mut answers, mut sent) = (0, 0);
        let quantum = sender::quantum(self.busy);
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return sent };
            if connection.error_queued {
                self.read_error_queue(key, turn);
                continue;
            }
            if connection.doomed || connection.owed {
                return sent;
            }
            if connection.parked.is_some() && !self.unpark(key, turn) {
                return sent;
            }
            let Some(connection) = self.connections.get_mut(key) else { return sent };
            if !connection.out.is_empty() || connection.out.in_ring {
                if connection.out.in_ring || !connection.writable {
                    return sent;
                }
                if answers > 0 && connection.out.file.is_some() {
                    // A file that was just asked for waits its turn among the others.
                    self.list(key);
                    return sent;
                }
                let mut moved = Moved::default();
                let mut means = Means {
                    pipes: &mut self.pipes,
                    ring: turn.ring.as_deref_mut(),
                    copying: &self.copying,
                    device: connection.device(),
                    readers: &self.readers,
                    now: turn.now,
                    quantum,
                    tag: Owner::Connection(key).pack(),
                    unsealed: &mut self.unsealed,
                    moved: &mut moved,
                };
                let pumped = match &mut connection.tls {
                    None => connection.out.pump(&connection.stream, &mut means),
                    Some(tls) => connection.out.pump_sealed(&mut connection.stream, tls, &mut means),
                };
                count_moved(turn.tally, &moved);
                if let Some(delivery) = &mut connection.delivery
                    && turn.now >= delivery.progress_at
                {
                    delivery.progress_at = turn.now + PROGRESS_EVERY;
                    delivery.goes_on(turn.shared, connection.out.left());
                }
                connection.moves(moved.total(), turn.now);
                sent += moved.total() + if pumped == Pumped::Cold { COLD_VISIT } else { 0 };
                if !self.pumped(key, pumped, turn) {
                    return sent;
                }
                continue;
            }
            if answers == ANSWERS_PER_VISIT {
                self.list(key);
                return sent;
            }
            answers += 1;
            if !self.read_request(key, turn) {
                return sent;
            }
        }
    }

    /// Deals with what a go at sending came to; false when the connection has nothing more to do for now.
    fn pumped(&mut self, key: Key, pumped: Pumped, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        match pumped {
            Pumped::Done => {
                self.busy -= 1;
                self.sent(key, turn)
            }
            Pumped::Yielded => {
                connection.out.rest(&mut self.pipes);
                self.list(key);
                false
            }
            Pumped::Blocked => {
                connection.writable = false;
                connection.out.rest(&mut self.pipes);
                self.arm(key, turn);
                false
            }
            Pumped::InRing => {
                self.arm(key, turn);
                false
            }
            Pumped::Held => {
                connection.out.rest(&mut self.pipes);
                let Some(line) = connection.line.take() else {
                    connection.out.release();
                    return true;
                };
                self.park(key, *line, ParkedAnswer::File, turn);
                false
            }
            Pumped::Cold => {
                connection.out.rest(&mut self.pipes);
                connection.listed = true;
                if !std::mem::replace(&mut connection.is_cold, true) {
                    turn.tally.add(Count::HttpCold, 1);
                }
                if self.cold.is_empty() {
                    turn.wheel.schedule(turn.now + COLD_PAUSE, Owner::HttpCold.pack());
                }
                self.cold.push_back(key);
                self.arm(key, turn);
                false
            }
            Pumped::Changed => {
                turn.tally.add(Count::FilesChanged, 1);
                let file =
                    connection.delivery.as_ref().map(|d| d.subject.name().to_owned()).unwrap_or_default();
                let peer = connection.peer;
                if connection.out.file.as_ref().is_none_or(|opened| opened.is_bad_news()) {
                    tracing::warn!(
                        file,
                        %peer,
                        "file changed under a download, or its disk cannot read it: the download is cut"
                    );
                } else {
                    tracing::debug!(file, %peer, "the download is cut");
                }
                tcp::reset_on_close(connection.stream.as_raw_fd());
                self.close(key, Some("the file changed on the server, or could not be read"), turn);
                false
            }
            Pumped::Broken => {
                turn.tally.add(Count::HttpAborted, 1);
                self.close(key, Some("the receiver went away"), turn);
                false
            }
        }
    }

    /// A response is with the kernel to its last byte; false when that was the connection's end.
    fn sent(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        if let Some(delivery) = &connection.delivery {
            delivery.left(turn.shared);
        }
        connection.deadline = turn.now + IDLE_PATIENCE;
        if connection.keep_alive {
            if connection.delivery.is_some() {
                connection.deadline = turn.now + ACK_CHECK;
                self.arm(key, turn);
            }
            return true;
        }
        if let Some(tls) = &mut connection.tls {
            // Lost on a full or dead socket, where it would say nothing the end of the stream does not.
            tls.close();
            let _ = tls.flush(&mut connection.stream);
        } else if !connection.lingers && !connection.readable && connection.delivery.is_none() {
            self.remove(key);
            return false;
        }
        // What is queued still goes out; the peer sees the end of the stream after it.
        let _ = connection.stream.shutdown(std::net::Shutdown::Write);
        connection.deadline = turn.now + ACK_CHECK;
        self.arm(key, turn);
        true
    }

    /// Sends what stands in the head buffer as the whole response, at the end of the turn.
    pub(super) fn respond(&mut self, key: Key, keep_alive: bool, turn: &mut Turn<'_>) {
        self.respond_with(key, "", keep_alive, turn);
    }

    /// The same with a body behind it.
    pub(super) fn respond_with(&mut self, key: Key, body: &str, keep_alive: bool, turn: &mut Turn<'_>) {
        self.count_answer(turn);
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.keep_alive = keep_alive && self.accepting;
        if connection.tls.is_some() {
            let bytes = [&self.head, body.as_bytes()].concat();
            connection.out.pieces.push_back(Piece::Text { bytes, sent: 0 });
            connection.deadline = turn.now + SEND_PATIENCE;
            self.busy += 1;
            return;
        }
        connection.owed = true;
        self.outbox_bytes.extend_from_slice(&self.head);
        self.outbox_bytes.extend_from_slice(body.as_bytes());
        self.outbox.push((key, self.outbox_bytes.len()));
    }

    /// By the first digit of the status in the head buffer.
    fn count_answer(&self, turn: &Turn<'_>) {
        let count = match self.head.get(b"HTTP/1.1 ".len()) {
            Some(b'2') => Count::Http2xx,
            Some(b'3') => Count::Http3xx,
            Some(b'4') => Count::Http4xx,
            _ => Count::Http5xx,
        };
        turn.tally.add(count, 1);
    }

    /// Queues what stands in the head buffer as the beginning of a response; the caller queues the rest.
    pub(super) fn begin_response(&mut self, key: Key, keep_alive: bool, turn: &mut Turn<'_>) {
        self.count_answer(turn);
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.keep_alive = keep_alive && self.accepting;
        connection.out.pieces.push_back(Piece::Text { bytes: self.head.as_slice().into(), sent: 0 });
        connection.deadline = turn.now + SEND_PATIENCE;
        self.busy += 1;
    }

    /// Sends the answers of this turn: at once what the sockets take, the rest from the connections' queues.
    pub(super) fn send_answers(&mut self, turn: &mut Turn<'_>) {
        let mut outbox = std::mem::take(&mut self.outbox);
        let bytes = std::mem::take(&mut self.outbox_bytes);
        let mut start = 0;
        if let Some(mut burst) = self.burst.take_if(|burst| outbox.len() >= BURST_MIN && burst.works()) {
            let mut shots = std::mem::take(&mut self.shots);
            outbox.retain(|(key, end)| {
                let bytes = std::mem::replace(&mut start, *end)..*end;
                let Some(connection) = self.connections.get_mut(*key) else { return false };
                let (socket, more) = (connection.stream.as_raw_fd(), !connection.keep_alive);
                shots.push(Shot { socket, bytes, more });
                true
            });
            for ((shot, sent), (key, _)) in shots.iter().zip(burst.send(&bytes, &shots)).zip(outbox.drain(..))
            {
                self.answer_left(key, &bytes[shot.bytes.clone()], sent, turn);
            }
            shots.clear();
            self.shots = shots;
            self.burst = Some(burst);
        }
        for (key, end) in outbox.drain(..) {
            let answer = &bytes[std::mem::replace(&mut start, end)..end];
            let Some(connection) = self.connections.get_mut(key) else { continue };
            // What is the last anyway leaves in one segment with the end of the stream.
            let sent = tcp::send(&connection.stream, answer, !connection.keep_alive);
            self.answer_left(key, answer, sent, turn);
        }
        self.outbox = outbox;
        self.outbox_bytes = bytes;
        self.outbox_bytes.clear();
    }

    /// Goes on with a connection whose answer has left the outbox, as far as its socket took it.
    fn answer_left(&mut self, key: Key, answer: &[u8], sent: io::Result<usize>, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.owed = false;
        // What went wrong comes up again when the rest is sent.
        let sent = sent.unwrap_or(0);
        turn.tally.add(Count::HttpText, sent as u64);
        if sent == answer.len() {
            if !self.sent(key, turn) {
                return;
            }
        } else {
            connection.out.pieces.push_back(Piece::Text { bytes: answer[sent..].into(), sent: 0 });
            connection.deadline = turn.now + SEND_PATIENCE;
            self.busy += 1;
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.readable || !connection.input.is_empty() || !connection.out.is_empty() {
            self.list(key);
        }
        self.keep(key, turn);
    }

    /// What the ring has finished.
    pub(in crate::engine) fn ring_completions(&mut self, turn: &mut Turn<'_>) {
        while let Some(completion) = turn.ring.as_deref_mut().and_then(|ring| ring.complete()) {
            match completion {
                Completion::Sent { tag, result } => {
                    let Some(Owner::Connection(key)) = Owner::unpack(tag) else { continue };
                    let Some(connection) = self.connections.get_mut(key) else { continue };
                    let mut moved = Moved::default();
                    let pumped = connection.out.ring_answered(result, &mut moved);
                    count_moved(turn.tally, &moved);
                    connection.moves(moved.total(), turn.now);
                    if connection.doomed {
                        self.remove(key);
                    } else {
                        self.pumped(key, pumped, turn);
                    }
                }
                Completion::Released { tag, copied: true } => {
                    let Some(Owner::Connection(key)) = Owner::unpack(tag) else { continue };
                    let Some(connection) = self.connections.get_mut(key) else { continue };
                    let device = connection.device();
                    self.learn(device, turn);
                }
                Completion::Released { .. } => {}
            }
        }
    }

    /// Hears what the kernel has told of a connection by its error queue.
    fn read_error_queue(&mut self, key: Key, turn: &Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.error_queued = false;
        let copied = connection.out.read_error_queue(&connection.stream);
        if !matches!(connection.stream.take_error(), Ok(None)) {
            connection.broken = true;
            connection.closing = true;
            connection.readable = true;
        }
        let device = connection.device();
        if copied {
            self.learn(device, turn);
        }
    }

    /// Sends on this device are copied after all.
    fn learn(&mut self, device: Ipv4Addr, turn: &Turn<'_>) {
        if self.copying.learn(device) {
            tracing::info!(
                core = turn.core,
                address = %device,
                "zero-copy sends are copied on this device: splice from now on"
            );
        }
    }
}

fn count_moved(tally: &Tally, moved: &Moved) {
    for (count, bytes) in [
        (Count::HttpSplice, moved.splice),
        (Count::HttpSendfile, moved.sendfile),
        (Count::HttpRing, moved.ring),
        (Count::HttpMapped, moved.mapped),
        (Count::HttpText, moved.text),
        (Count::HttpSealed, moved.sealed),
    ] {
        if bytes > 0 {
            tally.add(count, bytes);
        }
    }
}
