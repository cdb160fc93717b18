//! Where a boot stands or stopped, in one sentence, and the next step: a table of rules from evidence to words.
//!
//! The first rule that holds speaks. Each is inferred from steps of the timeline alone, as `docs/EXPLAIN.md` lists
//! them; where the evidence leaves more than one cause, the sentence says so.

mod dhcp;
mod image;
mod loader;
mod told;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::story::{Context, Story, Transfer};
use super::timeline::{Bytes, Plain, Span, Timeline};
use crate::jobs::evidence::{Over, TransferFacts};
use crate::jobs::job::{Confirm, Job};

/// Where in its way a boot stopped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// Nothing was seen of it.
    Nothing,
    /// DHCP.
    Dhcp,
    /// The loader, by TFTP or HTTP.
    Loader,
    /// The script.
    Script,
    /// The image's files.
    Image,
    /// It has everything; whether it runs is open.
    Start,
    /// It was sent to its disk, a menu or to wait: what was meant.
    Settled,
    /// It runs.
    Booted,
}

impl Stop {
    /// The word of lists and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Dhcp => "dhcp",
            Self::Loader => "loader",
            Self::Script => "script",
            Self::Image => "image",
            Self::Start => "start",
            Self::Settled => "settled",
            Self::Booted => "booted",
        }
    }
}

/// What a machine's screen says, as its firmware numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Code {
    /// `PXE-E51`, or the address that iPXE prints.
    pub code: &'static str,
    /// What stands behind it on the screen.
    pub text: &'static str,
}

/// What is to be said of a boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Verdict {
    /// The rule that spoke.
    pub rule: &'static str,
    /// Where it stopped.
    pub stage: Stop,
    /// True when its last sign of life is so recent that it may go on by itself.
    pub under_way: bool,
    /// What happened.
    pub sentence: String,
    /// What to do.
    pub next: String,
    /// What the machine's screen is likely to say.
    pub codes: Vec<Code>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {}", self.sentence)?;
        if !self.codes.is_empty() {
            f.write_str("  On its screen: ")?;
            for (n, code) in self.codes.iter().enumerate() {
                let gap = if n > 0 { " or " } else { "" };
                write!(f, "{gap}{} ({})", code.code, code.text)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "  Next: {}", self.next)
    }
}

/// One rule.
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// Where a boot stopped that it holds for.
    pub stage: Stop,
    /// How long a machine may be silent here before it counts as stopped; zero where silence is no matter.
    pub patience: Duration,
    /// What BIOS ROMs, UEFI firmware and iPXE print.
    codes: [&'static [Code]; 3],
    holds: fn(&Story<'_>) -> bool,
    says: fn(&Story<'_>) -> (String, String),
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("name", &self.name).finish_non_exhaustive()
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $text:literal;)+) => {
        $(const $name: Code = Code { code: $code, text: $text };)+
    };
}

// The texts of Intel's ROMs, EDK2 (PxeBcBoot.c) and iPXE. iPXE's numbers are error, source file and platform; the two
// of a pair are BIOS and EFI.
codes! {
    E32 = "PXE-E32", "TFTP open timeout";
    E35 = "PXE-E35", "TFTP read timeout";
    E3B = "PXE-E3B", "TFTP error - file not found";
    E36 = "PXE-E36", "error received from TFTP server";
    E51 = "PXE-E51", "no DHCP or proxyDHCP offers were received";
    E52 = "PXE-E52", "proxyDHCP offers were received, no DHCP offers were received";
    E53 = "PXE-E53", "no boot filename received";
    E55 = "PXE-E55", "proxyDHCP service did not reply to request on port 4011";
    E61 = "PXE-E61", "media test failure, check cable";
    E78 = "PXE-E78", "could not locate boot server";
    E12 = "PXE-E12", "could not detect network connection";
    E16 = "PXE-E16", "no offer received";
    E18 = "PXE-E18", "server response timeout";
    E23 = "PXE-E23", "client received TFTP error from server";
    NO_CONFIGURATION = "ipxe.org/040ee119", "no configuration methods succeeded; 040ee186 on UEFI";
    TIMED_OUT = "ipxe.org/4c0a6035", "connection timed out; 4c0a6092 on UEFI";
    NOT_FOUND = "ipxe.org/2d0c613b", "no such file or directory; 2d0c618e on UEFI";
    PERMISSION = "ipxe.org/020c6...", "permission denied";
    RESET = "ipxe.org/0f0a6039", "connection reset";
}

