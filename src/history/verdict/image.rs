//! What is said of a boot that has its image's script: of its files, and of what was started.

use super::super::story::{Story, Transfer};
use super::super::timeline::{Bytes, Plain, Span};
use super::{
    AT_ONCE, DHCP, E18, E23, E35, IMAGE, LOADER, NONE, NOT_FOUND, PERMISSION, RESET, Rule, Stop, TIMED_OUT,
    add_job, image, next_boot, rearm, tftp_broke, word,
};
use crate::jobs::evidence::Over;
use crate::jobs::job::Confirm;

pub(super) const RULES: &[Rule] = &[
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
                    _ if reason.contains("not on record") => format!(
                        "bootstorm machine set {} puts it on record; then {} and boot it again.",
                        story.timeline.mac.map_or("ITS-ADDRESS".into(), |mac| mac.to_string()),
                        rearm(story)
                    ),
                    _ if reason.contains("choice from the menu") => {
                        format!("{}, and boot it again.", add_job(story))
                    }
                    _ if reason.contains("once per boot") => format!(
                        "nothing, if what it booted goes on: it had the file then. If it stands still, {} and boot it again: a \
                         new boot gets the file anew.",
                        rearm(story)
                    ),
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
                match story.job.is_some_and(|job| job.is_live() && (job.always || job.selector.is_exact())) {
                    true => format!("look at the machine's screen. {}", next_boot(story)),
                    false => format!(
                        "look at the machine's screen. {} To start over, {}.",
                        next_boot(story),
                        rearm(story)
                    ),
                },
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
                        "put the file, or the image if that is gone, back into its folder (bootstorm image show {} lists what is \
                         there); names are compared letter for letter by HTTP.",
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
];

fn is_at_the_line(failed: &Transfer<'_>) -> bool {
    failed.reason.starts_with("refused at the point of no return")
}

/// The file that broke off is an image's, fetched without a script: native loaders fetch by TFTP alone. A loader may lie in a
/// folder too; it is what was offered, or lies beside that, and no WIM.
fn is_image_file(story: &Story<'_>) -> bool {
    let folder = |file: &str| file.rsplit_once('/').map(|(folder, _)| folder.to_ascii_lowercase());
    let is_loader = |file: &str| {
        // What it loads next lies beside it.
        let fetched = story.loader.map(|(name, ..)| name);
        let known = [story.offered, story.boot_server, story.offered_ipxe, fetched];
        known.into_iter().flatten().any(|other| folder(other) == folder(file))
    };
    let is_wim = |file: &str| file.to_ascii_lowercase().ends_with(".wim");
    story
        .failed
        .is_some_and(|failed| failed.file.contains('/') && (is_wim(failed.file) || !is_loader(failed.file)))
}
