//! How a response leaves: a queue of texts and file ranges, and the cheapest way this socket has to send the latter.
//!
//! | way | when |
//! |---|---|
//! | splice through a pooled 1 MiB pipe, corked | the default |
//! | SEND_ZC from the file's mapping, by the core's ring | the connection's local address is on a device not known to copy |
//! | MSG_ZEROCOPY from the same | the same, on a core without a ring |
//! | sendfile, corked | no pipe can be made |
//! | plain send | texts, and files below [`INLINE_MAX`] that are in memory (the caller puts those into a text) |
//! | records | TLS: file bytes are read in pieces of [`SEALED_LEN`], never through the mapping, and encrypted here |
//!
//! Only what is in memory leaves ([`Readers`]): a core that waits for a disk would make everybody wait.
//!
//! A file that changed or shrank under a response ends the connection with a reset: its receiver must not take a
//! mixture, or a cut body, for the image.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use super::readers::{Readers, Unreadable, Want};
use super::start::ZeroCopy;
use crate::files::served::Handle;
use crate::sys::tcp::{self, PIPE_LEN, Pipe};
use crate::sys::uring::SendRing;
use crate::tls::Session;

/// Files up to this length are read into the response's text: one call instead of four.
pub(super) const INLINE_MAX: u64 = 16 * 1024;
/// What one connection may send before the next one has its turn, with few and with many that have something to send.
const QUANTUM: u64 = 2 << 20;
const QUANTUM_OF_MANY: u64 = 512 << 10;
/// A quantum of everybody, between these two: what one left in the caches is still there when it comes round again.
const ROUND: u64 = 256 << 20;
/// From here to its end a file is looked at before every piece: no less than the longest of them.
const WATCHED_LEN: u64 = QUANTUM * ZERO_COPY_QUANTA;
/// Of a SEND_ZC by the quantum: the socket takes of it what it has room for, and what has room for more than a quantum comes
/// round half as often.
const ZERO_COPY_QUANTA: u64 = 2;
/// Bytes encrypted before they are sent: four records.
pub(super) const SEALED_LEN: usize = 64 << 10;
/// What one TLS connection may send in a turn: encrypting takes several times as long as sending.
const SEALED_QUANTUM: u64 = 512 << 10;
/// Notifications taken in one go: more than a socket's `optmem_max` has room for.
const NOTIFICATIONS_MAX: usize = 1024;
/// Ranges shorter than this are not worth a notification.
const ZERO_COPY_MIN: u64 = 64 << 10;

/// What each of `sending` connections may send in one go.
pub(super) fn quantum(sending: usize) -> u64 {
    (ROUND / sending.max(1) as u64).clamp(QUANTUM_OF_MANY, QUANTUM)
}

/// One piece of a response.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes made here: heads, small bodies, part boundaries.
    Text {
        /// The bytes.
        bytes: Vec<u8>,
        /// Sent so far.
        sent: usize,
    },
    /// A range of a file.
    File {
        /// Next byte to send.
        at: u64,
        /// One past the last.
        end: u64,
    },
    /// Nothing: what follows leaves only once this is taken out.
    Held,
}

/// A response on its way out.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// In order; the front is under way.
    pub(super) pieces: VecDeque<Piece>,
    /// The file its ranges are of.
    pub(super) file: Option<Handle>,
    pipe: Option<Pipe>,
    corked: bool,
    /// The TLS session has records that the socket has not taken yet.
    owes_records: bool,
    /// A ring send is with the kernel; nothing else may be sent until it answers.
    pub(super) in_ring: bool,
    /// The kernel would not pin pages for this connection; the other senders serve it.
    zero_copy_refused: bool,
    /// Sends by MSG_ZEROCOPY were begun: the socket's error queue tells of them.
    uses_error_queue: bool,
}

