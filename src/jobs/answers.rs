//! Answer files (`unattend.xml`, preseed, kickstart, cloud-init): one text per boot, and who may have it.
//!
//! They hold passwords and product keys, and anybody on the LAN can claim any MAC address in a URL. So a token alone
//! opens none: the machine it was made for must have gone through a DHCP exchange that this server has seen, and that
//! exchange must have left it at the very address that asks now. What stays possible is a forger who takes over
//! address and MAC address of a machine while that machine boots; once-only answers make that visible, because the
//! machine itself then gets none.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::template::{Format, Template, Values};
use super::token::{BootId, Token};
use crate::wire::MacAddr;

/// Most answer files of one image.
pub const ANSWERS_MAX: usize = 16;

/// One answer file of an image.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Its name in the URL, `/s/TOKEN/answers/IMAGE/NAME`: one segment.
    pub name: String,
    /// Given once per boot.
    pub once: bool,
    /// The text. Never listed or sent anywhere but to the machine.
    #[serde(skip)]
    pub template: Template,
}

impl Answer {
    /// Writes the answer into `out`, replacing what it held.
    pub fn render(&self, values: &Values<'_>, out: &mut String) {
        out.clear();
        self.template.render(Format::of_name(&self.name), values, out);
    }

    /// The content type it is sent with, by the end of its name.
    pub fn content_type(&self) -> &'static str {
        let name = self.name.strip_suffix(".tmpl").unwrap_or(&self.name);
        match name.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase()).as_deref() {
            Some("xml") => "application/xml",
            Some("json" | "ign") => "application/json",
            Some("yaml" | "yml") => "application/yaml",
            _ => "text/plain; charset=utf-8",
        }
    }
}

/// Answer files remembered as given, of one job or machine.
const GIVEN_MAX: usize = 64;

/// Which once-only files were given to which boots. Bounded: where the oldest is forgotten, its boot and every one
/// before it counts as having had everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    /// This boot and those before it have had everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<BootId>,
    files: Vec<(BootId, String)>,
}

impl Given {
    /// Nothing was given.
    pub fn is_empty(&self) -> bool {
        self.until.is_none() && self.files.is_empty()
    }

    /// Whether `boot` was given `name`.
    pub fn has(&self, boot: BootId, name: &str) -> bool {
        self.until.is_some_and(|until| boot <= until)
            || self.files.iter().any(|(of, file)| (*of, file.as_str()) == (boot, name))
    }

    /// Notes that `boot` is given `name`; false when it was before.
    pub fn give(&mut self, boot: BootId, name: &str) -> bool {
        if self.has(boot, name) {
            return false;
        }
        self.files.push((boot, name.to_owned()));
        self.bound();
        true
    }

    /// Takes in what another record says.
    pub fn absorb(&mut self, other: &Self) {
        self.until = self.until.max(other.until);
        for file in &other.files {
            if !self.files.contains(file) {
                self.files.push(file.clone());
            }
        }
        self.bound();
    }

    fn bound(&mut self) {
        self.files.sort_unstable_by_key(|(boot, _)| *boot);
        while self.files.len() > GIVEN_MAX {
            let (boot, _) = self.files.remove(0);
            self.until = self.until.max(Some(boot));
        }
    }
}

/// A request for an answer file, and what is known about who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// The URL's token, checked.
    pub token: Token,
    /// Where the request came from.
    pub from: Ipv4Addr,
    /// The machine whose DHCP exchange, seen on the wire, last ended at that address.
    pub seen: Option<MacAddr>,
    /// Whether this boot was given this file before.
    pub given_before: bool,
}

/// Why an answer file is not given. To the asker it is "not found"; the reason is for `explain`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Withheld {
    /// The boot's script was asked for without a MAC address, so nothing ties it to a machine.
    NoMac,
    /// No DHCP exchange was seen for the address that asks.
    NoExchangeSeen,
    /// The DHCP exchange at this address was another machine's.
    OtherMachine,
    /// It is given once per boot, and was.
    GivenBefore,
    /// It is given once per boot, and nobody keeps account of what a person picks from a menu.
    FromMenu,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMac => "the boot was begun without a MAC address, so nothing ties the file to a machine",
            Self::NoExchangeSeen => {
                "no DHCP exchange of the asking address was seen: the machine has to get its address where this \
                 server listens"
            }
            Self::OtherMachine => "the asking address belongs to another machine, by the DHCP exchange seen last",
            Self::GivenBefore => "it is given once per boot, and was already",
            Self::FromMenu => "it is given once per boot, and a choice from the menu is nobody's job: give the machine one",
        })
    }
}

