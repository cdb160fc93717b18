//! Machines: how they come on record, what merges, what takes a merge back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::lifecycle::since;
use super::super::machine::{Ident, Machine, MachineId, MachineState, Merged};
use super::super::script::{LOCAL_WAYS, LocalStrategy};
use super::super::token::BootId;
use super::{BOOTS_MAX, Book, Evidence, Expected, Moment, Refusal};
use crate::wire::{MacAddr, Uuid};

/// Machines on record. Nobody's request adds one beyond it; an operator's order is refused.
pub const MACHINES_MAX: usize = 100_000;
/// Addresses of machines not on record whose UUID is remembered.
const STRANGERS_MAX: usize = 16 * 1024;
/// A machine's last sign of life is written down only so often.
const SEEN_EVERY: std::time::Duration = std::time::Duration::from_secs(3600);

/// How a machine was last sent to its disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalBoot {
    boot: BootId,
    at: SystemTime,
    /// False once that has been judged.
    sent: bool,
    way: u8,
    /// Times in a row that it was back at once.
    returns: u8,
    /// Ways that its script has reported.
    reports: u8,
}

/// A machine that asks for a script again within this time has not booted from its disk.
const BACK_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);
/// No firmware is back that soon: it is the same boot asking twice.
const SAME_BOOT: std::time::Duration = std::time::Duration::from_secs(3);
/// Machines whose last local boot is remembered.
const LOCAL_BOOTS_MAX: usize = 16 * 1024;

/// How fast machines nobody knows may come on record: a hall of them at once, then so many a second.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    left: f64,
    at: Option<SystemTime>,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { left: Self::BURST, at: None }
    }
}

impl Bucket {
    const BURST: f64 = 10_000.0;
    const PER_SECOND: f64 = 100.0;

    pub(super) fn take(&mut self, now: SystemTime) -> bool {
        let passed = self.at.map_or(0.0, |at| since(at, now).as_secs_f64());
        self.at = Some(now);
        self.left = (self.left + passed * Self::PER_SECOND).min(Self::BURST);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// A machine as an operator registers or changes it. What is not given stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineSpec {
    /// Identities to have; more than one is the operator's word that they are one machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub idents: Vec<Ident>,
    /// Its name; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its groups, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Box<str>>>,
    /// The loader its firmware is given, where it fits; empty for what everybody gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loader: Option<String>,
    /// What is said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<MachineState>,
}

impl Book {
    /// Every machine on record.
    pub fn machines(&self) -> impl Iterator<Item = &Arc<Machine>> {
        self.machines.values()
    }

    /// One machine.
    pub fn machine(&self, id: MachineId) -> Option<&Arc<Machine>> {
        self.machines.get(&id)
    }

    /// The machine that an identity belongs to.
    pub fn machine_with(&self, ident: &Ident) -> Option<&Arc<Machine>> {
        self.by_ident.get(ident).and_then(|id| self.machines.get(id))
    }

    /// The machines of this name. Since names are given once there is at most one, but for books of before.
    pub fn machines_called<'b>(&'b self, name: &str) -> impl Iterator<Item = &'b Arc<Machine>> + use<'b> {
        let name = name.to_owned();
        self.machines.values().filter(move |machine| machine.name.as_deref() == Some(name.as_str()))
    }

    /// Registers a machine, or one that was seen already and has one of these identities.
    ///
    /// # Errors
    ///
    /// [`Refusal::SharedIdent`], [`Refusal::IdentTaken`] when the identities belong to two machines, [`Refusal::NameTaken`],
    /// [`Refusal::TooManyMachines`], [`Refusal::NoMachine`] without any identity.
    pub fn register(&mut self, spec: MachineSpec, by: &str, at: Moment) -> Result<Arc<Machine>, Refusal> {
        let known = spec.idents.iter().find_map(|ident| self.by_ident.get(ident)).copied();
        let id = match known {
            Some(id) => id,
            None if spec.idents.is_empty() => {
                return Err(Refusal::NoMachine { named: "without an identity".into() });
            }
            None if self.machines.len() >= MACHINES_MAX && !self.make_machines_room() => {
                return Err(Refusal::TooManyMachines);
            }
            None => {
                if let Some(ident) = spec.idents.iter().find(|ident| !ident.is_identifying()) {
                    return Err(Refusal::SharedIdent { ident: ident.clone() });
                }
                self.make_machine(Vec::new(), at.now)
            }
        };
        self.set_machine(id, None, spec, by, at)
    }

