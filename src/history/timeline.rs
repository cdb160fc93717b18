//! One boot, step by step, and what became of it.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::since;
use crate::jobs::evidence::{Asker, Evidence, Over, Seen, TransferFacts, Why};
use crate::jobs::job::JobId;
use crate::jobs::token::BootId;
use crate::wire::{MacAddr, Uuid};

/// Longest text kept of one step.
const TEXT_MAX: usize = 200;
/// Room made at once for further steps.
const STEPS_MORE: usize = 4;
/// A silence from this length on is shown between two steps.
const PAUSE_SHOWN: std::time::Duration = std::time::Duration::from_secs(10);
/// Different steps of one sort that a boot keeps, of the sorts that anybody can make up.
const ALIKE_MAX: usize = 8;
/// A step repeats one of the last so many if it is the same thing about the same file.
const REPEATS_LOOK_BACK: usize = 4;

/// How far a boot came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its DHCP request was left without an answer.
    Ignored,
    /// It was offered a boot by DHCP.
    Answered,
    /// It fetched a loader.
    Loading,
    /// It ran iPXE and was asked who it is.
    Asked,
    /// It was sent to its own disk.
    Local,
    /// It was shown the menu.
    Menu,
    /// It was told to wait.
    Waiting,
    /// It was given a shell.
    Shell,
    /// It was given the script of an image.
    Given,
    /// It fetches the image's files.
    Fetching,
    /// A transfer broke off.
    Broken,
    /// It has every file; the image may run.
    Running,
    /// The booted system called back.
    Confirmed,
}

impl Outcome {
    /// The lower-case word of lists and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::Answered => "answered",
            Self::Loading => "loading",
            Self::Asked => "asked",
            Self::Local => "local",
            Self::Menu => "menu",
            Self::Waiting => "waiting",
            Self::Shell => "shell",
            Self::Given => "given",
            Self::Fetching => "fetching",
            Self::Broken => "broken",
            Self::Running => "running",
            Self::Confirmed => "confirmed",
        }
    }

    fn after(self, seen: &Seen) -> Self {
        let over = matches!(self, Self::Running | Self::Confirmed);
        let only_dhcp = matches!(self, Self::Ignored | Self::Answered);
        match seen {
            Seen::DhcpIgnored { .. } if self == Self::Ignored => Self::Ignored,
            Seen::DhcpOffered { .. } | Seen::BootServerAnswered { .. } if only_dhcp => Self::Answered,
            Seen::LoaderFetched { .. } if only_dhcp => Self::Loading,
            Seen::IdentityAsked if only_dhcp || self == Self::Loading => Self::Asked,
            Seen::ScriptAsked { offer, .. } if !over => match offer.as_str() {
                "image" => Self::Given,
                "menu" => Self::Menu,
                "wait" | "pending" | "queued" => Self::Waiting,
                "shell" => Self::Shell,
                _ => Self::Local,
            },
            Seen::LastPieceSent { .. } | Seen::FileDone { last: true, .. } if self != Self::Confirmed => {
                Self::Running
            }
            Seen::FileStarted { .. } | Seen::FileProgress { .. } | Seen::FileDone { .. } if !over => {
                Self::Fetching
            }
            Seen::TransferFailed { .. } | Seen::HttpRefused { .. }
                if matches!(self, Self::Given | Self::Fetching) =>
            {
                Self::Broken
            }
            Seen::CalledBack { .. } => Self::Confirmed,
            _ => self,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One thing seen, or the same thing seen several times in a row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// When it was first seen.
    #[serde(with = "moment")]
    pub at: SystemTime,
    /// When it was last seen.
    #[serde(with = "moment")]
    pub until: SystemTime,
    /// What, as seen last.
    #[serde(flatten)]
    pub seen: Seen,
    /// How often.
    pub count: u32,
    /// Bytes delivered by all of them.
    pub total: u64,
    /// True when nothing but the address tied it to this machine.
    pub by_address: bool,
    /// How the last of the transfers went, if they were TFTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferFacts>,
    /// Why the script says what it says, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
}

/// One boot of one machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timeline {
    /// The machine's hardware address.
    pub mac: Option<MacAddr>,
    /// The machine's UUID.
    pub uuid: Option<Uuid>,
    /// The address it was last seen at.
    pub address: Option<Ipv4Addr>,
    /// The boot's number; a boot has one from its first script on.
    pub boot: Option<BootId>,
    /// The job it was given.
    pub job: Option<JobId>,
    /// The image it was given, or took from the menu.
    pub image: Option<String>,
    /// When it began.
    #[serde(with = "moment")]
    pub started: SystemTime,
    /// Its last sign of life.
    #[serde(with = "moment")]
    pub until: SystemTime,
    /// How far it came.
    pub outcome: Outcome,
    /// The steps, oldest first.
    pub steps: Vec<Step>,
    /// Steps left out from the middle.
    pub left_out: u32,
}