/// How far one go at sending came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Everything is with the kernel.
    Done,
    /// The socket is full: wait until it is writable.
    Blocked,
    /// Used its share of this turn: go on in the next.
    Yielded,
    /// The ring has the next piece: wait for its completion.
    InRing,
    /// Everything before [`Piece::Held`] is with the kernel.
    Held,
    /// What comes next is not in memory yet: look again in a moment.
    Cold,
    /// The file changed, ended early or cannot be read; the connection must be reset.
    Changed,
    /// The peer is gone.
    Broken,
}

/// Which of a core's senders moved bytes, for its counters.
#[derive(Debug, Default, Clone, Copy)]
#[allow(missing_docs, reason = "bytes by the sender of that name")]
pub(super) struct Moved {
    pub(super) splice: u64,
    pub(super) sendfile: u64,
    pub(super) ring: u64,
    pub(super) mapped: u64,
    pub(super) text: u64,
    pub(super) sealed: u64,
}

impl Moved {
    /// All bytes.
    pub(super) fn total(&self) -> u64 {
        self.splice + self.sendfile + self.ring + self.mapped + self.text + self.sealed
    }
}

/// A core's pipes. A connection whose socket is full may keep what is in its pipe, but not the last pipe: so there is one
/// for whoever can send. `sendfile` in its place is dearer, and can be much dearer: it brings a pipe of its own, which has
/// two pages where an ordinary user's pipe memory is used up (`fs.pipe-user-pages-soft`; fs/pipe.c, `alloc_pipe_info`).
#[derive(Debug, Default)]
pub(super) struct PipePool {
    free: Vec<Pipe>,
    made: usize,
    max: usize,
    /// `/dev/null`, where the bytes of a last pipe go. Without it connections keep their pipes, and `sendfile` serves those
    /// that find none.
    nowhere: Option<Arc<File>>,
}

impl PipePool {
    /// Makes up to `max` pipes, as they are needed. `nowhere` is `/dev/null`, open for writing.
    pub(super) fn new(max: usize, nowhere: Option<Arc<File>>) -> Self {
        Self { free: Vec::new(), made: 0, max, nowhere }
    }

    fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.free.pop() {
            return Some(pipe);
        }
        if self.made >= self.max {
            return None;
        }
        match Pipe::new() {
            Ok(pipe) => {
                self.made += 1;
                Some(pipe)
            }
            // That passes. (ENFILE is also what a limit on the user's pipe pages answers.)
            Err(error) if tcp::is_own_limit(&error) => None,
            Err(_) => {
                // The user's pipe memory is used up: what there is now is all there will be.
                self.max = self.made;
                None
            }
        }
    }

    /// True when nobody else would get a pipe now.
    fn is_used_up(&self) -> bool {
        self.free.is_empty() && self.made >= self.max
    }

    /// Takes a pipe back, without what is in it.
    fn put(&mut self, mut pipe: Pipe) {
        if pipe.held() > 0
            && let Some(nowhere) = &self.nowhere
        {
            // What is left in it after a failure closes it below.
            let _ = pipe.discard(nowhere);
        }
        if pipe.held() == 0 {
            self.free.push(pipe);
        } else {
            self.made -= 1;
        }
    }
}

/// Which local addresses' devices are known to copy zero-copy sends (loopback, veth, bridges to local machines).
#[derive(Debug)]
pub(super) struct CopyingDevices {
    zero_copy: ZeroCopy,
    addrs: Vec<Ipv4Addr>,
}

impl CopyingDevices {
    /// None so far.
    pub(super) fn new(zero_copy: ZeroCopy) -> Self {
        Self { zero_copy, addrs: Vec::new() }
    }

    /// True when connections on this address are not to be served without a copy.
    pub(super) fn knows(&self, addr: Ipv4Addr) -> bool {
        match self.zero_copy {
            ZeroCopy::Auto => self.addrs.contains(&addr),
            ZeroCopy::Off => true,
            ZeroCopy::Always => false,
        }
    }