    /// Changes what is given of a machine.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoMachine`], [`Refusal::Stale`], [`Refusal::SharedIdent`], [`Refusal::IdentTaken`],
    /// [`Refusal::NameTaken`].
    pub fn set_machine(
        &mut self,
        id: MachineId,
        expected: Expected,
        spec: MachineSpec,
        by: &str,
        at: Moment,
    ) -> Result<Arc<Machine>, Refusal> {
        let before = self.expect_machine(id, expected)?;
        let mut machine = Machine::clone(&before);
        for ident in &spec.idents {
            match self.by_ident.get(ident) {
                Some(other) if *other != id => {
                    return Err(Refusal::IdentTaken { ident: ident.clone(), machine: *other });
                }
                Some(_) => {}
                None if !ident.is_identifying() => return Err(Refusal::SharedIdent { ident: ident.clone() }),
                None => {
                    if let Some(part) = machine.parts.first_mut()
                        && !part.idents.contains(ident)
                    {
                        part.idents.push(ident.clone());
                    }
                }
            }
        }
        let own: Vec<Ident> = machine.idents().cloned().collect();
        machine.suggested.retain(|ident| !own.contains(ident));
        if let Some(name) = &spec.name {
            machine.name = Some(name.trim().to_owned()).filter(|name| !name.is_empty());
            let twin = machine
                .name
                .as_deref()
                .and_then(|name| self.machines_called(name).find(|other| other.id != id));
            if let Some(twin) = twin {
                return Err(Refusal::NameTaken { name: name.trim().to_owned(), machine: twin.id });
            }
        }
        if let Some(loader) = &spec.loader {
            machine.loader = Some(loader.trim().to_owned()).filter(|loader| !loader.is_empty());
        }
        if let Some(groups) = &spec.groups {
            for part in &mut machine.parts {
                part.groups.clone_from(groups);
            }
        }
        if let Some(state) = spec.state {
            machine.set_state(state);
        }
        machine.registered = true;
        machine.last_seen = machine.last_seen.max(machine.first_seen);
        self.put_changed(machine);
        self.say(
            true,
            id.to_string(),
            json!({ "by": by, "what": "machine-set", "machine": id, "before": &*before, "set": spec }),
        );
        let _ = at;
        self.expect_machine(id, None)
    }

    /// Forgets a machine. Jobs and claims stay, and deny what they denied.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoMachine`], [`Refusal::Stale`].
    pub fn forget_machine(&mut self, id: MachineId, expected: Expected, by: &str) -> Result<(), Refusal> {
        let machine = self.expect_machine(id, expected)?;
        self.change_machine(id, None);
        self.say(
            true,
            id.to_string(),
            json!({ "by": by, "what": "machine-forgotten", "machine": &*machine }),
        );
        Ok(())
    }

    /// Makes two machines one: `other` becomes a part of `id`.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoMachine`]; [`Refusal::CannotMerge`] while either has a live destructive job.
    pub fn merge(
        &mut self,
        id: MachineId,
        other: MachineId,
        why: &str,
        by: &str,
        at: Moment,
    ) -> Result<Arc<Machine>, Refusal> {
        let (one, two) = (self.expect_machine(id, None)?, self.expect_machine(other, None)?);
        if id == other {
            return Err(Refusal::CannotMerge { why: format!("{id} is one machine already") });
        }
        if let Some(job) = [&one, &two].into_iter().find_map(|machine| self.live_destructive(machine)) {
            return Err(Refusal::CannotMerge {
                why: format!(
                    "{job} may wipe a disk of one of them and is live; wait for it, or cancel it first"
                ),
            });
        }
        if one.parts.len() + two.parts.len() > PARTS_MAX {
            return Err(Refusal::CannotMerge { why: format!("it would have more than {PARTS_MAX} parts") });
        }
        let mut merged = Machine::clone(&one);
        merged.absorb(&two, Merged { at: at.now, by: by.to_owned(), why: why.to_owned() });
        self.change_machine(other, None);
        self.put_changed(merged);
        let body = json!({ "by": by, "what": "machines-merged", "machine": id, "before": &*one, "other": &*two, "why": why });
        self.say(true, id.to_string(), body);
        self.expect_machine(id, None)
    }