impl Timeline {
    /// A boot of which nothing is known yet.
    pub(crate) fn begin(at: SystemTime) -> Self {
        Self {
            mac: None,
            uuid: None,
            address: None,
            boot: None,
            job: None,
            image: None,
            started: at,
            until: at,
            outcome: Outcome::Ignored,
            steps: Vec::new(),
            left_out: 0,
        }
    }

    /// Writes one piece of evidence down, as a step of its own or into the one it repeats. `footprint` is what the
    /// timeline's bytes count in: reckoned from what changes, for a storm writes down a dozen steps a machine.
    pub(super) fn write_down(
        &mut self,
        evidence: Evidence,
        by_address: bool,
        steps_max: usize,
        footprint: &mut usize,
    ) {
        *footprint -= self.outer();
        self.until = self.until.max(evidence.at);
        self.boot = evidence.boot.or(self.boot);
        self.address = evidence.address.or(self.address);
        self.job = evidence.job().or(self.job);
        self.outcome = self.outcome.after(&evidence.seen);
        self.add(evidence, by_address, steps_max, footprint);
        *footprint += self.outer();
    }

    fn add(&mut self, evidence: Evidence, by_address: bool, steps_max: usize, footprint: &mut usize) {
        let Evidence { at, mut seen, transfer, mut why, .. } = evidence;
        texts(&mut seen).into_iter().flatten().for_each(clip);
        if let Some(why) = &mut why {
            clip(&mut why.said);
        }
        if let Seen::ScriptAsked { image: Some(image), .. }
        | Seen::FileStarted { image, .. }
        | Seen::LastPieceSent { image, .. }
        | Seen::FileDone { image, .. } = &seen
            && self.image.as_ref() != Some(image)
        {
            self.image = Some(image.clone());
        }
        let bytes = bytes(&seen);
        let alike = |step: &&Step| std::mem::discriminant(&step.seen) == std::mem::discriminant(&seen);
        if is_anybodys(&seen)
            && self.steps.iter().filter(alike).count() >= ALIKE_MAX
            && !self.steps.iter().any(|step| is_same(&step.seen, &seen))
        {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        // What anybody can send is counted where it first stood, however long ago: it must not make new steps.
        let look_back = if is_anybodys(&seen) { usize::MAX } else { REPEATS_LOOK_BACK };
        let repeated = self.steps.iter_mut().rev().take(look_back).find(|step| is_same(&step.seen, &seen));
        if let Some(step) = repeated {
            *footprint -= step.texts();
            step.until = step.until.max(at);
            step.count = step.count.saturating_add(1);
            // Progress reports count from the start of their transfer, all others for themselves.
            step.total = match &seen {
                Seen::FileProgress { .. } => bytes,
                _ => step.total.saturating_add(bytes),
            };
            // Ranges come in any order: the one that completes an image's last file may not be the last to come.
            if let (Seen::FileDone { last: before, .. }, Seen::FileDone { last, .. }) =
                (&step.seen, &mut seen)
            {
                *last |= *before;
            }
            step.seen = seen;
            step.transfer = transfer;
            step.why = why.or(step.why.take());
            *footprint += step.texts();
            return;
        }
        if self.steps.len() >= steps_max {
            // How it began and how it ended are worth more than the middle.
            *footprint -= self.steps.remove(steps_max / 2).texts();
            self.left_out = self.left_out.saturating_add(1);
        }
        if self.steps.len() == self.steps.capacity() {
            // Doubled, most of the room would stay empty: a usual boot has some ten steps.
            self.steps.reserve_exact(STEPS_MORE);
        }
        let step = Step { at, until: at, seen, count: 1, total: bytes, by_address, transfer, why };
        *footprint += step.texts();
        self.steps.push(step);
    }

    /// Bytes it takes in memory, heap included.
    pub fn footprint(&self) -> usize {
        size_of::<Self>() + self.outer() + self.steps.iter().map(Step::texts).sum::<usize>()
    }

    /// What of its footprint its steps' texts have no part in.
    fn outer(&self) -> usize {
        self.image.as_ref().map_or(0, String::capacity) + self.steps.capacity() * size_of::<Step>()
    }
}

impl Step {
    /// Bytes of its texts.
    fn texts(&self) -> usize {
        let why = self.why.as_ref().map_or(0, |why| why.said.capacity());
        why + texts_of(&self.seen).into_iter().flatten().map(String::capacity).sum::<usize>()
    }
}

impl fmt::Display for Timeline {
    /// A head line and the steps with seconds since the first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.mac, self.uuid) {
            (Some(mac), _) => write!(f, "{mac}")?,
            (None, Some(uuid)) => write!(f, "{uuid}")?,
            (None, None) => f.write_str("unknown machine")?,
        }
        write!(f, "  {}", httpdate::fmt_http_date(self.started))?;
        if let Some(job) = self.job {
            write!(f, "  job {job}")?;
        }
        if let Some(image) = &self.image {
            write!(f, "  image {}", Plain(image))?;
        }
        writeln!(f, "  {}", self.outcome)?;
        let mut last = self.started;
        for step in &self.steps {
            let pause = since(last, step.at);
            if pause >= PAUSE_SHOWN {
                writeln!(f, "             (silent for {})", Span(pause))?;
            }
            last = last.max(step.until);
            writeln!(f, "  {:>8.1}s  {step}", since(self.started, step.at).as_secs_f64())?;
        }
        if self.left_out > 0 {
            writeln!(f, "             ({} steps in the middle are left out)", self.left_out)?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seen {
            Seen::DhcpOffered { asker, arch, relay, file } => {
                let who = match asker {
                    Asker::Firmware => "PXE firmware",
                    Asker::Http => "HTTP Boot firmware",
                    Asker::Ipxe => "iPXE",
                };
                write!(f, "DHCP: offered {} to {who}", Plain(file))?;
                if let Some(arch) = arch {
                    write!(f, " ({})", arch.word())?;
                }
                if let Some(relay) = relay {
                    write!(f, " through relay {relay}")?;
                }
            }
            Seen::DhcpIgnored { reason, asker, boot_server, .. } => {
                let who = if *asker == Some(Asker::Ipxe) { "iPXE " } else { "" };
                let port = if *boot_server { " on port 4011" } else { "" };
                write!(f, "DHCP: {who}not answered{port}, {}", Plain(reason))?;
            }
            Seen::BootServerAnswered { file, .. } => {
                write!(f, "DHCP: asked port 4011 and was told {}", Plain(file))?;
            }
            Seen::AddressGiven { .. } => f.write_str("DHCP: took its address from us")?,
            Seen::OtherOffered { server, file, next_server, leases, pxe, sends_to_4011 } => {
                write!(f, "DHCP: another server, {server}, offered ")?;
                f.write_str(match (leases, file.is_some() || *pxe) {
                    (true, true) => "an address and a boot",
                    (true, false) => "an address",
                    (false, _) => "a boot",
                })?;
                if let Some(file) = file {
                    write!(f, ", {}", Plain(file))?;
                }
                if let (Some(next), true) = (next_server.filter(|next| next != server), file.is_some()) {
                    write!(f, " from {next}")?;
                }
                if *sends_to_4011 {
                    write!(f, ", by its port 4011")?;
                }
            }
            Seen::OtherAcked { server } => write!(f, "DHCP: {server} gave it its address")?,
            Seen::ServerChosen { server: Some(server) } => {
                write!(f, "DHCP: it asked {server} for its address")?
            }
            Seen::ServerChosen { server: None } => f.write_str("DHCP: it asked for its address")?,
            Seen::TftpAsked { file } => write!(f, "TFTP: {} asked for", Plain(file))?,
            Seen::TftpRefused { file, reason } => {
                write!(f, "TFTP: {} asked for and refused: {}", Plain(file), Plain(reason))?;
            }
            Seen::HttpRefused { path, status, reason } => {
                write!(f, "HTTP: {} refused with {status}: {}", Plain(path), Plain(reason))?;
            }
            Seen::LoaderFetched { name, over, .. } => {
                write!(f, "{}: loader {} delivered, {}", over_word(*over), Plain(name), Bytes(self.total))?;
            }
            Seen::IdentityAsked => {
                f.write_str("HTTP: asked for a script without identity, told to add it")?
            }
            Seen::ScriptAsked { job, offer, image } => {
                write!(f, "script: {}", Plain(offer))?;
                if let Some(image) = image {
                    write!(f, " {}", Plain(image))?;
                }
                if let Some(job) = job {
                    write!(f, " (job {job})")?;
                }
                if let Some(Why { said, .. }) = self.why.as_ref().filter(|why| !why.said.is_empty()) {
                    write!(f, ", {}", Plain(said))?;
                }
            }
            Seen::FileStarted { image, file, over, .. } => {
                write!(f, "{}: {}/{} asked for", over_word(*over), Plain(image), Plain(file))?;
            }
            Seen::FileProgress { image, file, over, .. } => {
                let (over, at) = (over_word(*over), Bytes(self.total));
                write!(f, "{over}: {}/{} goes on, {at} so far", Plain(image), Plain(file))?;
            }
            Seen::LastPieceSent { image, file, over, .. } => {
                let over = over_word(*over);
                write!(
                    f,
                    "{over}: the last of {}/{} has left: it may have started",
                    Plain(image),
                    Plain(file)
                )?;
            }
            Seen::FileDone { image, file, part, last, over, .. } => {
                let (over, all) = (over_word(*over), Bytes(self.total));
                write!(f, "{over}: {}/{} delivered, {all}", Plain(image), Plain(file))?;
                match (part, self.count) {
                    (true, 1) => f.write_str(" of it")?,
                    (true, count) => write!(f, " in {count} ranges")?,
                    (false, _) => {}
                }
                let rate = self.total as f64 / since(self.at, self.until).as_secs_f64();
                if self.transfer.is_none() && rate.is_finite() && rate > 0.0 {
                    write!(f, ", {}/s", Bytes(rate as u64))?;
                }
                if *last {
                    f.write_str(", the last file")?;
                }
            }
            Seen::TransferFailed { file, bytes, reason, over, .. } => {
                let over = over_word(*over);
                write!(f, "{over}: {} broke off after {}: {}", Plain(file), Bytes(*bytes), Plain(reason))?;
            }
            Seen::LocalBack { strategy } => {
                write!(f, "local boot: {} came back without booting", Plain(strategy))?;
            }
            Seen::AnswerGiven { name } => write!(f, "HTTP: answer file {} given", Plain(name))?,
            Seen::AnswerWithheld { name, reason } => {
                write!(f, "HTTP: answer file {} withheld: {}", Plain(name), Plain(reason))?;
            }
            Seen::CalledBack { job } => write!(f, "called back (job {job})")?,
            Seen::FailureCalled { job, reason } => {
                write!(f, "called back that it failed (job {job}): {}", Plain(reason))?;
            }
        }
        if let Some(facts) = &self.transfer {
            let rate = bytes(&self.seen) as f64 / (f64::from(facts.took_ms) / 1e3);
            if rate.is_finite() && rate > 0.0 {
                write!(f, ", {}/s", Bytes(rate as u64))?;
            }
            write!(f, " in blocks of {}", facts.blksize)?;
            if facts.windowsize > 1 {
                write!(f, " and windows of {}", facts.windowsize)?;
            }
            write!(f, " by {}", facts.way.word())?;
            if let Some(rtt) = facts.rtt_us {
                write!(f, ", round trip {:.1} ms", f64::from(rtt) / 1e3)?;
            }
            if facts.resends > 0 {
                write!(f, ", sent again {} times", facts.resends)?;
            }
        }
        // Of a file in ranges it is said how many.
        if self.count > 1 && !matches!(self.seen, Seen::FileDone { part: true, .. }) {
            write!(f, " ({} times)", self.count)?;
        }
        if self.by_address {
            f.write_str(" (by its address only)")?;
        }
        Ok(())
    }
}

