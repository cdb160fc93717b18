//! TFTP for machines whose job boots an image's own program, without iPXE: what their names mean, and where their point
//! of no return lies.
//!
//! Windows' boot manager asks for `\Boot\BCD` and means the folder its program came from, which only this server knows.
//! The machine is the one that DHCP last saw at the address, which is a hint: it finds names among files that anybody
//! may have, and it takes away.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::core::Turn;
use super::shared::Shared;
use super::sightings::Sighting;
use crate::files::catalog::{Catalog, NotServed, TftpTarget};
use crate::files::gss::file_of_native;
use crate::files::loaders::family_of_name;
use crate::files::names;
use crate::files::served::Served;
use crate::jobs::Identity;
use crate::jobs::book::AtTheLine;
use crate::jobs::gss::{self, Native};
use crate::jobs::image::Images;
use crate::jobs::job::Job;
use crate::jobs::machine::Ident;
use crate::jobs::script::{Barrier, Unknown, barrier};
use crate::jobs::table::Decision;
use crate::wire::MacAddr;
use crate::wire::arch::Family;

/// Whom a sighting is of.
pub(super) fn identity_of(seen: Sighting, address: Ipv4Addr) -> Identity {
    let Sighting { mac, arch, uuid, circuit, .. } = seen;
    let (mac, arch, address) = (Some(mac), Some(arch), Some(address));
    Identity { mac, uuid, arch, address, circuit, ..Identity::default() }
}

/// What a TFTP name means for the machine at `client`.
///
/// # Errors
/// [`NotServed`]; all of it is "file not found" to the client.
pub(super) fn target(
    shared: &Shared,
    catalog: &Catalog,
    name: &[u8],
    client: Ipv4Addr,
) -> Result<TftpTarget, NotServed> {
    let seen = shared.sightings.at(client);
    let found = catalog.tftp(name, seen.map(|seen| seen.arch));
    let Some(seen) = seen.filter(|_| matches!(found, Ok(TftpTarget::Loader(_)) | Err(NotServed::NotFound)))
    else {
        return found;
    };
    let view = shared.keeper.table().view();
    // A boot that has passed goes on with its own files; what it is given to start with is for live jobs.
    let (job, is_live) = match view.decide(&identity_of(seen, client)) {
        Decision::Job(job) => (job, true),
        Decision::Done(job) => (job, false),
        Decision::Rejected | Decision::NoJob => return found,
    };
    let program = Family::of(seen.arch).and_then(|family| gss::program_of(job, catalog, family));
    let Some((image, native)) = program else { return found };
    let Ok(plain) = names::normalise_bytes(name) else { return found };
    // The loader this machine should get is its program, whatever name an old DHCP scope has for it.
    let is_loader = family_of_name(&plain).is_some() && !is_meant_to_the_letter(catalog, &plain);
    let program = || catalog.http_image(&format!("{}/{}", image.name, native.program)).ok();
    let file = match &found {
        _ if is_loader && is_live => program(),
        Ok(_) => None,
        Err(_) if is_loader => None,
        Err(_) => file_of_native(catalog, image, native, &plain),
    };
    file.map_or(found, |served| Ok(TftpTarget::File(served)))
}

/// A loader in a folder of the loader folders: one architecture's or one signed chain's.
fn is_meant_to_the_letter(catalog: &Catalog, name: &str) -> bool {
    let below = name.split_once('/').filter(|(step, _)| step.eq_ignore_ascii_case("loaders"));
    let name = below.map_or(name, |(_, rest)| rest);
    name.contains('/') && catalog.loader(name).is_ok()
}

/// Whether the machine last seen at an address is one that gets nothing here: an operator refuses it, or the policy does.
pub(super) fn is_denied(shared: &Shared, client: Ipv4Addr) -> bool {
    let Some(seen) = shared.sightings.at(client) else { return false };
    let policy = shared.policy.load();
    policy.excludes(seen.mac)
        || match shared.keeper.table().view().decide(&identity_of(seen, client)) {
            Decision::Rejected => true,
            Decision::NoJob => policy.unknown == Unknown::Silent,
            Decision::Job(_) | Decision::Done(_) => false,
        }
}

