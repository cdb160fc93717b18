//! A job: an image or an action, whom it is for, and how far it has come.
//!
//! How it comes from stage to stage is the table of [`lifecycle`](super::lifecycle).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::answers::Given;
use super::lifecycle::{Terms, holds_back};
use super::rule::{Rule, Specificity};
use super::token::BootId;
use crate::wire::{MacAddr, Uuid};

/// A job's number, written `j17`. Numbers are never used twice by one [`Book`](super::book::Book).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}", self.0)
    }
}

/// A text is not a job number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAJobId;

impl fmt::Display for NotAJobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a job number such as j17 (bootstorm job list shows them)")
    }
}

impl std::error::Error for NotAJobId {}

impl FromStr for JobId {
    type Err = NotAJobId;

    /// `j17`, or the bare number people type.
    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        let digits = text.strip_prefix(['j', 'J']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotAJobId);
        }
        digits.parse().map(Self).map_err(|_| NotAJobId)
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What the machine is to do. In JSON: `{"image": "winpe-x64"}`, or `"local"` and its like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Boot this image.
    Image(String),
    /// Boot from the machine's own disk.
    Local,
    /// Show the menu.
    Menu,
    /// Wait and ask again until there is another job.
    Wait,
    /// Give the person at the machine an iPXE shell.
    Shell,
}

impl Action {
    /// The image's name, if the action is one.
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::Image(name) => Some(name),
            Self::Local | Self::Menu | Self::Wait | Self::Shell => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(name) => write!(f, "image {name}"),
            Self::Local => f.write_str("local"),
            Self::Menu => f.write_str("menu"),
            Self::Wait => f.write_str("wait"),
            Self::Shell => f.write_str("shell"),
        }
    }
}

/// Whom a job is for. In JSON: `{"mac": "52:54:00:00:00:01"}`, `"any"`, or `{"rule": {"arch": [7]}}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// The machine that shows this hardware address.
    Mac(MacAddr),
    /// The machine that shows this SMBIOS UUID.
    Uuid(Uuid),
    /// The machine that shows this SMBIOS serial (exact, blanks at the ends apart).
    Serial(String),
    /// The machine that shows this SMBIOS asset tag (exact, blanks at the ends apart).
    Asset(String),
    /// Every machine that no more specific job wants: the rule without a condition.
    Any,
    /// Every machine that meets these conditions and that no more specific job wants.
    Rule(Box<Rule>),
}

impl Selector {
    /// True when the selector names one machine; false for a rule, which many machines can match.
    pub fn is_exact(&self) -> bool {
        self.rule().is_none()
    }

    /// The conditions, if the selector is a rule.
    pub fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Mac(_) | Self::Uuid(_) | Self::Serial(_) | Self::Asset(_) => None,
            Self::Any => Some(Rule::ANY),
            Self::Rule(rule) => Some(rule),
        }
    }

    /// How narrow it is; smaller is narrower. A selector that names one machine is narrower than every rule.
    pub fn specificity(&self) -> (bool, Specificity) {
        (!self.is_exact(), self.rule().unwrap_or(Rule::ANY).specificity())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Uuid(uuid) => write!(f, "uuid {uuid}"),
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Asset(asset) => write!(f, "asset {asset}"),
            Self::Any => f.write_str("any machine"),
            Self::Rule(rule) => rule.fmt(f),
        }
    }
}

/// How far a job has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Waiting for its machine.
    #[default]
    Armed,
    /// A script that carries the job was given.
    Offered,
    /// The first byte of its image was asked for under its token.
    Fetching,
    /// Past the point of no return: what it boots may have started.
    Running,
    /// The booted system called back.
    Confirmed,
    /// Too many boots stopped before `Running`.
    Failed,
    /// Its time ran out before a machine took it.
    Expired,
    /// Someone took it back.
    Cancelled,
}