/// Moments as seconds since 1970 with three decimals: steps of one boot are milliseconds apart.
mod moment {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        match millis % 1000 {
            0 => serializer.serialize_u64(millis / 1000),
            _ => serializer.serialize_f64(millis as f64 / 1000.0),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        let span = Duration::try_from_secs_f64((seconds * 1000.0).round() / 1000.0);
        let millis =
            span.ok().map(|span| Duration::from_millis((span.as_secs_f64() * 1000.0).round() as u64));
        millis
            .and_then(|span| UNIX_EPOCH.checked_add(span))
            .ok_or_else(|| serde::de::Error::custom("a moment beyond this machine's clock"))
    }
}

/// A text that came from outside, without what would move a terminal's cursor.
pub(super) struct Plain<'a>(pub(super) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|c| f.write_char(if c.is_control() { '?' } else { c }))
    }
}

/// A number of bytes in the unit that reads best.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(size, _)| self.0 >= *size) {
            Some((size, unit)) => write!(f, "{:.1} {unit}", self.0 as f64 / *size as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A span of time in the unit that reads best.
pub(super) struct Span(pub(super) std::time::Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            0 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            seconds @ 1..120 => write!(f, "{seconds} s"),
            seconds @ 120..7200 => write!(f, "{} min", seconds / 60),
            seconds @ 7200..172_800 => write!(f, "{} h", seconds / 3600),
            seconds => write!(f, "{} days", seconds / 86_400),
        }
    }
}

