//! A decision becomes the iPXE script that says it to the machine.
//!
//! Every script keeps to the same rules: it runs on builds as old as Debian's of 2019 (optional commands end in
//! `||`); every download is tried a bounded number of times; every path ends in a local boot or in asking again;
//! the first lines are `#!ipxe` and a comment with the job's number; every URL is literal, absolute, and carries
//! the boot's token. What clients and operators typed goes through [`builder`] only. How a machine leaves for its
//! disk is in [`local`].

mod builder;
mod image;
mod local;
mod menu;
mod page;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::builder::Script;
pub(in crate::jobs) use self::builder::{clean_base, push_encoded};
pub use self::image::{Barrier, LastFile, barrier, barrier_of_script, last_file};
use self::image::{Fit, fit};
use self::local::{Disk, local};
pub use self::local::{LOCAL_WAYS, LocalStrategy};
use self::menu::menu;
pub use self::menu::{MENU_KEYS_RESERVED, menu_key};
pub use self::page::options_page;
use super::Identity;
use super::image::{Image, Images};
use super::job::{Action, Job, JobId, Stage};
use super::table::{Decision, View};
use super::template::{BadTemplate, Template, Values};
use super::token::{BootId, SignedToken, Token, TokenKey, mark_of};
use crate::wire::{MacAddr, MacPattern};

/// A token opens its boot's files for a day: a system that runs from a SAN disk reads on as long as it runs.
pub const TOKEN_SECONDS: u32 = 24 * 60 * 60;

/// How often a machine without a job asks whether it has one.
const POLL: Duration = Duration::from_secs(10);

/// What machines get for which nobody has said anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// The menu.
    #[default]
    Menu,
    /// A boot from the local disk.
    Local,
    /// Waiting until there is a job.
    Wait,
    /// Waiting until someone approves the machine.
    Pending,
    /// Nothing: no DHCP answer, and who asks for a script all the same is sent back to its disk.
    Silent,
}

/// What the menu does when nobody presses a key. In text form `local` or an image's name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MenuDefault {
    /// Boot from the local disk.
    #[default]
    Local,
    /// Boot this image, if it can boot on the machine and wipes nothing.
    Image(String),
}

impl From<String> for MenuDefault {
    fn from(text: String) -> Self {
        if text == "local" { Self::Local } else { Self::Image(text) }
    }
}

impl From<MenuDefault> for String {
    fn from(default: MenuDefault) -> Self {
        match default {
            MenuDefault::Local => "local".into(),
            MenuDefault::Image(name) => name,
        }
    }
}

/// What the site has decided about machines without a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// What they get.
    pub unknown: Unknown,
    /// How long the menu waits for a key; zero for ever.
    pub menu_timeout: Duration,
    /// What the menu does then.
    pub menu_default: MenuDefault,
    /// Machines that are never answered, by DHCP or with a script that boots anything, whatever job they have.
    pub exclude: Vec<MacPattern>,
}

impl Policy {
    /// Whether a machine is never to be answered.
    pub fn excludes(&self, mac: MacAddr) -> bool {
        self.exclude.iter().any(|pattern| pattern.covers(mac))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            unknown: Unknown::default(),
            menu_timeout: Duration::from_secs(15),
            menu_default: MenuDefault::default(),
            exclude: Vec::new(),
        }
    }
}

/// What a script needs to know besides the machine and its job.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Where this client reaches the server: scheme, literal host, port (`http://10.77.0.1:4433`).
    pub base_url: &'a str,
    /// The number of the boot this script begins or goes on with.
    pub boot: BootId,
    /// Signs the token in the script's URLs.
    pub key: &'a TokenKey,
    /// Seconds of Unix time, for the token's expiry.
    pub now_unix: u32,
    /// What machines without a job get.
    pub policy: &'a Policy,
    /// What is remembered about the machine.
    pub hints: Hints<'a>,
}

/// What is remembered about a machine, for its script. The default is to know nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hints<'a> {
    /// Where in [`LocalStrategy::list`] a local boot begins: one further for each way that is known not to work.
    pub local_boot: u8,
    /// The name the machine is to have, for templates.
    pub hostname: Option<&'a str>,
    /// An operator let it in: under the policy `pending` it gets the menu.
    pub approved: bool,
}