impl Stage {
    /// Every stage, in the order a job meets them.
    pub const ALL: [Self; 8] = [
        Self::Armed,
        Self::Offered,
        Self::Fetching,
        Self::Running,
        Self::Confirmed,
        Self::Failed,
        Self::Expired,
        Self::Cancelled,
    ];

    /// The lower-case word of lists and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Offered => "offered",
            Self::Fetching => "fetching",
            Self::Running => "running",
            Self::Confirmed => "confirmed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A job as someone asks for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What to do.
    pub action: Action,
    /// For whom.
    pub selector: Selector,
    /// At every boot, instead of once.
    #[serde(default)]
    pub always: bool,
    /// Boots that may stop before `running` until the job counts as failed; at least 1.
    #[serde(default = "JobSpec::default_attempts")]
    pub attempts: u32,
    /// How long the job stays armed. In JSON and on the command line `90s`, `30m`, `12h`, `7d`.
    #[serde(default, with = "span", skip_serializing_if = "Option::is_none")]
    pub expires: Option<Duration>,
    /// Between jobs equally specific the higher number wins.
    #[serde(default)]
    pub priority: i32,
    /// Cancel the live job this machine has, if any, instead of being refused.
    #[serde(default)]
    pub replace: bool,
    /// Let it follow the live job this machine has, if any, instead of being refused.
    #[serde(default)]
    pub queue: bool,
    /// Images for the boots after the first: a sequence of boots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Action>,
    /// What ends a boot well.
    #[serde(default)]
    pub confirm: Confirm,
    /// A destructive image may go to every machine that a rule matches.
    #[serde(default)]
    pub allow_rule: bool,
    /// The time in which [`LOOP_BOOTS`](super::lifecycle::LOOP_BOOTS) boots that come to nothing stop the job. In
    /// JSON as `expires`.
    #[serde(default, with = "span", skip_serializing_if = "Option::is_none")]
    pub window: Option<Duration>,
}

/// What ends a boot well: all that the job waits for before a sequence goes on to its next image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// That the image was handed over whole. It may have started; nothing proves that it did.
    #[default]
    Image,
    /// That the booted system called back.
    Callback,
}

/// The loop window of a job that names none.
pub const WINDOW: Duration = Duration::from_secs(30 * 60);

impl JobSpec {
    /// A job with every default: once, three attempts, no expiry, priority 0.
    pub fn new(action: Action, selector: Selector) -> Self {
        Self {
            action,
            selector,
            always: false,
            attempts: Self::default_attempts(),
            expires: None,
            priority: 0,
            replace: false,
            queue: false,
            then: Vec::new(),
            confirm: Confirm::Image,
            allow_rule: false,
            window: None,
        }
    }

    fn default_attempts() -> u32 {
        3
    }
}

/// A job in the book.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What to do now: of a sequence, the step it has come to.
    pub action: Action,
    /// All images of a sequence of boots; empty for a single one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sequence: Vec<Action>,
    /// The step of the sequence that `action` is, from 0.
    #[serde(default)]
    pub step: u32,
    /// When that step was armed; of the first one it does not count.
    #[serde(default = "epoch", with = "unix_seconds", skip_serializing_if = "is_epoch")]
    pub step_since: SystemTime,
    /// For whom.
    pub selector: Selector,
    /// At every boot, instead of once.
    pub always: bool,
    /// It may wipe a disk. As a rule it is then only for machines that present an identity of their own.
    #[serde(default)]
    pub destructive: bool,
    /// Boots that may stop before `running`.
    pub attempts: u32,
    /// How long it stays armed, after `created` or, of a later step, after `step_since`.
    #[serde(default, with = "span", skip_serializing_if = "Option::is_none")]
    pub expires: Option<Duration>,
    /// Between jobs equally specific the higher number wins.
    pub priority: i32,
    /// How far it has come.
    pub stage: Stage,
    /// Boots that stopped before `running` so far.
    pub attempts_used: u32,
    /// When it was added, or re-armed last.
    #[serde(with = "unix_seconds")]
    pub created: SystemTime,
    /// When evidence or an order touched it last.
    #[serde(with = "unix_seconds")]
    pub updated: SystemTime,
    /// The boot that has it or had it last.
    pub boot: Option<BootId>,
    /// The last boot that passed the point of no return since the job was armed: it may go on with its own files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<BootId>,
    /// Once-only answer files that its boots were given; a rule's are with the machines.
    #[serde(default, skip_serializing_if = "Given::is_empty")]
    pub given: Given,
    /// Boots with lower numbers belong to an earlier arming or step: what they do no longer counts.
    #[serde(default = "first_boot")]
    pub floor: BootId,
    /// Boots within the window that were given the script and did not come to run.
    #[serde(default)]
    pub boots: u32,
    /// When the window of `boots` began.
    #[serde(default = "epoch", with = "unix_seconds")]
    pub boots_since: SystemTime,
    /// The loop window.
    #[serde(default = "usual_window", with = "whole_seconds")]
    pub window: Duration,
    /// What ends a boot well.
    #[serde(default)]
    pub confirm: Confirm,
    /// A destructive image may go to every machine that the rule matches.
    #[serde(default)]
    pub allow_rule: bool,
    /// Counts every change of this job; never goes down.
    pub generation: u64,
    /// Why it is in this stage, in plain words.
    pub reason: String,
}

