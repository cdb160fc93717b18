//! What is said of a boot between DHCP and its script: of the loader, and of iPXE on its way.

use std::net::Ipv4Addr;

use super::super::story::{Other, Story, Transfer};
use super::super::timeline::{Bytes, Plain};
use super::{
    AT_ONCE, DHCP, E3B, E16, E18, E23, E32, E35, E36, E52, LOADER, NO_CONFIGURATION, NONE, Rule, Stop,
    TIMED_OUT, add_job, big_blocks, host_of, rearm, tftp_broke, word,
};
use crate::jobs::evidence::Over;

pub(super) const RULES: &[Rule] = &[
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
        name: "refused-by-tftp",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: [&[E36], &[E23], &[]],
        holds: |story| story.failed.is_none() && story.tftp_refused.is_some_and(|(_, why)| is_a_refusal(why)),
        says: |story| {
            let (file, reason) = story.tftp_refused.unwrap_or_default();
            (
                format!("It asked by TFTP for {} and was refused: {}.", Plain(file), Plain(reason)),
                match reason {
                    _ if reason.contains("had its job") => format!(
                        "nothing, if that is what it should do: it boots its disk from here on. To install it again, {}.",
                        rearm(story)
                    ),
                    _ if reason.contains("no job") => format!("{}, if it is meant to.", add_job(story)),
                    _ if reason.contains("machine is refused") => format!(
                        "bootstorm machine approve takes a rejection back; `exclude` in [policy] lists others; where `unknown` is \
                         silent, {}.",
                        add_job(story)
                    ),
                    _ if reason.contains("does not allow") => {
                        "a job for one boot of that machine alone does; of a rule, bootstorm job add ... --allow-rule says that \
                         it is meant; one with --always never does."
                            .into()
                    }
                    _ if reason.contains("token") => {
                        "boot it by iPXE and a job, which has one; `access` in its image.toml says that it needs it.".into()
                    }
                    _ if reason.contains("DHCP") => "let the machine get its address by DHCP where this server hears it, then \
                                                     boot it again."
                        .into(),
                    _ => "bootstorm image list says what is wrong with the image.".into(),
                },
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
        holds: |story| story.loader.is_some() && story.is_before_script() && !story.is_ipxe_unanswered(),
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
        holds: |story| story.tftp_asked.is_some() && story.is_before_script() && !story.is_ipxe_unanswered(),
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
];

/// It was refused for what it is, and not for its name.
fn is_a_refusal(reason: &str) -> bool {
    reason.starts_with("this machine") || reason.starts_with("this image")
}

fn is_url(file: &str) -> bool {
    file.starts_with("http://") || file.starts_with("https://")
}

fn is_silence(failed: &Transfer<'_>) -> bool {
    failed.reason.contains("silent")
}

fn refused_name_of_rival<'s>(story: &'s Story<'_>) -> Option<&'s Other> {
    let (file, _) = story.tftp_refused.filter(|_| story.loader.is_none() && story.failed.is_none())?;
    let asked = file.trim_start_matches(['/', '\\']);
    story.others.iter().find(|other| {
        let theirs = other.file.as_deref().unwrap_or_default().trim_start_matches(['/', '\\']);
        theirs.eq_ignore_ascii_case(asked)
    })
}
