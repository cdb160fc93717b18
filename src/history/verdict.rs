//! Where a boot stands or stopped, in one sentence, and the next step: a table of rules from evidence to words.
//!
//! The first rule that holds speaks. Each is inferred from steps of the timeline alone, as `docs/EXPLAIN.md` lists
//! them; where the evidence leaves more than one cause, the sentence says so.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Serialize;

use super::story::{Context, Other, Story, Transfer};
use super::timeline::{Bytes, Plain, Span, Timeline};
use crate::jobs::evidence::{Asker, Cause, Over, TransferFacts};
use crate::jobs::job::{Confirm, Job};
use crate::jobs::lifecycle::LOOP_BOOTS;

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

/// Every rule, in the order they are tried.
pub const RULES: &[Rule] = &[
    Rule {
        name: "confirmed",
        stage: Stop::Booted,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.called_back,
        says: |story| {
            (
                format!("It booted {}: the system that was started called back.", image(story)),
                "nothing to do.".into(),
            )
        },
    },
    Rule {
        name: "failure-called",
        stage: Stop::Start,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.failure.is_some(),
        says: |story| {
            let reason = story.failure.unwrap_or_default();
            (
                format!("What it booted called back that it failed: {}.", Plain(reason)),
                format!("look into {} for that; then {}.", image(story), rearm(story)),
            )
        },
    },
    Rule {
        name: "cut-at-the-line",
        stage: Stop::Image,
        patience: AT_ONCE,
        codes: [&[], &[], &[RESET]],
        holds: |story| !story.running && story.failed.is_some_and(|failed| is_at_the_line(&failed)),
        says: |story| {
            let reason = story.failed.map_or("", |failed| failed.reason);
            let why = reason.split_once(": ").map_or(reason, |(_, why)| why);
            (
                format!(
                    "The last bytes of {} were held back, so that nothing is installed twice: {}.",
                    image(story),
                    Plain(why)
                ),
                format!("if this machine is to have it all the same, {} and boot it again.", rearm(story)),
            )
        },
    },
    Rule {
        name: "answer-withheld",
        stage: Stop::Start,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.withheld.is_some(),
        says: |story| {
            let (name, reason) = story.withheld.unwrap_or_default();
            (
                format!("It asked for its answer file {} and was not given it: {}.", Plain(name), Plain(reason)),
                match reason {
                    _ if reason.contains("once per boot") => {
                        format!("{} and boot it again: a new boot gets the file anew.", rearm(story))
                    }
                    _ => "let the machine get its address by DHCP where this server hears it (same LAN or a relay that \
                          lists this server), then boot it again; without the file the installer asks a person."
                        .into(),
                },
            )
        },
    },
    Rule {
        name: "delivered-unconfirmed",
        stage: Stop::Start,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.running,
        says: |story| {
            let waits = story.job.is_some_and(|job| job.confirm == Confirm::Callback);
            let waited = if waits {
                "its job waits for a call-back, and none came yet"
            } else {
                "nothing confirms that it did"
            };
            (
                format!(
                    "The last byte of {} left {} ago, so it may have started; {waited}.",
                    image(story),
                    Span(story.silent)
                ),
                format!(
                    "look at the machine's screen. Its next boot is a local one unless the job says always; to start over, \
                     {}.",
                    rearm(story)
                ),
            )
        },
    },
    Rule {
        name: "token-expired",
        stage: Stop::Image,
        patience: AT_ONCE,
        codes: [&[], &[], &[PERMISSION]],
        holds: |story| story.refused.is_some_and(|(_, _, reason)| reason.contains("expired")),
        says: |story| {
            let (path, ..) = story.refused.unwrap_or_default();
            (
                format!("It asked for {} under a script that is too old: its token has expired.", Plain(path)),
                "boot it again, it gets a new script. Tokens are good for a day: if this script is younger, this server's \
                 clock was set forward since (date, timedatectl)."
                    .into(),
            )
        },
    },
    Rule {
        name: "image-missing-file",
        stage: Stop::Image,
        patience: AT_ONCE,
        codes: [&[], &[], &[NOT_FOUND]],
        holds: |story| story.refused.is_some_and(|(_, status, _)| status == 404),
        says: |story| {
            let (path, ..) = story.refused.unwrap_or_default();
            (
                format!("It asked for {}, which is not in the library: it got a 404.", Plain(path)),
                match &story.timeline.image {
                    Some(name) => format!(
                        "put the file into the image's folder (bootstorm image show {} lists what is there); names are \
                         compared letter for letter by HTTP.",
                        Plain(name)
                    ),
                    None => "bootstorm image list shows what is there.".into(),
                },
            )
        },
    },
    Rule {
        name: "image-refused",
        stage: Stop::Image,
        patience: AT_ONCE,
        codes: [&[], &[], &[PERMISSION]],
        holds: |story| story.refused.is_some(),
        says: |story| {
            let (path, status, reason) = story.refused.unwrap_or_default();
            (
                format!("It asked for {} and was refused with {status}: {}.", Plain(path), Plain(reason)),
                format!("boot it again, it gets a new script; if the job is over, {} first.", rearm(story)),
            )
        },
    },
    Rule {
        name: "image-cut",
        stage: Stop::Image,
        patience: DHCP,
        codes: [&[], &[], &[RESET, TIMED_OUT]],
        holds: |story| story.script.is_some() && story.failed.is_some_and(|failed| failed.over == Over::Http),
        says: |story| {
            let Some(failed) = story.failed else { return Default::default() };
            (
                format!(
                    "The download of {} broke off after {}: {}.",
                    Plain(failed.file),
                    Bytes(failed.bytes),
                    Plain(failed.reason)
                ),
                "the script tries three times by itself. If it stays so, look at the machine's link and screen (memory \
                 runs out on large images), and at this server's interface for errors (ip -s link)."
                    .into(),
            )
        },
    },
    Rule {
        name: "image-cut-by-tftp",
        stage: Stop::Image,
        patience: DHCP,
        codes: [&[E35], &[E18, E23], &[TIMED_OUT]],
        holds: |story| story.failed.is_some() && (story.script.is_some() || is_image_file(story)),
        says: |story| {
            let Some(failed) = story.failed else { return Default::default() };
            tftp_broke(&failed)
        },
    },
    Rule {
        name: "image-stalled",
        stage: Stop::Image,
        patience: IMAGE,
        codes: [&[], &[], &[TIMED_OUT]],
        holds: |story| story.started.is_some(),
        says: |story| {
            let (file, bytes, over) = story.started.unwrap_or(("", 0, Over::Http));
            let so_far = if bytes > 0 { format!(" after {}", Bytes(bytes)) } else { String::new() };
            (
                format!("It asked for {} of {} by {} and fell silent{so_far}.", Plain(file), image(story), word(over)),
                "look at the machine's screen and its link. The job counts an attempt when the silence lasts 15 minutes, \
                 or as soon as the machine starts over."
                    .into(),
            )
        },
    },
    Rule {
        name: "image-in-part",
        stage: Stop::Image,
        patience: LOADER,
        codes: NONE,
        holds: |story| story.is_image() && story.done.is_some(),
        says: |story| {
            let done = story.done.unwrap_or_default();
            (
                format!("It has {} of {} and never asked for the next file.", Plain(done), image(story)),
                "look at the machine's screen: iPXE stops here when a file is not what it expects (a kernel of another \
                 architecture, a damaged wimboot) or does not fit into memory."
                    .into(),
            )
        },
    },
    Rule {
        name: "script-no-image",
        stage: Stop::Image,
        patience: LOADER,
        codes: [&[], &[], &[TIMED_OUT]],
        holds: |story| story.is_offer("image"),
        says: |story| {
            (
                format!("It has the script of {} and never asked for the first file.", image(story)),
                "look at the machine's screen for iPXE's error. The files come from the same address and port as the \
                 script, so it is a firewall that looks into HTTP or a proxy between, an image script of your own with \
                 another host or a name that DNS does not know, or iPXE out of memory."
                    .into(),
            )
        },
    },
    Rule {
        name: "local-failed",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| !story.local_back.is_empty(),
        says: |story| {
            (
                format!("It was sent to its own disk and came back: {} did not boot it.", story.local_back.join(", ")),
                "put the disk before the network in its boot order, or look whether there is a system on the disk. The \
                 next local boot of this machine tries another way first."
                    .into(),
            )
        },
    },
    Rule {
        name: "looped",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_cause(Cause::Looped),
        says: |story| {
            (
                format!(
                    "It was stopped: it started over {LOOP_BOOTS} times without coming to run {}, so it was sent to its own \
                     disk{}.",
                    image(story),
                    job_says(story)
                ),
                format!("look at its screen for why the image does not come to run; then {}.", rearm(story)),
            )
        },
    },
    Rule {
        name: "attempts-used",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_cause(Cause::AttemptsUsed),
        says: |story| {
            (
                format!("Its job is out of attempts, so it was sent to its own disk{}.", job_says(story)),
                format!(
                    "bootstorm explain --last 8 shows where the boots before stopped; then {} (--attempts N for more).",
                    rearm(story)
                ),
            )
        },
    },
    Rule {
        name: "had-its-job",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_cause(Cause::HadItsJob),
        says: |story| {
            (
                format!("It had its job already, so it was sent to its own disk{}.", job_says(story)),
                format!("nothing, if that is what it should do. To install it again, {}.", rearm(story)),
            )
        },
    },
    Rule {
        name: "rejected",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_cause(Cause::Rejected),
        says: |_| {
            (
                "An operator rejected this machine, so it was told nothing and sent to its own disk.".into(),
                "bootstorm machine approve takes the rejection back; bootstorm audit list says who rejected it.".into(),
            )
        },
    },
    Rule {
        name: "excluded",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_cause(Cause::Excluded),
        says: |_| {
            (
                "Its address is on the policy's exclude list, so it was sent to its own disk.".into(),
                "take it off `exclude` in [policy] if it should boot from here.".into(),
            )
        },
    },
    Rule {
        name: "denied-by-policy",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("denied"),
        says: |_| {
            (
                "No job wants it, and the policy denies machines without one: it was sent to its own disk."
                    .into(),
                "bootstorm job add IMAGE --mac ITS-ADDRESS, or another `unknown` in [policy].".into(),
            )
        },
    },
    Rule {
        name: "misfit",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("misfit"),
        says: |story| {
            (
                format!("{} does not fit this machine, so it was sent to its own disk{}.", capital(&image(story)), job_says(story)),
                "compare the image's architecture (bootstorm image show) with the machine's, and its firmware setting \
                 (UEFI or legacy)."
                    .into(),
            )
        },
    },
    Rule {
        name: "unavailable",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("unavailable"),
        says: |story| {
            (
                format!("{} cannot be had, so it was sent to its own disk.", capital(&image(story))),
                "bootstorm image list says what is wrong with the image; the job is as it was, so the machine can just boot \
                 again once that is mended."
                    .into(),
            )
        },
    },
    Rule {
        name: "refused",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("refused"),
        says: |story| {
            (
                format!("Its job may not be had now, so it was sent to its own disk{}.", job_says(story)),
                format!("bootstorm job show says why; to start over, {}.", rearm(story)),
            )
        },
    },
    Rule {
        name: "pending",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("pending"),
        says: |_| {
            (
                "It is new here and waits for approval; it asks again every ten seconds.".into(),
                "bootstorm machine list shows it; bootstorm machine approve lets it in, machine reject sends it away.".into(),
            )
        },
    },
    Rule {
        name: "waits",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("wait"),
        says: |_| {
            (
                "It waits for a job and asks again every ten seconds.".into(),
                "bootstorm job add IMAGE --mac ITS-ADDRESS, and it goes on by itself.".into(),
            )
        },
    },
    Rule {
        name: "queued",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("queued"),
        says: |_| ("Others come first: it waits and asks again by itself.".into(), "nothing to do.".into()),
    },
    Rule {
        name: "not-recorded",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("busy"),
        says: |_| {
            (
                "This server cannot record its boot now, so it was told to ask again.".into(),
                "look at the disk of the state folder (df, the server's log).".into(),
            )
        },
    },
    Rule {
        name: "menu",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("menu"),
        says: |_| {
            (
                "No job wants it: it was shown the menu, and no image was chosen (yet).".into(),
                "choose at the machine, or bootstorm job add IMAGE --mac ITS-ADDRESS and boot it again."
                    .into(),
            )
        },
    },
    Rule {
        name: "shell",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("shell"),
        says: |_| {
            (
                "It was given an iPXE shell, as its job says.".into(),
                "type at the machine; exit boots its disk.".into(),
            )
        },
    },
    Rule {
        name: "sent-to-its-disk",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.script.is_some(),
        says: |story| match story.is_cause(Cause::Job) {
            true => (
                "Its job says that it boots from its own disk.".into(),
                "nothing, if that is what it should do.".into(),
            ),
            false => (
                "No job wants it, and the policy sends such machines to their own disk.".into(),
                "bootstorm job add IMAGE --mac ITS-ADDRESS if it should have booted an image.".into(),
            ),
        },
    },
    Rule {
        name: "identity-not-told",
        stage: Stop::Script,
        patience: LOADER,
        codes: NONE,
        holds: |story| story.identity_asked,
        says: |_| {
            (
                "iPXE runs and was asked who it is, and never came back with an answer.".into(),
                "look at the machine's screen for iPXE's error; a script of your own in between, or a loader with one \
                 built in, may have taken over."
                    .into(),
            )
        },
    },
    Rule {
        name: "other-servers-file",
        stage: Stop::Loader,
        patience: AT_ONCE,
        codes: [&[E3B], &[E23], &[]],
        holds: |story| refused_name_of_rival(story).is_some(),
        says: |story| {
            let (file, _) = story.tftp_refused.unwrap_or_default();
            let server = refused_name_of_rival(story).map_or(Ipv4Addr::UNSPECIFIED, |other| other.server);
            (
                format!(
                    "It asked here for {}, which is the file name that {server} offered, not ours: it got \"file not \
                     found\".",
                    Plain(file)
                ),
                format!("take the boot file (options 66 and 67) out of the DHCP server {server}."),
            )
        },
    },
    Rule {
        name: "missing-file",
        stage: Stop::Loader,
        patience: AT_ONCE,
        codes: [&[E3B, E36], &[E23], &[]],
        holds: |story| story.tftp_refused.is_some() && story.loader.is_none() && story.failed.is_none(),
        says: |story| {
            let (file, reason) = story.tftp_refused.unwrap_or_default();
            let offered = story.offered.or(story.boot_server).or(story.offered_ipxe);
            let ours = offered.map_or(String::new(), |ours| match ours.eq_ignore_ascii_case(file) {
                true => String::new(),
                false => format!(" It was offered {}, so that name is somebody else's.", Plain(ours)),
            });
            (
                format!("It asked by TFTP for {} and got an error: {}.{ours}", Plain(file), Plain(reason)),
                "look for that name in the other DHCP server's option 67 or in the machine's own settings; loaders are \
                 looked for in [loaders] dirs, other files in the images folder."
                    .into(),
            )
        },
    },
    Rule {
        name: "loader-not-acknowledged",
        stage: Stop::Loader,
        patience: AT_ONCE,
        codes: [&[E32], &[E18], &[]],
        holds: |story| {
            story.is_before_script()
                && story.failed.is_some_and(|failed| {
                    failed.over == Over::Tftp && failed.bytes == 0 && is_silence(&failed)
                })
        },
        says: |story| {
            let file = story.failed.map_or("", |failed| failed.file);
            let facts = story.failed.and_then(|failed| failed.facts);
            (
                format!(
                    "It asked by TFTP for {}, was answered, and never acknowledged the first block: our answers do not \
                     reach it.",
                    Plain(file)
                ),
                match facts {
                    Some(facts) if facts.blksize > 1468 => big_blocks(facts),
                    _ => "answers leave from another port than 69: let a firewall between pass them (or set [tftp] \
                          single_port = true), and look at the route back to the machine."
                        .into(),
                },
            )
        },
    },
    Rule {
        name: "loader-given-up",
        stage: Stop::Loader,
        patience: AT_ONCE,
        codes: [&[E36], &[E23], &[]],
        holds: |story| {
            story.is_before_script()
                && story
                    .failed
                    .is_some_and(|failed| failed.over == Over::Tftp && failed.reason.contains("TFTP error"))
        },
        says: |story| {
            let Some(failed) = story.failed else { return Default::default() };
            (
                format!(
                    "The machine itself ended the download of {} after {}: {}.",
                    Plain(failed.file),
                    Bytes(failed.bytes),
                    Plain(failed.reason)
                ),
                "the loader may be too big for its memory (a BIOS ROM takes about 500 KiB) or the option it was granted is \
                 one its firmware cannot do: try a smaller loader, or [tftp] max_windowsize = 1."
                    .into(),
            )
        },
    },
    Rule {
        name: "loader-cut",
        stage: Stop::Loader,
        patience: AT_ONCE,
        codes: [&[E35], &[E18], &[TIMED_OUT]],
        holds: |story| story.is_before_script() && story.failed.is_some(),
        says: |story| {
            let Some(failed) = story.failed else { return Default::default() };
            tftp_broke(&failed)
        },
    },
    Rule {
        name: "no-lease",
        stage: Stop::Dhcp,
        patience: DHCP,
        codes: [&[E52], &[E16, E18], &[NO_CONFIGURATION]],
        holds: |story| {
            story.is_dhcp_only()
                && (story.offered.is_some() || story.offered_ipxe.is_some())
                && story.timeline.address.is_none()
                && story.relay.is_none()
                && story.chosen.is_none()
                && !story.address_given
                && !story.others.iter().any(|other| other.leases)
        },
        says: |story| {
            (
                format!(
                    "It got our offer of {}, but no DHCP server was heard giving it an address: a boot offer alone is not \
                     enough.",
                    Plain(story.offered.or(story.offered_ipxe).unwrap_or_default())
                ),
                "look whether the LAN's DHCP server runs and has addresses left; or let this one give them ([dhcp] mode = \
                 \"full\" and a [[dhcp.subnet]])."
                    .into(),
            )
        },
    },
    Rule {
        name: "ipxe-no-script",
        stage: Stop::Script,
        patience: DHCP,
        codes: [&[], &[], &[TIMED_OUT]],
        holds: |story| story.offered_ipxe.is_some_and(is_url) && story.is_before_script(),
        says: |story| {
            let url = story.offered_ipxe.unwrap_or_default();
            let rival = story.rival().filter(|rival| rival.file.is_some());
            let (server, port) = host_of(url);
            (
                match rival {
                    Some(Other { server, file: Some(file), .. }) => format!(
                        "iPXE runs and was told to ask {}, but never did: it may have taken {} of {server} instead, because \
                         iPXE prefers the file name of who gave it the address.",
                        Plain(url),
                        Plain(file)
                    ),
                    _ => format!("iPXE runs and was told to ask {}, but never did.", Plain(url)),
                },
                match rival {
                    Some(rival) => format!("take the boot file out of the DHCP server {}.", rival.server),
                    None => {
                        let firewalls = format!(
                            "let the firewalls between (and on this host) pass TCP {port} to {server}; from the machine's \
                             network, curl http://{server}:{port}/healthz must say ok"
                        );
                        // What it answered by unicast was not heard; a file name in it would win.
                        match story.chosen.filter(|chosen| chosen.to_string() != server) {
                            Some(chosen) => format!(
                                "{firewalls}; if that is so, take the boot file out of the DHCP server {chosen}, which \
                                 iPXE prefers."
                            ),
                            None => format!("{firewalls}."),
                        }
                    }
                },
            )
        },
    },
    Rule {
        name: "loader-without-http",
        stage: Stop::Script,
        patience: LOADER,
        codes: NONE,
        holds: |story| story.offered_ipxe.is_some_and(|file| !is_url(file)) && story.is_before_script(),
        says: |story| {
            let file = story.offered_ipxe.unwrap_or_default();
            (
                format!(
                    "It runs an iPXE that cannot do HTTP, was offered {} to load instead, and {}.",
                    Plain(file),
                    if story.loader.is_some() { "never asked for a script with that either" } else { "never came for it" }
                ),
                "use a loader built with HTTP: Debian's package ipxe has one; an iPXE in the card's ROM can be switched off \
                 in its setup."
                    .into(),
            )
        },
    },
    Rule {
        name: "loader-no-script",
        stage: Stop::Loader,
        patience: LOADER,
        codes: NONE,
        holds: |story| story.loader.is_some() && story.is_before_script(),
        says: |story| {
            let (name, bytes, count, over) = story.loader.unwrap_or(("", 0, 1, Over::Tftp));
            let times = if count > 1 { format!(" {count} times") } else { String::new() };
            (
                format!(
                    "It fetched the loader {} ({}) by {}{times}, and nothing was heard of it since: the loader did not \
                     start, or started and found no network.",
                    Plain(name),
                    Bytes(bytes),
                    word(over)
                ),
                match story.is_uefi() {
                    true => "look at the machine's screen. With Secure Boot on, firmware refuses an unsigned loader \
                             (\"security violation\", \"access denied\"): switch it off or put a signed shim and loader into \
                             [loaders]. Otherwise try the other loader of its kind (ipxe.efi with its own drivers, snponly.efi \
                             with the firmware's)."
                        .into(),
                    false => "look at the machine's screen. undionly.kpxe uses the card's ROM: where that hangs or finds no \
                              card, put ipxe.pxe with its own drivers first in [loaders] bios."
                        .into(),
                },
            )
        },
    },
    Rule {
        name: "loader-under-way",
        stage: Stop::Loader,
        patience: DHCP,
        codes: [&[E32], &[E18], &[TIMED_OUT]],
        holds: |story| story.tftp_asked.is_some() && story.is_before_script(),
        says: |story| {
            (
                format!(
                    "It asked by TFTP for {}, and the transfer has not come to an end.",
                    Plain(story.tftp_asked.unwrap_or_default())
                ),
                "if it stays so, our answers do not reach it: look at firewalls and the route back to the machine.".into(),
            )
        },
    },
    Rule {
        name: "boot-server-not-answered",
        stage: Stop::Dhcp,
        patience: AT_ONCE,
        codes: [&[E55], &[E16], &[]],
        holds: |story| story.is_dhcp_only() && story.ignored.is_some_and(|(_, boot_server)| boot_server),
        says: |story| {
            let (reason, _) = story.ignored.unwrap_or_default();
            let (sentence, next) = ignored(reason, story);
            (format!("It asked our port 4011 for its boot file and was not answered: {sentence}"), next)
        },
    },
    Rule {
        name: "not-answered",
        stage: Stop::Dhcp,
        patience: AT_ONCE,
        codes: [&[E51, E53], &[E16], &[NO_CONFIGURATION]],
        holds: |story| {
            story.is_dhcp_only()
                && story.ignored.is_some_and(|(reason, _)| reason != "deferred" && reason != "other-server")
        },
        says: |story| {
            let (reason, _) = story.ignored.unwrap_or_default();
            let (sentence, next) = ignored(reason, story);
            (format!("It asked for a boot and was not answered: {sentence}"), next)
        },
    },
    Rule {
        name: "sent-to-4011-of-another",
        stage: Stop::Dhcp,
        patience: DHCP,
        codes: [&[E55], &[E16], &[]],
        holds: |story| story.is_dhcp_only() && story.boot_server.is_none() && binl(story).is_some(),
        says: |story| {
            let server = binl(story).map_or(Ipv4Addr::UNSPECIFIED, |other| other.server);
            (
                format!(
                    "It got our offer, never asked for the loader: {server} calls itself a PXE server (option 60 \
                     \"PXEClient\") without option 43, so the machine asked port 4011 there, where nobody answers."
                ),
                format!("remove option 60 from the DHCP server {server} (on Windows DHCP: 060 PXEClient)."),
            )
        },
    },
    Rule {
        name: "left-to-another",
        stage: Stop::Dhcp,
        patience: DHCP,
        codes: [&[E53, E78], &[E16, E18], &[]],
        holds: |story| {
            story.is_dhcp_only()
                && story.offered.is_none()
                && story.ignored.is_some_and(|(reason, _)| reason == "deferred")
        },
        says: |story| {
            let who = story.rival().map_or("another PXE server".into(), |rival| format!("{}", rival.server));
            (
                format!(
                    "No job wants it and {who} was heard here, so its first try was left to that server; it did not ask a \
                     second time."
                ),
                "add a job for it, and it is answered at once; or switch the other PXE server off.".into(),
            )
        },
    },
    Rule {
        name: "other-server-won",
        stage: Stop::Dhcp,
        patience: DHCP,
        codes: [&[E53, E78], &[E16, E18], &[]],
        holds: |story| {
            story.is_dhcp_only()
                && (story.offered.is_some() || story.boot_server.is_some())
                && story.rival().is_some()
        },
        says: |story| {
            let Some(rival) = story.rival() else { return Default::default() };
            let answered = if rival.was_first { "answered first" } else { "answered too" };
            let with = match (&rival.file, rival.next_server) {
                (Some(file), Some(next)) if next != rival.server => {
                    format!(" with {} from {next}", Plain(file))
                }
                (Some(file), _) => format!(" with {}", Plain(file)),
                (None, _) => String::new(),
            };
            let what = if rival.file.is_some() {
                "another server's option 67 won"
            } else {
                "another PXE server's offer won"
            };
            (
                format!(
                    "It got our offer, never asked for the loader: {what}, {} {answered}{with}.",
                    rival.server
                ),
                match rival.leases {
                    true => format!(
                        "take the boot file (options 66, 67 and the next server) out of the DHCP server {}.",
                        rival.server
                    ),
                    false => format!(
                        "switch the PXE service on {} off, or keep it out of this network.",
                        rival.server
                    ),
                },
            )
        },
    },
    Rule {
        name: "offer-not-taken",
        stage: Stop::Dhcp,
        patience: DHCP,
        codes: [&[E51], &[E16], &[NO_CONFIGURATION]],
        holds: |story| {
            story.is_dhcp_only()
                && (story.offered.is_some() || story.offered_ipxe.is_some())
                && story.timeline.address.is_some()
                && story.chosen.is_none()
                && !story.address_given
                && story.boot_server.is_none()
        },
        says: |story| {
            let path =
                story.relay.map_or("the switch between".to_owned(), |relay| format!("the relay {relay}"));
            (
                format!(
                    "It was offered {} and an address, and never took them: our offer does not reach it.",
                    Plain(story.offered.or(story.offered_ipxe).unwrap_or_default())
                ),
                format!(
                    "look at what {path} does with our answers (DHCP snooping trusts only listed ports; a relay passes what \
                     carries its option 82), and whether the machine has another card with the same cable."
                ),
            )
        },
    },
    Rule {
        name: "http-boot-no-loader",
        stage: Stop::Loader,
        patience: DHCP,
        codes: NONE,
        holds: |story| story.is_dhcp_only() && story.firmware == Some(Asker::Http),
        says: |story| {
            let url = story.offered.unwrap_or_default();
            let (server, port) = host_of(url);
            (
                format!(
                    "It has an address and was told to load {} by HTTP, but never asked for it.",
                    Plain(url)
                ),
                format!(
                    "let firewalls pass TCP {port} to {server}; some firmware refuses plain HTTP until its setup allows it."
                ),
            )
        },
    },
    Rule {
        name: "boot-server-answered",
        stage: Stop::Loader,
        patience: DHCP,
        codes: [&[E55, E32], &[E16, E18], &[]],
        holds: |story| story.is_dhcp_only() && story.boot_server.is_some(),
        says: |story| {
            (
                format!(
                    "It asked port 4011, was told {}, and never asked for it: our answer from 4011 does not reach it, or its \
                     TFTP request does not reach us.",
                    Plain(story.boot_server.unwrap_or_default())
                ),
                "let firewalls between pass UDP 4011 and 69 in both directions.".into(),
            )
        },
    },
    Rule {
        name: "address-no-loader",
        stage: Stop::Loader,
        patience: DHCP,
        codes: [&[E32, E53], &[E18, E16], &[TIMED_OUT]],
        holds: |story| story.is_dhcp_only() && (story.offered.is_some() || story.offered_ipxe.is_some()),
        says: |story| {
            let from = match story.chosen {
                Some(server) if !story.address_given => format!(" from {server}"),
                _ => String::new(),
            };
            let file = story.offered.or(story.offered_ipxe).unwrap_or_default();
            (
                format!("It has an address{from} and was offered {}, but never asked for it.", Plain(file)),
                match story.chosen {
                    Some(server) if !story.address_given => format!(
                        "let firewalls between pass UDP 69 to this server and its answers back; and look whether {server} \
                         sends a boot file of its own that was not heard here (options 66, 67)."
                    ),
                    _ => "let firewalls between pass UDP 69 to this server and its answers back, and look at the subnet's \
                          next_server if one is set."
                        .into(),
                },
            )
        },
    },
    Rule {
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
    },
];

