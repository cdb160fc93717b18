//! The contest case by case; random operations beside a plain map; readers beside a writer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::slots::Packed;
use super::{Decision, Entry, Key, Standing};
use super::{Table, Writer, table};
use crate::jobs::Identity;
use crate::jobs::job::{Action, Job, JobId, JobSpec, Selector, Stage};
use crate::jobs::machine::MachineId;
use crate::jobs::rule::Rule;
use crate::wire::{Arch, MacAddr, Uuid};

pub(super) fn job(id: u64, selector: Selector) -> Job {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(id);
    let always = !selector.is_exact();
    let spec = JobSpec { always, ..JobSpec::new(Action::Image("pe".into()), selector) };
    Job { reason: "because".into(), ..Job::new(JobId(id), &spec, false, at) }
}

pub(super) fn mac(number: u64) -> MacAddr {
    let [.., d, e, f] = number.to_be_bytes();
    MacAddr([0x52, 0x54, 0, d, e, f])
}

fn uuid(number: u64) -> Uuid {
    Uuid((0x4c4c_4544_0042_3510_8052_0000_0000_0000_u128 + u128::from(number) * 0x1_0000_0001).to_be_bytes())
}

fn rule(id: u64, json: &str) -> Arc<Job> {
    let rule: Rule = serde_json::from_str(json).unwrap();
    Arc::new(job(id, Selector::Rule(Box::new(rule))))
}

pub(super) fn grant(job: &Arc<Job>) -> Entry {
    Entry { grants: vec![Arc::clone(job)], machine: None }
}

fn known(standing: &Arc<Standing>) -> Entry {
    Entry { grants: Vec::new(), machine: Some(Arc::clone(standing)) }
}

pub(super) fn by_mac(number: u64) -> Identity {
    Identity { mac: Some(mac(number)), ..Identity::default() }
}

/// The decision with job numbers, to compare.
#[derive(PartialEq, Debug)]
enum Outcome {
    Job(u64),
    Done(u64),
    Rejected,
    NoJob,
}

fn outcome(decision: Decision<'_>) -> Outcome {
    match decision {
        Decision::Job(job) => Outcome::Job(job.id.0),
        Decision::Done(job) => Outcome::Done(job.id.0),
        Decision::Rejected => Outcome::Rejected,
        Decision::NoJob => Outcome::NoJob,
    }
}

fn decide(table: &Table, who: &Identity) -> Outcome {
    outcome(table.view().decide(who))
}

#[test]
fn a_grant_needs_the_very_identity_that_its_selector_names() {
    let (table, mut writer) = table(0);
    let one = Arc::new(job(1, Selector::Mac(mac(1))));
    writer.put(Key::Mac(mac(1)), Some(grant(&one)));
    // Put under something else by mistake, it is not given to it.
    writer.put(Key::Uuid(uuid(1)), Some(grant(&one)));
    writer.put(Key::Mac(mac(2)), Some(grant(&one)));
    assert_eq!(writer.len(), 1);
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Job(1));
    assert_eq!(decide(&table, &by_mac(2)), Outcome::NoJob);
    let by_uuid = Identity { uuid: Some(uuid(1)), ..Identity::default() };
    assert_eq!(decide(&table, &by_uuid), Outcome::NoJob);
}

#[test]
fn every_kind_of_identity_is_found_as_it_is_written() {
    let (table, mut writer) = table(0);
    let serial = Arc::new(job(1, Selector::Serial("ABC 123".into())));
    let asset = Arc::new(job(2, Selector::Asset("ABC 123".into())));
    let by_uuid = Arc::new(job(3, Selector::Uuid(uuid(7))));
    writer.put(Key::Serial(" ABC 123 "), Some(grant(&serial)));
    writer.put(Key::Asset("ABC 123"), Some(grant(&asset)));
    writer.put(Key::Uuid(uuid(7)), Some(grant(&by_uuid)));
    let serial = |text: &str| Identity { serial: Some(text.into()), ..Identity::default() };
    assert_eq!(decide(&table, &serial("ABC 123 ")), Outcome::Job(1));
    assert_eq!(decide(&table, &serial("abc 123")), Outcome::NoJob);
    let asset = Identity { asset: Some("ABC 123".into()), ..Identity::default() };
    assert_eq!(decide(&table, &asset), Outcome::Job(2));
    for seen in [uuid(7), Uuid::from_smbios(uuid(7).0)] {
        let who = Identity { uuid: Some(seen), ..Identity::default() };
        assert_eq!(decide(&table, &who), Outcome::Job(3));
    }
}

