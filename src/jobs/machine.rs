//! A machine: the set of identities that were seen, or declared, to belong together.
//!
//! Merging only takes away. A machine is made of parts; a part is what was one machine before it was merged, with
//! its own groups and its own approval. What grants (a group, an approval) holds for the identities of its own part;
//! what denies (a rejection, a job that was had) holds for the whole machine. So a merge can never give a boot to
//! anybody who would not have had it before, and [`Machine::split`] undoes it.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::answers::Given;
use super::identity::is_identifying_text;
use super::job::{Selector, unix_seconds};
use super::table::Key;
use crate::wire::{MacAddr, Uuid};

/// A machine's number, written `m17`. It stays the same however many identities the machine turns out to have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub u64);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

/// A text is not a machine's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAMachineId;

impl fmt::Display for NotAMachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a machine's number such as m17 (bootstorm machine list shows them)")
    }
}

impl std::error::Error for NotAMachineId {}

impl std::str::FromStr for MachineId {
    type Err = NotAMachineId;

    /// `m17`.
    fn from_str(text: &str) -> Result<Self, NotAMachineId> {
        let digits = text.strip_prefix(['m', 'M']).ok_or(NotAMachineId)?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotAMachineId);
        }
        digits.parse().map(Self).map_err(|_| NotAMachineId)
    }
}

/// One identity. In JSON `{"mac": "52:54:00:00:00:01"}` and its like.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ident {
    /// Hardware address.
    Mac(MacAddr),
    /// SMBIOS UUID.
    Uuid(Uuid),
    /// SMBIOS serial, without blanks at its ends.
    Serial(String),
    /// SMBIOS asset tag, without blanks at its ends.
    Asset(String),
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Uuid(uuid) => write!(f, "uuid {uuid}"),
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Asset(asset) => write!(f, "asset {asset}"),
        }
    }
}

/// First three bytes of addresses that belong to docking stations and USB network adapters, which go from machine to
/// machine: DisplayLink, ASIX, Lenovo's and Dell's docks with Realtek parts, Apple's and Microsoft's adapters.
const WANDERING: [[u8; 3]; 8] = [
    [0x00, 0x0e, 0xc6],
    [0x00, 0x24, 0x9b],
    [0x00, 0x50, 0xb6],
    [0x00, 0xe0, 0x4c],
    [0x48, 0x65, 0xee],
    [0xa0, 0xce, 0xc8],
    [0xac, 0x7f, 0x3e],
    [0xf8, 0xe4, 0x3b],
];

/// First three bytes of the addresses that `doctor` takes when it acts as a machine. They are locally administered, and
/// no machine's: whatever such a visitor asks for, nothing of it comes on record and no job is moved by it.
pub const VISITOR_PREFIX: [u8; 3] = [0x02, 0xd0, 0xc7];

/// False for an address that says nothing about the machine behind it: zero, a group, an adapter that wanders, a
/// visitor ([`VISITOR_PREFIX`]).
pub fn is_identifying_mac(mac: MacAddr) -> bool {
    let [a, b, c, ..] = mac.0;
    let first = [a, b, c];
    !mac.is_zero() && !mac.is_group() && first != VISITOR_PREFIX && !WANDERING.contains(&first)
}

impl Ident {
    /// False for what many machines share: such an identity is never part of a machine.
    pub fn is_identifying(&self) -> bool {
        match self {
            Self::Mac(mac) => is_identifying_mac(*mac),
            Self::Uuid(uuid) => uuid.is_identifying(),
            Self::Serial(text) | Self::Asset(text) => is_identifying_text(text),
        }
    }

    /// As the table knows it.
    pub fn key(&self) -> Key<'_> {
        match self {
            Self::Mac(mac) => Key::Mac(*mac),
            Self::Uuid(uuid) => Key::Uuid(*uuid),
            Self::Serial(serial) => Key::Serial(serial),
            Self::Asset(asset) => Key::Asset(asset),
        }
    }

    /// The identity that a selector names, if it names one.
    pub fn of_selector(selector: &Selector) -> Option<Self> {
        Some(match selector {
            Selector::Mac(mac) => Self::Mac(*mac),
            Selector::Uuid(uuid) => Self::Uuid(*uuid),
            Selector::Serial(serial) => Self::Serial(serial.clone()),
            Selector::Asset(asset) => Self::Asset(asset.clone()),
            Selector::Any | Selector::Rule(_) => return None,
        })
    }
}