const NONE: [&[Code]; 3] = [&[], &[], &[]];
/// A firmware's longest pause between two tries of DHCP that is not its last is 16 s.
const DHCP: Duration = Duration::from_secs(20);
/// A loader needs this long from its first instruction to its DHCP.
const LOADER: Duration = Duration::from_secs(30);
/// iPXE asks for the image as soon as it has the script; a progress report of a transfer comes every 30 s.
const IMAGE: Duration = Duration::from_secs(60);
/// Nothing to wait for.
const AT_ONCE: Duration = Duration::ZERO;

/// Where no other rule holds.
static SEEN: Rule = Rule {
    name: "seen",
    stage: Stop::Dhcp,
    patience: AT_ONCE,
    codes: NONE,
    holds: |_| true,
    says: |_| {
        (
            "It was seen, and there is not enough to say where it stopped.".into(),
            "boot it once more and ask again.".into(),
        )
    },
};

/// Every rule, in the order they are tried: what a boot came furthest to is looked at first.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    [image::RULES, told::RULES, loader::RULES, dhcp::RULES].into_iter().flatten().chain([&SEEN])
}

impl Timeline {
    /// What is to be said of this boot.
    pub fn verdict(&self, context: &Context<'_>) -> Verdict {
        let story = Story::read(self, context);
        let rule = rules().find(|rule| (rule.holds)(&story)).unwrap_or(&SEEN);
        let (sentence, next) = (rule.says)(&story);
        let under_way = story.silent < rule.patience;
        let sentence = match under_way {
            true => format!(
                "It was heard {} ago and may be under way. If it stays so: {sentence}",
                Span(story.silent)
            ),
            false => sentence,
        };
        Verdict { rule: rule.name, stage: rule.stage, under_way, sentence, next, codes: screen(rule, &story) }
    }
}

/// What its screen is likely to say: what prints depends on what runs.
fn screen(rule: &Rule, story: &Story<'_>) -> Vec<Code> {
    let [bios, uefi, ipxe] = rule.codes;
    let ipxe_runs =
        story.offered_ipxe.is_some() || story.ipxe_ignored || story.identity_asked || story.script.is_some();
    let codes = match ipxe_runs {
        true => ipxe,
        false if story.is_uefi() => uefi,
        false => bios,
    };
    codes.to_vec()
}

/// What is to be said of a machine that was never seen. `job` is the one that waits for it.
pub fn never_seen(job: Option<&Job>, now: std::time::SystemTime) -> Verdict {
    let waits = job.filter(|job| job.is_live());
    let sentence = match waits {
        Some(job) => format!(
            "Nothing was ever seen of it, although job {} has waited for it for {}.",
            job.id,
            Span(now.duration_since(job.created).unwrap_or_default())
        ),
        None => "Nothing was ever seen of it: it asked neither for an address here nor for a file.".into(),
    };
    Verdict {
        rule: "never-seen",
        stage: Stop::Nothing,
        under_way: false,
        sentence,
        next: "look whether it is on, whether the network comes before its disk in the boot order, at its cable and VLAN, and \
               whether its LAN or relay (ip helper-address) leads to this server; and whether the address is the one of the \
               card that boots."
            .into(),
        codes: vec![E61, E12, E51],
    }
}

fn image(story: &Story<'_>) -> String {
    match &story.timeline.image {
        Some(name) => format!("image {}", Plain(name)),
        None => "its image".into(),
    }
}