/// What others on the network can make up in a machine's name: too much of it must not push out the rest of its story.
fn is_anybodys(seen: &Seen) -> bool {
    matches!(
        seen,
        Seen::OtherOffered { .. }
            | Seen::OtherAcked { .. }
            | Seen::ServerChosen { .. }
            | Seen::TftpAsked { .. }
            | Seen::TftpRefused { .. }
            | Seen::HttpRefused { .. }
    )
}

fn over_word(over: Over) -> &'static str {
    match over {
        Over::Tftp => "TFTP",
        Over::Http => "HTTP",
    }
}

fn bytes(seen: &Seen) -> u64 {
    match seen {
        Seen::LoaderFetched { bytes, .. }
        | Seen::FileProgress { bytes, .. }
        | Seen::FileDone { bytes, .. }
        | Seen::TransferFailed { bytes, .. } => *bytes,
        Seen::DhcpOffered { .. }
        | Seen::DhcpIgnored { .. }
        | Seen::BootServerAnswered { .. }
        | Seen::AddressGiven { .. }
        | Seen::OtherOffered { .. }
        | Seen::OtherAcked { .. }
        | Seen::ServerChosen { .. }
        | Seen::TftpAsked { .. }
        | Seen::TftpRefused { .. }
        | Seen::HttpRefused { .. }
        | Seen::IdentityAsked
        | Seen::ScriptAsked { .. }
        | Seen::FileStarted { .. }
        | Seen::LastPieceSent { .. }
        | Seen::LocalBack { .. }
        | Seen::AnswerGiven { .. }
        | Seen::AnswerWithheld { .. }
        | Seen::CalledBack { .. }
        | Seen::FailureCalled { .. } => 0,
    }
}