/// What an operator has said about a machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Seen or registered, nothing said.
    #[default]
    Known,
    /// Waits for approval.
    Pending,
    /// Approved.
    Approved,
    /// Rejected: no loader, no script, no job, through any of its identities.
    Rejected,
}

impl MachineState {
    /// The lower-case word of lists and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }
}

/// How a part came to a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Merged {
    /// When.
    #[serde(with = "unix_seconds")]
    pub at: SystemTime,
    /// Who did it: `dhcp`, or an operator's name.
    pub by: String,
    /// What showed it.
    pub why: String,
}

/// What was one machine before it was merged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// The number it had, or would have had.
    pub id: MachineId,
    /// Its identities.
    pub idents: Vec<Ident>,
    /// Groups its identities are in.
    #[serde(default)]
    pub groups: Vec<Box<str>>,
    /// What was said about it.
    #[serde(default)]
    pub state: MachineState,
    /// How it came here; the first part has been here from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<Merged>,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its number.
    pub id: MachineId,
    /// What an operator calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An operator registered it, rather than it was only seen.
    #[serde(default)]
    pub registered: bool,
    /// It had a job, which may be forgotten since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub had_job: bool,
    /// What it is made of; never empty.
    pub parts: Vec<Part>,
    /// Identities that a script request showed beside these. A suggestion: nothing is granted or denied by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suggested: Vec<Ident>,
    /// Identities that boots of it showed beside these when they passed the point of no return. Whoever shows one is unknown to
    /// no rule, and nothing else hangs on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_as: Vec<Ident>,
    /// The loader its firmware is given, where it fits, instead of what everybody gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<String>,
    /// Where in the list of ways to leave for the local disk its scripts begin, as
    /// [`LocalStrategy::list`](super::script::LocalStrategy::list) counts them.
    #[serde(default)]
    pub local_boot: u8,
    /// A boot that left that way stayed away.
    #[serde(default)]
    pub local_proven: bool,
    /// Once-only answer files that its boots were given under rules.
    #[serde(default, skip_serializing_if = "Given::is_empty")]
    pub given: Given,
    /// When it was seen or registered first.
    #[serde(with = "unix_seconds")]
    pub first_seen: SystemTime,
    /// When it asked for a script last.
    #[serde(with = "unix_seconds")]
    pub last_seen: SystemTime,
    /// Counts every change; never goes down.
    pub generation: u64,
}

/// Suggestions kept of one machine.
const SUGGESTED_MAX: usize = 8;
/// What boots of one machine that passed showed, as much as is kept.
const PASSED_AS_MAX: usize = 8;

impl Machine {
    /// A machine of one part.
    pub fn new(id: MachineId, idents: Vec<Ident>, now: SystemTime) -> Self {
        let part = Part { id, idents, groups: Vec::new(), state: MachineState::Known, merged: None };
        Self {
            id,
            name: None,
            registered: false,
            had_job: false,
            parts: vec![part],
            suggested: Vec::new(),
            passed_as: Vec::new(),
            loader: None,
            local_boot: 0,
            local_proven: false,
            given: Given::default(),
            first_seen: now,
            last_seen: now,
            generation: 1,
        }
    }

    /// Every identity.
    pub fn idents(&self) -> impl Iterator<Item = &Ident> {
        self.parts.iter().flat_map(|part| &part.idents)
    }

    /// The part that an identity belongs to.
    pub fn part_of(&self, ident: &Ident) -> Option<&Part> {
        self.parts.iter().find(|part| part.idents.contains(ident))
    }

    /// It was seen, and nothing else is known or said of it.
    pub(super) fn is_only_seen(&self) -> bool {
        let [part] = self.parts.as_slice() else { return false };
        !self.registered && !self.had_job && self.given.is_empty() && part.state == MachineState::Known
    }

    /// Rejected in any part: that holds for all of it.
    pub fn is_rejected(&self) -> bool {
        self.parts.iter().any(|part| part.state == MachineState::Rejected)
    }