impl Timeline {
    /// What is to be said of this boot.
    pub fn verdict(&self, context: &Context<'_>) -> Verdict {
        let story = Story::read(self, context);
        let rule = RULES.iter().find(|rule| (rule.holds)(&story)).unwrap_or(&RULES[RULES.len() - 1]);
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
    let ipxe_runs = story.offered_ipxe.is_some() || story.identity_asked || story.script.is_some();
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

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn rearm(story: &Story<'_>) -> String {
    match story.timeline.job {
        Some(job) => format!("bootstorm job rearm {job}"),
        None => "add a job (bootstorm job add)".into(),
    }
}

/// What the job said of itself when the script was made, or says now.
fn job_says(story: &Story<'_>) -> String {
    let then = story.script.map_or("", |script| script.said);
    let said = if then.is_empty() { story.job.map_or("", |job| &job.reason) } else { then };
    match (said, story.timeline.job) {
        ("", _) => String::new(),
        (said, Some(job)) => format!(" ({job}: {})", Plain(said)),
        (said, None) => format!(" ({})", Plain(said)),
    }
}

fn word(over: Over) -> &'static str {
    match over {
        Over::Tftp => "TFTP",
        Over::Http => "HTTP",
    }
}

fn is_url(file: &str) -> bool {
    file.starts_with("http://") || file.starts_with("https://")
}

/// Address and port of a URL of our own making.
fn host_of(url: &str) -> (&str, &str) {
    let host = url.split("//").nth(1).unwrap_or(url).split('/').next().unwrap_or_default();
    host.rsplit_once(':').unwrap_or((host, "80"))
}

fn is_at_the_line(failed: &Transfer<'_>) -> bool {
    failed.reason.starts_with("refused at the point of no return")
}

fn is_silence(failed: &Transfer<'_>) -> bool {
    failed.reason.contains("silent")
}

/// The file that broke off is an image's, fetched without a script: native loaders fetch by TFTP alone.
fn is_image_file(story: &Story<'_>) -> bool {
    story.failed.is_some_and(|failed| failed.file.contains('/'))
}

fn binl<'s>(story: &'s Story<'_>) -> Option<&'s Other> {
    story.others.iter().find(|other| other.sends_to_4011 && other.leases)
}

fn refused_name_of_rival<'s>(story: &'s Story<'_>) -> Option<&'s Other> {
    let (file, _) = story.tftp_refused.filter(|_| story.loader.is_none() && story.failed.is_none())?;
    let asked = file.trim_start_matches(['/', '\\']);
    story.others.iter().find(|other| {
        let theirs = other.file.as_deref().unwrap_or_default().trim_start_matches(['/', '\\']);
        theirs.eq_ignore_ascii_case(asked)
    })
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

/// Why DHCP did not answer, and what to do about it. `reason` is the word of the drop counter.
fn ignored(reason: &str, story: &Story<'_>) -> (String, String) {
    let arch = story.arch.map_or("its architecture".to_owned(), |arch| arch.word().to_owned());
    let relay = story.relay.map_or("its interface".to_owned(), |relay| format!("the relay {relay}"));
    let (sentence, next): (String, String) = match reason {
        "silent" => (
            "no job wants it, and the policy for such machines is silence.".into(),
            "bootstorm job add IMAGE --mac ITS-ADDRESS, or another `unknown` in [policy].".into(),
        ),
        "excluded" => (
            "its address is on the policy's exclude list.".into(),
            "take it off `exclude` in [policy] if it should boot from here.".into(),
        ),
        "no-boot" | "no-boot-file" => (
            format!("there is nothing to boot for it: no loader for {arch}, no HTTP listener it could reach, or an operator \
                     rejected it."),
            "bootstorm machine list shows rejections; loaders are looked for in [loaders] dirs (Debian's package ipxe has \
             them), and need one for its architecture."
                .into(),
        ),
        "unknown-subnet" => (
            format!("no [[dhcp.subnet]] is listed for {relay}."),
            "list its network in the configuration.".into(),
        ),
        "no-range" => (
            "its subnet is listed without a range, and it has no reservation.".into(),
            "add a range to the [[dhcp.subnet]], or a [[dhcp.reservation]] for it.".into(),
        ),
        "pool-exhausted" => (
            "every address of its pool is taken.".into(),
            "widen the range of its [[dhcp.subnet]], or shorten the lease time.".into(),
        ),
        "pool-kept" => (
            "what is left of its pool is kept for registered machines.".into(),
            "widen the range of its [[dhcp.subnet]], or add a job or registration for it.".into(),
        ),
        "deferred" => (
            "no job wants it, and another PXE server was heard here, which gets the first try.".into(),
            "add a job for it, or switch the other PXE server off.".into(),
        ),
        "other-server" => (
            "it asked for another server (option 54).".into(),
            "look which DHCP server names this one as its boot server.".into(),
        ),
        "reply-too-big" => (
            "the answer does not fit what its firmware takes.".into(),
            "shorten the domain name and the list of DNS servers of its [[dhcp.subnet]].".into(),
        ),
        other => (
            format!("{}.", Plain(other)),
            "the metric bootstorm_dhcp_drops_total names the same reason; docs/EXPLAIN.md says more.".into(),
        ),
    };
    (sentence, next)
}

#[cfg(test)]
mod tests;
