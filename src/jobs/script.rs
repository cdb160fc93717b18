//! A decision becomes the iPXE script that says it to the machine.
//!
//! Every script keeps to the same rules: it runs on builds as old as Debian's of 2019 (optional commands end in
//! `||`); every download is tried a bounded number of times; every path ends in a local boot or in asking again;
//! the first lines are `#!ipxe` and a comment with the job's number; every URL is literal, absolute, and carries
//! the boot's token. What clients and operators typed goes through [`builder`] only.
//!
//! Leaving iPXE for the local disk differs by firmware. A BIOS hands the disk to whoever asks for drive 0x80, and
//! leaving without that would run into the next boot device, which on many machines is the network again. UEFI
//! has a boot order: leaving with an error makes it try its next entry, where leaving with success makes EDK2
//! stop and show its set-up.

mod builder;
mod image;
mod page;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::builder::Script;
pub use self::image::{Barrier, LastFile, barrier, last_file};
use self::image::{Fit, fit};
pub use self::page::options_page;
use super::Identity;
use super::image::{Image, Images};
use super::job::{Action, Job, JobId};
use super::table::{Decision, View};
use super::token::{BootId, SignedToken, Token, TokenKey};
use crate::wire::arch::Platform;

/// A token opens its boot's files for a day: a system that runs from a SAN disk reads on as long as it runs.
pub const TOKEN_SECONDS: u32 = 24 * 60 * 60;

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
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            unknown: Unknown::default(),
            menu_timeout: Duration::from_secs(15),
            menu_default: MenuDefault::default(),
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
    /// Say that the job may not be had now, then boot from the local disk.
    Refused,
    /// Boot from the local disk without a word.
    Denied,
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
            Self::Refused => "refused",
            Self::Denied => "denied",
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
    write(&plan(decision, images, who, ctx.policy), images, who, ctx, out)
}

