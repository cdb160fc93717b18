//! Which boots someone means, and what is to be said of them: from what is in memory and what the store keeps, or from the
//! store alone when no server runs.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::history::{Context, History, Named, Timeline, Verdict, merge, never_seen, read_record};
use crate::jobs::book::Book;
use crate::jobs::job::{Job, JobId};
use crate::jobs::machine::{Ident, Machine};
use crate::store::{Kind, Store, StoreError};
use crate::wire::{MacAddr, Uuid};

/// Machines looked at for one question: a rule's job can have thousands.
const MACHINES_MAX: usize = 100;
/// Bytes of stored machines a running server looks through for a UUID: boots at their point of no return wait for the store
/// meanwhile.
const SEARCH_MAX: usize = 8 << 20;

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The machines, as they were understood.
    pub machines: Vec<Named>,
    /// The boots, newest first, with what is to be said of them.
    pub boots: Vec<(Timeline, Verdict)>,
    /// Said when there is no boot.
    pub never_seen: Option<Verdict>,
}

/// Nobody is called so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nobody(String);

impl std::fmt::Display for Nobody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.parse::<JobId>() {
            Ok(job) if self.0.starts_with(['j', 'J']) => write!(f, "there is no job {job}"),
            _ => {
                write!(
                    f,
                    "{:?} is no MAC address, UUID, job number (j17) or name of a machine on record",
                    self.0
                )
            }
        }
    }
}

impl std::error::Error for Nobody {}

/// The last `last` boots of whom `text` names: a MAC address in any form, a UUID, a job, or a machine's name.
///
/// # Errors
/// [`Nobody`].
pub fn find(
    text: &str,
    last: usize,
    history: Option<&History>,
    book: &Book,
    store: &mut dyn Store,
    now: SystemTime,
) -> Result<Found, Nobody> {
    let text = text.trim();
    let job = text.starts_with(['j', 'J']).then(|| text.parse::<JobId>().ok()).flatten();
    let job = job.and_then(|id| book.job(id));
    let machines = match (text.parse::<Named>(), job) {
        (Ok(named), _) => of_machine(named, book),
        (Err(_), Some(job)) => of_job(job, book),
        (Err(_), None) => {
            let is_it = |machine: &Machine| {
                machine.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(text))
            };
            let mut named: Vec<Named> =
                book.machines().filter(|machine| is_it(machine)).flat_map(|machine| names(machine)).collect();
            if named.is_empty() {
                return Err(Nobody(text.chars().take(80).collect()));
            }
            named.truncate(MACHINES_MAX);
            named
        }
    };
    let mut boots: Vec<Timeline> = Vec::new();
    for named in &machines {
        boots.extend(boots_of(*named, history, store));
    }
    if let Ok(Named::Uuid(uuid)) = text.parse::<Named>() {
        // Boots are kept by address, and their UUID may have been told on the way only.
        let mut macs: Vec<MacAddr> = boots.iter().filter_map(|boot| boot.mac).collect();
        if macs.is_empty() {
            macs = stored_with(uuid, if history.is_some() { SEARCH_MAX } else { usize::MAX }, store);
        }
        macs.sort_unstable();
        macs.dedup();
        let is_new = |mac: &MacAddr| !machines.contains(&Named::Mac(*mac));
        for mac in macs.into_iter().filter(is_new).take(MACHINES_MAX) {
            let of_it = boots_of(Named::Mac(mac), history, store).into_iter();
            boots.extend(of_it.filter(|boot| boot.uuid == Some(uuid)));
        }
    }
    if let Some(job) = job
        && boots.iter().any(|boot| boot.job == Some(job.id))
    {
        boots.retain(|boot| boot.job == Some(job.id));
    }
    // A machine named by address and by UUID has its boots under both.
    boots.sort_by_key(|boot| std::cmp::Reverse((boot.until, boot.mac)));
    boots.dedup_by(|a, b| a.mac == b.mac && a.started == b.started);
    boots.truncate(last);
    let boots: Vec<(Timeline, Verdict)> = boots
        .into_iter()
        .map(|boot| {
            let job = boot.job.and_then(|id| book.job(id)).map(|job| &**job);
            let verdict = boot.verdict(&Context { now, job });
            (boot, verdict)
        })
        .collect();
    let waiting = job.or_else(|| waiting_for(&machines, book));
    let never_seen = boots.is_empty().then(|| never_seen(waiting.map(|job| &**job), now));
    Ok(Found { machines, boots, never_seen })
}

/// The boots that are kept under this name, oldest first.
fn boots_of(named: Named, history: Option<&History>, store: &mut dyn Store) -> Vec<Timeline> {
    let key = match named {
        Named::Mac(mac) => mac.to_string(),
        Named::Uuid(uuid) => uuid.to_string(),
    };
    let stored = store.get(Kind::Boot, &key).ok().flatten();
    let stored = stored.map(|record| read_record(&record.body)).unwrap_or_default();
    let fresh = history.map(|history| history.boots(named)).unwrap_or_default();
    merge(stored, fresh)
}