/// The same thing about the same file: a SAN disk is read in thousands of pieces, a waiting machine asks all night.
fn is_same(one: &Seen, other: &Seen) -> bool {
    match (one, other) {
        (Seen::LoaderFetched { name: a, over: b, .. }, Seen::LoaderFetched { name: c, over: d, .. }) => {
            (a, b) == (c, d)
        }
        (Seen::FileStarted { image: a, file: b, .. }, Seen::FileStarted { image: c, file: d, .. })
        | (Seen::FileProgress { image: a, file: b, .. }, Seen::FileProgress { image: c, file: d, .. }) => {
            (a, b) == (c, d)
        }
        (
            Seen::FileDone { image: a, file: b, part: of_it, .. },
            Seen::FileDone { image: c, file: d, part, .. },
        ) => (a, b, of_it) == (c, d, part),
        (
            Seen::TransferFailed { file: a, reason: b, .. },
            Seen::TransferFailed { file: c, reason: d, .. },
        ) => (a, b) == (c, d),
        _ => one == other,
    }
}

fn texts(seen: &mut Seen) -> [Option<&mut String>; 2] {
    match seen {
        Seen::DhcpOffered { file, .. } | Seen::BootServerAnswered { file, .. } | Seen::TftpAsked { file } => {
            [Some(file), None]
        }
        Seen::OtherOffered { file, .. } => [file.as_mut(), None],
        Seen::TftpRefused { file, reason } => [Some(file), Some(reason)],
        Seen::HttpRefused { path, reason, .. } => [Some(path), Some(reason)],
        Seen::DhcpIgnored { reason, .. } => [Some(reason), None],
        Seen::LoaderFetched { name, .. } => [Some(name), None],
        Seen::ScriptAsked { offer, image, .. } => [Some(offer), image.as_mut()],
        Seen::FileStarted { image, file, .. }
        | Seen::FileProgress { image, file, .. }
        | Seen::LastPieceSent { image, file, .. }
        | Seen::FileDone { image, file, .. } => [Some(image), Some(file)],
        Seen::TransferFailed { file, reason, .. } => [Some(file), Some(reason)],
        Seen::AnswerGiven { name } | Seen::LocalBack { strategy: name } => [Some(name), None],
        Seen::AnswerWithheld { name, reason } => [Some(name), Some(reason)],
        Seen::AddressGiven { .. }
        | Seen::OtherAcked { .. }
        | Seen::ServerChosen { .. }
        | Seen::IdentityAsked
        | Seen::CalledBack { .. } => [None, None],
        Seen::FailureCalled { reason, .. } => [Some(reason), None],
    }
}

