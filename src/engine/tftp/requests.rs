//! Requests: what they name, what is granted, how it will leave, and who makes room where there is none.

use std::hash::BuildHasher;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Instant;

use super::told::note_request;
use super::{HEADERS_LEN, Hop, Line, Link, Live, Payload, TRANSFERS_MAX, TftpSide, UNARMED, Way};
use crate::engine::core::Turn;
use crate::engine::counters::Count;
use crate::engine::native::{self, End};
use crate::engine::readers::{Unreadable, Want};
use crate::engine::slab::Key;
use crate::files::catalog::TftpTarget;
use crate::files::served::{CHUNK_LEN, Opened, Served};
use crate::jobs::evidence::Seen;
use crate::jobs::image::Access;
use crate::jobs::script;
use crate::proto::tftp::{Limits, Outcome, Transfer, Verdict};
use crate::sys::frames::HEAD_LEN_MAX;
use crate::sys::tcp;
use crate::sys::udp::{self, Source};
use crate::wire::tftp::{self, ErrorCode, Mode, Options, Request};

/// Netascii exists for small texts; a conversion is held in memory.
const NETASCII_LEN_MAX: u64 = 1 << 20;
/// Bytes of texts that the transfers of one core hold in all, once another one is converted.
const TEXTS_LEN_MAX: usize = 8 << 20;
/// The port of the standard, for capture files.
const TFTP_PORT: u16 = 69;
/// Longest name kept of what was refused.
const NAME_SHOWN_MAX: usize = 160;
/// Windows up to this many blocks leave by frame: for larger ones a segmented send costs less per block.
const FRAME_WINDOW_MAX: u16 = 4;

/// What a request names, opened.
struct Found {
    payload: Payload,
    served: Option<Arc<Served>>,
    line: Option<Box<Line>>,
}

impl TftpSide {
    /// Answers a request with an ERROR.
    pub(super) fn refuse(
        &mut self,
        socket: u32,
        client: SocketAddrV4,
        source: Source,
        code: ErrorCode,
        message: &str,
        turn: &mut Turn<'_>,
    ) {
        let mut reply = [0; 128];
        if let Some(len) = tftp::emit_error(&mut reply, code, message) {
            self.push_bytes(socket, client, source, u64::MAX, &reply[..len], turn);
        }
        turn.tally.add(Count::TftpRefused, 1);
    }

    #[allow(clippy::too_many_arguments, reason = "a request, as it was sent, where it came in and from whom")]
    pub(super) fn request(
        &mut self,
        socket: u32,
        request: &Request<'_>,
        bytes: &[u8],
        client: SocketAddrV4,
        source: Source,
        hop: Option<Hop>,
        turn: &mut Turn<'_>,
    ) {
        turn.tally.add(Count::TftpRequests, 1);
        let request_hash = hash(request);
        if let Some(key) = self.of_client(client) {
            match self.transfers.get_mut(key) {
                // From the port its last boot had, it is the next one all the same.
                Some(live)
                    if live.request_hash == request_hash
                        && live.line.as_ref().is_none_or(|line| line.is_of(client, turn)) =>
                {
                    if let Some(line) = &mut live.line {
                        line.heard = turn.now;
                    }
                    let verdict = live.transfer.handle_retried_request(turn.now);
                    return self.follow(key, verdict, turn);
                }
                // The same port asks for something else: the old transfer is over for the client. One that it never
                // acknowledged was a size query, aborted in silence.
                Some(live) => {
                    let outcome = live.transfer.is_unanswered().then_some(Outcome::ProbeAborted);
                    self.end(key, outcome, turn);
                }
                None => {}
            }
        }
        if !self.accepting {
            return turn.tally.add(Count::TftpShed, 1);
        }
        let listener = SocketAddrV4::new(source.addr, TFTP_PORT);
        let socket = if self.single_port { socket } else { (self.listeners + self.next_port) as u32 };
        let Found { payload, served, line } = match self.find(request, client, source, turn) {
            Ok(Some(found)) => found,
            // It is being read, and its client asks again.
            Ok(None) => return turn.tally.add(Count::TftpCold, 1),
            Err((code, message)) => {
                self.refuse(socket, client, source, code, message, turn);
                tracing::debug!(%client, name = %String::from_utf8_lossy(request.name), message, "tftp refused");
                let mut reply = [0; 128];
                let len = tftp::emit_error(&mut reply, code, message).unwrap_or(0);
                let file = String::from_utf8_lossy(&request.name[..request.name.len().min(NAME_SHOWN_MAX)]);
                let seen = Seen::TftpRefused { file: file.into_owned(), reason: message.to_owned() };
                let packets = self.exchange(bytes, client, listener, socket, &reply[..len]);
                note_request(turn.shared, *client.ip(), seen, packets);
                return;
            }
        };
        let len = match &payload {
            Payload::File(opened) => opened.len,
            Payload::Text(text) => text.len() as u64,
        };
        let limits = self.limits_for(client, source, turn);
        let (mut transfer, _start) = Transfer::accept(turn.now, request, len, &limits);
        if line.is_some() {
            transfer.hold_last();
        }
        let way = match &payload {
            Payload::File(_) => self.way(&transfer, client, source, hop, turn),
            Payload::Text(_) => Way::Datagrams,
        };
        if turn.shared.is_recording()
            && let Some(served) = &served
        {
            let mut reply = [0; HEAD_LEN_MAX];
            let len = transfer.oack().and_then(|options| tftp::emit_oack(&mut reply, &options)).unwrap_or(0);
            let packets = self.exchange(bytes, client, listener, socket, &reply[..len]);
            note_request(turn.shared, *client.ip(), Seen::TftpAsked { file: served.name.clone() }, packets);
        }
        let live = Live {
            transfer,
            payload,
            served,
            client,
            local: source.addr,
            socket: socket as u16,
            request_hash,
            way,
            guesses: 0,
            began_ms: self.readers.elapsed_ms(turn.now),
            queued: false,
            armed_us: UNARMED,
            line,
        };
        if self.transfers.is_full() {
            self.evict(turn);
        }
        let held = live.payload.held();
        match self.transfers.insert(live) {
            Ok(key) => {
                self.text_bytes += held;
                let (hasher, transfers) = (&self.hasher, &self.transfers);
                self.by_client.insert_unique(hasher.hash_one(client), key.index, |index| {
                    transfers.at(*index).map_or(0, |live| hasher.hash_one(live.client))
                });
                self.remember_unanswered(key);
                self.follow(key, Verdict::Progress, turn);
            }
            // Full of clients that answer: the newest is shed in silence, and its firmware asks again.
            Err(_) => turn.tally.add(Count::TftpShed, 1),
        }
    }

