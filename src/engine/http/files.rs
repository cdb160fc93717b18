//! Files of images and loaders: who may have them, which pieces leave, and what waits.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::HttpSide;
use super::delivery::{Delivery, PROGRESS_EVERY, Subject, note_with};
use crate::engine::core::Turn;
use crate::engine::counters::Count;
use crate::engine::readers::Want;
use crate::engine::sender::{INLINE_MAX, Piece};
use crate::engine::shared::Shared;
use crate::engine::slab::Key;
use crate::files::served::Served;
use crate::jobs::Identity;
use crate::jobs::evidence::{Over, Seen};
use crate::jobs::image::Images;
use crate::jobs::reach::{self, Shut};
use crate::jobs::script::{Barrier, barrier};
use crate::jobs::token::{Token as BootToken, mark_of};
use crate::keeper::AtTheLine;
use crate::proto::http::{self as plan, Body, FileMeta};
use crate::sys::tcp;
use crate::wire::http::{Request, Status};

/// The end of a last boot file that leaves only once its boot is recorded: no machine starts anything without it.
const HELD_LEN: u64 = 64 * 1024;

impl HttpSide {
    pub(super) fn answer_file(
        &mut self,
        key: Key,
        request: &Request<'_>,
        served: &Served,
        token: Option<BootToken>,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let meta = FileMeta {
            len: served.len,
            etag: &served.etag,
            modified: served.modified,
            content_type: served.content_type,
        };
        let line = token.and_then(|token| line_of(&token, served, turn.shared));
        if served.len == 0 && line.is_some() {
            // Nothing of it could be held back.
            return self.answer_error(key, request, Status::NOT_FOUND, now, turn);
        }
        let answer = plan::answer_file(request, &meta, now, &mut self.head);
        let (end, body_len) = match &answer.body {
            Body::Range { offset, len } => (offset + len, *len),
            Body::Multi(_) => (0, answer.body_len),
            Body::None | Body::Inline => return self.respond(key, !answer.close, turn),
        };
        // What has no body needs no descriptor, of which there are fewer than files.
        let opened = match served.open() {
            Ok(opened) => opened,
            Err(error) => {
                turn.tally.add(Count::OpenFailures, 1);
                tracing::debug!(name = served.name, %error, "cannot open");
                self.head.clear();
                // It is there all the same.
                let later = tcp::is_out_of_descriptors(&error);
                let status = if later { Status::UNAVAILABLE } else { Status::NOT_FOUND };
                return self.answer_error(key, request, status, now, turn);
            }
        };
        let held_from = opened.len.saturating_sub(HELD_LEN);
        let held = line.is_some()
            && match &answer.body {
                Body::Range { offset, len } => offset + len > held_from,
                Body::Multi(_) => true,
                Body::None | Body::Inline => false,
            };
        let inline = match &answer.body {
            Body::Range { offset, len } if *len < INLINE_MAX && !held => {
                let ready = self.readers.ready(turn.now, &opened, *offset, *len, Want::Piece);
                (ready == Ok(*len)).then_some((*offset, *len))
            }
            _ => None,
        };
        if let Some((offset, len)) = inline {
            let start = self.head.len();
            self.head.resize(start + len as usize, 0);
            if opened.file.read_exact_at(&mut self.head[start..], offset).is_err() || !opened.still_same() {
                turn.tally.add(Count::FilesChanged, 1);
                if opened.is_bad_news() {
                    tracing::warn!(
                        file = served.name,
                        "file is not what it was when it was published: not sent"
                    );
                }
                return self.close(key, None, turn);
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        let subject = match served.image() {
            None => Subject::Loader { name: served.name.clone() },
            Some(image) => Subject::File {
                boot: token,
                image: image.to_owned(),
                file: served.name.get(image.len() + 1..).unwrap_or_default().to_owned(),
                end,
                len: served.len,
            },
        };
        if let Subject::File { boot, image, file, .. } = &subject {
            let job = boot.and_then(|token| token.job);
            let seen = Seen::FileStarted { job, image: image.clone(), file: file.clone(), over: Over::Http };
            let packets = self.packets(body_len);
            note_with(turn.shared, *boot, peer, seen, packets);
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.delivery = Some(Box::new(Delivery {
            subject,
            bytes: body_len,
            peer,
            progress_at: turn.now + PROGRESS_EVERY,
        }));
        connection.ack_checks = 0;
        if inline.is_some() {
            // It stands behind the head already.
            return self.respond(key, !answer.close, turn);
        }
        self.begin_response(key, !answer.close, turn);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut before = if held { held_from } else { u64::MAX };
        match answer.body {
            Body::Range { offset, len } => {
                push_file(&mut connection.out.pieces, offset, offset + len, before);
            }
            Body::Multi(pieces) => {
                for piece in pieces {
                    match piece {
                        plan::Piece::Text(bytes) => {
                            connection.out.pieces.push_back(Piece::Text { bytes, sent: 0 });
                        }
                        plan::Piece::File { offset, len } => {
                            // Once for the whole response: what follows waits with it.
                            if push_file(&mut connection.out.pieces, offset, offset + len, before) {
                                before = u64::MAX;
                            }
                        }
                    }
                }
            }
            Body::None | Body::Inline => {}
        }
        connection.line = if held { line.map(Box::new) } else { None };
        connection.out.file = Some(opened);
    }
}

/// Whether a token opens a file. Loaders are open to anyone who is not refused.
pub(super) fn opens(token: &BootToken, served: &Served, shared: &Shared) -> Result<(), Shut> {
    let view = shared.keeper.table().view();
    let who = Identity { mac: token.mac, ..Identity::default() };
    let rejected = view.standing(&who).is_some_and(|standing| standing.rejected)
        || token.mac.is_some_and(|mac| shared.policy.load().excludes(mac));
    let catalog = shared.library.load();
    match served.image() {
        None if rejected => Err(Shut::Rejected),
        None => Ok(()),
        Some(name) => {
            let image = catalog.image(name).ok_or(Shut::OtherImage)?;
            reach::opens(token, token.job.and_then(|job| view.job(job)), rejected, image)
        }
    }
}

/// The point of no return that the end of a file is, if it is one under this token: that of the last file the boot's
/// script names. Where the image boots by another one by now, nobody knows which file starts something, so every one is.
fn line_of(token: &BootToken, served: &Served, shared: &Shared) -> Option<AtTheLine> {
    let (job, name) = (token.job?, served.image()?);
    let file = served.name.get(name.len() + 1..)?;
    let catalog = shared.library.load();
    let image = catalog.image(name);
    let last = image.and_then(barrier).and_then(Barrier::file);
    let is_other = token.last != 0 && last.map(mark_of) != Some(token.last);
    // It became one that wipes since, and what allows for that was not asked then.
    let view = shared.keeper.table().view();
    let wipes = image.is_some_and(|image| image.destructive);
    let changed = match view.job(job) {
        None => is_other,
        // What a person picks from a menu is the person's doing.
        Some(job) if job.action.image().is_none() => false,
        // What boots every time holds nothing back, whichever file is its last, and wipes nothing. Of an image that nobody
        // can tell what it is, it goes on.
        Some(job) if job.always => wipes && image.is_some_and(|image| image.unbootable.is_none()),
        Some(job) => is_other || wipes && !job.may_wipe(),
    };
    (changed || last == Some(file)).then(|| AtTheLine {
        boot: token.boot,
        job,
        image: name.to_owned(),
        what: format!("the last of {file}"),
        idents: Vec::new(),
        once: None,
        changed,
    })
}

/// Queues a range of a file; what lies from `held_from` on waits behind [`Piece::Held`]. True when some does.
fn push_file(pieces: &mut VecDeque<Piece>, at: u64, end: u64, held_from: u64) -> bool {
    if end <= held_from {
        pieces.push_back(Piece::File { at, end });
        return false;
    }
    if at < held_from {
        pieces.push_back(Piece::File { at, end: held_from });
    }
    pieces.push_back(Piece::Held);
    pieces.push_back(Piece::File { at: at.max(held_from), end });
    true
}