    /// Remembers an address; true the first time.
    pub(super) fn learn(&mut self, addr: Ipv4Addr) -> bool {
        let new = self.zero_copy == ZeroCopy::Auto && !self.knows(addr);
        if new {
            self.addrs.push(addr);
        }
        new
    }
}

/// What a connection needs of its core to send.
#[derive(Debug)]
pub(super) struct Means<'a> {
    /// The core's pipes.
    pub(super) pipes: &'a mut PipePool,
    /// The core's ring, where there is one.
    pub(super) ring: Option<&'a mut SendRing>,
    /// Where zero-copy is pointless.
    pub(super) copying: &'a CopyingDevices,
    /// The address that stands for the device the connection goes by.
    pub(super) device: Ipv4Addr,
    /// Who knows what is in memory.
    pub(super) readers: &'a Readers,
    /// This turn's time.
    pub(super) now: Instant,
    /// What the connection may send now; see [`quantum`].
    pub(super) quantum: u64,
    /// What a ring completion is to be tagged with.
    pub(super) tag: u64,
    /// Where file bytes stand before they are encrypted.
    pub(super) unsealed: &'a mut Vec<u8>,
    /// Counted here.
    pub(super) moved: &'a mut Moved,
}

impl Outgoing {
    /// Nothing left to send.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && !self.owes_records
    }

    /// The TLS session has something to say that the socket did not take.
    pub(super) fn owes_records(&mut self) {
        self.owes_records = true;
    }

    /// Bytes not handed to the kernel yet.
    pub(super) fn left(&self) -> u64 {
        let queued: u64 = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text { bytes, sent } => (bytes.len() - sent) as u64,
                Piece::File { at, end } => end - at,
                Piece::Held => 0,
            })
            .sum();
        queued + self.pipe.as_ref().map_or(0, Pipe::held) as u64
    }

    /// Sends until the socket is full, the quantum is used, or all is out.
    pub(super) fn pump(&mut self, socket: &impl AsRawFd, means: &mut Means<'_>) -> Pumped {
        let mut quantum = means.quantum;
        loop {
            if self.in_ring {
                return Pumped::InRing;
            }
            let more_pieces = self.pieces.len() > 1;
            let result = match self.pieces.front_mut() {
                None => {
                    self.finish(socket, means.pipes);
                    return Pumped::Done;
                }
                Some(Piece::Held) => {
                    // What was held back for a full segment goes now: the wait may be long.
                    if std::mem::replace(&mut self.corked, false) && tcp::set_cork(socket, false).is_err() {
                        return Pumped::Broken;
                    }
                    return Pumped::Held;
                }
                Some(Piece::Text { bytes, sent }) if *sent == bytes.len() => {
                    self.pieces.pop_front();
                    continue;
                }
                Some(Piece::Text { bytes, sent }) => {
                    tcp::send(socket, &bytes[*sent..], more_pieces).map(|count| {
                        *sent += count;
                        means.moved.text += count as u64;
                        count as u64
                    })
                }
                Some(Piece::File { at, end })
                    if at == end && self.pipe.as_ref().is_none_or(|p| p.held() == 0) =>
                {
                    self.pieces.pop_front();
                    continue;
                }
                // What is in the pipe goes first, so that the pipe is free for the next connection.
                Some(Piece::File { .. })
                    if quantum == 0 && self.pipe.as_ref().is_none_or(|pipe| pipe.held() == 0) =>
                {
                    return Pumped::Yielded;
                }
                Some(Piece::File { .. }) => match self.pump_file(socket, quantum, means) {
                    Ok(ControlFlow::Break(pumped)) => return pumped,
                    Ok(ControlFlow::Continue(count)) => Ok(count),
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(count) => quantum = quantum.saturating_sub(count),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Pumped::Blocked,
                Err(e) if is_of_file(&e) => return Pumped::Changed,
                Err(_) => return Pumped::Broken,
            }
        }
    }

    /// The same through TLS. What a [`Piece::Held`] keeps back is not even encrypted before it is released.
    pub(super) fn pump_sealed(
        &mut self,
        socket: &mut impl Write,
        session: &mut Session,
        means: &mut Means<'_>,
    ) -> Pumped {
        let mut quantum = SEALED_QUANTUM;
        // Encrypted and not sent: texts and the file bytes after them leave together.
        let mut waiting = if session.wants_write() { SEALED_LEN } else { 0 };
        let mut is_cold = false;
        loop {
            let room = SEALED_LEN.saturating_sub(waiting);
            let front = self.pieces.front_mut();
            let stops = is_cold || matches!(front, None | Some(Piece::Held));
            if stops || room == 0 {
                while session.wants_write() {
                    match session.flush(socket) {
                        Ok(0) => return Pumped::Broken,
                        Ok(sent) => means.moved.sealed += sent as u64,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            self.owes_records = true;
                            return Pumped::Blocked;
                        }
                        Err(_) => return Pumped::Broken,
                    }
                }
                waiting = 0;
                self.owes_records = false;
            }
            match front {
                None => {
                    self.file = None;
                    return Pumped::Done;
                }
                Some(Piece::Held) => return Pumped::Held,
                Some(_) if is_cold => return Pumped::Cold,
                Some(_) if room == 0 && quantum == 0 => return Pumped::Yielded,
                Some(_) if room == 0 => {}
                Some(Piece::Text { bytes, sent }) => {
                    let taken = room.min(bytes.len() - *sent);
                    session.seal(&bytes[*sent..*sent + taken]);
                    (*sent, waiting) = (*sent + taken, waiting + taken);
                    if *sent == bytes.len() {
                        self.pieces.pop_front();
                    }
                }
                Some(Piece::File { at, end }) => {
                    let Some(file) = &self.file else { return Pumped::Broken };
                    let left = *end - *at;
                    let want = left.min(room as u64);
                    let len = match means.readers.ready(means.now, file, *at, want, Want::Piece) {
                        Ok(ready) => ready as usize,
                        Err(Unreadable) => return Pumped::Changed,
                    };
                    if len == 0 && left > 0 {
                        // What is sealed leaves first.
                        is_cold = true;
                        continue;
                    }
                    if len as u64 == left && !file.still_same() {
                        return Pumped::Changed;
                    }
                    means.unsealed.resize(SEALED_LEN, 0);
                    match file.file.read_at(&mut means.unsealed[..len], *at) {
                        Ok(0) if left > 0 => return Pumped::Changed,
                        Ok(read) => {
                            session.seal(&means.unsealed[..read]);
                            *at += read as u64;
                            waiting += read;
                            quantum = quantum.saturating_sub(read as u64);
                        }
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => return Pumped::Changed,
                    }
                    if at == end {
                        self.pieces.pop_front();
                    }
                }
            }
        }
    }

    /// One call's worth of the front file piece, no more than `quantum` unless it waits in the pipe already; the bytes that
    /// reached the socket, or why none can.
    fn pump_file(
        &mut self,
        socket: &impl AsRawFd,
        quantum: u64,
        means: &mut Means<'_>,
    ) -> io::Result<ControlFlow<Pumped, u64>> {
        let last_piece = self.pieces.len() == 1;
        let (Some(Piece::File { at, end }), Some(file)) = (self.pieces.front_mut(), &self.file) else {
            return Ok(ControlFlow::Break(Pumped::Changed));
        };
        let left = *end - *at;
        let in_pipe = self.pipe.as_ref().map_or(0, Pipe::held);
        let zero_copy =
            left >= ZERO_COPY_MIN && !self.zero_copy_refused && !means.copying.knows(means.device);
        let by_call = zero_copy && means.ring.is_none();
        let (ring, ready) = if in_pipe > 0 {
            (None, 0)
        } else {
            let ring = means.ring.as_deref_mut().filter(|_| zero_copy);
            let most = match zero_copy {
                true => means.quantum * ZERO_COPY_QUANTA,
                false => quantum.min(PIPE_LEN as u64),
            };
            match means.readers.ready(means.now, file, *at, left.min(most), Want::Piece) {
                Ok(0) => {
                    // What was held back for a full segment goes now.
                    if std::mem::replace(&mut self.corked, false) {
                        tcp::set_cork(socket, false)?;
                    }
                    return Ok(ControlFlow::Break(Pumped::Cold));
                }
                Ok(ready) => (ring, ready),
                Err(Unreadable) => return Ok(ControlFlow::Break(Pumped::Changed)),
            }
        };
        // The rest goes out now or with the next calls: the last chances to see that the file is still the one promised.
        // Also what waits in the pipe is looked at again, since its pages are the file's own, and show what is written
        // to it while a slow receiver lets them wait.
        if left <= WATCHED_LEN && !file.still_same() {
            return Ok(ControlFlow::Break(Pumped::Changed));
        }
        if !self.corked {
            tcp::set_cork(socket, true)?;
            self.corked = true;
        }
        if in_pipe == 0 {
            if let Some(ring) = ring.filter(|_| ready >= ZERO_COPY_MIN)
                && ring.send(socket.as_raw_fd(), &file.mapping, *at, ready as usize, means.tag)
            {
                self.in_ring = true;
                return Ok(ControlFlow::Break(Pumped::InRing));
            }
            if by_call && ready >= ZERO_COPY_MIN {
                let allowed = if self.uses_error_queue { Ok(()) } else { tcp::allow_zero_copy(socket) };
                self.uses_error_queue |= allowed.is_ok();
                match allowed.and_then(|()| tcp::send_mapped(socket, &file.mapping, *at, ready as usize)) {
                    Ok(sent) => {
                        *at += sent as u64;
                        means.moved.mapped += sent as u64;
                        return Ok(ControlFlow::Continue(sent as u64));
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock || is_of_file(&e) || is_peer_gone(&e) => {
                        return Err(e);
                    }
                    // As for a ring's: see `ring_answered`.
                    Err(_) => self.zero_copy_refused = true,
                }
            }
            if self.pipe.is_none() {
                self.pipe = means.pipes.take();
            }
            let len = ready.min(quantum).min(PIPE_LEN as u64) as usize;
            let Some(pipe) = &mut self.pipe else {
                let sent = tcp::send_file(socket, &file.file, *at, len)? as u64;
                if sent == 0 {
                    return Ok(ControlFlow::Break(Pumped::Changed));
                }
                *at += sent;
                means.moved.sendfile += sent;
                return Ok(ControlFlow::Continue(sent));
            };
            let filled = pipe.fill(&file.file, *at, len)? as u64;
            if filled == 0 {
                return Ok(ControlFlow::Break(Pumped::Changed));
            }
            *at += filled;
        }
        let Some(pipe) = &mut self.pipe else { return Ok(ControlFlow::Break(Pumped::Broken)) };
        let more = !last_piece || *at < *end;
        let sent = pipe.drain(socket, more)? as u64;
        if sent == 0 {
            // A page in the pipe was cut off the file (fs/splice.c, page_cache_pipe_buf_confirm).
            return Ok(ControlFlow::Break(Pumped::Changed));
        }
        means.moved.splice += sent;
        // A pipe is held only while bytes are in it; whoever waits for a full socket gives an empty one back.
        if pipe.held() == 0
            && *at == *end
            && let Some(pipe) = self.pipe.take()
        {
            means.pipes.put(pipe);
        }
        Ok(ControlFlow::Continue(sent))
    }

    /// A ring send was answered: account for it.
    pub(super) fn ring_answered(&mut self, result: io::Result<usize>, moved: &mut Moved) -> Pumped {
        self.in_ring = false;
        match result {
            Ok(0) => Pumped::Broken,
            Ok(count) => {
                moved.ring += count as u64;
                if let Some(Piece::File { at, end }) = self.pieces.front_mut() {
                    *at = (*at + count as u64).min(*end);
                    // It may have waited long for a slow receiver, and its pages are the file's own.
                    if end.saturating_sub(*at) <= WATCHED_LEN
                        && self.file.as_ref().is_some_and(|file| !file.still_same())
                    {
                        return Pumped::Changed;
                    }
                }
                Pumped::Yielded
            }
            Err(e) if is_of_file(&e) => Pumped::Changed,
            // An ordinary user may pin only so many pages (RLIMIT_MEMLOCK): ENOBUFS or ENOMEM beyond that. A refusal
            // of any other kind but a dead peer is no reason to end a download either.
            Err(e) if !is_peer_gone(&e) => {
                self.zero_copy_refused = true;
                Pumped::Yielded
            }
            Err(_) => Pumped::Broken,
        }
    }

    /// Whether the socket's error queue is of this sender's making.
    pub(super) fn uses_error_queue(&self) -> bool {
        self.uses_error_queue
    }

    /// Takes what the kernel tells of its sends; true when it has copied what was not to be copied.
    pub(super) fn read_error_queue(&self, socket: &impl AsRawFd) -> bool {
        let mut copied = false;
        for _ in 0..NOTIFICATIONS_MAX {
            let Ok(Some(one)) = tcp::zero_copy_released(socket) else { break };
            copied |= one;
        }
        copied
    }

    /// Lets go of pipe, file and cork.
    fn finish(&mut self, socket: &impl AsRawFd, pipes: &mut PipePool) {
        if let Some(pipe) = self.pipe.take() {
            pipes.put(pipe);
        }
        if self.corked {
            // Fails only on a dead socket, which the next read tells.
            let _ = tcp::set_cork(socket, false);
            self.corked = false;
        }
        self.file = None;
    }

    /// Lets go what was held.
    pub(super) fn release(&mut self) {
        if matches!(self.pieces.front(), Some(Piece::Held)) {
            self.pieces.pop_front();
        }
    }

    /// The connection ends: whatever is left is dropped.
    pub(super) fn abandon(&mut self, pipes: &mut PipePool) {
        if let Some(pipe) = self.pipe.take() {
            pipes.put(pipe);
        }
        self.pieces.clear();
        self.owes_records = false;
        self.file = None;
    }

    /// Others have their turn: an empty pipe goes back to the pool, and so does the last one whatever is in it. Its bytes
    /// are taken from the file again.
    pub(super) fn rest(&mut self, pipes: &mut PipePool) {
        let Some(pipe) = &self.pipe else { return };
        let held = pipe.held() as u64;
        if held > 0 && !(pipes.nowhere.is_some() && pipes.is_used_up()) {
            return;
        }
        // A pipe's bytes are the front piece's: it stays in front until both are used up.
        if let Some(Piece::File { at, .. }) = self.pieces.front_mut() {
            *at -= held;
        }
        if let Some(pipe) = self.pipe.take() {
            pipes.put(pipe);
        }
    }
}