    /// What is granted to this client: smaller blocks, if fragments do not reach it.
    fn limits_for(&self, client: SocketAddrV4, source: Source, turn: &Turn<'_>) -> Limits {
        let mut limits = turn.shared.tuning.load().tftp_limits;
        let whole = turn.shared.mtu(source.addr).saturating_sub(HEADERS_LEN + 4);
        if u32::from(limits.blksize_max) > whole
            && turn.shared.fragments_lost.contains(turn.now, *client.ip())
        {
            limits.blksize_max = whole as u16;
        }
        limits
    }

    /// How a new transfer's blocks leave.
    fn way(
        &self,
        transfer: &Transfer,
        client: SocketAddrV4,
        source: Source,
        hop: Option<Hop>,
        turn: &Turn<'_>,
    ) -> Way {
        let packet_len = u32::from(transfer.blksize()) + 4 + HEADERS_LEN;
        let segments = self.segmentation
            && packet_len <= turn.shared.mtu(source.addr)
            && !turn.shared.refuses_segments(source.addr);
        if let Some(Hop { link, from }) = hop
            && (transfer.windowsize() <= FRAME_WINDOW_MAX || !segments)
            && let Some(Link { interface, .. }) = self.links.get(usize::from(link))
            && packet_len <= interface.mtu
            && (interface.network.contains(*client.ip())
                // Behind a router: the way back must be the way it came, or the frame ends where nobody forwards it.
                || udp::source_towards(client).is_ok_and(|local| local == interface.addr))
        {
            return Way::Frame { link, to: from };
        }
        if segments { Way::Segments } else { Way::Datagrams }
    }

    /// Notes a transfer that is still to be answered, and forgets those that are not any more.
    fn remember_unanswered(&mut self, key: Key) {
        if self.unanswered.len() >= 2 * TRANSFERS_MAX {
            let transfers = &mut self.transfers;
            self.unanswered
                .retain(|key| transfers.get_mut(*key).is_some_and(|live| live.transfer.is_unanswered()));
        }
        self.unanswered.push_back(key);
    }

    /// Makes room by ending the oldest transfer that nobody has acknowledged. Requests in other machines' names would
    /// else keep all places taken; a real client acknowledges within its round trip, long before it is the oldest.
    fn evict(&mut self, turn: &mut Turn<'_>) {
        while let Some(key) = self.unanswered.pop_front() {
            if self.transfers.get_mut(key).is_some_and(|live| live.transfer.is_unanswered()) {
                turn.tally.add(Count::TftpShed, 1);
                return self.end(key, Some(Outcome::TimedOut), turn);
            }
        }
    }