impl<'a> Hints<'a> {
    /// What the table remembers about a machine.
    pub fn of(table: &'a View<'_>, who: &Identity) -> Self {
        let standing = table.standing(who);
        Self {
            local_boot: standing.map_or(0, |standing| standing.local_boot),
            hostname: standing.and_then(|standing| standing.name.as_deref()),
            approved: table.is_approved(who),
        }
    }
}

/// What a script makes the machine do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offer {
    /// Boot an image.
    Image,
    /// Boot from the local disk.
    Local,
    /// Show the menu.
    Menu,
    /// Wait for a job.
    Wait,
    /// Wait for approval.
    Pending,
    /// Open an iPXE shell.
    Shell,
    /// Say that the job's image does not fit the machine, then boot from the local disk.
    Misfit,
    /// Say that the job's image cannot be had, then boot from the local disk.
    Unavailable,
    /// Boot from the local disk, without a word or with the reason of a rejection.
    Denied,
    /// Ask again: others come first.
    Queued,
    /// Ask again: the server cannot record the boot.
    Busy,
    /// Say that the job may not be had now, then boot from the local disk.
    Refused,
}

impl Offer {
    /// The lower-case word of lists, logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Local => "local",
            Self::Menu => "menu",
            Self::Wait => "wait",
            Self::Pending => "pending",
            Self::Shell => "shell",
            Self::Misfit => "misfit",
            Self::Unavailable => "unavailable",
            Self::Denied => "denied",
            Self::Queued => "queued",
            Self::Busy => "busy",
            Self::Refused => "refused",
        }
    }
}

/// What [`compose`] wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Composed {
    /// The job that decided, if one did: for `ScriptAsked`. It may have decided for a local boot because it is over.
    pub job: Option<JobId>,
    /// The boot in its token.
    pub boot: BootId,
    /// What it makes the machine do.
    pub what: Offer,
    /// The image it boots. A menu names many and has `None`.
    pub image: Option<String>,
    /// The last boot file of that image: delivered, it means that the image may run ([`last_file`]).
    pub last_file: Option<String>,
    /// Why the job's image is not booted, naming what it needs and what the machine has; `None` where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What [`compose_explained`] found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// The script as the machine would get it now.
    pub script: String,
    /// What it does.
    pub composed: Composed,
    /// Which job or policy decided, and how.
    pub chosen: String,
    /// Why the others lost, and why the job was not followed if it was not.
    pub lost: Vec<String>,
}

/// Writes the script of what was decided for a machine into `out`, replacing what it held. Changes nothing, so asking
/// twice gives the same script twice.
pub fn compose(
    decision: Decision<'_>,
    images: &dyn Images,
    who: &Identity,
    ctx: &Context<'_>,
    out: &mut String,
) -> Composed {
    write(&plan(decision, images, who, ctx), images, who, ctx, out)
}

/// [`compose`], with the reasons: what `script render --explain` shows. Changes nothing. The hints are the table's.
/// Its tokens are [`BootId::SHOWN`]'s and were over long ago: whoever is shown the script gets no file by it.
pub fn compose_explained(
    table: &View<'_>,
    images: &dyn Images,
    who: &Identity,
    ctx: &Context<'_>,
) -> Explained {
    let ctx = &Context { hints: Hints::of(table, who), boot: BootId::SHOWN, now_unix: 0, ..*ctx };
    let decision = table.decide(who);
    let plan = plan(decision, images, who, ctx);
    let mut script = String::new();
    let composed = write(&plan, images, who, ctx, &mut script);
    let mut lost = table.explain(who);
    let mut chosen = match decision {
        _ if is_excluded(who, ctx.policy) => "policy exclude: this machine is never answered".to_owned(),
        Decision::NoJob if ctx.policy.unknown == Unknown::Pending && ctx.hints.approved => {
            "policy unknown = \"pending\": an operator has approved this machine, so it gets the menu"
                .to_owned()
        }
        Decision::NoJob => {
            format!(
                "policy unknown = \"{}\": no job is meant for this machine",
                unknown_word(ctx.policy.unknown)
            )
        }
        Decision::Rejected => "an operator refuses this machine".into(),
        Decision::Job(_) | Decision::Done(_) if !lost.is_empty() => lost.remove(0),
        Decision::Job(job) | Decision::Done(job) => job.id.to_string(),
    };
    match &plan.act {
        Act::Misfit { why, .. } => chosen.push_str(&format!("; not followed, {why}")),
        Act::Unavailable { why, .. } => chosen.push_str(&format!("; not followed, {why}")),
        _ => {}
    }
    Explained { script, composed, chosen, lost }
}