#[test]
fn what_many_machines_share_is_never_matched() {
    let (table, mut writer) = table(0);
    let keys = [
        Key::Mac(MacAddr([0; 6])),
        Key::Mac(MacAddr::BROADCAST),
        Key::Uuid(Uuid([0xff; 16])),
        Key::Serial("Default string"),
        Key::Asset("  "),
    ];
    for key in keys {
        assert!(!writer.put(key, Some(known(&Arc::new(Standing::new(MachineId(1)))))), "{key:?}");
    }
    assert!(writer.is_empty());
    let who = Identity {
        mac: Some(MacAddr([0; 6])),
        uuid: Some(Uuid([0xff; 16])),
        serial: Some("Default string".into()),
        asset: Some(String::new()),
        ..Identity::default()
    };
    assert!(table.view().standing(&who).is_none());
}

#[test]
fn what_a_machine_had_is_taken_from_all_its_identities() {
    let (table, mut writer) = table(0);
    let had = Arc::new(Job { stage: Stage::Running, ..job(1, Selector::Uuid(uuid(1))) });
    let standing = Arc::new(Standing { spent: vec![had], ..Standing::new(MachineId(1)) });
    writer.put(Key::Uuid(uuid(1)), Some(known(&standing)));
    writer.put(Key::Mac(mac(1)), Some(known(&standing)));
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Done(1));
    // Another job for the same machine is another matter; so is a rule that it has not had.
    let other = Arc::new(job(2, Selector::Mac(mac(1))));
    let both = Entry { grants: vec![other], machine: Some(Arc::clone(&standing)) };
    writer.put(Key::Mac(mac(1)), Some(both));
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Job(2));
    writer.put(Key::Mac(mac(1)), Some(known(&standing)));
    writer.set_rules(vec![Arc::new(job(3, Selector::Any))]);
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Job(3));
}

#[test]
fn a_grant_that_one_presented_identity_denies_leaves_the_contest() {
    let (table, mut writer) = table(0);
    let best = Arc::new(Job { priority: 9, ..job(1, Selector::Mac(mac(1))) });
    let next = Arc::new(job(2, Selector::Serial("S-1".into())));
    writer.put(Key::Mac(mac(1)), Some(grant(&best)));
    writer.put(Key::Serial("S-1"), Some(grant(&next)));
    let who = Identity { uuid: Some(uuid(1)), serial: Some("S-1".into()), ..by_mac(1) };
    assert_eq!(decide(&table, &who), Outcome::Job(1));
    let standing = Arc::new(Standing { spent: vec![best], ..Standing::new(MachineId(1)) });
    writer.put(Key::Uuid(uuid(1)), Some(known(&standing)));
    assert_eq!(decide(&table, &who), Outcome::Job(2));
    writer.put(Key::Serial("S-1"), None);
    assert_eq!(decide(&table, &who), Outcome::Done(1));
    // Without the identity that denies, the grant stands: only what is presented is known.
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Job(1));
    let lines = table.view().explain(&who);
    assert!(lines[0].starts_with("j1: ") && lines[0].contains("over for this machine"), "{lines:?}");
}