    /// Takes a merged part out again, as the machine it was.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoMachine`]; [`Refusal::CannotMerge`] when there is no such part beside the first, or while the
    /// machine has a live destructive job.
    pub fn split(
        &mut self,
        id: MachineId,
        part: MachineId,
        by: &str,
        at: Moment,
    ) -> Result<Arc<Machine>, Refusal> {
        let mut machine = Machine::clone(&*self.expect_machine(id, None)?);
        if let Some(job) = self.live_destructive(&machine) {
            return Err(Refusal::CannotMerge {
                why: format!("{job} may wipe a disk of {id} and is live; wait for it, or cancel it first"),
            });
        }
        let Some(other) = machine.split(part, at.now) else {
            return Err(Refusal::CannotMerge { why: format!("{id} has no part {part} that could leave it") });
        };
        self.put_changed(machine);
        self.change_machine(other.id, Some(Arc::new(other)));
        self.say(
            true,
            id.to_string(),
            json!({ "by": by, "what": "machine-split", "machine": id, "part": part }),
        );
        self.expect_machine(part, None)
    }

    /// One DHCP packet showed both.
    pub(super) fn seen_together(&mut self, mac: MacAddr, uuid: Uuid, at: Moment) {
        let (mac_ident, uuid_ident) = (Ident::Mac(mac), Ident::Uuid(uuid));
        if !mac_ident.is_identifying() || !uuid_ident.is_identifying() {
            return;
        }
        let (one, two) = (self.by_ident.get(&mac_ident).copied(), self.by_ident.get(&uuid_ident).copied());
        match (one, two) {
            (Some(one), Some(two)) if one == two => {}
            (None, None) => self.strangers.insert(mac, uuid, STRANGERS_MAX),
            (Some(one), Some(two)) => {
                let other_uuid = |id: MachineId, own: &Ident| {
                    self.machines.get(&id).is_some_and(|machine| {
                        machine.idents().any(|ident| matches!(ident, Ident::Uuid(_)) && ident != own)
                    })
                };
                // One address with two UUIDs is an adapter that went from one machine to another.
                if other_uuid(one, &uuid_ident) {
                    self.suggest(one, &[uuid_ident]);
                    return;
                }
                // Anybody can say so of any two machines: it costs as much as coming on record does.
                let parts = |id: MachineId| self.machines.get(&id).map_or(0, |machine| machine.parts.len());
                if parts(one) + parts(two) > PARTS_MAX || !self.bucket.take(at.now) {
                    return;
                }
                // A live destructive job refuses, and the next packet asks again.
                let _ = self.merge(two.min(one), two.max(one), &format!("{mac} showed {uuid}"), "dhcp", at);
            }
            (Some(id), None) => {
                let has_uuid = self
                    .machines
                    .get(&id)
                    .is_some_and(|machine| machine.idents().any(|ident| matches!(ident, Ident::Uuid(_))));
                if has_uuid {
                    self.suggest(id, &[uuid_ident]);
                } else {
                    self.join(id, uuid_ident, &format!("{mac} showed {uuid}"), at);
                }
            }
            (None, Some(id)) => self.join(id, mac_ident, &format!("{mac} showed {uuid}"), at),
        }
    }

    /// An identity nobody had becomes a part of a machine.
    fn join(&mut self, id: MachineId, ident: Ident, why: &str, at: Moment) {
        let Some(machine) = self.machines.get(&id).cloned() else { return };
        if machine.parts.len() >= PARTS_MAX || self.live_destructive(&machine).is_some() {
            return;
        }
        let part = MachineId(self.number(|numbers| &mut numbers.machine));
        let other = Machine::new(part, vec![ident.clone()], at.now);
        let mut merged = Machine::clone(&machine);
        merged.absorb(&other, Merged { at: at.now, by: "dhcp".into(), why: why.to_owned() });
        self.put_changed(merged);
        let body =
            json!({ "by": "dhcp", "what": "identity-joined", "machine": id, "identity": ident, "why": why });
        self.say(true, id.to_string(), body);
    }