/// Writes the constant script for whoever comes without an identity (also `/autoexec.ipxe`): it collects one and
/// asks `/ipxe` with it. Depends on `base_url` only.
pub fn ask_identity(base_url: &str, out: &mut String) {
    let mut script = Script::begin(out);
    script.raw(
        "# bootstorm: asks again with the machine's identity\n\
         set tries x\n\
         :ask\n\
         isset ${ip} || dhcp || goto again\n\
         isset ${netX/mac} && set mymac ${netX/mac} || set mymac ${net0/mac}\n\
         cpuid --ext 29 && set mylong 1 || set mylong 0\n\
         chain --timeout 30000 --replace --autofree ",
    );
    script.base(base_url).raw("/ipxe?mac=${mymac}&uuid=${uuid}&longmode=${mylong}").raw(SETTINGS);
    script.raw(
        " || goto again\n\
         :again\n\
         iseq ${tries} xxxxx && goto giveup ||\n\
         set tries ${tries}x\n\
         echo bootstorm: no script yet, asking again in 3 seconds\n\
         sleep 3\n\
         goto ask\n\
         :giveup\n\
         echo bootstorm: no script from the server after 5 tries\n\
         sleep 5\n",
    );
    local(&mut script, Disk { firmware: None, first: 0, report: None });
}

/// Writes the script of a boot that may not have its job after all: it says why and boots from the local disk.
pub fn refused(who: &Identity, job: JobId, why: &dyn std::fmt::Display, out: &mut String) {
    let mut script = Script::begin(out);
    head(&mut script, Some(job));
    script.raw("echo bootstorm: not booting job ").job(job).raw(", ").text(&why.to_string()).end();
    pause_then_local(&mut script, Disk { firmware: who.firmware(), first: 0, report: None });
}

/// Writes the script of a boot that cannot be recorded now: it says so and asks again.
pub fn not_now(who: &Identity, base_url: &str, out: &mut String) {
    let mut script = Script::begin(out);
    script.raw("# bootstorm job waits\n");
    machine(&mut script, who);
    script.raw("echo bootstorm: the server cannot record this boot now, see its log\n");
    poll(&mut script, who, base_url, 0, POLL);
}

/// Writes the script of a machine that others come before: its place in line, counted from 1, about how long it is
/// until its turn if anyone can say, and that it asks again after `again`, in whole milliseconds and one second at least.
pub fn queued(
    who: &Identity,
    base_url: &str,
    place: u32,
    wait: Option<Duration>,
    again: Duration,
    out: &mut String,
) {
    let mut script = Script::begin(out);
    script.raw("# bootstorm job waits\n");
    machine(&mut script, who);
    script
        .raw("echo bootstorm: others come first, this machine is number ")
        .number(place.into())
        .raw(" in line");
    if let Some(wait) = wait {
        script.raw(", about ").number(wait.as_secs().max(1)).raw(" s to go");
    }
    poll(script.end(), who, base_url, 0, again);
}

/// Writes the script of a machine that an operator has rejected: the operator's words, if there are any, then the
/// local disk. Like every denial it names nothing else.
pub fn rejected(who: &Identity, reason: &str, hints: Hints<'_>, out: &mut String) {
    let mut script = Script::begin(out);
    head(&mut script, None);
    if !reason.trim().is_empty() {
        script.raw("echo bootstorm: this machine is not to be booted: ").text(reason).end();
        pause(&mut script);
    }
    local(&mut script, Disk { firmware: who.firmware(), first: hints.local_boot, report: None });
}