#[test]
fn a_refused_machine_gets_nothing_through_any_identity() {
    let (table, mut writer) = table(0);
    let standing = Arc::new(Standing { rejected: true, ..Standing::new(MachineId(5)) });
    writer.put(Key::Uuid(uuid(1)), Some(known(&standing)));
    writer.put(Key::Mac(mac(1)), Some(grant(&Arc::new(job(1, Selector::Mac(mac(1)))))));
    writer.set_rules(vec![Arc::new(job(3, Selector::Any))]);
    let who = Identity { uuid: Some(uuid(1)), ..by_mac(1) };
    assert_eq!(decide(&table, &who), Outcome::Rejected);
    assert_eq!(table.view().decide(&who).job(), None);
    let lines = table.view().explain(&who);
    assert!(lines[0].contains("machine m5: refused by an operator (by its UUID)"), "{lines:?}");
}

#[test]
fn the_last_attempt_under_way_is_not_given_out_again() {
    let (table, mut writer) = table(0);
    let last = Arc::new(Job { stage: Stage::Fetching, attempts_used: 2, ..job(1, Selector::Mac(mac(1))) });
    writer.put(Key::Mac(mac(1)), Some(grant(&last)));
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Done(1));
    assert!(table.view().explain(&by_mac(1))[0].contains("attempt 3 of 3"));
}