    /// A machine asked for its script: what it presented is remembered, and the machine comes on record.
    pub(super) fn script_asked(&mut self, evidence: &Evidence, offer: &str, at: Moment) {
        let presented = evidence.presented();
        if let Some(boot) = evidence.boot {
            self.boots.insert(boot, presented.clone(), BOOTS_MAX);
        }
        let idents: Vec<Ident> = presented.into_iter().filter(Ident::is_identifying).collect();
        let known = idents.iter().find_map(|ident| self.by_ident.get(ident)).copied();
        let id = match known {
            Some(id) => id,
            None if idents.is_empty() || !self.bucket.take(at.now) => return,
            // Who was only seen makes room for who is.
            None if self.machines.len() >= MACHINES_MAX && !self.make_machines_room() => return,
            None => {
                let mut first = vec![idents[0].clone()];
                if let Ident::Mac(mac) = &first[0]
                    && let Some(uuid) = self.strangers.get(*mac).copied().map(Ident::Uuid)
                    && !self.by_ident.contains_key(&uuid)
                {
                    first.push(uuid);
                }
                let id = self.make_machine(first, at.now);
                if offer == "pending"
                    && let Some(machine) = self.machines.get(&id)
                {
                    let mut machine = Machine::clone(machine);
                    machine.set_state(MachineState::Pending);
                    self.put_changed(machine);
                }
                id
            }
        };
        self.suggest(id, &idents);
        // Whoever asks in its name says nothing of how it boots from its disk.
        if let Some(boot) = evidence.boot.filter(|_| evidence.elsewhere.is_none()) {
            self.weigh_local_boot(id, boot, offer == "local", at.now);
        }
        if let Some(machine) = self.machines.get(&id)
            && since(machine.last_seen, at.now) >= SEEN_EVERY
        {
            let mut machine = Machine::clone(machine);
            machine.last_seen = at.now;
            self.put_changed(machine);
        }
    }

    /// A machine that was sent to its disk and asks for a script again soon has not booted from it; one that stayed
    /// away has.
    fn weigh_local_boot(&mut self, id: MachineId, boot: BootId, sent: bool, now: SystemTime) {
        let before = self.local_boots.get(id).copied().filter(|before| before.boot != boot);
        let mut returns = 0;
        if let Some(before) = before.filter(|before| before.sent) {
            let away = since(before.at, now);
            let proven = self.machines.get(&id).is_some_and(|machine| machine.local_proven);
            if away > BACK_WITHIN {
                if !proven {
                    self.set_local_boot(id, None, true, "the machine stayed away");
                }
            } else if away < SAME_BOOT || !sent {
                // Or somebody sent it elsewhere meanwhile, and started it again for that.
                returns = before.returns;
            } else if proven && before.returns == 0 {
                // It worked before, so once may be a person at the power button.
                returns = 1;
            } else {
                self.set_local_boot(
                    id,
                    Some(before.way + 1),
                    false,
                    "the machine asked again within a minute",
                );
            }
        }
        if sent || before.is_some_and(|before| before.sent) {
            let way = self.machines.get(&id).map_or(0, |machine| machine.local_boot);
            self.local_boots.insert(
                id,
                LocalBoot { boot, at: now, sent, way, returns, reports: 0 },
                LOCAL_BOOTS_MAX,
            );
        }
    }

    /// The script of `boot` says that a way to the disk came back.
    pub(super) fn local_came_back(&mut self, boot: BootId, way: LocalStrategy, at: Moment) {
        let idents = self.boots.get(boot).cloned().unwrap_or_default();
        let Some(id) = idents.iter().find_map(|ident| self.by_ident.get(ident)).copied() else { return };
        let Some(place) = way.reported_place() else { return };
        let Some(mut sent) = self.local_boots.get(id).copied() else { return };
        // Only the boot that was sent to its disk last, and not without end: its list is no longer than that.
        if sent.boot != boot || !sent.sent || sent.reports >= LOCAL_WAYS {
            return;
        }
        sent.reports += 1;
        sent.way = (place + 1) % LOCAL_WAYS;
        sent.at = at.now;
        self.local_boots.insert(id, sent, LOCAL_BOOTS_MAX);
        self.set_local_boot(id, Some(sent.way), false, &format!("{} came back", way.word()));
    }

    fn set_local_boot(&mut self, id: MachineId, way: Option<u8>, proven: bool, why: &str) {
        let Some(machine) = self.machines.get(&id) else { return };
        let mut machine = Machine::clone(machine);
        let before = (machine.local_boot, machine.local_proven);
        machine.local_boot = way.map_or(machine.local_boot, |way| way % LOCAL_WAYS);
        machine.local_proven = proven;
        if before == (machine.local_boot, machine.local_proven) {
            return;
        }
        let body = json!({ "what": "local-boot", "machine": id, "way": machine.local_boot, "proven": proven,
            "reason": why });
        self.put_changed(machine);
        self.say(false, id.to_string(), body);
    }

    fn suggest(&mut self, id: MachineId, idents: &[Ident]) {
        let Some(machine) = self.machines.get(&id) else { return };
        let mut changed = Machine::clone(machine);
        let news = idents.iter().filter(|ident| changed.suggest(ident)).count();
        if news > 0 {
            self.put_changed(changed);
        }
    }

