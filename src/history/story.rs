//! A timeline, read once: the facts that sentences are inferred from.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::since;
use super::timeline::{Step, Timeline};
use crate::jobs::evidence::{Asker, Cause, Over, Seen, TransferFacts};
use crate::jobs::job::Job;
use crate::wire::Arch;

/// What is known besides the timeline.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// When it is asked.
    pub now: SystemTime,
    /// The boot's job as it is now.
    pub job: Option<&'a Job>,
}

/// Another DHCP server that was heard.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) server: Ipv4Addr,
    pub(super) file: Option<String>,
    pub(super) next_server: Option<Ipv4Addr>,
    pub(super) leases: bool,
    pub(super) pxe: bool,
    pub(super) sends_to_4011: bool,
    /// Heard before our own offer left.
    pub(super) was_first: bool,
}

impl Other {
    /// It offers a boot, not just an address.
    pub(super) fn is_rival(&self) -> bool {
        self.pxe || self.file.is_some()
    }
}

/// A transfer that broke off, or goes on, or is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer<'a> {
    pub(super) file: &'a str,
    pub(super) bytes: u64,
    pub(super) over: Over,
    pub(super) reason: &'a str,
    pub(super) facts: Option<&'a TransferFacts>,
}

/// A script's answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Script<'a> {
    pub(super) offer: &'a str,
    pub(super) cause: Option<Cause>,
    pub(super) said: &'a str,
}