/// The addresses of stored machines, of so many bytes that are looked at, that told this UUID in a boot.
fn stored_with(uuid: Uuid, bytes_max: usize, store: &mut dyn Store) -> Vec<MacAddr> {
    let (mut found, mut left) = (Vec::new(), bytes_max);
    let text = uuid.to_string();
    let each = store.each(Kind::Boot, &mut |_, body| {
        let enough = || StoreError::Io { path: PathBuf::new(), detail: "enough was looked at".into() };
        left = left.checked_sub(body.len()).ok_or_else(enough)?;
        // Most records are of other machines, and are not read for that.
        if body.contains(&text) {
            let boots = read_record(body).into_iter().filter(|boot| boot.uuid == Some(uuid));
            found.extend(boots.filter_map(|boot| boot.mac));
        }
        Ok(())
    });
    if let Err(error) = each {
        tracing::debug!(%error, "stored boots");
    }
    found
}

fn names(machine: &Machine) -> impl Iterator<Item = Named> {
    machine.idents().filter_map(|ident| match ident {
        Ident::Mac(mac) => Some(Named::Mac(*mac)),
        Ident::Uuid(uuid) => Some(Named::Uuid(*uuid)),
        Ident::Serial(_) | Ident::Asset(_) => None,
    })
}

/// What a machine is called by: for a UUID the addresses that are on record with it too, since boots are kept by address.
fn of_machine(named: Named, book: &Book) -> Vec<Named> {
    let Named::Uuid(uuid) = named else { return vec![named] };
    let known = book.machine_with(&Ident::Uuid(uuid));
    let others = known.into_iter().flat_map(|machine| names(machine)).filter(|other| *other != named);
    std::iter::once(named).chain(others).take(MACHINES_MAX).collect()
}

/// The machines that a job is for, or that took it.
fn of_job(job: &Job, book: &Book) -> Vec<Named> {
    let exact = Ident::of_selector(&job.selector);
    let machine = exact.as_ref().and_then(|ident| book.machine_with(ident));
    let claims = book.claims(job.id).flat_map(|claim| &claim.idents);
    let idents = exact.iter().chain(claims).filter_map(|ident| match ident {
        Ident::Mac(mac) => Some(Named::Mac(*mac)),
        Ident::Uuid(uuid) => Some(Named::Uuid(*uuid)),
        Ident::Serial(_) | Ident::Asset(_) => None,
    });
    let mut all: Vec<Named> = Vec::new();
    for named in idents.chain(machine.into_iter().flat_map(|machine| names(machine))) {
        if !all.contains(&named) && all.len() < MACHINES_MAX {
            all.push(named);
        }
    }
    all
}

fn waiting_for<'b>(machines: &[Named], book: &'b Book) -> Option<&'b std::sync::Arc<Job>> {
    let is_for = |job: &Job| {
        Ident::of_selector(&job.selector).is_some_and(|ident| {
            machines.iter().any(|named| match (named, &ident) {
                (Named::Mac(mac), Ident::Mac(wanted)) => mac == wanted,
                (Named::Uuid(uuid), Ident::Uuid(wanted)) => uuid == wanted,
                _ => false,
            })
        })
    };
    book.jobs().find(|job| job.is_live() && is_for(job))
}

impl Found {
    /// As JSON: the timelines, each with its verdict and the text that people read.
    pub fn document(&self) -> Value {
        let boots: Vec<Value> = self
            .boots
            .iter()
            .map(|(boot, verdict)| {
                let mut value = json!(boot);
                value["verdict"] = json!(verdict);
                value["text"] = json!(format!("{boot}{verdict}"));
                value
            })
            .collect();
        let machines: Vec<String> = self
            .machines
            .iter()
            .map(|named| match named {
                Named::Mac(mac) => mac.to_string(),
                Named::Uuid(uuid) => uuid.to_string(),
            })
            .collect();
        json!({ "machines": machines, "boots": boots, "never_seen": self.never_seen })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::record;
    use crate::store::{Guard, MemoryStore, Record, Transition, Write};

    #[test]
    fn a_uuid_that_was_told_on_the_way_finds_its_boots_after_a_restart() {
        let uuid: Uuid = "4c4c4544-0042-3510-8052-b4c04f4d3231".parse().unwrap();
        let mut store = MemoryStore::default();
        let another: Uuid = "4c4c4544-0042-3510-8052-b4c04f4d3233".parse().unwrap();
        let boots = [
            ("52:54:00:00:00:01", vec![None]),
            ("52:54:00:00:00:02", vec![Some(uuid), Some(another), Some(uuid)]),
        ];
        for (mac, uuids) in boots {
            let boot = |(hours, uuid): (u64, Option<Uuid>)| {
                let at = SystemTime::UNIX_EPOCH + Duration::from_secs(3600 * hours);
                Timeline { mac: Some(mac.parse().unwrap()), uuid, ..Timeline::begin(at) }
            };
            let body = record(&(1..).zip(uuids).map(boot).collect::<Vec<_>>());
            let record = Record { kind: Kind::Boot, key: mac.into(), generation: 1, body };
            let writes = vec![Write::Put { record, guard: Guard::Any }];
            store.commit(&[Transition { writes }]).unwrap()[0].as_ref().unwrap();
        }
        let mut find =
            |text: &str| find(text, 5, None, &Book::new(), &mut store, SystemTime::UNIX_EPOCH).unwrap().boots;
        let found = find(&uuid.to_string());
        assert_eq!(found.len(), 2, "and not that of what had the address in between");
        assert_eq!(found[0].0.mac, Some("52:54:00:00:00:02".parse().unwrap()));
        assert!(find("4c4c4544-0042-3510-8052-b4c04f4d3232").is_empty());
    }
}