/// Checks the text of a custom script with variables.
///
/// # Errors
/// Those of [`Template::parse`]; a first line other than `#!ipxe`; a label that begins with `bootstorm_`, which are
/// the server's own.
pub fn script_template(text: &str) -> Result<Template, BadTemplate> {
    let bad = |line, reason: &str| BadTemplate { line, reason: reason.into() };
    if text.lines().next().is_none_or(|first| first.trim_end() != "#!ipxe") {
        return Err(bad(1, "the first line has to be #!ipxe"));
    }
    if let Some(at) = text.lines().position(|line| line.trim_start().starts_with(":bootstorm_")) {
        return Err(bad(at + 1, "labels that begin with bootstorm_ are the server's own"));
    }
    Template::parse(text)
}

/// What iPXE fills in by itself. `uristring` keeps the client's texts from changing the URL, except that iPXE of
/// before 2021-11 decodes and encodes a query anew and lets a `&` through: so what is no text stands in front, where
/// the first value of a name is the one that counts.
const SETTINGS: &str = "&platform=${platform}&buildarch=${buildarch}\
    &serial=${serial:uristring}&asset=${asset:uristring}\
    &manufacturer=${manufacturer:uristring}&product=${product:uristring}";

struct Plan<'a> {
    job: Option<&'a Job>,
    act: Act<'a>,
}

enum Act<'a> {
    Image(&'a Image),
    Local { why: &'static str },
    Menu,
    Wait,
    Pending,
    Shell,
    Misfit { image: &'a Image, why: Box<str> },
    Unavailable { name: &'a str, why: &'static str },
    Denied,
}

fn is_excluded(who: &Identity, policy: &Policy) -> bool {
    who.mac.is_some_and(|mac| policy.excludes(mac))
}

fn plan<'a>(decision: Decision<'a>, images: &'a dyn Images, who: &Identity, ctx: &Context<'_>) -> Plan<'a> {
    match decision {
        _ if is_excluded(who, ctx.policy) => Plan { job: None, act: Act::Denied },
        Decision::Job(job) => Plan { job: Some(job), act: act_of(job, images, who) },
        Decision::Done(job) => {
            let why = match job.stage {
                Stage::Failed => "this machine's job failed; see bootstorm explain",
                Stage::Offered | Stage::Fetching if job.selector.is_exact() => {
                    "this machine's job has no attempt left; see bootstorm explain"
                }
                _ => "this machine had its job; see bootstorm explain",
            };
            Plan { job: Some(job), act: Act::Local { why } }
        }
        Decision::Rejected => Plan { job: None, act: Act::Denied },
        Decision::NoJob => {
            let act = match ctx.policy.unknown {
                Unknown::Pending if ctx.hints.approved => Act::Menu,
                Unknown::Menu => Act::Menu,
                Unknown::Local => Act::Local { why: "no job for this machine" },
                Unknown::Wait => Act::Wait,
                Unknown::Pending => Act::Pending,
                Unknown::Silent => Act::Denied,
            };
            Plan { job: None, act }
        }
    }
}

fn act_of<'a>(job: &'a Job, images: &'a dyn Images, who: &Identity) -> Act<'a> {
    let name = match &job.action {
        Action::Image(name) => name,
        Action::Local => return Act::Local { why: "the job says so" },
        Action::Menu => return Act::Menu,
        Action::Wait => return Act::Wait,
        Action::Shell => return Act::Shell,
    };
    // The image was fine when the job was added; it can have changed since.
    let Some(image) = images.image(name) else {
        return Act::Unavailable { name, why: "the image is not in the library any more" };
    };
    if image.boot.is_none() || image.unbootable.is_some() {
        return Act::Unavailable { name, why: "the image cannot boot any more; see bootstorm image show" };
    }
    // It may have been no destructive image when the job was added.
    if image.destructive && !job.may_wipe() {
        return Act::Unavailable {
            name,
            why: "the image may wipe a disk now, and the job does not allow for that",
        };
    }
    match fit(image, who) {
        Fit::Misfit(why) => Act::Misfit { image, why },
        Fit::Fits | Fit::AskCpu => Act::Image(image),
    }
}

