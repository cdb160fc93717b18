//! What is said of a boot that came no further than DHCP.

use std::net::Ipv4Addr;

use super::super::story::{Other, Story};
use super::super::timeline::Plain;
use super::{
    AT_ONCE, DHCP, E16, E18, E32, E51, E53, E55, E78, NO_CONFIGURATION, NONE, Rule, Stop, TIMED_OUT, add_job,
    host_of,
};
use crate::jobs::evidence::Asker;

pub(super) const RULES: &[Rule] = &[
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
        name: "left-alone",
        stage: Stop::Settled,
        patience: AT_ONCE,
        codes: [&[E51, E53], &[E16], &[NO_CONFIGURATION]],
        holds: |story| {
            let meant = |reason| matches!(reason, "silent" | "excluded");
            story.is_dhcp_only()
                && story.ignored.is_some_and(|(reason, boot_server)| !boot_server && meant(reason))
        },
        says: |story| {
            let (reason, _) = story.ignored.unwrap_or_default();
            let (sentence, next) = ignored(reason, story);
            let next = match reason {
                "silent" => format!(
                    "{next} A job by serial or asset tag is not seen here: DHCP tells neither, and a machine that is to \
                     have one has to be registered by its address."
                ),
                _ => next,
            };
            (format!("It asked for a boot and was left alone, as configured: {sentence}"), next)
        },
    },
    Rule {
        name: "not-answered",
        stage: Stop::Dhcp,
        patience: AT_ONCE,
        codes: [&[E51, E53], &[E16], &[NO_CONFIGURATION]],
        holds: |story| {
            (story.is_dhcp_only() || story.is_ipxe_unanswered())
                && story.ignored.is_some_and(|(reason, _)| reason != "deferred" && reason != "other-server")
        },
        says: |story| {
            let (reason, _) = story.ignored.unwrap_or_default();
            let (sentence, next) = ignored(reason, story);
            let asked = match story.is_ipxe_unanswered() {
                true => "iPXE runs, asked for its script by DHCP",
                false => "It asked for a boot",
            };
            (format!("{asked} and was not answered: {sentence}"), next)
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
                    "{} {server} calls itself a PXE server (option 60 \
                     \"PXEClient\") without option 43, so the machine asked port 4011 there, where nobody answers.",
                    match story.offered {
                        Some(_) => "It got our offer, never asked for the loader:",
                        None =>
                            "It was not offered a boot in time, because no job wants it and another came first:",
                    }
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
            (story.is_dhcp_only() && story.offered.is_none() || story.is_ipxe_unanswered())
                && story.ignored.is_some_and(|(reason, _)| reason == "deferred")
        },
        says: |story| {
            let rival = story.rival();
            let who = match rival {
                Some(Other { server, file: Some(file), .. }) => {
                    format!("{server} offered {} here", Plain(file))
                }
                Some(Other { server, .. }) => format!("{server} was heard here"),
                None => "another PXE server was heard here".into(),
            };
            let runs =
                if story.is_ipxe_unanswered() { "iPXE runs and asked by DHCP for its script. " } else { "" };
            (
                format!(
                    "{runs}No job wants it and {who}, so its first try was left to that server; it did not ask a second \
                     time."
                ),
                match rival {
                    Some(Other { server, leases: true, .. }) => format!(
                        "take the boot file (options 66, 67 and the next server) and option 60 out of the DHCP server \
                         {server}; or add a job for it, and it is answered at once."
                    ),
                    _ => "add a job for it, and it is answered at once; or switch the other PXE server off."
                        .into(),
                },
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
];

fn binl<'s>(story: &'s Story<'_>) -> Option<&'s Other> {
    story.others.iter().find(|other| other.sends_to_4011 && other.leases)
}

/// Why DHCP did not answer, and what to do about it. `reason` is the word of the drop counter.
fn ignored(reason: &str, story: &Story<'_>) -> (String, String) {
    let arch = story.arch.map_or("its architecture".to_owned(), |arch| arch.word().to_owned());
    let relay = story.relay.map_or("its interface".to_owned(), |relay| format!("the relay {relay}"));
    let (sentence, next): (String, String) = match reason {
        "silent" => (
            "no job wants it, and the policy for such machines is silence.".into(),
            format!("{}, or another `unknown` in [policy].", add_job(story)),
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