/// Errors that the file has, not the socket: a page that is no longer there, or that its disk cannot read.
fn is_of_file(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().is_some_and(|code| [Errno::EFAULT, Errno::EIO].contains(&Errno::from_raw(code)))
}

/// Errors that mean the connection is over.
fn is_peer_gone(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::NotConnected
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::files::served::{FileIdentity, Place, Served};
    use crate::jobs::image::Access;

    /// Connections that all want the same file at once and read none of it until every one of them has stopped.
    fn everybody_gets_the_file(connections: usize, pipes: usize) -> Moved {
        let path = std::env::temp_dir().join(format!("bootstorm-pipes-{}-{pipes}", std::process::id()));
        let content: Vec<u8> =
            (0..12_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let identity = FileIdentity::of(&std::fs::metadata(&path).unwrap());
        let served = Served::new("pe/boot.wim".into(), Place::Image, path.clone(), identity, Access::Open);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nowhere = File::options().write(true).open("/dev/null").unwrap();
        let mut pool = PipePool::new(pipes, Some(Arc::new(nowhere)));
        let mut all = Moved::default();
        let mut sending: Vec<(TcpStream, Outgoing)> = Vec::new();
        let mut reading = Vec::new();
        for _ in 0..connections {
            reading.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let socket = listener.accept().unwrap().0;
            socket.set_nonblocking(true).unwrap();
            let mut out = Outgoing { file: Some(served.open().unwrap()), ..Outgoing::default() };
            out.pieces.push_back(Piece::Text { bytes: b"head".to_vec(), sent: 0 });
            out.pieces.push_back(Piece::File { at: 0, end: content.len() as u64 });
            sending.push((socket, out));
        }
        let mut pump = |socket: &TcpStream, out: &mut Outgoing| {
            let mut means = Means {
                pipes: &mut pool,
                ring: None,
                // By splice.
                copying: &CopyingDevices::new(ZeroCopy::Off),
                device: Ipv4Addr::LOCALHOST,
                readers: &Readers::none(),
                now: Instant::now(),
                quantum: quantum(connections),
                tag: 0,
                unsealed: &mut Vec::new(),
                moved: &mut all,
            };
            let pumped = out.pump(socket, &mut means);
            out.rest(&mut pool);
            pumped
        };
        for (socket, out) in &mut sending {
            while pump(socket, out) == Pumped::Yielded {}
        }
        let readers: Vec<_> = reading
            .into_iter()
            .map(|mut socket| {
                std::thread::spawn(move || {
                    let mut got = Vec::new();
                    socket.read_to_end(&mut got).unwrap();
                    got
                })
            })
            .collect();
        while !sending.is_empty() {
            sending.retain_mut(|(socket, out)| {
                let pumped = pump(socket, out);
                assert!(matches!(pumped, Pumped::Done | Pumped::Blocked | Pumped::Yielded), "{pumped:?}");
                pumped != Pumped::Done
            });
            std::thread::yield_now();
        }
        for reader in readers {
            let got = reader.join().unwrap();
            assert!(got[..4] == *b"head" && got[4..] == content, "{} bytes", got.len());
        }
        std::fs::remove_file(&path).unwrap();
        all
    }

    #[test]
    fn many_have_less_at_a_time() {
        assert_eq!([0, 1, 128].map(quantum), [2 << 20; 3]);
        assert_eq!([256, 400].map(quantum), [1 << 20, (256 << 20) / 400]);
        assert_eq!([512, 16_384].map(quantum), [512 << 10; 2]);
    }

    #[test]
    fn stalled_connections_leave_a_pipe_for_whoever_can_send() {
        for pipes in [1, 3] {
            let moved = everybody_gets_the_file(8, pipes);
            assert_eq!((moved.sendfile, moved.splice), (0, 8 * 12_000_003), "{pipes} pipes");
        }
    }

    #[test]
    fn without_any_pipe_sendfile_serves_all() {
        let moved = everybody_gets_the_file(3, 0);
        assert_eq!((moved.sendfile, moved.splice), (3 * 12_000_003, 0));
    }

    #[test]
    fn a_kernel_that_pins_no_more_pages_does_not_end_a_download() {
        for (errno, expected) in [
            (nix::errno::Errno::ENOBUFS, Pumped::Yielded),
            (nix::errno::Errno::ENOMEM, Pumped::Yielded),
            (nix::errno::Errno::EPIPE, Pumped::Broken),
            (nix::errno::Errno::ECONNRESET, Pumped::Broken),
            (nix::errno::Errno::EFAULT, Pumped::Changed),
            (nix::errno::Errno::EIO, Pumped::Changed),
        ] {
            let mut out = Outgoing { in_ring: true, ..Outgoing::default() };
            let result = Err(io::Error::from_raw_os_error(errno as i32));
            assert_eq!(out.ring_answered(result, &mut Moved::default()), expected, "{errno}");
            assert!(!out.in_ring);
            assert_eq!(out.zero_copy_refused, expected == Pumped::Yielded);
        }
    }
}