fn write(
    plan: &Plan<'_>,
    images: &dyn Images,
    who: &Identity,
    ctx: &Context<'_>,
    out: &mut String,
) -> Composed {
    // A machine whose job is over gets no token in that job's name: nothing it fetches may move the job.
    let carried = plan.job.filter(|_| !matches!(plan.act, Act::Local { .. })).map(|job| job.id);
    let token = ctx.key.sign(&Token {
        boot: ctx.boot,
        mac: who.mac,
        job: carried,
        menu: matches!(plan.act, Act::Menu),
        last: match plan.act {
            Act::Image(image) => barrier_of_script(image, who).and_then(Barrier::file).map_or(0, mark_of),
            _ => 0,
        },
        expires_unix: ctx.now_unix.saturating_add(TOKEN_SECONDS),
    });
    let mut script = Script::begin(out);
    head(&mut script, plan.job.map(|job| job.id));
    let mut composed = Composed {
        job: plan.job.map(|job| job.id),
        boot: ctx.boot,
        what: Offer::Denied,
        image: None,
        last_file: None,
        why: None,
    };
    match plan.act {
        Act::Denied => {}
        _ if ctx.boot == BootId::SHOWN => {
            script.raw("# rendered to be read: the tokens in its URLs open nothing\n");
        }
        _ => _ = script.raw("# boot ").boot(ctx.boot).end(),
    }
    let urls = Urls { base: ctx.base_url, token: &token };
    let disk = Disk { firmware: who.firmware(), first: ctx.hints.local_boot, report: Some(urls) };
    composed.what = match &plan.act {
        Act::Image(image) => {
            composed.image = Some(image.name.clone());
            let native = who.family().and_then(|family| image.native_for(family));
            composed.last_file = match native {
                Some(native) => Some(native.last.clone()),
                None => last_file(image).map(|last| last.name.to_owned()),
            };
            match &image.template {
                None => one_image(&mut script, image, who, plan.job.map(|job| job.id), urls, disk),
                Some(template) => {
                    let values = Values {
                        who,
                        hostname: ctx.hints.hostname,
                        job: carried,
                        boot: ctx.boot,
                        image: &image.name,
                        base_url: ctx.base_url,
                        token: &token,
                    };
                    own_script(&mut script, image, template, &values, disk);
                }
            }
            Offer::Image
        }
        Act::Local { why } => {
            script.raw("# ").raw(why).end();
            local(&mut script, disk);
            Offer::Local
        }
        Act::Menu => {
            menu(&mut script, images, who, carried, urls, ctx.policy, disk);
            Offer::Menu
        }
        Act::Wait => {
            machine(&mut script, who);
            script.raw("echo bootstorm: no job yet, waiting for one\n");
            poll(&mut script, who, ctx.base_url, ctx.hints.local_boot, POLL);
            Offer::Wait
        }
        Act::Pending => {
            machine(&mut script, who);
            script.raw("echo bootstorm: this machine is new here and waits for approval\n");
            poll(&mut script, who, ctx.base_url, ctx.hints.local_boot, POLL);
            Offer::Pending
        }
        Act::Shell => {
            script.raw("echo bootstorm: type exit to boot from the local disk\nshell ||\n");
            local(&mut script, disk);
            Offer::Shell
        }
        Act::Misfit { image, why } => {
            composed.image = Some(image.name.clone());
            composed.why = Some(why.to_string());
            script.raw("echo bootstorm: not booting image ").text(&image.name).raw(", ").text(why).end();
            pause_then_local(&mut script, disk);
            Offer::Misfit
        }
        Act::Unavailable { name, why } => {
            composed.image = Some((*name).to_owned());
            composed.why = Some((*why).to_owned());
            script.raw("echo bootstorm: not booting image ").text(name).raw(", ").raw(why).end();
            pause_then_local(&mut script, disk);
            Offer::Unavailable
        }
        Act::Denied => {
            local(&mut script, Disk { report: None, ..disk });
            Offer::Denied
        }
    };
    composed
}