/// What the end of a file is to who asks for it by TFTP.
pub(super) enum End {
    /// The end of a file.
    Open,
    /// The point of no return of the machine that was seen at the address.
    Line(AtTheLine, Sighting),
    /// Not for this machine, and why.
    Shut(&'static str),
}

/// The end of a file of an image. The address is a hint, so it only takes away: it never gives a machine anything.
///
/// What ends a boot that wipes is given to a machine with a live job for it, and once more to the same boot. Where iPXE
/// is off that holds for everybody, since an old server's scope that names the program would wipe at every boot.
pub(super) fn end_of(served: &Served, client: Ipv4Addr, now: Instant, shared: &Shared) -> End {
    let catalog = shared.library.load();
    let Some(name) = served.image() else { return End::Open };
    let (Some(file), Some(image)) = (served.name.get(name.len() + 1..), catalog.image(name)) else {
        return End::Open;
    };
    let is_last = |native: &Native| native.last == file;
    let by_firmware = image.gss.as_ref().is_some_and(|gss| gss.native.iter().any(is_last));
    let wipes = image.destructive && (by_firmware || barrier(image) == Some(Barrier::File(file)));
    // Which program starts which of its WIMs can have been switched since the machine has its program.
    let is_payload = wipes || image.destructive && image.gss.is_some() && names::is_wim(file);
    let seen = shared.sightings.at(client);
    // Asked once: whatever it fetches, it is one step nearer to what it boots by.
    let boot = seen.map(|seen| ThisBoot { addr: client, seen });
    let has_passed = boot.is_some_and(|boot| shared.passed.goes_on(now, boot, name, is_payload));
    if image.destructive && image.unbootable.is_some() && !has_passed {
        // A program may have been given before, or by others: nobody knows which of the files is the last to it.
        return End::Shut("this image may wipe a disk, and cannot boot as it is now");
    }
    let starts_by_firmware =
        wipes && by_firmware || is_payload && image.gss.as_ref().is_some_and(|gss| !gss.native.is_empty());
    let Some(seen) = seen else {
        if starts_by_firmware {
            return End::Shut("this image may wipe a disk, and this machine's DHCP was not seen here");
        }
        return End::Open;
    };
    let view = shared.keeper.table().view();
    let decision = view.decide(&identity_of(seen, client));
    let names_it = |job: &Job| job.action.image() == Some(name);
    let its_own = |job: &Job| !job.always && names_it(job);
    let its_job = match decision {
        Decision::Job(job) | Decision::Done(job) => its_own(job),
        Decision::Rejected | Decision::NoJob => false,
    };
    if image.unbootable.is_some() && its_job && !has_passed {
        return End::Shut("this image cannot boot as it is now");
    }
    if image.destructive && decision.job().is_some_and(|job| names_it(job) && !job.may_wipe()) {
        return End::Shut("this image may wipe a disk now, and the machine's job does not allow for that");
    }
    let job = decision.job().filter(|job| its_own(job));
    let is_the_line = match Family::of(seen.arch).and_then(|family| image.native_for(family)) {
        Some(native) => native.last == file,
        None => barrier(image) == Some(Barrier::File(file)),
    };
    if let Some(job) = job.filter(|_| (is_the_line || is_payload) && !has_passed) {
        let at = AtTheLine {
            // No script began this boot, so it is counted here.
            boot: shared.next_boot(),
            job: job.id,
            image: name.to_owned(),
            what: format!("the last block of {file}"),
            idents: [Some(Ident::Mac(seen.mac)), seen.uuid.map(Ident::Uuid)].into_iter().flatten().collect(),
            once: None,
            changed: false,
        };
        return End::Line(at, seen);
    }
    let had_it = matches!(decision, Decision::Done(job) if job.action.image() == Some(name));
    let is_shut = if had_it { is_payload } else { starts_by_firmware };
    if !is_shut || has_passed {
        return End::Open;
    }
    End::Shut(match had_it {
        true => "this machine had its job",
        false => "this image may wipe a disk, and this machine has no job for it",
    })
}

/// A machine was given its script, which was its point of no return. Where that starts a program of the image, the program
/// fetches the rest from here, and is let through as the boot that had it.
pub(super) fn passed_by_script(image: &str, who: &Identity, peer: Ipv4Addr, turn: &Turn<'_>) {
    let catalog = turn.shared.library.load();
    let Some(found) = catalog.image(image).filter(|image| image.gss.is_some()) else { return };
    if let Some(seen) = turn.shared.sightings.at(peer).filter(|seen| who.mac == Some(seen.mac)) {
        turn.shared.passed.note(turn.now, ThisBoot { addr: peer, seen }, image, found.destructive, true);
    }
}

/// Machines past the point of no return of an image with programs of its own, by TFTP or by the script that starts one, each
/// with the exchange of the boot that passed: for a while the same boot may fetch that image's files, again or for the first
/// time, the next one may not. In memory alone: after a restart nobody may.
#[derive(Debug, Default)]
pub(super) struct Passed(Mutex<HashMap<MacAddr, PastTheLine>>);

/// A boot as DHCP shows it: the next one has spoken DHCP again, or has another address. An exchange is counted by address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ThisBoot {
    pub addr: Ipv4Addr,
    pub seen: Sighting,
}

#[derive(Debug)]
struct PastTheLine {
    boot: ThisBoot,
    image: String,
    wipes: bool,
    at: Instant,
    /// Its program has not asked for what it boots yet: each file before that is one step nearer, however slow the way.
    is_coming: bool,
}