/// The command that starts its job over, and what that means where it is more than the boot that is spoken of: a disk that is
/// wiped again is not asked for by accident.
fn rearm(story: &Story<'_>) -> String {
    let Some(id) = story.timeline.job else { return "add a job (bootstorm job add)".into() };
    // A rule's job is many machines': only this one is to start over.
    let mut text = if story.job.is_none_or(|job| job.selector.is_exact()) {
        format!("bootstorm job rearm {id}")
    } else {
        match (story.timeline.mac, story.timeline.uuid) {
            (Some(mac), _) => format!("bootstorm job rearm {id} --machine {mac}"),
            (None, Some(uuid)) => format!("bootstorm job rearm {id} --machine {uuid}"),
            (None, None) => format!("bootstorm job rearm {id} --machine ITS-ADDRESS"),
        }
    };
    let first = story.job.filter(|job| job.step > 0).and_then(|job| job.sequence.first());
    match (first, story.job.is_some_and(|job| job.destructive)) {
        (Some(first), destructive) => text.push_str(&format!(
            " (that begins with {} again{}; for what is left alone, {})",
            Plain(&first.to_string()),
            if destructive { ", which may wipe the disk again" } else { "" },
            add_job(story)
        )),
        (None, true) => text.push_str(" (its next boot may then wipe the disk again)"),
        (None, false) => {}
    }
    text
}

/// What the boot after one that had everything gets.
fn next_boot(story: &Story<'_>) -> String {
    let exact = story.job.filter(|job| job.selector.is_exact());
    match (story.job, exact) {
        (Some(job), _) if job.always && job.is_live() => {
            "Its next boot gets the same again, as the job says.".into()
        }
        (_, Some(job)) if job.is_live() => {
            format!("Its next boot goes on with {}, as the job says.", Plain(&job.action.to_string()))
        }
        (_, Some(job)) if job.has_next_step() && job.confirm == Confirm::Callback => {
            "Once it has called back, its next boot goes on with the job's next image.".into()
        }
        (Some(job), None) if !job.always => format!(
            "Its next boot is a local one, unless it was given the rule's job again (bootstorm job show {}) or another one.",
            job.id
        ),
        _ => "Its next boot is a local one, unless another job waits for it.".into(),
    }
}

/// The command that makes a job for this machine.
fn add_job(story: &Story<'_>) -> String {
    match (story.timeline.mac, story.timeline.uuid) {
        (Some(mac), _) => format!("bootstorm job add IMAGE --mac {mac}"),
        (None, Some(uuid)) => format!("bootstorm job add IMAGE --uuid {uuid}"),
        (None, None) => "bootstorm job add IMAGE --mac ITS-ADDRESS".into(),
    }
}

fn word(over: Over) -> &'static str {
    match over {
        Over::Tftp => "TFTP",
        Over::Http => "HTTP",
    }
}

/// Address and port of a URL of our own making.
fn host_of(url: &str) -> (&str, &str) {
    let host = url.split("//").nth(1).unwrap_or(url).split('/').next().unwrap_or_default();
    host.rsplit_once(':').unwrap_or((host, "80"))
}

fn big_blocks(facts: &TransferFacts) -> String {
    format!(
        "it asked for blocks of {} bytes, which travel as fragments: look for an MTU below 1500 or a firewall that drops \
         fragments; [tftp] max_blksize = 1428 goes without.",
        facts.blksize
    )
}

/// A transfer by TFTP that broke off in the middle.
fn tftp_broke(failed: &Transfer<'_>) -> (String, String) {
    let lost = failed.facts.filter(|facts| facts.resends > 0);
    let resent = lost.map_or(String::new(), |facts| format!(", after {} resends", facts.resends));
    let sentence = format!(
        "The transfer of {} by {} broke off after {}{resent}: {}.",
        Plain(failed.file),
        word(failed.over),
        Bytes(failed.bytes),
        Plain(failed.reason)
    );
    let next = match failed.facts {
        Some(facts) if facts.blksize > 1468 => big_blocks(facts),
        Some(facts) if facts.windowsize > 1 => format!(
            "packets are lost between (blocks of {}, windows of {}): look at the link and the switch port's counters; \
             [tftp] max_windowsize = 1 is gentler, max_blksize below the path's MTU rules that out.",
            facts.blksize, facts.windowsize
        ),
        Some(facts) => format!(
            "packets are lost between (blocks of {}): look at the link, the switch port's counters and the path's MTU.",
            facts.blksize
        ),
        None => "look at the machine's link and screen.".into(),
    };
    (sentence, next)
}

#[cfg(test)]
mod tests;