fn first_boot() -> BootId {
    BootId(0)
}

fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH
}

fn is_epoch(at: &SystemTime) -> bool {
    *at == epoch()
}

fn usual_window() -> Duration {
    WINDOW
}

super::lifecycle::has_course!(Job);

impl Job {
    /// A job as armed now. What the image says of itself is the caller's to know: `destructive`.
    pub fn new(id: JobId, spec: &JobSpec, destructive: bool, now: SystemTime) -> Self {
        let sequence = match spec.then.as_slice() {
            [] => Vec::new(),
            then => std::iter::once(&spec.action).chain(then).cloned().collect(),
        };
        Self {
            id,
            action: spec.action.clone(),
            sequence,
            step: 0,
            step_since: epoch(),
            selector: spec.selector.clone(),
            always: spec.always,
            destructive,
            attempts: spec.attempts,
            expires: spec.expires,
            priority: spec.priority,
            stage: Stage::Armed,
            attempts_used: 0,
            created: now,
            updated: now,
            boot: None,
            passed: None,
            given: Given::default(),
            floor: BootId(0),
            boots: 0,
            boots_since: now,
            window: spec.window.unwrap_or(WINDOW),
            confirm: spec.confirm,
            allow_rule: spec.allow_rule,
            generation: 1,
            reason: "waiting for its machine".into(),
        }
    }

    /// True while the job takes part in the contest for a machine's next boot.
    pub fn is_live(&self) -> bool {
        self.stage.is_live(self.always)
    }

    /// True when the next boot that wants the job would be one too many: a boot is fetching, and if the machine
    /// comes back that boot has stopped, and it was the last attempt; or the machine has started over too often.
    pub fn is_on_last_attempt(&self) -> bool {
        self.is_live() && holds_back(self.stage, self.attempts_used, self.boots, &self.terms())
    }

    /// True when the job had its machine and is over with it: that machine's next boot is a local one.
    pub fn is_done(&self) -> bool {
        !self.is_live() && matches!(self.stage, Stage::Running | Stage::Confirmed | Stage::Failed)
    }

    /// True when it may boot an image that may wipe a disk: for one machine and one boot; by a rule where the job allows
    /// for it and the image was such a one when the job was added or re-armed, since by that it is decided who must show
    /// what is a machine's own.
    pub fn may_wipe(&self) -> bool {
        !self.always && (self.selector.is_exact() || self.allow_rule && self.destructive)
    }

    /// True when another image follows the one it is at.
    pub fn has_next_step(&self) -> bool {
        (self.step as usize).saturating_add(1) < self.sequence.len()
    }