/// [`compose`], with the reasons: what `script render --explain` shows. Changes nothing.
pub fn compose_explained(
    table: &View<'_>,
    images: &dyn Images,
    who: &Identity,
    ctx: &Context<'_>,
) -> Explained {
    let decision = table.decide(who);
    let plan = plan(decision, images, who, ctx.policy);
    let mut script = String::new();
    let composed = write(&plan, images, who, ctx, &mut script);
    let mut lost = table.explain(who);
    let mut chosen = match decision {
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

/// Writes the script of a boot that may not have its job after all: it says why and boots from the local disk.
pub fn refused(who: &Identity, job: JobId, why: &dyn std::fmt::Display, out: &mut String) {
    let mut script = Script::begin(out);
    script.raw("# bootstorm job ").job(job).end();
    script.raw("echo bootstorm: not booting job ").job(job).raw(", ").text(&why.to_string()).end();
    pause_then_local(&mut script, who.firmware());
}

/// Writes the script of a boot that cannot be recorded now: it says so and asks again.
pub fn not_now(who: &Identity, base_url: &str, out: &mut String) {
    let mut script = Script::begin(out);
    script.raw("# bootstorm job waits\n");
    wait(&mut script, who, base_url, "the server cannot record this boot now, see its log");
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
    script.base(base_url).raw("/ipxe?mac=${mymac}&uuid=${uuid}").raw(SETTINGS).raw("&longmode=${mylong}");
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
    local(&mut script, None);
}

/// What iPXE fills in by itself. `uristring` keeps the client's texts from changing the URL.
const SETTINGS: &str = "&serial=${serial:uristring}&asset=${asset:uristring}\
    &manufacturer=${manufacturer:uristring}&product=${product:uristring}\
    &platform=${platform}&buildarch=${buildarch}";

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

fn plan<'a>(decision: Decision<'a>, images: &'a dyn Images, who: &Identity, policy: &Policy) -> Plan<'a> {
    match decision {
        Decision::Job(job) => Plan { job: Some(job), act: act_of(job, images, who) },
        Decision::Done(job) => Plan {
            job: Some(job),
            act: Act::Local { why: "this machine had its job; see bootstorm explain" },
        },
        Decision::Rejected => Plan { job: None, act: Act::Denied },
        Decision::NoJob => {
            let act = match policy.unknown {
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
    // It was no destructive image when the job was added. A job for one machine and one boot may have it all the same.
    if image.destructive && (job.always || !job.selector.is_exact() && !job.allow_rule) {
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
        expires_unix: ctx.now_unix.saturating_add(TOKEN_SECONDS),
    });
    let mut script = Script::begin(out);
    script.raw("# bootstorm job ");
    match plan.job {
        Some(job) => script.job(job.id).end(),
        None => script.raw("none\n"),
    };
    let mut composed = Composed {
        job: plan.job.map(|job| job.id),
        boot: ctx.boot,
        what: Offer::Denied,
        image: None,
        last_file: None,
    };
    if !matches!(plan.act, Act::Denied) {
        script.raw("# boot ").boot(ctx.boot).end();
    }
    composed.what = match &plan.act {
        Act::Image(image) => {
            composed.image = Some(image.name.clone());
            composed.last_file = last_file(image).map(|last| last.name.to_owned());
            let urls = Urls { base: ctx.base_url, token: &token };
            one_image(&mut script, image, who, plan.job.map(|job| job.id), urls);
            Offer::Image
        }
        Act::Local { why } => {
            script.raw("# ").raw(why).end();
            local(&mut script, who.firmware());
            Offer::Local
        }
        Act::Menu => {
            let urls = Urls { base: ctx.base_url, token: &token };
            menu(&mut script, images, who, carried, urls, ctx.policy);
            Offer::Menu
        }
        Act::Wait => {
            wait(&mut script, who, ctx.base_url, "no job yet, waiting for one");
            Offer::Wait
        }
        Act::Pending => {
            wait(&mut script, who, ctx.base_url, "this machine is new here and waits for approval");
            Offer::Pending
        }
        Act::Shell => {
            script.raw("echo bootstorm: type exit to boot from the local disk\nshell ||\n");
            local(&mut script, who.firmware());
            Offer::Shell
        }
        Act::Misfit { image, why } => {
            composed.image = Some(image.name.clone());
            script.raw("echo bootstorm: not booting image ").text(&image.name).raw(", ").text(why).end();
            pause_then_local(&mut script, who.firmware());
            Offer::Misfit
        }
        Act::Unavailable { name, why } => {
            composed.image = Some((*name).to_owned());
            script.raw("echo bootstorm: not booting image ").text(name).raw(", ").raw(why).end();
            pause_then_local(&mut script, who.firmware());
            Offer::Unavailable
        }
        Act::Denied => {
            local(&mut script, who.firmware());
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
fn one_image(script: &mut Script<'_>, image: &Image, who: &Identity, job: Option<JobId>, urls: Urls<'_>) {
    script.raw("echo bootstorm: ").text(&image.title);
    if let Some(job) = job {
        script.raw(" (job ").job(job).raw(")");
    }
    script.raw("\nset tries x\n:boot\n");
    let asks_cpu = fit(image, who) == Fit::AskCpu;
    image::body(script, image, who, job, urls);
    script.raw(
        ":failed\n\
         iseq ${tries} xxx && goto giveup ||\n\
         set tries ${tries}x\n\
         echo bootstorm: that broke off or did not start, trying again in 5 seconds\n\
         sleep 5\n\
         goto boot\n",
    );
    if asks_cpu {
        script.raw(":misfit\necho bootstorm: not booting it, it needs a 64-bit processor\n");
        pause(script);
        script.raw("goto local\n");
    }
    script.raw(":giveup\necho bootstorm: giving up after 3 tries\n");
    pause_then_local(script, who.firmware());
}

/// Items beyond this would not be read by anyone, and make a long script.
const MENU_ITEMS_MAX: usize = 48;
/// A menu's script ends about here.
const MENU_BYTES_MAX: usize = 192 * 1024;
/// `l` and `s` belong to the local disk and the shell.
const KEYS: [&str; 33] = [
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "m",
    "n", "o", "p", "q", "r", "t", "u", "v", "w", "x", "y", "z",
];

fn menu(
    script: &mut Script<'_>,
    images: &dyn Images,
    who: &Identity,
    job: Option<JobId>,
    urls: Urls<'_>,
    policy: &Policy,
) {
    let mut room = MENU_BYTES_MAX;
    let mut left_out = 0u64;
    let mut shown: Vec<&Image> = Vec::new();
    let bootable = images.list().iter().filter(|image| image.boot.is_some() && image.unbootable.is_none());
    for image in bootable.filter(|image| !matches!(fit(image, who), Fit::Misfit(_))) {
        let needed = image::body_len_max(image, urls);
        if shown.len() < MENU_ITEMS_MAX && needed <= room {
            room -= needed;
            shown.push(image);
        } else {
            left_out += 1;
        }
    }
    // A default that cannot be had, or that wipes, is no default.
    let default = match &policy.menu_default {
        MenuDefault::Local => None,
        MenuDefault::Image(name) => shown.iter().position(|image| image.name == *name && !image.destructive),
    };
    script.raw("set default ");
    match default {
        Some(index) => script.raw("i").number(index as u64).end(),
        None => script.raw("local\n"),
    };
    script.raw(":menu\nmenu bootstorm\n");
    if let Some(mac) = who.mac {
        script.raw("item --gap Machine ").mac(mac).end();
    }
    script.raw("item --key l local Boot from the local disk\n");
    for (index, image) in shown.iter().enumerate() {
        script.raw("item ");
        if let Some(key) = KEYS.get(index).copied() {
            script.raw("--key ").raw(key).raw(" ");
        }
        script.raw("i").number(index as u64).raw(" ");
        if image.destructive {
            script.raw("[may wipe the disk] ");
        }
        script.text(&image.title).raw(" (").number(image.bytes().div_ceil(1 << 20)).raw(" MiB)\n");
    }
    if left_out > 0 {
        script.raw("item --gap and ").number(left_out).raw(" more on the server\n");
    }
    script.raw("item --key s shell iPXE shell\nchoose --default ${default} ");
    if !policy.menu_timeout.is_zero() {
        let ms = policy.menu_timeout.as_millis().clamp(1_000, 86_400_000);
        script.raw("--timeout ").number(ms as u64).raw(" ");
    }
    script.raw("chosen || goto local\ngoto ${chosen} || goto menu\n");
    let mut asks_cpu = false;
    for (index, image) in shown.iter().enumerate() {
        script.raw(":i").number(index as u64).end();
        if image.destructive {
            script.raw("echo ").raw("This may wipe the disk: ").text(&image.title).end();
            script.raw("prompt --key y --timeout 30000 Press y to go on || goto menu\n");
        }
        asks_cpu |= fit(image, who) == Fit::AskCpu;
        image::body(script, image, who, job, urls);
    }
    debug_assert!(script.len() <= MENU_BYTES_MAX + 16 * 1024);
    // With the old default the same failure would come round for ever with nobody there to see it.
    if !shown.is_empty() {
        script.raw(":failed\necho bootstorm: that broke off or did not start\nset default local\n");
        pause(script);
        script.raw("goto menu\n");
    }
    if asks_cpu {
        script
            .raw(":misfit\necho bootstorm: not booting it, it needs a 64-bit processor\nset default local\n");
        pause(script);
        script.raw("goto menu\n");
    }
    script.raw(":shell\nshell ||\ngoto menu\n:local\n");
    local(script, who.firmware());
}

fn wait(script: &mut Script<'_>, who: &Identity, base_url: &str, why: &'static str) {
    if let Some(mac) = who.mac {
        script.raw("echo bootstorm: machine ").mac(mac).end();
    }
    script.raw("echo bootstorm: ").raw(why).end();
    // The answer replaces this script and its image is freed, so that waiting all night nests nothing.
    script.raw(
        ":wait\n\
         prompt --key l --timeout 10000 Asking again every 10 seconds, press l for the local disk && goto local ||\n\
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
    script.raw(SETTINGS);
    match who.long_mode {
        Some(true) => _ = script.raw("&longmode=1"),
        Some(false) => _ = script.raw("&longmode=0"),
        None => {}
    }
    script.raw(" || goto wait\n:local\n");
    local(script, who.firmware());
}

fn pause(script: &mut Script<'_>) {
    script.raw("prompt --timeout 15000 Press a key to go on, or wait 15 seconds ||\n");
}

/// Expects that nothing above falls into it by mistake; holds the `local` label.
fn pause_then_local(script: &mut Script<'_>, firmware: Option<Platform>) {
    pause(script);
    script.raw(":local\n");
    local(script, firmware);
}

/// The end of every script.
fn local(script: &mut Script<'_>, firmware: Option<Platform>) {
    script.raw("echo bootstorm: booting from the local disk\n");
    match firmware {
        Some(Platform::Bios) => script.raw("sanboot --no-describe --drive 0x80 ||\n"),
        Some(Platform::Efi) => {
            script.raw("# with an error, or UEFI shows its set-up instead of its next entry\n")
        }
        Some(Platform::Other) | None => {
            script.raw("iseq ${platform} pcbios && sanboot --no-describe --drive 0x80 ||\n")
        }
    };
    script.raw("exit 1\n");
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