fn texts_of(seen: &Seen) -> [Option<&String>; 2] {
    match seen {
        Seen::DhcpOffered { file, .. } | Seen::BootServerAnswered { file, .. } | Seen::TftpAsked { file } => {
            [Some(file), None]
        }
        Seen::OtherOffered { file, .. } => [file.as_ref(), None],
        Seen::TftpRefused { file, reason } => [Some(file), Some(reason)],
        Seen::HttpRefused { path, reason, .. } => [Some(path), Some(reason)],
        Seen::DhcpIgnored { reason, .. } => [Some(reason), None],
        Seen::LoaderFetched { name, .. } => [Some(name), None],
        Seen::ScriptAsked { offer, image, .. } => [Some(offer), image.as_ref()],
        Seen::FileStarted { image, file, .. }
        | Seen::FileProgress { image, file, .. }
        | Seen::LastPieceSent { image, file, .. }
        | Seen::FileDone { image, file, .. } => [Some(image), Some(file)],
        Seen::TransferFailed { file, reason, .. } => [Some(file), Some(reason)],
        Seen::AnswerGiven { name } | Seen::LocalBack { strategy: name } => [Some(name), None],
        Seen::AnswerWithheld { name, reason } => [Some(name), Some(reason)],
        Seen::AddressGiven { .. }
        | Seen::OtherAcked { .. }
        | Seen::ServerChosen { .. }
        | Seen::IdentityAsked
        | Seen::CalledBack { .. } => [None, None],
        Seen::FailureCalled { reason, .. } => [Some(reason), None],
    }
}

fn clip(text: &mut String) {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text.shrink_to_fit();
    }
}
