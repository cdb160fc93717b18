//! What is said of a boot that was told something else than an image: its disk, a menu, to wait.

use std::time::Duration;

use super::super::story::Story;
use super::super::timeline::{Plain, Span};
use super::{AT_ONCE, NONE, Rule, Stop, add_job, image, rearm};
use crate::jobs::evidence::Cause;
use crate::jobs::lifecycle::LOOP_BOOTS;

pub(super) const RULES: &[Rule] = &[
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
            // A call-back can end it with attempts left.
            let has_failed = story.job.is_some_and(|job| job.attempts_used < job.attempts);
            let what = if has_failed { "failed" } else { "is out of attempts" };
            (
                format!("Its job {what}, so it was sent to its own disk{}.", job_says(story)),
                format!(
                    "bootstorm explain --last 8 shows where the boots before stopped; then {}.",
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
        says: |story| {
            (
                format!(
                    "{}, and the policy denies machines without one: it was sent to its own disk.",
                    unwanted(story)
                ),
                format!("{}, or another `unknown` in [policy].", add_job(story)),
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
                format!("{} does not fit this machine, so it was sent to its own disk{}.", capital(&image(story)), script_says(story)),
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
                format!("{} cannot be had, so it was sent to its own disk{}.", capital(&image(story)), script_says(story)),
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
        says: |story| {
            (
                still(story, "It is new here and waits for approval; it asks again every ten seconds."),
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
        says: |story| {
            let then = if has_left(story) { "and boot it again" } else { "and it goes on by itself" };
            (
                still(story, "It waits for a job and asks again every ten seconds."),
                format!("{}, {then}.", add_job(story)),
            )
        },
    },
    Rule {
        name: "queued",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: NONE,
        holds: |story| story.is_offer("queued"),
        says: |story| {
            let next = if has_left(story) { "boot it again." } else { "nothing to do." };
            (still(story, "Others come first: it waits and asks again by itself."), next.into())
        },
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
        says: |story| match story.is_cause(Cause::Job) {
            true => (
                "It was shown the menu, as its job says, and no image was chosen (yet).".into(),
                "choose at the machine.".into(),
            ),
            false => (
                format!("{}: it was shown the menu, and no image was chosen (yet).", unwanted(story)),
                format!(
                    "choose at the machine, or {} and boot it again. If a job was meant for it, compare what that job \
                     names (bootstorm job list) with what the machine came as.",
                    add_job(story)
                ),
            ),
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
                format!("{}, and the policy sends such machines to their own disk.", unwanted(story)),
                format!(
                    "{} if it should have booted an image. If a job was meant for it, compare what that job names \
                     (bootstorm job list) with what the machine came as.",
                    add_job(story)
                ),
            ),
        },
    },
];

/// Who waits asks again every few seconds, so one that is silent for so long is gone.
const GONE: Duration = Duration::from_secs(120);

fn has_left(story: &Story<'_>) -> bool {
    story.silent >= GONE
}

/// What it did when it was heard last, if it is not heard any more.
fn still(story: &Story<'_>, text: &str) -> String {
    match has_left(story) {
        true => format!(
            "{text} It did when it was heard last, {} ago, and is off or gone since.",
            Span(story.silent)
        ),
        false => text.to_owned(),
    }
}

/// That no job wants it, and what it came as: a job for another of its cards, or for a UUID that it does not tell, is
/// the usual reason.
fn unwanted(story: &Story<'_>) -> String {
    match (story.timeline.mac, story.timeline.uuid) {
        (Some(mac), Some(uuid)) => format!("No job wants it (it came as {mac} with UUID {uuid})"),
        (Some(mac), None) => format!("No job wants it (it came as {mac} and told no UUID)"),
        (None, Some(uuid)) => format!("No job wants it (it came with UUID {uuid})"),
        (None, None) => "No job wants it".into(),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// What the job said of itself when the script was made, or says now.
/// What the script said of the image that it did not boot.
fn script_says(story: &Story<'_>) -> String {
    match story.script.map_or("", |script| script.said) {
        "" => String::new(),
        said => format!(" ({})", Plain(said)),
    }
}

fn job_says(story: &Story<'_>) -> String {
    let then = story.script.map_or("", |script| script.said);
    let said = if then.is_empty() { story.job.map_or("", |job| &job.reason) } else { then };
    match (said, story.timeline.job) {
        ("", _) => String::new(),
        (said, Some(job)) => format!(" ({job}: {})", Plain(said)),
        (said, None) => format!(" ({})", Plain(said)),
    }
}
