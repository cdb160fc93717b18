//! Requests: read, through TLS or not, and taken one by one.

use std::io;

use super::{Connection, HEAD_PATIENCE, HttpSide, Standing};
use crate::engine::core::Turn;
use crate::engine::counters::Count;
use crate::engine::slab::Key;
use crate::proto::http as plan;
use crate::sys::tcp;
use crate::tls::Refusal;
use crate::wire::capture::Packet;
use crate::wire::http::{Next, expects_continue, next_request};

/// Reads of one connection that is being closed, before the others have their turn.
const LATE_READS_PER_VISIT: usize = 16;
/// Bytes asked for in one read.
pub(super) const READ_LEN: usize = 4096;
/// Requests of one connection kept for a capture file, and bytes of each.
const KEPT_PER_CONNECTION: u8 = 24;
const KEPT_LEN: usize = 2048;
/// What a client waits for that asks before it sends a body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl HttpSide {
    /// Reads until a request is whole and answers it; false when there is nothing to do until the next event.
    pub(super) fn read_request(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let mut late_reads = 0;
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return false };
            if connection.keep_alive && !connection.input.is_empty() {
                let mut input = std::mem::take(&mut connection.input);
                let taken = self.take_request(key, &input, turn);
                let Some(connection) = self.connections.get_mut(key) else { return false };
                match taken {
                    Taken::Answered(len) => {
                        input.drain(..len);
                        if !input.is_empty() {
                            connection.input = input;
                        }
                        return true;
                    }
                    Taken::Refused => return true,
                    Taken::Parked => {
                        connection.input = input;
                        return false;
                    }
                    Taken::Nothing => connection.input = input,
                }
            }
            let Some(connection) = self.connections.get_mut(key) else { return false };
            if !connection.readable {
                return false;
            }
            if !connection.keep_alive {
                // The response is out and the write side closed: what still comes is read away, so that the close
                // does not reset what the peer has not read yet.
                connection.input = Vec::new();
                if late_reads == LATE_READS_PER_VISIT {
                    self.list(key);
                    return false;
                }
                late_reads += 1;
            }
            let mut received = std::mem::take(&mut self.received);
            received.clear();
            let read = tcp::recv_into(&connection.stream, &mut received, READ_LEN);
            let goes_on = match read {
                Ok(0) => {
                    connection.readable = false;
                    self.delivered(key, turn, true);
                    self.close(key, None, turn);
                    Some(false)
                }
                Ok(taken) => {
                    // Less than there was room for: that was all there is, and what comes will be told.
                    if taken < READ_LEN && !connection.closing {
                        connection.readable = false;
                    }
                    self.take_bytes(key, &received, turn)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                    Some(false)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                Err(_) => {
                    self.was_reset(key, turn);
                    Some(false)
                }
            };
            self.received = received;
            if let Some(goes_on) = goes_on {
                return goes_on;
            }
        }
    }

    /// Deals with bytes from the socket; `None` to read on, else what [`HttpSide::read_request`] answers. A request that
    /// comes whole is answered from the core's own buffer.
    fn take_bytes(&mut self, key: Key, received: &[u8], turn: &mut Turn<'_>) -> Option<bool> {
        let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
        let first = connection.input.is_empty();
        if connection.tls.is_some() {
            return self.take_records(key, received, turn);
        }
        if !connection.keep_alive {
            return None;
        }
        if first {
            connection.deadline = turn.now + HEAD_PATIENCE;
            let taken = self.take_request(key, received, turn);
            let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
            match taken {
                Taken::Answered(len) => {
                    connection.input.extend_from_slice(&received[len..]);
                    return Some(true);
                }
                Taken::Refused => return Some(true),
                Taken::Parked => {
                    connection.input.extend_from_slice(received);
                    return Some(false);
                }
                Taken::Nothing => {}
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
        connection.input.extend_from_slice(received);
        if expects_continue(&connection.input) {
            // One small send on a socket that owes nothing else; a client that misses it sends its body anyway.
            let _ = tcp::send(&connection.stream, CONTINUE, false);
        }
        None
    }

    /// The same for TLS records: what they carry becomes input, and what the protocol wants to say leaves.
    fn take_records(&mut self, key: Key, received: &[u8], turn: &mut Turn<'_>) -> Option<bool> {
        let Some(connection) = self.connections.get_mut(key) else { return Some(false) };
        let Some(tls) = &mut connection.tls else { return None };
        let (first, shook_hands) = (connection.input.is_empty(), tls.is_handshaking());
        let before = connection.input.len();
        let refused = tls.receive(received, &mut connection.input);
        if first && !connection.input.is_empty() {
            connection.deadline = turn.now + HEAD_PATIENCE;
        }
        if shook_hands && !tls.is_handshaking() {
            let old = tls.version() == Some("1.2");
            turn.tally.add(if old { Count::HttpsHandshakes12 } else { Count::HttpsHandshakes13 }, 1);
        }
        // Nothing else is owed here either: what is read is read between two responses.
        let came = connection.input.len() > before;
        if came && refused.is_ok() && connection.keep_alive && expects_continue(&connection.input) {
            tls.seal(CONTINUE);
        }
        let flushed = match tls.wants_write() {
            true => tls.flush(&mut connection.stream).map(|_| tls.wants_write()),
            false => Ok(false),
        };
        if let Err(refusal) = refused {
            turn.tally.add(
                match refusal {
                    Refusal::NotTls => Count::HttpsNotTls,
                    Refusal::Incompatible => Count::HttpsIncompatible,
                    Refusal::Alert => Count::HttpsAlerts,
                    Refusal::Broken => Count::HttpsBroken,
                },
                1,
            );
            tracing::debug!(peer = %connection.peer, reason = refusal.word(), "https refused");
            self.close(key, Some("the TLS session broke"), turn);
            return Some(false);
        }
        match flushed {
            Ok(false) => None,
            // What the socket does not take goes out like a response.
            Ok(true) => {
                connection.out.owes_records();
                self.busy += 1;
                Some(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.out.owes_records();
                self.busy += 1;
                Some(true)
            }
            Err(_) => {
                turn.tally.add(Count::HttpAborted, 1);
                self.close(key, Some("the connection was reset"), turn);
                Some(false)
            }
        }
    }

    /// Answers the request that `input` begins with, if it is whole.
    fn take_request(&mut self, key: Key, input: &[u8], turn: &mut Turn<'_>) -> Taken {
        if self.awaits_delivery(key, turn) {
            return Taken::Parked;
        }
        match next_request(input) {
            Next::More => Taken::Nothing,
            Next::Request { request, len } => {
                self.delivered(key, turn, false);
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.lingers = len < input.len();
                }
                let stood = self.remember(key, &input[..len], turn);
                self.answer(key, &request, stood, turn);
                // Its answer is made when it may leave, from the same request.
                let waits = |c: &mut Connection| c.parked.is_some() || c.stands.is_some();
                let parked = self.connections.get_mut(key).is_some_and(waits);
                if parked { Taken::Parked } else { Taken::Answered(len) }
            }
            Next::Refuse { status, reason } => {
                turn.tally.refuse_http(reason);
                if let Some(connection) = self.connections.get_mut(key) {
                    tracing::debug!(peer = %connection.peer, reason = reason.word(), "http refused");
                    connection.lingers = true;
                }
                self.delivered(key, turn, false);
                self.head.clear();
                plan::answer_error(None, status, turn.wall, &mut self.head);
                self.respond(key, false, turn);
                Taken::Refused
            }
        }
    }

    /// Keeps a request's bytes at hand until its answer is made: of a connection's first ones, since a disk is read in
    /// thousands. If it stood in line, it no longer does: it is looked at anew.
    fn remember(&mut self, key: Key, request: &[u8], turn: &Turn<'_>) -> Option<Standing> {
        self.asked.clear();
        let connection = self.connections.get_mut(key)?;
        let stood = connection.stands.take();
        self.standing -= usize::from(stood.is_some());
        self.asked_by = (connection.peer, connection.local);
        // Looked at once more, it is no other request.
        let kept = stood.map(|standing| standing.kept);
        if turn.shared.is_recording() && kept.unwrap_or(connection.kept < KEPT_PER_CONNECTION) {
            connection.kept += u8::from(kept.is_none());
            self.asked.extend_from_slice(&request[..request.len().min(KEPT_LEN)]);
        }
        stood
    }

    /// The request and the head of its answer, which stands in the head buffer, for a capture file.
    pub(super) fn packets(&self, body_len: u64) -> Vec<Packet> {
        if self.asked.is_empty() {
            return Vec::new();
        }
        let (peer, local) = self.asked_by;
        let asked = Packet::http(peer, local, false, &self.asked, 0);
        let answer = (!self.head.is_empty()).then(|| Packet::http(local, peer, true, &self.head, body_len));
        std::iter::once(asked).chain(answer).collect()
    }
}

/// What became of a look for a whole request.
enum Taken {
    /// There is none yet.
    Nothing,
    /// Answered; so many bytes are done with.
    Answered(usize),
    /// It waits, at the point of no return, for a place in line or for the acknowledgement of the answer before it, and is
    /// needed once more.
    Parked,
    /// The bytes are none; an error is on its way and the connection ends.
    Refused,
}