const PASSED_MAX: usize = 16 * 1024;
/// A boot that lost its last file fetches it again at once. Later the exchange that nobody heard may be the next boot's.
const AGAIN_WITHIN: Duration = Duration::from_secs(120);

impl Passed {
    /// The machine's boot has passed.
    pub(super) fn note(&self, now: Instant, boot: ThisBoot, image: &str, wipes: bool, is_coming: bool) {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.len() >= PASSED_MAX {
            passed.retain(|_, past| now.saturating_duration_since(past.at) < AGAIN_WITHIN);
        }
        if wipes && passed.len() >= PASSED_MAX {
            // Without a place the others would only have their next job used up.
            passed.retain(|_, past| past.wipes);
        }
        // Who finds no room may not fetch again, which is the safe side.
        if passed.len() < PASSED_MAX || passed.contains_key(&boot.seen.mac) {
            let past = PastTheLine { boot, image: image.to_owned(), wipes, at: now, is_coming };
            passed.insert(boot.seen.mac, past);
        }
    }

    /// Whether this is that boot, and its image.
    pub(super) fn holds(&self, now: Instant, boot: ThisBoot, image: &str) -> bool {
        self.find(now, boot, image, |_| ())
    }

    /// The same, of a boot that asks for a file: until the one that it boots by, its time begins anew with each.
    fn goes_on(&self, now: Instant, boot: ThisBoot, image: &str, is_payload: bool) -> bool {
        self.find(now, boot, image, |past| {
            if past.is_coming {
                (past.at, past.is_coming) = (now, !is_payload);
            }
        })
    }

    fn find(&self, now: Instant, boot: ThisBoot, image: &str, then: impl FnOnce(&mut PastTheLine)) -> bool {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let past = passed.get_mut(&boot.seen.mac).filter(|past| {
            past.boot == boot && past.image == image && now.saturating_duration_since(past.at) < AGAIN_WITHIN
        });
        past.map(then).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Arch;

    #[test]
    fn the_boot_that_passed_is_known_by_its_exchange_and_for_a_while() {
        let (passed, now) = (Passed::default(), Instant::now());
        let of = |n: u32, exchange| {
            let [_, _, a, b] = n.to_be_bytes();
            let seen = Sighting {
                mac: MacAddr([2, 0, 0, 0, a, b]),
                arch: Arch::BIOS,
                uuid: None,
                circuit: None,
                exchange,
            };
            ThisBoot { addr: Ipv4Addr::new(10, 77, 0, 9), seen }
        };
        passed.note(now, of(1, 7), "a", true, false);
        assert!(passed.holds(now + Duration::from_secs(60), of(1, 7), "a"));
        assert!(!passed.holds(now, of(1, 8), "a"), "it spoke DHCP again");
        assert!(!passed.holds(now, of(1, 7), "b"), "another image");
        let moved = ThisBoot { addr: Ipv4Addr::new(10, 77, 0, 10), ..of(1, 7) };
        assert!(!passed.holds(now, moved, "a"), "at another address exchanges are counted anew");
        assert!(!passed.holds(now + AGAIN_WITHIN, of(1, 7), "a"), "its next boot may not have been heard");
        // However many pass at once: bounded, and those without room are not let through.
        const LAST: u32 = PASSED_MAX as u32 + 10;
        (2..=LAST).for_each(|n| passed.note(now, of(n, 1), "a", n != 3, false));
        assert!(passed.holds(now, of(2, 1), "a") && !passed.holds(now, of(LAST, 1), "a"));
        assert!(!passed.holds(now, of(3, 1), "a"), "what wipes nothing goes first");
        passed.note(now + AGAIN_WITHIN, of(LAST, 1), "a", false, false);
        assert!(passed.holds(now + AGAIN_WITHIN, of(LAST, 1), "a"));
    }

    #[test]
    fn a_boot_whose_script_passed_has_its_time_anew_with_each_file_until_the_one_it_boots_by() {
        let (passed, now) = (Passed::default(), Instant::now());
        let seen =
            Sighting { mac: MacAddr([2; 6]), arch: Arch::BIOS, uuid: None, circuit: None, exchange: 1 };
        let seen = ThisBoot { addr: Ipv4Addr::new(10, 77, 0, 9), seen };
        passed.note(now, seen, "a", true, true);
        let after = |seconds| now + Duration::from_secs(seconds);
        for seconds in [100, 200, 300] {
            assert!(passed.goes_on(after(seconds), seen, "a", false));
        }
        assert!(passed.goes_on(after(400), seen, "a", true), "what it boots by");
        assert!(passed.goes_on(after(500), seen, "a", true), "again, since it was lost");
        assert!(!passed.goes_on(after(521), seen, "a", true), "that is its next boot");
        passed.note(now, seen, "a", true, false);
        assert!(
            passed.goes_on(after(100), seen, "a", false) && !passed.goes_on(after(121), seen, "a", false)
        );
    }
}