/// What every image URL of a script has in common.
#[derive(Clone, Copy)]
struct Urls<'a> {
    base: &'a str,
    token: &'a SignedToken,
}

/// A job's image: three tries, then the disk.
fn one_image(
    script: &mut Script<'_>,
    image: &Image,
    who: &Identity,
    job: Option<JobId>,
    urls: Urls<'_>,
    disk: Disk<'_>,
) {
    title(script, image, job);
    script.raw("set tries x\n:boot\n");
    let guarded = image::body(script, image, who, job, urls);
    script.raw(
        ":failed\n\
         iseq ${tries} xxx && goto giveup ||\n\
         set tries ${tries}x\n\
         echo bootstorm: that broke off or did not start, trying again in 5 seconds\n\
         sleep 5\n\
         goto boot\n",
    );
    if guarded {
        script.raw(":misfit\n").raw(image::MISFIT);
        pause(script);
        script.raw("goto local\n");
    }
    script.raw(":giveup\necho bootstorm: giving up after 3 tries\n");
    pause_then_local(script, disk);
}

/// The operator's own lines. They may go to `bootstorm_local`, and fall into it at their end.
fn own_script(
    script: &mut Script<'_>,
    image: &Image,
    template: &Template,
    values: &Values<'_>,
    disk: Disk<'_>,
) {
    title(script, image, values.job);
    script.template(template, values).raw(":bootstorm_local\n");
    local(script, disk);
}

fn title(script: &mut Script<'_>, image: &Image, job: Option<JobId>) {
    script.raw("echo bootstorm: ").text(&image.title);
    if let Some(job) = job {
        script.raw(" (job ").job(job).raw(")");
    }
    script.end();
}

/// The comment that every script carries.
fn head(script: &mut Script<'_>, job: Option<JobId>) {
    script.raw("# bootstorm job ");
    match job {
        Some(job) => script.job(job).end(),
        None => script.raw("none\n"),
    };
}

fn machine(script: &mut Script<'_>, who: &Identity) {
    if let Some(mac) = who.mac {
        script.raw("echo bootstorm: machine ").mac(mac).end();
    }
}

/// Asks again until the answer is another. The only loop without a limit: waiting is what was asked for, somebody
/// who stands there can leave it, and each answer says anew why.
fn poll(script: &mut Script<'_>, who: &Identity, base_url: &str, local_boot: u8, every: Duration) {
    let every = every.max(Duration::from_secs(1));
    // The answer replaces this script and its image is freed, so that waiting all night nests nothing.
    script
        .raw(":wait\nprompt --key l --timeout ")
        .number(u64::try_from(every.as_millis()).unwrap_or(u64::MAX))
        .raw(" Asking again every ")
        .number(every.as_secs())
        .raw(
            " seconds, press l for the local disk && goto local ||\n\
             chain --timeout 30000 --replace --autofree ",
        );
    script.base(base_url).raw("/ipxe?mac=");
    match who.mac {
        Some(mac) => script.mac(mac),
        None => script.raw("${netX/mac}"),
    };
    script.raw("&uuid=");
    match who.uuid {
        Some(uuid) => script.uuid(uuid),
        None => script.raw("${uuid}"),
    };
    match who.long_mode {
        Some(true) => _ = script.raw("&longmode=1"),
        Some(false) => _ = script.raw("&longmode=0"),
        None => {}
    }
    script.raw(SETTINGS).raw(" || goto wait\n:local\n");
    local(script, Disk { firmware: who.firmware(), first: local_boot, report: None });
}

fn pause(script: &mut Script<'_>) {
    script.raw("prompt --timeout 15000 Press a key to go on, or wait 15 seconds ||\n");
}

/// Expects that nothing above falls into it by mistake; holds the `local` label.
fn pause_then_local(script: &mut Script<'_>, disk: Disk<'_>) {
    pause(script);
    script.raw(":local\n");
    local(script, disk);
}

fn unknown_word(unknown: Unknown) -> &'static str {
    match unknown {
        Unknown::Menu => "menu",
        Unknown::Local => "local",
        Unknown::Wait => "wait",
        Unknown::Pending => "pending",
        Unknown::Silent => "silent",
    }
}