    /// Remembers that who has this identity had a job, also when that is forgotten: rules for unknown machines would else take a
    /// machine that was installed for a new one. False when there is no room for the record.
    pub(super) fn remember_job(&mut self, ident: &Ident, now: SystemTime) -> bool {
        let Some(machine) = self.machine_with(ident).cloned() else {
            if self.machines.len() >= MACHINES_MAX && !self.make_machines_room() {
                return false;
            }
            let id = MachineId(self.number(|numbers| &mut numbers.machine));
            let machine = Machine { had_job: true, ..Machine::new(id, vec![ident.clone()], now) };
            self.change_machine(id, Some(Arc::new(machine)));
            return true;
        };
        if !machine.had_job {
            self.put_changed(Machine { had_job: true, ..Machine::clone(&machine) });
        }
        true
    }

    /// Whoever has passed is unknown to no rule any more, whatever becomes of the job: it may expire, be cancelled or be
    /// given to the machine anew. What it showed besides counts too: it may come by another card. False where there is no room for
    /// that; what names no machine of its own is not remembered.
    pub(super) fn remember_passed(&mut self, idents: &[Ident], now: SystemTime) -> bool {
        let idents: Vec<&Ident> = idents.iter().filter(|ident| ident.is_identifying()).collect();
        let known: BTreeSet<MachineId> =
            idents.iter().filter_map(|ident| self.by_ident.get(*ident)).copied().collect();
        known.iter().for_each(|id| self.note_passed(*id, &idents));
        let own = idents.iter().find(|ident| matches!(ident, Ident::Uuid(_) | Ident::Serial(_)));
        let Some(own) = own.or(idents.first()) else { return true };
        if self.by_ident.contains_key(*own) || self.passed_as.contains_key(*own) {
            return true;
        }
        // On no record, or the one that there is has no room for it: an adapter that many machines came by.
        let is_remembered = self.remember_job(own, now);
        if let Some(id) = self.by_ident.get(*own).copied() {
            self.note_passed(id, &idents);
        }
        is_remembered
    }

    fn note_passed(&mut self, id: MachineId, idents: &[&Ident]) {
        let Some(machine) = self.machines.get(&id) else { return };
        let mut machine = Machine::clone(machine);
        let news = idents.iter().filter(|ident| machine.passes_as(ident)).count() > 0;
        if !std::mem::replace(&mut machine.had_job, true) || news {
            self.put_changed(machine);
        }
    }

    /// Forgets the oldest machine that was only seen; false if there is none.
    fn make_machines_room(&mut self) -> bool {
        let oldest = self.only_seen.first().copied();
        oldest.into_iter().for_each(|id| self.change_machine(id, None));
        oldest.is_some()
    }

    fn make_machine(&mut self, idents: Vec<Ident>, now: SystemTime) -> MachineId {
        let id = MachineId(self.number(|numbers| &mut numbers.machine));
        self.change_machine(id, Some(Arc::new(Machine::new(id, idents, now))));
        id
    }

    pub(super) fn put_changed(&mut self, mut machine: Machine) {
        machine.generation += 1;
        self.change_machine(machine.id, Some(Arc::new(machine)));
    }

    fn expect_machine(&self, id: MachineId, expected: Expected) -> Result<Arc<Machine>, Refusal> {
        let machine =
            self.machines.get(&id).cloned().ok_or_else(|| Refusal::NoMachine { named: id.to_string() })?;
        match expected {
            Some(generation) if generation != machine.generation => {
                Err(Refusal::Stale { found: machine.generation })
            }
            _ => Ok(machine),
        }
    }

    /// A live job that may wipe a disk of this machine.
    fn live_destructive(&self, machine: &Machine) -> Option<super::JobId> {
        machine.idents().find_map(|ident| {
            let exact = self.exact_jobs(ident).find(|job| job.destructive && job.is_live()).map(|job| job.id);
            exact.or_else(|| {
                let claims = self.claims_of.get(ident).into_iter().flatten();
                claims
                    .filter_map(|id| self.claims.get(id))
                    .filter(|claim| claim.stage.is_live(false) && claim.boot.is_some())
                    .filter_map(|claim| self.jobs.get(&claim.job))
                    .find(|job| job.destructive)
                    .map(|job| job.id)
            })
        })
    }
}

/// Parts of one machine: cards and adapters it has shown.
const PARTS_MAX: usize = 32;