#[test]
fn the_contest_goes_by_width_then_priority_then_age() {
    let (table, mut writer) = table(0);
    let wide = Arc::new(Job { priority: 100, ..job(1, Selector::Any) });
    let by_net = rule(2, r#"{"subnet": "10.0.0.0/8"}"#);
    let by_longer_net = rule(3, r#"{"subnet": "10.77.0.0/16"}"#);
    let by_two = rule(4, r#"{"subnet": "10.0.0.0/8", "arch": [9, 7]}"#);
    let same =
        Arc::new(Job { priority: 1, ..Job::clone(&rule(5, r#"{"subnet": "10.0.0.0/8", "arch": [7]}"#)) });
    let who = Identity { arch: Some(Arch(7)), address: Some([10, 77, 1, 1].into()), ..by_mac(1) };
    let mut rules = Vec::new();
    for (better, expected) in [(wide, 1), (by_net, 2), (by_longer_net, 3), (by_two, 4), (same, 5)] {
        rules.insert(0, better);
        writer.set_rules(rules.clone());
        assert_eq!(decide(&table, &who), Outcome::Job(expected));
    }
    let exact = Arc::new(Job { priority: -5, ..job(9, Selector::Mac(mac(1))) });
    let of_uuid = Arc::new(Job { priority: -5, ..job(8, Selector::Uuid(uuid(1))) });
    writer.put(Key::Mac(mac(1)), Some(grant(&exact)));
    assert_eq!(decide(&table, &who), Outcome::Job(9));
    writer.put(Key::Uuid(uuid(1)), Some(grant(&of_uuid)));
    let who = Identity { uuid: Some(uuid(1)), ..who };
    assert_eq!(decide(&table, &who), Outcome::Job(8), "the older of two alike");
    let lines = table.view().explain(&who);
    assert!(lines[0].contains("j8") && lines[0].ends_with("chosen (by its UUID)"), "{lines:?}");
    assert!(lines[1].ends_with("lost to j8, which is older"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("j2: ") && line.contains("names this machine exactly")));
}

#[test]
fn rules_ask_for_groups_and_for_strangers() {
    let (table, mut writer) = table(0);
    writer.set_rules(vec![
        rule(1, r#"{"any_unknown": true}"#),
        rule(2, r#"{"group": "lab"}"#),
        rule(3, r#"{"manufacturer": " dell INC. "}"#),
        rule(4, r#"{"circuit": "eth0/1/7"}"#),
    ]);
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Job(1));
    let standing =
        Arc::new(Standing { groups: vec!["office".into(), "lab".into()], ..Standing::new(MachineId(1)) });
    writer.put(Key::Mac(mac(1)), Some(known(&standing)));
    assert_eq!(decide(&table, &by_mac(1)), Outcome::Job(2));
    let outside = Arc::new(Standing::new(MachineId(2)));
    writer.put(Key::Mac(mac(2)), Some(known(&outside)));
    assert_eq!(decide(&table, &by_mac(2)), Outcome::NoJob);
    let dell = Identity { manufacturer: Some("Dell Inc.".into()), ..by_mac(2) };
    assert_eq!(decide(&table, &dell), Outcome::Job(3));
    let port = Identity { circuit: Some(crate::jobs::rule::CircuitMark::of(b"eth0/1/7")), ..by_mac(2) };
    assert_eq!(decide(&table, &port), Outcome::Job(4));
    let lines = table.view().explain(&by_mac(2));
    assert!(lines.iter().any(|line| line.contains("the machine is not in group lab")), "{lines:?}");
}

#[test]
fn a_rule_that_wipes_is_only_for_machines_with_an_identity_of_their_own() {
    let (table, mut writer) = table(0);
    let wipes = Arc::new(Job { destructive: true, ..job(1, Selector::Any) });
    writer.set_rules(vec![wipes]);
    let with = |uuid: Option<Uuid>, serial: Option<&str>| {
        let who = Identity { uuid, serial: serial.map(str::to_owned), ..by_mac(1) };
        decide(&table, &who)
    };
    assert_eq!(with(None, None), Outcome::NoJob);
    assert_eq!(with(Some(Uuid([0; 16])), Some("To be filled by O.E.M.")), Outcome::NoJob);
    assert_eq!(with(Some(uuid(1)), None), Outcome::Job(1));
    assert_eq!(with(None, Some("PF1XYZ")), Outcome::Job(1));
    assert!(table.view().explain(&by_mac(1))[0].contains("it may wipe a disk"));
}

#[test]
fn a_rule_that_a_machine_has_used_up_leaves_room_for_the_next() {
    let (table, mut writer) = table(0);
    let (narrow, wide) = (rule(1, r#"{"arch": [7]}"#), Arc::new(job(2, Selector::Any)));
    writer.set_rules(vec![Arc::clone(&wide), Arc::clone(&narrow)]);
    let who = Identity { arch: Some(Arch(7)), ..by_mac(1) };
    for (spent, expected) in [
        (vec![], Outcome::Job(1)),
        (vec![Arc::clone(&narrow)], Outcome::Job(2)),
        (vec![Arc::clone(&narrow), Arc::clone(&wide)], Outcome::Done(2)),
    ] {
        let standing = Arc::new(Standing { spent, ..Standing::new(MachineId(1)) });
        writer.put(Key::Mac(mac(1)), Some(known(&standing)));
        assert_eq!(decide(&table, &who), expected);
    }
}

#[test]
fn a_live_job_alone_is_granted() {
    let (table, mut writer) = table(0);
    let over = Arc::new(Job { stage: Stage::Cancelled, ..job(1, Selector::Mac(mac(1))) });
    writer.put(Key::Mac(mac(1)), Some(grant(&over)));
    writer.set_rules(vec![Arc::new(Job { stage: Stage::Expired, ..job(2, Selector::Any) })]);
    assert_eq!(decide(&table, &by_mac(1)), Outcome::NoJob);
}

#[test]
fn removing_leaves_the_others_where_they_are_found() {
    let (table, mut writer) = table(0);
    for round in 0..3 {
        for number in 0..2_000 {
            writer.put(
                Key::Mac(mac(number)),
                Some(grant(&Arc::new(job(number + 1, Selector::Mac(mac(number)))))),
            );
        }
        assert_eq!(writer.len(), 2_000);
        for number in (0..2_000).filter(|number| number % 3 != round) {
            writer.put(Key::Mac(mac(number)), None);
        }
        for number in 0..2_000 {
            let expected = if number % 3 == round { Outcome::Job(number + 1) } else { Outcome::NoJob };
            assert_eq!(decide(&table, &by_mac(number)), expected, "round {round}, {number}");
        }
    }
}

#[test]
fn keys_that_come_and_go_for_ever_do_not_fill_the_table() {
    let (table, mut writer) = table(0);
    let keep = Arc::new(job(1, Selector::Mac(mac(0))));
    writer.put(Key::Mac(mac(0)), Some(grant(&keep)));
    for number in 1..20_000 {
        writer.put(Key::Mac(mac(number)), Some(known(&Arc::new(Standing::new(MachineId(number))))));
        if number > 10 {
            writer.put(Key::Mac(mac(number - 10)), None);
        }
    }
    assert_eq!(writer.len(), 11);
    assert!(table.capacity() <= 64, "{} slots", table.capacity());
    assert_eq!(decide(&table, &by_mac(0)), Outcome::Job(1));
}

#[test]
fn both_byte_orders_of_a_uuid_share_a_home() {
    for number in 0..1_000 {
        let swapped = Uuid::from_smbios(uuid(number).0);
        assert_eq!(Packed::new(Key::Uuid(uuid(number))).home(), Packed::new(Key::Uuid(swapped)).home());
    }
}

#[test]
fn the_first_of_two_views_may_go_first() {
    let mine = Arc::new(job(1, Selector::Mac(mac(1))));
    let (table, mut writer) = table(0);
    writer.put(Key::Mac(mac(1)), Some(grant(&mine)));
    let first = table.view();
    let second = table.view();
    let seen = second.decide(&by_mac(1)).job().unwrap();
    drop(first);
    writer.put(Key::Mac(mac(1)), None);
    for number in 2..2_000 {
        writer.put(Key::Mac(mac(number)), Some(known(&Arc::new(Standing::new(MachineId(1))))));
        writer.put(Key::Mac(mac(number)), None);
    }
    assert_eq!((seen.id, Arc::strong_count(&mine)), (JobId(1), 2), "the second view keeps it");
}

#[test]
fn what_a_writer_leaves_behind_while_somebody_looks_is_freed_by_another() {
    let mine = Arc::new(job(1, Selector::Mac(mac(1))));
    let (looked_at, mut writer) = table(0);
    writer.put(Key::Mac(mac(1)), Some(grant(&mine)));
    let view = looked_at.view();
    assert!(view.decide(&by_mac(1)).job().is_some());
    writer.put(Key::Mac(mac(1)), None);
    drop(writer);
    assert_eq!(Arc::strong_count(&mine), 2);
    drop(view);
    let (_other, mut writer) = table(0);
    for _ in 0..1_000_000 {
        if Arc::strong_count(&mine) == 1 {
            break;
        }
        writer.set_rules(Vec::new());
        std::thread::yield_now();
    }
    assert_eq!(Arc::strong_count(&mine), 1);
}

#[test]
fn entries_are_freed_once_and_only_when_nobody_looks() {
    let mine = Arc::new(job(1, Selector::Mac(mac(1))));
    let (table, mut writer) = table(0);
    writer.put(Key::Mac(mac(1)), Some(grant(&mine)));
    {
        let view = table.view();
        let seen = view.decide(&by_mac(1)).job().unwrap();
        writer.put(Key::Mac(mac(1)), None);
        assert_eq!(view.decide(&by_mac(1)), Decision::NoJob);
        assert_eq!((seen.id, Arc::strong_count(&mine)), (JobId(1), 2), "the view keeps it");
    }
    // Other tests may look now and then, and hold everything for so long.
    for _ in 0..1_000_000 {
        if Arc::strong_count(&mine) == 1 {
            break;
        }
        writer.put(Key::Mac(mac(2)), Some(known(&Arc::new(Standing::new(MachineId(1))))));
        std::thread::yield_now();
    }
    assert_eq!(Arc::strong_count(&mine), 1);
    let held = Arc::new(job(2, Selector::Mac(mac(3))));
    writer.put(Key::Mac(mac(3)), Some(grant(&held)));
    drop((table, writer));
    assert_eq!(Arc::strong_count(&held), 1, "a table that goes frees what it holds");
}

/// xorshift64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The same contest over plain maps, written as the documents say it.
#[derive(Default)]
struct Model {
    entries: HashMap<(u8, String), Entry>,
    rules: Vec<Arc<Job>>,
}

impl Model {
    fn name(key: Key<'_>) -> (u8, String) {
        match key {
            Key::Mac(mac) => (0, mac.to_string()),
            Key::Uuid(uuid) => (1, uuid.to_string()),
            Key::Serial(text) => (2, text.trim().to_owned()),
            Key::Asset(text) => (3, text.trim().to_owned()),
            Key::Job(id) => (4, id.to_string()),
        }
    }

    fn decide(&self, who: &Identity) -> Outcome {
        let mut keys = Vec::new();
        keys.extend(who.mac.map(Key::Mac));
        keys.extend(who.uuid.map(Key::Uuid));
        keys.extend(who.uuid.map(|uuid| Key::Uuid(Uuid(uuid.to_smbios()))));
        keys.extend(who.serial.as_deref().map(Key::Serial));
        keys.extend(who.asset.as_deref().map(Key::Asset));
        let found: Vec<&Entry> = keys.iter().filter_map(|key| self.entries.get(&Self::name(*key))).collect();
        let standings: Vec<&Standing> = found.iter().filter_map(|entry| entry.machine.as_deref()).collect();
        if standings.iter().any(|standing| standing.rejected) {
            return Outcome::Rejected;
        }
        let mut over: Vec<&Arc<Job>> = standings.iter().flat_map(|standing| &standing.spent).collect();
        let spent: Vec<JobId> = over.iter().map(|job| job.id).collect();
        let mut grants: Vec<&Arc<Job>> = found.iter().flat_map(|entry| &entry.grants).collect();
        over.extend(grants.iter().filter(|job| job.is_on_last_attempt()));
        grants.retain(|job| !job.is_on_last_attempt() && !spent.contains(&job.id));
        let groups = || standings.iter().flat_map(|standing| &standing.groups).map(|group| &**group);
        let of_its_own = who.uuid.is_some_and(Uuid::is_identifying)
            || who.serial.as_deref().is_some_and(crate::jobs::identity::is_identifying_text);
        if grants.is_empty() {
            grants.extend(self.rules.iter().filter(|job| {
                let rule = job.selector.rule().unwrap();
                rule.misfit(who, groups(), !found.is_empty()).is_none()
                    && !spent.contains(&job.id)
                    && (of_its_own || !job.destructive)
            }));
        }
        grants.sort_by_key(|job| super::contest::rank(job));
        over.sort_by_key(|job| (job.updated, job.id));
        match (grants.first(), over.last()) {
            (Some(job), _) => Outcome::Job(job.id.0),
            (None, Some(job)) => Outcome::Done(job.id.0),
            (None, None) => Outcome::NoJob,
        }
    }
}

const SERIALS: [&str; 4] = ["S-0001", "S-0002", "S-0003 ", "s-0001"];

fn random_who(dice: &mut Dice) -> Identity {
    let one_of = |dice: &mut Dice, texts: [&str; 3]| match dice.below(4) {
        3 => None,
        pick => Some(texts[pick as usize].to_owned()),
    };
    Identity {
        mac: (dice.below(4) > 0).then(|| mac(dice.below(40))),
        uuid: (dice.below(3) > 0).then(|| match dice.below(40) {
            0 => Uuid([0; 16]),
            number if number % 2 == 0 => uuid(number),
            number => Uuid::from_smbios(uuid(number).0),
        }),
        serial: (dice.below(2) > 0).then(|| SERIALS[dice.below(4) as usize].to_owned()),
        asset: (dice.below(4) == 0).then(|| SERIALS[dice.below(4) as usize].to_owned()),
        manufacturer: one_of(dice, ["Dell", "DELL ", "HP"]),
        product: one_of(dice, ["One", "one", "Two"]),
        arch: (dice.below(3) > 0).then(|| Arch(dice.below(4) as u16)),
        address: (dice.below(3) > 0).then(|| [10, dice.below(2) as u8, dice.below(3) as u8, 9].into()),
        relay: (dice.below(4) == 0).then(|| [10, 1, dice.below(3) as u8, 1].into()),
        circuit: (dice.below(3) == 0).then(|| crate::jobs::rule::CircuitMark::of(&[dice.below(2) as u8])),
        ..Identity::default()
    }
}

fn random_rule(dice: &mut Dice) -> Rule {
    let network = |text: &str| Some(text.parse().unwrap());
    Rule {
        any_unknown: dice.below(5) == 0,
        group: (dice.below(4) == 0).then(|| format!("g{}", dice.below(3))),
        subnet: match dice.below(8) {
            0 => network("10.0.0.0/8"),
            1 => network("10.1.0.0/16"),
            2 => network("10.1.2.0/24"),
            3 => network("0.0.0.0/0"),
            _ => None,
        },
        circuit: (dice.below(5) == 0).then(|| crate::jobs::rule::Circuit(vec![dice.below(2) as u8])),
        arch: (0..dice.below(6).saturating_sub(2)).map(|_| Arch(dice.below(4) as u16)).collect(),
        manufacturer: (dice.below(4) == 0).then(|| ["dell", "hp"][dice.below(2) as usize].to_owned()),
        product: (dice.below(5) == 0).then(|| "ONE".to_owned()),
    }
}

fn random_standing(dice: &mut Dice, jobs: &[Arc<Job>]) -> Standing {
    Standing {
        spent: (0..dice.below(4))
            .map(|_| Arc::clone(&jobs[dice.below(jobs.len() as u64) as usize]))
            .collect(),
        rejected: dice.below(12) == 0,
        groups: (0..dice.below(3)).map(|_| format!("g{}", dice.below(3)).into()).collect(),
        ..Standing::new(MachineId(dice.below(20)))
    }
}

#[test]
fn random_histories_decide_as_plain_maps_do() {
    for seed in 1..=4 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
        let (table, mut writer) = table(0);
        let mut model = Model::default();
        let mut jobs: Vec<Arc<Job>> = vec![Arc::new(job(1, Selector::Any))];
        for step in 0..1_500 {
            let (number, text) = (dice.below(40), SERIALS[dice.below(4) as usize]);
            let (key, selector) = match dice.below(4) {
                0 => (Key::Mac(mac(number)), Selector::Mac(mac(number))),
                1 => (Key::Uuid(uuid(number)), Selector::Uuid(uuid(number))),
                2 => (Key::Serial(text), Selector::Serial(text.trim().into())),
                _ => (Key::Asset(text), Selector::Asset(text.trim().into())),
            };
            match dice.below(12) {
                0..=2 => {
                    writer.put(key, None);
                    model.entries.remove(&Model::name(key));
                }
                3 => {
                    let rules: Vec<Arc<Job>> = (0..dice.below(40))
                        .map(|number| {
                            let rule = Selector::Rule(Box::new(random_rule(&mut dice)));
                            let (priority, destructive) = (dice.below(3) as i32, dice.below(5) == 0);
                            Arc::new(Job { priority, destructive, ..job(1_000 + number, rule) })
                        })
                        .collect();
                    jobs.truncate(60);
                    jobs.extend(rules.iter().cloned());
                    writer.set_rules(rules.clone());
                    model.rules = rules;
                }
                _ => {
                    let grants: Vec<Arc<Job>> = (0..dice.below(3))
                        .map(|_| {
                            let stage = if dice.below(4) == 0 { Stage::Fetching } else { Stage::Armed };
                            let (id, used) = (2 + dice.below(900), dice.below(3) as u32);
                            let job = job(id, selector.clone());
                            Arc::new(Job {
                                stage,
                                attempts_used: used,
                                priority: dice.below(3) as i32,
                                ..job
                            })
                        })
                        .collect();
                    jobs.extend(grants.iter().cloned());
                    let machine = (grants.is_empty() || dice.below(2) == 0)
                        .then(|| Arc::new(random_standing(&mut dice, &jobs)));
                    let entry = Entry { grants, machine };
                    assert!(writer.put(key, Some(entry.clone())));
                    model.entries.insert(Model::name(key), entry);
                }
            }
            assert_eq!(writer.len(), model.entries.len());
            for _ in 0..4 {
                let who = random_who(&mut dice);
                let view = table.view();
                let decision = view.decide(&who);
                assert_eq!(outcome(decision), model.decide(&who), "seed {seed}, step {step}, {who:?}");
                let explained = view.explain(&who);
                if let Outcome::Job(id) | Outcome::Done(id) = outcome(decision) {
                    let first = explained.iter().find(|line| !line.starts_with("machine ")).unwrap();
                    assert!(first.starts_with(&format!("j{id}: ")), "{first} is not about j{id}");
                }
            }
        }
    }
}

/// Job and standing of one writing carry the same number, so that a mixture shows.
fn of_one_writing(key: u64, writing: u64) -> Entry {
    let job = Job { generation: writing, ..job(key + 1, Selector::Mac(mac(key))) };
    let standing = Standing { groups: vec![writing.to_string().into()], ..Standing::new(MachineId(writing)) };
    Entry { grants: vec![Arc::new(job)], machine: Some(Arc::new(standing)) }
}

#[test]
fn readers_beside_a_writer_see_whole_and_ever_newer_states() {
    const KEYS: u64 = 300;
    const WRITINGS: u64 = 40_000;
    let (table, mut writer) = table(0);
    // Even keys are always there; odd ones come and go, so that slots change hands and the array grows.
    for key in (0..KEYS).step_by(2) {
        writer.put(Key::Mac(mac(key)), Some(of_one_writing(key, 1)));
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2u64)
            .map(|reader| {
                let (table, over) = (&table, &over);
                scope.spawn(move || {
                    let mut dice = Dice(77 + reader);
                    let (mut newest, mut seen) = (vec![0; KEYS as usize], 0u64);
                    while !over.load(Ordering::Relaxed) || seen == 0 {
                        let key = dice.below(KEYS);
                        let view = table.view();
                        match view.decide(&by_mac(key)) {
                            Decision::Job(job) => {
                                assert_eq!(job.id, JobId(key + 1));
                                assert!(job.generation >= newest[key as usize], "an older state came back");
                                newest[key as usize] = job.generation;
                                seen += 1;
                            }
                            other => assert!(key % 2 == 1, "key {key}: {other:?}"),
                        }
                        if let Some(standing) = view.standing(&by_mac(key)) {
                            assert_eq!(*standing.groups[0], *standing.machine.0.to_string());
                            assert!(standing.machine.0 >= newest[key as usize]);
                        }
                    }
                    seen
                })
            })
            .collect();
        let mut dice = Dice(5);
        for writing in 2..WRITINGS {
            let key = dice.below(KEYS);
            let gone = key % 2 == 1 && dice.below(2) == 0;
            writer.put(Key::Mac(mac(key)), (!gone).then(|| of_one_writing(key, writing)));
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}

#[test]
fn a_hundred_thousand_machines_fit_into_the_slots_promised() {
    let (table, mut writer): (Arc<Table>, Writer) = table(0);
    let standing = Arc::new(Standing::new(MachineId(1)));
    for number in 0..100_000 {
        writer.put(Key::Mac(mac(number)), Some(known(&standing)));
        writer.put(Key::Uuid(uuid(number)), Some(known(&standing)));
    }
    assert_eq!(writer.len(), 200_000);
    assert!(table.capacity() <= 1 << 19, "{} slots", table.capacity());
    assert!((0..100_000).all(|number| table.view().standing(&by_mac(number)).is_some()));
}