/// The facts.
#[derive(Debug)]
pub(super) struct Story<'a> {
    pub(super) timeline: &'a Timeline,
    pub(super) job: Option<&'a Job>,
    /// Since the last sign of life.
    pub(super) silent: Duration,
    pub(super) arch: Option<Arch>,
    /// Who was offered a boot first.
    pub(super) firmware: Option<Asker>,
    /// What PXE or HTTP Boot firmware was offered last.
    pub(super) offered: Option<&'a str>,
    /// What iPXE was offered last.
    pub(super) offered_ipxe: Option<&'a str>,
    pub(super) relay: Option<Ipv4Addr>,
    /// Why DHCP was not answered, if that is the last that DHCP did; and whether on port 4011.
    pub(super) ignored: Option<(&'a str, bool)>,
    /// iPXE asked by DHCP and was left without an answer.
    pub(super) ipxe_ignored: bool,
    pub(super) boot_server: Option<&'a str>,
    pub(super) others: Vec<Other>,
    pub(super) chosen: Option<Ipv4Addr>,
    pub(super) address_given: bool,
    /// A name asked for by TFTP and refused, if nothing was fetched after it.
    pub(super) tftp_refused: Option<(&'a str, &'a str)>,
    pub(super) tftp_asked: Option<&'a str>,
    pub(super) loader: Option<(&'a str, u64, u32, Over)>,
    /// The last transfer that broke off, if nothing went better after it.
    pub(super) failed: Option<Transfer<'a>>,
    pub(super) identity_asked: bool,
    pub(super) script: Option<Script<'a>>,
    /// A file of the image that was asked for and is not done, and what came of it so far.
    pub(super) started: Option<(&'a str, u64, Over)>,
    /// The last file that is done.
    pub(super) done: Option<&'a str>,
    pub(super) running: bool,
    pub(super) refused: Option<(&'a str, u16, &'a str)>,
    pub(super) withheld: Option<(&'a str, &'a str)>,
    /// Answer files that it was given.
    given: Vec<&'a str>,
    pub(super) local_back: Vec<&'a str>,
    pub(super) called_back: bool,
    pub(super) failure: Option<&'a str>,
}

impl<'a> Story<'a> {
    pub(super) fn read(timeline: &'a Timeline, context: &Context<'a>) -> Self {
        let mut story = Self {
            timeline,
            job: context.job,
            silent: since(timeline.until, context.now),
            arch: None,
            firmware: None,
            offered: None,
            offered_ipxe: None,
            relay: None,
            ignored: None,
            ipxe_ignored: false,
            boot_server: None,
            others: Vec::new(),
            chosen: None,
            address_given: false,
            tftp_refused: None,
            tftp_asked: None,
            loader: None,
            failed: None,
            identity_asked: false,
            script: None,
            started: None,
            done: None,
            running: false,
            refused: None,
            withheld: None,
            given: Vec::new(),
            local_back: Vec::new(),
            called_back: false,
            failure: None,
        };
        // A step stands where it was seen first; what ended a boot is what was seen last.
        let mut steps: Vec<&Step> = timeline.steps.iter().collect();
        steps.sort_by_key(|step| step.until);
        for step in steps {
            story.take(step);
        }
        story
    }

    fn take(&mut self, step: &'a Step) {
        match &step.seen {
            Seen::DhcpOffered { asker, arch, relay, file } => {
                self.arch = arch.or(self.arch);
                self.relay = relay.or(self.relay);
                self.firmware.get_or_insert(*asker);
                self.ignored = None;
                match asker {
                    Asker::Ipxe => self.offered_ipxe = Some(file),
                    Asker::Firmware | Asker::Http => self.offered = Some(file),
                }
            }
            Seen::DhcpIgnored { reason, asker, arch, relay, boot_server } => {
                self.ipxe_ignored |= *asker == Some(Asker::Ipxe);
                self.arch = arch.or(self.arch);
                self.relay = relay.or(self.relay);
                self.ignored = Some((reason, *boot_server));
            }
            Seen::BootServerAnswered { arch, file } => {
                self.arch = arch.or(self.arch);
                self.ignored = None;
                self.boot_server = Some(file);
            }
            Seen::AddressGiven { relay } => {
                self.relay = relay.or(self.relay);
                self.address_given = true;
            }
            Seen::OtherOffered { server, file, next_server, leases, pxe, sends_to_4011 } => {
                let was_first = self.timeline.steps.iter().find(|other| {
                    matches!(&other.seen, Seen::DhcpOffered { .. })
                        || matches!(&other.seen, Seen::OtherOffered { server: it, .. } if it == server)
                });
                self.others.push(Other {
                    server: *server,
                    file: file.clone(),
                    next_server: *next_server,
                    leases: *leases,
                    pxe: *pxe,
                    sends_to_4011: *sends_to_4011,
                    was_first: was_first.is_some_and(|first| matches!(first.seen, Seen::OtherOffered { .. })),
                });
            }
            Seen::OtherAcked { server } => self.chosen = Some(*server),
            Seen::ServerChosen { server } => self.chosen = server.or(self.chosen),
            Seen::TftpAsked { file } => {
                self.tftp_asked = Some(file);
                self.tftp_refused = None;
                self.failed = self.failed.filter(|failed| failed.file != file);
            }
            Seen::TftpRefused { file, reason } => self.tftp_refused = Some((file, reason)),
            Seen::LoaderFetched { name, over, .. } => {
                self.loader = Some((name, step.total, step.count, *over));
                (self.failed, self.tftp_refused, self.refused) = (None, None, None);
            }
            Seen::IdentityAsked => self.identity_asked = true,
            Seen::ScriptAsked { offer, .. } => {
                self.script = Some(Script {
                    offer,
                    cause: step.why.as_ref().map(|why| why.cause),
                    said: step.why.as_ref().map_or("", |why| &why.said),
                });
                // What was fetched under an earlier script is not this one's.
                (self.failed, self.refused, self.started, self.done) = (None, None, None, None);
                self.tftp_refused = None;
            }
            Seen::FileStarted { file, over, .. } => {
                self.got_over(file);
                self.started = Some((file, 0, *over));
            }
            Seen::FileProgress { file, over, bytes, .. } => {
                self.got_over(file);
                self.started = Some((file, *bytes, *over));
            }
            Seen::LastPieceSent { .. } => self.running = true,
            Seen::FileDone { file, last, .. } => {
                self.running |= last;
                self.done = Some(file);
                self.failed = None;
                if self.started.is_some_and(|(started, ..)| started == file) {
                    self.started = None;
                }
            }
            // What a shim looks for beside itself, and goes without.
            Seen::HttpRefused { path, status: 404, .. } if self.script.is_none() && is_of_a_shim(path) => {}
            Seen::HttpRefused { path, status, reason } => self.refused = Some((path, *status, reason)),
            Seen::LocalBack { strategy } => self.local_back.push(strategy),
            Seen::AnswerGiven { name, .. } => {
                self.given.push(name);
                self.withheld = self.withheld.filter(|(withheld, _)| withheld != name);
            }
            // An installer that asks twice has it.
            Seen::AnswerWithheld { name, .. } if self.given.contains(&name.as_str()) => {}
            Seen::AnswerWithheld { name, reason } => self.withheld = Some((name, reason)),
            Seen::TransferFailed { file, bytes, reason, over, .. } => {
                self.failed = Some(Transfer {
                    file,
                    bytes: *bytes,
                    over: *over,
                    reason,
                    facts: step.transfer.as_ref(),
                });
            }
            Seen::CalledBack { .. } => self.called_back = true,
            Seen::FailureCalled { reason, .. } => self.failure = Some(reason),
        }
    }

    /// A file comes (again): what was refused before it is over, and so is what broke off of this one.
    fn got_over(&mut self, file: &str) {
        self.refused = None;
        self.failed = self.failed.filter(|failed| failed.file != file);
    }

    /// It is a UEFI machine, as far as it said.
    pub(super) fn is_uefi(&self) -> bool {
        self.firmware == Some(Asker::Http) || self.arch.is_some_and(|arch| arch != Arch::BIOS)
    }

    /// Nothing was asked for after DHCP.
    pub(super) fn is_dhcp_only(&self) -> bool {
        self.tftp_asked.is_none()
            && self.tftp_refused.is_none()
            && self.failed.is_none()
            && self.loader.is_none()
            && self.is_before_script()
    }

    /// iPXE runs from a loader of ours, asked by DHCP for its script, and was not answered.
    pub(super) fn is_ipxe_unanswered(&self) -> bool {
        self.loader.is_some() && self.ipxe_ignored && self.offered_ipxe.is_none() && self.is_before_script()
    }

    /// It never came as far as a script.
    pub(super) fn is_before_script(&self) -> bool {
        self.script.is_none() && !self.identity_asked && self.started.is_none() && self.done.is_none()
    }

    /// Another server that offers a boot, the one that was chosen before the others.
    pub(super) fn rival(&self) -> Option<&Other> {
        let mut rivals = self.others.iter().filter(|other| other.is_rival());
        let chosen = self.others.iter().find(|other| other.is_rival() && Some(other.server) == self.chosen);
        chosen.or_else(|| rivals.next())
    }

    /// The script's offer is this.
    pub(super) fn is_offer(&self, offer: &str) -> bool {
        self.script.is_some_and(|script| script.offer == offer)
    }

    /// The script's cause is this.
    pub(super) fn is_cause(&self, cause: Cause) -> bool {
        self.script.is_some_and(|script| script.cause == Some(cause))
    }

    /// It was given an image's script, or took an image from a menu.
    pub(super) fn is_image(&self) -> bool {
        self.is_offer("image") || self.is_offer("menu") && (self.started.is_some() || self.done.is_some())
    }
}

/// The names that shim asks for where it was started from: updates of its lists, and the manager of keys, which it starts where
/// what it loaded is not signed as it must be.
fn is_of_a_shim(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let Some(stem) = name.strip_suffix(".efi") else { return false };
    let of_an_arch =
        |start: &str| stem.strip_prefix(start).is_some_and(|arch| ["x64", "ia32", "aa64"].contains(&arch));
    stem.starts_with("revocations")
        || stem.starts_with("shim_certificate")
        || of_an_arch("mm")
        || of_an_arch("fb")
}