    /// What a request names, opened; `None` when it is a text to be converted that is not in memory yet.
    fn find(
        &self,
        request: &Request<'_>,
        client: SocketAddrV4,
        source: Source,
        turn: &Turn<'_>,
    ) -> Result<Option<Found>, (ErrorCode, &'static str)> {
        if request.write {
            return Err((ErrorCode::AccessViolation, "this server is read-only"));
        }
        let catalog = turn.shared.library.load();
        let served = match native::target(turn.shared, &catalog, request.name, *client.ip()) {
            Ok(TftpTarget::Loader(_) | TftpTarget::Autoexec)
                if native::is_denied(turn.shared, *client.ip()) =>
            {
                return Err((ErrorCode::AccessViolation, "this machine is refused here"));
            }
            Ok(TftpTarget::File(served) | TftpTarget::Loader(served)) => served,
            Ok(TftpTarget::Autoexec) => return self.autoexec(source, turn).map(Some),
            Err(_) => return Err((ErrorCode::FileNotFound, "file not found")),
        };
        if served.access == Access::Boot {
            return Err((
                ErrorCode::AccessViolation,
                "this image is given only to a boot with a token, by HTTP",
            ));
        }
        let line = match native::end_of(&served, *client.ip(), turn.now, turn.shared) {
            End::Open => None,
            End::Line(at, seen) => {
                Some(Box::new(Line { at, seen, asked: false, heard: turn.now, again: None }))
            }
            End::Shut(why) => return Err((ErrorCode::AccessViolation, why)),
        };
        let opened = match served.open() {
            Ok(opened) => opened,
            Err(error) => {
                turn.tally.add(Count::OpenFailures, 1);
                tracing::debug!(name = served.name, %error, "cannot open");
                // It is there all the same, and its client asks again.
                if tcp::is_out_of_descriptors(&error) {
                    return Ok(None);
                }
                return Err((ErrorCode::FileNotFound, "file not found"));
            }
        };
        let payload = match request.mode {
            Mode::Octet => Payload::File(opened),
            Mode::Netascii if opened.len > NETASCII_LEN_MAX => {
                return Err((ErrorCode::NotDefined, "netascii is served up to 1 MiB; ask for octet"));
            }
            // Twice as long at most.
            Mode::Netascii if self.text_bytes + 2 * opened.len as usize > TEXTS_LEN_MAX => {
                return Err((ErrorCode::NotDefined, "too many netascii transfers; ask for octet"));
            }
            Mode::Netascii => {
                match self.is_in_memory(&opened, turn.now) {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(Unreadable) => return Err((ErrorCode::FileNotFound, "file not found")),
                }
                let mut raw = vec![0; opened.len as usize];
                std::os::unix::fs::FileExt::read_exact_at(&opened.file, &mut raw, 0)
                    .map_err(|_| (ErrorCode::FileNotFound, "file not found"))?;
                let mut text = tftp::to_netascii(&raw);
                text.shrink_to_fit();
                Payload::Text(Arc::new(text))
            }
        };
        Ok(Some(Found { payload, served: Some(served), line }))
    }

    /// Whether a whole file is in memory; what is not is being read.
    fn is_in_memory(&self, opened: &Arc<Opened>, now: Instant) -> Result<bool, Unreadable> {
        (0..opened.len).step_by(CHUNK_LEN as usize).try_fold(true, |all, offset| {
            let len = CHUNK_LEN.min(opened.len - offset);
            Ok(all & (self.readers.ready(now, opened, offset, len, Want::Window)? == len))
        })
    }

    /// The constant script: the same bytes for the size query and the read after it.
    fn autoexec(&self, source: Source, turn: &Turn<'_>) -> Result<Found, (ErrorCode, &'static str)> {
        let port = turn.shared.http_port(source.addr).ok_or((ErrorCode::FileNotFound, "file not found"))?;
        let mut script = String::new();
        script::ask_identity(&format!("http://{}:{port}", source.addr), &mut script);
        Ok(Found { payload: Payload::Text(Arc::new(script.into_bytes())), served: None, line: None })
    }
}

fn hash(request: &Request<'_>) -> u32 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    let Options { blksize, tsize, timeout_secs, windowsize } = request.options;
    (request.name, request.mode == Mode::Octet, blksize, tsize, timeout_secs, windowsize).hash(&mut hasher);
    hasher.finish() as u32
}