    /// What the course of this job is judged by.
    pub fn terms(&self) -> Terms {
        Terms { attempts: self.attempts, window: self.window, always: self.always }
    }
}

/// A duration as whole seconds.
pub(crate) mod whole_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(span.as_secs())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// Durations as people write them.
mod span {
    use std::borrow::Cow;
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written<'a> {
        Seconds(u64),
        Text(#[serde(borrow)] Cow<'a, str>),
    }

    pub(super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => serializer.collect_str(&format_args!("{}s", span.as_secs())),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        match Option::<Written<'de>>::deserialize(d)? {
            None => Ok(None),
            Some(Written::Seconds(seconds)) => Ok(Some(Duration::from_secs(seconds))),
            Some(Written::Text(text)) => parse(&text).map(Some).ok_or_else(|| {
                serde::de::Error::custom(format_args!(
                    "expected a time such as 90s, 30m, 12h or 7d, found {text:?}"
                ))
            }),
        }
    }

    fn parse(text: &str) -> Option<Duration> {
        let text = text.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(unit_at);
        let seconds_each = match unit {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(seconds_each).map(Duration::from_secs)
    }
}

/// Moments as whole seconds since 1970, which every language reads.
pub(crate) mod unix_seconds {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let seconds = u64::deserialize(deserializer)?;
        UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(|| serde::de::Error::custom("a moment beyond this machine's clock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_numbers_are_read_as_people_write_them() {
        assert_eq!(JobId(17).to_string(), "j17");
        for text in ["j17", "J17", "17"] {
            assert_eq!(text.parse(), Ok(JobId(17)), "{text}");
        }
        for text in ["", "j", "j+1", "j1x", "-1", "j99999999999999999999"] {
            assert_eq!(text.parse::<JobId>(), Err(NotAJobId), "{text}");
        }
    }

    #[test]
    fn a_spec_is_read_with_its_defaults_and_nothing_unknown() {
        let spec: JobSpec =
            serde_json::from_str(r#"{"action": {"image": "pe"}, "selector": {"mac": "52-54-00-12-34-56"}}"#)
                .unwrap();
        let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(spec, JobSpec::new(Action::Image("pe".into()), Selector::Mac(mac)));
        let spec: JobSpec = serde_json::from_str(
            r#"{"action": "wait", "selector": "any", "always": true, "expires": "2h", "priority": -3}"#,
        )
        .unwrap();
        assert_eq!((spec.expires, spec.priority, spec.always), (Some(Duration::from_secs(7_200)), -3, true));
        for bad in [
            r#"{"action": "wait", "selector": "any", "alwyas": true}"#,
            r#"{"action": "wipe", "selector": "any"}"#,
            r#"{"action": "wait", "selector": {"mac": "x"}}"#,
            r#"{"action": "wait", "selector": "any", "expires": "2 weeks"}"#,
        ] {
            assert!(serde_json::from_str::<JobSpec>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_rule_without_conditions_is_as_wide_as_any() {
        let json = |text: &str| serde_json::from_str::<Selector>(text).unwrap();
        let (any, empty) = (json(r#""any""#), json(r#"{"rule": {}}"#));
        assert_eq!(any.specificity(), empty.specificity());
        assert_eq!(any.to_string(), empty.to_string());
        let rule = json(r#"{"rule": {"any_unknown": true, "subnet": "10.77.0.0/24", "arch": [7, 9]}}"#);
        assert_eq!(rule.to_string(), "any unknown machine in 10.77.0.0/24 with arch 7,9");
        let mac = json(r#"{"mac": "52:54:00:00:00:01"}"#);
        assert!(mac.is_exact() && !rule.is_exact() && !any.is_exact());
        assert!(mac.specificity() < rule.specificity() && rule.specificity() < any.specificity());
    }

    #[test]
    fn a_spec_survives_its_own_json() {
        let spec = JobSpec {
            expires: Some(Duration::from_secs(90)),
            ..JobSpec::new(Action::Shell, Selector::Serial("A 1".into()))
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), spec);
    }
}
