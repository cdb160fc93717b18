//! What became of a response, for the flight recorder and the jobs.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use crate::engine::shared::Shared;
use crate::jobs::evidence::{Evidence, Over, Seen};
use crate::jobs::image::Images;
use crate::jobs::script::last_file;
use crate::jobs::token::Token as BootToken;
use crate::wire::capture::Packet;

/// A long download says so this often, because silence counts against a boot.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// What of the response under way the flight recorder wants to know.
pub(super) struct Delivery {
    /// What it is of.
    pub(super) subject: Subject,
    pub(super) bytes: u64,
    pub(super) peer: Ipv4Addr,
    /// When to say that it goes on.
    pub(super) progress_at: Instant,
}

/// What a file response carries.
pub(super) enum Subject {
    /// A loader.
    Loader { name: String },
    /// An image's file, under a boot's token or openly.
    File { boot: Option<BootToken>, image: String, file: String, end: u64, len: u64 },
}

impl Subject {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Loader { name } => name,
            Self::File { file, .. } => file,
        }
    }

    /// Whether this completes what the image's script makes a machine fetch.
    pub(super) fn is_last(&self, shared: &Shared) -> bool {
        let Self::File { image, file, end, len, .. } = self else { return false };
        let catalog = shared.library.load();
        catalog.image(image).and_then(last_file).is_some_and(|last| last.is_done_by(file, end == len))
    }

    pub(super) fn token(&self) -> Option<BootToken> {
        match self {
            Self::Loader { .. } => None,
            Self::File { boot, .. } => *boot,
        }
    }
}

impl Delivery {
    pub(super) fn goes_on(&self, shared: &Shared, left: u64) {
        let Subject::File { boot, image, file, .. } = &self.subject else { return };
        let seen = Seen::FileProgress {
            job: boot.and_then(|token| token.job),
            image: image.clone(),
            file: file.clone(),
            bytes: self.bytes.saturating_sub(left),
            over: Over::Http,
        };
        note(shared, *boot, self.peer, seen);
    }

    /// Every byte is with the kernel, and will be with the machine whether it says so or not.
    pub(super) fn left(&self, shared: &Shared) {
        if let Subject::File { boot: Some(token), image, file, .. } = &self.subject
            && self.subject.is_last(shared)
        {
            let (image, file) = (image.clone(), file.clone());
            let seen = Seen::LastPieceSent { job: token.job, image, file, over: Over::Http };
            note(shared, Some(*token), self.peer, seen);
        }
    }

    pub(super) fn done(self, shared: &Shared) {
        let last = self.subject.is_last(shared);
        let boot = self.subject.token();
        let seen = match self.subject {
            Subject::Loader { name } => Seen::LoaderFetched { name, bytes: self.bytes, over: Over::Http },
            Subject::File { boot, image, file, len, .. } => {
                let job = boot.and_then(|token| token.job);
                let part = self.bytes != len;
                Seen::FileDone { job, image, file, bytes: self.bytes, part, last, over: Over::Http }
            }
        };
        note(shared, boot, self.peer, seen);
    }

    pub(super) fn failed(self, shared: &Shared, reason: &str, missing: u64) {
        let boot = self.subject.token();
        let seen = Seen::TransferFailed {
            job: boot.and_then(|token| token.job),
            file: self.subject.name().to_owned(),
            bytes: self.bytes.saturating_sub(missing),
            reason: reason.to_owned(),
            over: Over::Http,
        };
        note(shared, boot, self.peer, seen);
    }
}

pub(super) fn note(shared: &Shared, boot: Option<BootToken>, peer: Ipv4Addr, seen: Seen) {
    note_with(shared, boot, peer, seen, Vec::new());
}

pub(super) fn note_with(
    shared: &Shared,
    boot: Option<BootToken>,
    peer: Ipv4Addr,
    seen: Seen,
    packets: Vec<Packet>,
) {
    let mut evidence = Evidence::new(SystemTime::now(), seen);
    evidence.mac =
        boot.and_then(|token| token.mac).or_else(|| shared.sightings.at(peer).map(|seen| seen.mac));
    evidence.boot = boot.map(|token| token.boot);
    evidence.address = Some(peer);
    evidence.elsewhere = shared.elsewhere(boot.and_then(|token| token.mac), peer);
    evidence.packets = packets;
    shared.note(evidence);
}
