//! Boots put away: packed in memory, and as the store keeps them.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::story::{Context, Story};
use super::timeline::{Outcome, Timeline};
use super::{Stop, since};
use crate::jobs::token::BootId;

/// One boot in memory.
#[derive(Debug)]
pub(super) enum Kept {
    /// Ready for more evidence.
    Open(Box<Timeline>),
    /// Packed.
    Sealed(Sealed),
}

/// A packed boot: its JSON, compressed. A usual boot takes some 800 bytes so, and five times as much ready for evidence.
#[derive(Debug)]
pub(super) struct Sealed {
    bytes: Box<[u8]>,
    boot: Option<BootId>,
    outcome: Outcome,
    head: Head,
}

/// What of a boot is looked at without unpacking it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) started: SystemTime,
    pub(super) until: SystemTime,
    /// Where it stopped, if nothing more is heard of it.
    pub(super) stop: Stop,
    pub(super) relay: Option<Ipv4Addr>,
}

/// Longer than any rule is patient.
const LONG_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

impl Head {
    fn of(timeline: &Timeline) -> Self {
        let context = Context { now: timeline.until + LONG_AFTER, job: None };
        let relay = Story::read(timeline, &context).relay;
        let stop = timeline.verdict(&context).stage;
        Self { started: timeline.started, until: timeline.until, stop, relay }
    }
}

impl Kept {
    /// Packs it. `bytes` is what it counts in.
    pub(super) fn seal(&mut self, bytes: &mut usize) {
        let Self::Open(timeline) = self else { return };
        // A timeline is plain data with text for keys, so this does not fail; if it did, it stays as it is.
        let Ok(text) = serde_json::to_vec(timeline) else { return };
        let packed = lz4_flex::compress_prepend_size(&text).into();
        let (boot, outcome, head) = (timeline.boot, timeline.outcome, Head::of(timeline));
        *bytes -= self.footprint();
        *self = Self::Sealed(Sealed { bytes: packed, boot, outcome, head });
        *bytes += self.footprint();
    }

    /// Makes it ready for more evidence. `bytes` is what it counts in.
    pub(super) fn open(&mut self, bytes: &mut usize) -> Option<&mut Timeline> {
        if let Self::Sealed(sealed) = self {
            let timeline = Box::new(sealed.timeline()?);
            *bytes -= self.footprint();
            *self = Self::Open(timeline);
            *bytes += self.footprint();
        }
        match self {
            Self::Open(timeline) => Some(timeline),
            Self::Sealed(_) => None,
        }
    }

    /// A copy of it.
    pub(super) fn timeline(&self) -> Option<Timeline> {
        match self {
            Self::Open(timeline) => Some((**timeline).clone()),
            Self::Sealed(sealed) => sealed.timeline(),
        }
    }

    pub(super) fn boot(&self) -> Option<BootId> {
        match self {
            Self::Open(timeline) => timeline.boot,
            Self::Sealed(sealed) => sealed.boot,
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Open(timeline) => timeline.outcome,
            Self::Sealed(sealed) => sealed.outcome,
        }
    }

    pub(super) fn started(&self) -> SystemTime {
        match self {
            Self::Open(timeline) => timeline.started,
            Self::Sealed(sealed) => sealed.head.started,
        }
    }

    pub(super) fn until(&self) -> SystemTime {
        match self {
            Self::Open(timeline) => timeline.until,
            Self::Sealed(sealed) => sealed.head.until,
        }
    }

    pub(super) fn head(&self) -> Head {
        match self {
            Self::Open(timeline) => Head::of(timeline),
            Self::Sealed(sealed) => sealed.head,
        }
    }

    /// Bytes it takes.
    pub(super) fn footprint(&self) -> usize {
        let inside = match self {
            Self::Open(timeline) => timeline.footprint(),
            Self::Sealed(sealed) => sealed.bytes.len(),
        };
        size_of::<Self>() + inside
    }
}

impl Sealed {
    fn timeline(&self) -> Option<Timeline> {
        let text = lz4_flex::decompress_size_prepended(&self.bytes).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Longest record of a machine in the store.
const RECORD_MAX: usize = 16 << 10;

#[derive(Serialize, Deserialize)]
struct Record<'a> {
    boots: Cow<'a, [Timeline]>,
}

/// A machine's boots (oldest first) as the store keeps them: old boots are left out until it is short enough.
pub fn record(boots: &[Timeline]) -> String {
    let mut boots = boots;
    loop {
        let body = serde_json::to_string(&Record { boots: boots.into() }).unwrap_or_default();
        match boots {
            [_, newer @ ..] if body.len() > RECORD_MAX && !newer.is_empty() => boots = newer,
            _ => return body,
        }
    }
}

/// The boots of a stored record, oldest first. What another version wrote and this one does not read counts as none.
pub fn read_record(body: &str) -> Vec<Timeline> {
    serde_json::from_str::<Record<'_>>(body).map(|record| record.boots.into_owned()).unwrap_or_default()
}

/// Boots as they are stored and as they are in memory, oldest first, each once: of a boot that both know the one in
/// memory counts, put behind what only the store still has of it.
pub fn merge(stored: Vec<Timeline>, fresh: Vec<Timeline>) -> Vec<Timeline> {
    let mut all = stored;
    for mut boot in fresh {
        // Times are stored in milliseconds.
        let is_start = |known: &Timeline| {
            since(known.started, boot.started).max(since(boot.started, known.started))
                < Duration::from_millis(2)
        };
        let same =
            all.iter().position(|known| is_start(known) || known.boot.is_some() && known.boot == boot.boot);
        let Some(index) = same else {
            all.push(boot);
            continue;
        };
        if !is_start(&all[index]) {
            // The server was started anew in the middle of it.
            let known = &mut all[index];
            let mut steps = std::mem::take(&mut known.steps);
            steps.retain(|step| step.at < boot.started);
            steps.append(&mut boot.steps);
            (boot.steps, boot.started) = (steps, known.started);
            boot.job = boot.job.or(known.job);
            boot.image = boot.image.or_else(|| known.image.take());
        }
        all[index] = boot;
    }
    all.sort_by_key(|boot| boot.started);
    all
}