/// Whether the asker may have `answer`. The request must have come with a valid token of a boot of the answer's image;
/// everything else is decided here.
///
/// # Errors
/// The reason to withhold it.
pub fn may_have(answer: &Answer, asking: &Asking) -> Result<(), Withheld> {
    let mac = asking.token.mac.ok_or(Withheld::NoMac)?;
    match asking.seen {
        None => Err(Withheld::NoExchangeSeen),
        Some(seen) if seen != mac => Err(Withheld::OtherMachine),
        Some(_) if answer.once && asking.token.menu => Err(Withheld::FromMenu),
        Some(_) if answer.once && asking.given_before => Err(Withheld::GivenBefore),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Identity;
    use crate::jobs::job::JobId;
    use crate::jobs::token::{BootId, TokenKey};

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x57]);

    fn asking(mac: Option<MacAddr>, seen: Option<MacAddr>, given_before: bool) -> Asking {
        let token =
            Token { boot: BootId(1), mac, job: Some(JobId(1)), menu: false, last: 0, expires_unix: 10 };
        Asking { token, from: Ipv4Addr::new(10, 0, 0, 9), seen, given_before }
    }

    #[test]
    fn only_the_machine_whose_exchange_was_seen_at_the_address_gets_it() {
        let often = Answer { name: "ks.cfg".into(), ..Answer::default() };
        let once = Answer { once: true, ..often.clone() };
        for (answer, asking, wanted) in [
            (&often, asking(Some(MAC), Some(MAC), false), Ok(())),
            (&often, asking(Some(MAC), Some(MAC), true), Ok(())),
            (&once, asking(Some(MAC), Some(MAC), false), Ok(())),
            (&once, asking(Some(MAC), Some(MAC), true), Err(Withheld::GivenBefore)),
            (&often, asking(Some(MAC), Some(OTHER), false), Err(Withheld::OtherMachine)),
            (&often, asking(Some(MAC), None, false), Err(Withheld::NoExchangeSeen)),
            (&often, asking(None, Some(MAC), false), Err(Withheld::NoMac)),
            (&once, asking(None, None, true), Err(Withheld::NoMac)),
        ] {
            assert_eq!(may_have(answer, &asking), wanted, "{asking:?}");
        }
    }

    #[test]
    fn what_was_given_once_is_never_given_again_however_much_there_was() {
        let mut given = Given::default();
        assert!(given.is_empty());
        for boot in 1..=200 {
            assert!(given.give(BootId(boot), "a.xml"));
            assert!(given.give(BootId(boot), "b.xml"));
            assert!(!given.give(BootId(boot), "a.xml"));
        }
        assert!(given.files.len() <= GIVEN_MAX);
        assert!((1..=200).all(|boot| given.has(BootId(boot), "b.xml")));
        assert!(!given.has(BootId(201), "a.xml"));
        let stored = serde_json::to_string(&given).unwrap();
        assert_eq!(serde_json::from_str::<Given>(&stored).unwrap(), given);
        let mut other = Given::default();
        other.give(BootId(900), "c");
        other.absorb(&given);
        assert!(
            other.has(BootId(900), "c") && other.has(BootId(3), "a.xml") && other.has(BootId(200), "a.xml")
        );
    }

    #[test]
    fn the_text_is_escaped_for_its_kind_and_kept_out_of_lists() {
        let who = Identity { mac: Some(MAC), serial: Some("<A&B>".into()), ..Identity::default() };
        let token = TokenKey::new([1; 32]).sign(&asking(Some(MAC), None, false).token);
        let values = Values {
            who: &who,
            hostname: Some("pc-7"),
            job: None,
            boot: BootId(1),
            image: "win",
            base_url: "http://10.0.0.1:4433",
            token: &token,
        };
        let template = Template::parse("<Name>{{hostname}}</Name><Key>SECRET</Key>{{serial}}").unwrap();
        let answer = Answer { name: "unattend.xml".into(), once: true, template };
        let mut out = String::from("left over");
        answer.render(&values, &mut out);
        assert_eq!(out, "<Name>pc-7</Name><Key>SECRET</Key>&lt;A&amp;B&gt;");
        assert!(!serde_json::to_string(&answer).unwrap().contains("SECRET"));
        assert!(!format!("{answer:?}").contains("SECRET"));
    }
}