    /// The strongest thing said: rejected in any part, else what the first part says.
    pub fn state(&self) -> MachineState {
        match self.parts.first() {
            _ if self.is_rejected() => MachineState::Rejected,
            Some(part) => part.state,
            None => MachineState::Known,
        }
    }

    /// An operator says something about the whole machine.
    pub(super) fn set_state(&mut self, state: MachineState) {
        for part in &mut self.parts {
            part.state = state;
        }
    }

    /// Takes in another machine's parts.
    pub(super) fn absorb(&mut self, other: &Self, merged: Merged) {
        for part in &other.parts {
            let mut part = part.clone();
            part.merged.get_or_insert_with(|| merged.clone());
            self.parts.push(part);
        }
        self.registered |= other.registered;
        self.had_job |= other.had_job;
        other.passed_as.iter().for_each(|ident| _ = self.passes_as(ident));
        self.given.absorb(&other.given);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.suggested.retain(|ident| !other.idents().any(|own| own == ident));
    }

    /// Takes a merged part out again, as a machine of its own. The first part cannot leave.
    pub(super) fn split(&mut self, id: MachineId, now: SystemTime) -> Option<Self> {
        let index = self.parts.iter().skip(1).position(|part| part.id == id)? + 1;
        let part = self.parts.remove(index);
        let mut other = Self::new(id, Vec::new(), now);
        other.parts = vec![Part { merged: None, ..part }];
        other.registered = self.registered;
        other.had_job = self.had_job;
        other.passed_as.clone_from(&self.passed_as);
        other.given = self.given.clone();
        Some(other)
    }

    /// Whether an identity is worth a place in a list beside this machine's own.
    fn is_news(&self, list: &[Ident], max: usize, ident: &Ident) -> bool {
        let is_known = || list.contains(ident) || self.part_of(ident).is_some();
        ident.is_identifying() && list.len() < max && !is_known()
    }

    /// Notes an identity that was shown beside this machine's own; false when that is known or there are enough.
    pub(super) fn suggest(&mut self, ident: &Ident) -> bool {
        let news = self.is_news(&self.suggested, SUGGESTED_MAX, ident);
        if news {
            self.suggested.push(ident.clone());
        }
        news
    }

    /// Notes an identity that a boot showed which has passed; false when that is known or there are enough.
    pub(super) fn passes_as(&mut self, ident: &Ident) -> bool {
        let news = self.is_news(&self.passed_as, PASSED_AS_MAX, ident);
        if news {
            self.passed_as.push(ident.clone());
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_undoes_a_merge() {
        let ident = |n| Ident::Mac(MacAddr([2, 0, 0, 0, 0, n]));
        let now = SystemTime::UNIX_EPOCH;
        let mut one = Machine::new(MachineId(1), vec![ident(1)], now);
        let mut two = Machine::new(MachineId(2), vec![ident(2)], now);
        two.parts[0].groups = vec!["lab".into()];
        let before = one.clone();
        one.absorb(&two, Merged { at: now, by: "dhcp".into(), why: "one packet".into() });
        assert_eq!(one.idents().count(), 2);
        assert!(one.part_of(&ident(1)).unwrap().groups.is_empty(), "a merge grants nothing");
        assert_eq!(one.split(MachineId(2), now), Some(two));
        assert_eq!(one, before);
        assert_eq!(one.split(MachineId(1), now), None, "the first part stays");
    }

    #[test]
    fn identities_that_wander_identify_nothing() {
        assert!(!Ident::Mac(MacAddr([0x00, 0x50, 0xb6, 1, 2, 3])).is_identifying());
        assert!(!Ident::Mac(MacAddr([0; 6])).is_identifying());
        assert!(!Ident::Mac(MacAddr([0x02, 0xd0, 0xc7, 1, 2, 3])).is_identifying(), "a visitor");
        assert!(!Ident::Uuid(Uuid([0; 16])).is_identifying());
        assert!(!Ident::Serial("To be filled by O.E.M.".into()).is_identifying());
        assert!(Ident::Mac(MacAddr([0x52, 0x54, 0, 1, 2, 3])).is_identifying());
    }
}
