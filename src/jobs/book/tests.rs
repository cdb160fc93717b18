//! The book under orders and evidence, and the table it publishes.

use std::time::UNIX_EPOCH;

use super::*;
use crate::jobs::Identity;
use crate::jobs::evidence::Over;
use crate::jobs::image::{Access, BootFiles, Image, ImageKind};
use crate::jobs::table::Decision;
use crate::wire::{MacAddr, Uuid};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const UUID: &str = "4c4c4544-0042-3510-8052-b4c04f564231";

struct Library(Vec<Arc<Image>>);

impl Images for Library {
    fn image(&self, name: &str) -> Option<&Image> {
        self.0.iter().map(Arc::as_ref).find(|image| image.name == name)
    }

    fn list(&self) -> &[Arc<Image>] {
        &self.0
    }
}

fn library() -> Library {
    let fine = Image {
        name: "fine".into(),
        title: "fine".into(),
        kind: Some(ImageKind::Efi),
        cpu: None,
        platform: None,
        args: String::new(),
        index: None,
        destructive: false,
        access: Access::Open,
        boot: Some(BootFiles::Efi { program: "a.efi".into() }),
        unbootable: None,
        warnings: Vec::new(),
        files: Vec::new(),
    };
    let broken = Image { name: "broken".into(), unbootable: Some("no kernel in it".into()), ..fine.clone() };
    let empty = Image { name: "empty".into(), boot: None, ..fine.clone() };
    let wiping = Image { name: "wiping".into(), destructive: true, ..fine.clone() };
    Library([broken, empty, fine, wiping].map(Arc::new).into())
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn boot(name: &str) -> JobSpec {
    JobSpec::new(Action::Image(name.into()), Selector::Mac(MAC))
}

fn with_job(spec: JobSpec) -> (Book, JobId) {
    let book = Book::new();
    let id = book.add(spec, &library(), at(0)).unwrap().id;
    (book, id)
}

fn who() -> Identity {
    Identity { mac: Some(MAC), ..Identity::default() }
}

fn seen(boot: u64, seen: Seen) -> Evidence {
    Evidence { mac: Some(MAC), boot: Some(BootId(boot)), ..Evidence::new(at(0), seen) }
}

fn asked(boot: u64, id: JobId) -> Evidence {
    seen(boot, Seen::ScriptAsked { job: Some(id), offer: "image".into(), image: Some("fine".into()) })
}

fn started(boot: u64, id: JobId) -> Evidence {
    let file = "a.efi".into();
    seen(boot, Seen::FileStarted { job: Some(id), image: "fine".into(), file, over: Over::Http })
}

fn done(boot: u64, id: JobId, last: bool) -> Evidence {
    let (image, file) = ("fine".into(), "a.efi".into());
    seen(boot, Seen::FileDone { job: Some(id), image, file, bytes: 9, last, over: Over::Http })
}

fn stage(book: &Book, id: JobId) -> Stage {
    book.job(id).unwrap().stage
}

#[test]
fn every_refusal_says_what_to_do_and_changes_nothing() {
    let (book, id) = with_job(boot("fine"));
    let mac = |mac| JobSpec::new(Action::Local, Selector::Mac(mac));
    let add = |spec| book.add(spec, &library(), at(1)).unwrap_err();
    let refusals = [
        (add(boot("gone")), "unknown-image", "image list"),
        (add(boot("broken")), "image-cannot-boot", "no kernel in it"),
        (add(boot("empty")), "image-cannot-boot", "recognised"),
        (add(boot("wiping")), "image-is-destructive", "wipe interlock"),
        (add(boot("fine")), "machine-has-job", "--replace"),
        (add(mac(MacAddr([0; 6]))), "selector-not-identifying", "another"),
        (add(mac(MacAddr::BROADCAST)), "selector-not-identifying", "another"),
        (
            add(JobSpec::new(Action::Local, Selector::Uuid(Uuid([0; 16])))),
            "selector-not-identifying",
            "another",
        ),
        (
            add(JobSpec::new(Action::Local, Selector::Serial(" Default string ".into()))),
            "selector-not-identifying",
            "another",
        ),
        (
            add(JobSpec::new(Action::Local, Selector::Asset(String::new()))),
            "selector-not-identifying",
            "another",
        ),
        (add(JobSpec::new(Action::Local, Selector::Any)), "rule-needs-always", "--always"),
        (add(JobSpec { attempts: 0, ..boot("fine") }), "no-attempts", "--attempts"),
        (book.cancel(JobId(99), at(1)).unwrap_err(), "job-not-found", "job list"),
        (book.rearm(id, &library(), at(1)).unwrap_err(), "job-not-ended", "job cancel"),
    ];
    for (refusal, code, hint) in refusals {
        assert_eq!(refusal.code(), code, "{refusal}");
        let line = refusal.to_string();
        assert!(line.contains(hint) && !line.contains('\n'), "{line}");
    }
    book.cancel(id, at(2)).unwrap();
    let refusal = book.cancel(id, at(3)).unwrap_err();
    assert_eq!((refusal.code(), refusal), ("job-ended", Refusal::Ended { id, stage: Stage::Cancelled }));
    assert_eq!(book.list().len(), 1);
}

#[test]
fn replacing_cancels_the_job_before() {
    let (book, old) = with_job(boot("fine"));
    let new = book.add(JobSpec { replace: true, ..boot("fine") }, &library(), at(5)).unwrap();
    assert_eq!(stage(&book, old), Stage::Cancelled);
    assert_eq!(book.job(old).unwrap().reason, "replaced by j2");
    assert_eq!(book.load().decide(&who()).job().map(|job| job.id), Some(new.id));
}

#[test]
fn a_full_book_forgets_ended_jobs_and_then_refuses() {
    let book = Book::new();
    let mut last = None;
    for n in 0..JOBS_MAX as u64 {
        let [_, _, a, b, c, d, e, f] = (n + 1).to_be_bytes();
        let spec = JobSpec::new(Action::Local, Selector::Mac(MacAddr([a & 0xfe, b, c, d, e, f])));
        let mut pages = book.pages();
        let mut job = Job::clone(&template());
        job.id = JobId(n + 1);
        job.selector = spec.selector;
        pages.last = n + 1;
        pages.jobs.insert(job.id, Arc::new(job));
        last = Some(JobId(n + 1));
    }
    assert_eq!(book.add(boot("fine"), &library(), at(1)), Err(Refusal::TooMany));
    book.cancel(last.unwrap(), at(2)).unwrap();
    let added = book.add(boot("fine"), &library(), at(3)).unwrap();
    assert_eq!(book.job(last.unwrap()), None);
    assert_eq!(added.id, JobId(JOBS_MAX as u64 + 1));
    assert_eq!(book.list().len(), JOBS_MAX);
}

fn template() -> Job {
    let (book, id) = with_job(boot("fine"));
    book.job(id).unwrap()
}

#[test]
fn a_boot_moves_its_job_to_the_end_and_the_next_boot_is_local() {
    let (book, id) = with_job(boot("fine"));
    assert!(matches!(book.load().decide(&who()), Decision::Job(job) if job.id == id));
    assert_eq!(book.note(&asked(1, id), at(1)).unwrap().stage, Stage::Offered);
    assert_eq!(book.note(&started(1, id), at(2)).unwrap().stage, Stage::Fetching);
    assert_eq!(book.note(&done(1, id, false), at(3)).unwrap().stage, Stage::Fetching);
    let running = book.note(&done(1, id, true), at(4)).unwrap();
    assert_eq!((running.stage, running.boot, running.updated), (Stage::Running, Some(BootId(1)), at(4)));
    assert!(matches!(book.load().decide(&who()), Decision::Done(job) if job.id == id));
    // The same boot may fetch again, and another may ask: the job is over all the same.
    assert_eq!(book.note(&started(1, id), at(5)), None);
    assert_eq!(book.note(&asked(2, id), at(6)), None);
    assert_eq!(book.note(&seen(1, Seen::CalledBack { job: id }), at(7)).unwrap().stage, Stage::Confirmed);
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
}

#[test]
fn asking_for_the_script_never_consumes_a_job() {
    let (book, id) = with_job(JobSpec { attempts: 1, ..boot("fine") });
    for boot in 1..100 {
        assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
        book.note(&asked(boot, id), at(boot)).unwrap();
    }
    let job = book.job(id).unwrap();
    assert_eq!((job.stage, job.attempts_used, job.boot), (Stage::Offered, 0, Some(BootId(99))));
}

#[test]
fn boots_that_stop_while_fetching_use_up_the_attempts() {
    let (book, id) = with_job(JobSpec { attempts: 2, ..boot("fine") });
    book.note(&asked(1, id), at(1)).unwrap();
    book.note(&started(1, id), at(2)).unwrap();
    assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
    let again = book.note(&asked(2, id), at(3)).unwrap();
    assert_eq!((again.stage, again.attempts_used), (Stage::Offered, 1));
    book.note(&started(2, id), at(4)).unwrap();
    // A third boot would be one too many, so the table gives it a local boot before the book even knows.
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
    assert!(book.load().explain(&who())[0].contains("attempt 2 of 2"));
    let failed = book.note(&asked(3, id), at(5)).unwrap();
    assert_eq!((failed.stage, failed.attempts_used), (Stage::Failed, 2));
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
}

#[test]
fn silence_while_fetching_counts_an_attempt_and_progress_is_no_silence() {
    let (book, id) = with_job(boot("fine"));
    book.note(&started(1, id), at(0)).unwrap();
    let progress = Seen::FileProgress {
        job: Some(id),
        image: "fine".into(),
        file: "a.efi".into(),
        bytes: 4,
        over: Over::Tftp,
    };
    book.note(&seen(1, progress), at(800)).unwrap();
    assert!(book.expire(at(1_000)).is_empty());
    let changed = book.expire(at(800) + SILENCE);
    assert_eq!(changed.len(), 1);
    assert_eq!((stage(&book, id), changed[0].attempts_used), (Stage::Armed, 1));
    // It was only slow after all.
    assert_eq!(book.note(&done(1, id, true), at(2_000)).unwrap().stage, Stage::Running);
}

#[test]
fn a_job_expires_while_it_waits_and_not_while_it_fetches() {
    let spec = JobSpec { expires: Some(Duration::from_secs(60)), ..boot("fine") };
    let (book, id) = with_job(spec.clone());
    assert!(book.expire(at(59)).is_empty());
    assert_eq!(book.expire(at(60))[0].stage, Stage::Expired);
    assert_eq!(book.load().decide(&who()), Decision::NoJob);
    assert_eq!(stage(&book, id), Stage::Expired);
    let (book, id) = with_job(spec);
    book.note(&started(1, id), at(59)).unwrap();
    assert!(book.expire(at(61)).is_empty());
    assert_eq!(stage(&book, id), Stage::Fetching);
}

#[test]
fn a_clock_set_back_ends_nothing() {
    let (book, _) = with_job(JobSpec { expires: Some(Duration::from_secs(60)), ..boot("fine") });
    assert!(book.expire(UNIX_EPOCH).is_empty());
}

#[test]
fn an_always_job_starts_over_at_every_boot() {
    let (book, id) = with_job(JobSpec { always: true, attempts: 1, ..boot("fine") });
    for boot in 1..4 {
        assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
        assert_eq!(book.note(&asked(boot, id), at(boot * 10)).unwrap().stage, Stage::Offered);
        book.note(&started(boot, id), at(boot * 10)).unwrap();
        assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
        assert_eq!(book.note(&done(boot, id, true), at(boot * 10)).unwrap().stage, Stage::Running);
        assert_eq!(
            book.note(&started(boot, id), at(boot * 10)),
            None,
            "the same boot fetching again is no new boot"
        );
    }
}

#[test]
fn the_last_piece_leaving_is_the_point_of_no_return() {
    let (book, id) = with_job(boot("fine"));
    book.note(&started(1, id), at(1)).unwrap();
    let (image, file) = ("fine".to_owned(), "a.efi".to_owned());
    let left = Seen::LastPieceSent { job: Some(id), image, file, over: Over::Http };
    let moved = book.note(&seen(1, left), at(2)).unwrap();
    assert_eq!(moved.stage, Stage::Running);
    assert!(moved.reason.contains("may have started"), "{}", moved.reason);
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)), "whether it is acknowledged or not");
    let moved = book.note(&done(1, id, true), at(3)).unwrap();
    assert_eq!((moved.stage, moved.reason.as_str()), (Stage::Running, "a.efi, the last file, was delivered"));
}

#[test]
fn evidence_of_another_image_or_without_a_boot_moves_nothing() {
    let (book, id) = with_job(boot("fine"));
    let other = Seen::FileDone {
        job: Some(id),
        image: "other".into(),
        file: "a.efi".into(),
        bytes: 1,
        last: true,
        over: Over::Http,
    };
    assert_eq!(book.note(&seen(1, other), at(1)), None);
    assert_eq!(book.note(&Evidence { boot: None, ..done(1, id, true) }, at(1)), None);
    assert_eq!(book.note(&done(1, JobId(9), true), at(1)), None);
    assert_eq!(book.note(&seen(1, Seen::CalledBack { job: id }), at(1)), None);
    assert_eq!(stage(&book, id), Stage::Armed);
}

#[test]
fn a_re_armed_job_is_deaf_to_the_boot_that_ended_it() {
    let (book, id) = with_job(boot("fine"));
    book.note(&started(1, id), at(1)).unwrap();
    book.note(&done(1, id, true), at(2)).unwrap();
    let armed = book.rearm(id, &library(), at(3)).unwrap();
    assert_eq!((armed.stage, armed.attempts_used, armed.boot), (Stage::Armed, 0, None));
    assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
    assert_eq!(book.note(&done(1, id, true), at(4)), None);
    assert_eq!(book.note(&started(2, id), at(5)).unwrap().stage, Stage::Fetching);
}

#[test]
fn generations_only_grow() {
    let (book, id) = with_job(boot("fine"));
    let mut last = book.job(id).unwrap().generation;
    for evidence in [asked(1, id), started(1, id), done(1, id, true)] {
        let generation = book.note(&evidence, at(1)).unwrap().generation;
        assert!(generation > last);
        last = generation;
    }
}

#[test]
fn jobs_for_any_machine_stay_armed_whatever_their_machines_do() {
    let spec = JobSpec { always: true, ..JobSpec::new(Action::Image("fine".into()), Selector::Any) };
    let (book, id) = with_job(spec);
    assert_eq!(book.note(&asked(1, id), at(1)), None);
    assert_eq!(book.note(&done(1, id, true), at(1)), None);
    let stranger = Identity::default();
    assert!(matches!(book.load().decide(&stranger), Decision::Job(job) if job.stage == Stage::Armed));
}

#[test]
fn the_most_specific_job_wins_then_priority_then_age() {
    let book = Book::new();
    let uuid: Uuid = UUID.parse().unwrap();
    let any = |priority| JobSpec { always: true, priority, ..JobSpec::new(Action::Menu, Selector::Any) };
    let add = |spec| book.add(spec, &library(), at(0)).unwrap().id;
    let low = add(any(0));
    let high = add(any(100));
    let who = Identity {
        mac: Some(MAC),
        uuid: Some(uuid),
        serial: Some(" ABC123 ".into()),
        asset: Some("T-7".into()),
        ..Identity::default()
    };
    let winner = |who: &Identity| book.load().decide(who).job().map(|job| job.id);
    assert_eq!(winner(&who), Some(high));
    let serial = add(JobSpec::new(Action::Local, Selector::Serial("ABC123".into())));
    assert_eq!(winner(&who), Some(serial), "an exact job beats any rule's priority");
    let mac = add(JobSpec::new(Action::Local, Selector::Mac(MAC)));
    assert_eq!(winner(&who), Some(serial), "the older of equals");
    let by_uuid = add(JobSpec { priority: 5, ..JobSpec::new(Action::Local, Selector::Uuid(uuid)) });
    let asset = add(JobSpec::new(Action::Local, Selector::Asset("T-7".into())));
    assert_eq!(winner(&who), Some(by_uuid));
    let swapped = Identity { uuid: Some(Uuid::from_smbios(uuid.0)), ..Identity::default() };
    assert_eq!(winner(&swapped), Some(by_uuid), "firmware that fills option 97 in printing order");
    let said = book.load().explain(&who);
    assert_eq!(
        said,
        [
            format!("{by_uuid}: local for uuid {UUID}: chosen (by its UUID)"),
            format!("{serial}: local for serial ABC123: lost to {by_uuid}, which has priority 5 against 0"),
            format!("{mac}: local for mac {MAC}: lost to {by_uuid}, which has priority 5 against 0"),
            format!("{asset}: local for asset T-7: lost to {by_uuid}, which has priority 5 against 0"),
            format!("{high}: menu for any machine: lost to {by_uuid}, which names this machine exactly"),
            format!("{low}: menu for any machine: lost to {by_uuid}, which names this machine exactly"),
        ]
    );
    book.cancel(by_uuid, at(1)).unwrap();
    assert_eq!(winner(&who), Some(serial));
    assert_eq!(winner(&Identity::default()), Some(high));
}

#[test]
fn a_live_rule_comes_before_the_local_boot_after_a_job() {
    let (book, id) = with_job(boot("fine"));
    book.note(&done(1, id, true), at(1)).unwrap();
    let rule = JobSpec { always: true, ..JobSpec::new(Action::Menu, Selector::Any) };
    let rule = book.add(rule, &library(), at(2)).unwrap().id;
    assert_eq!(book.load().decide(&who()).job().map(|job| job.id), Some(rule));
    let said = book.load().explain(&who());
    assert_eq!(
        said[1],
        format!(
            "{id}: image fine for mac {MAC}: not in the contest (running: a.efi, the last file, was delivered)"
        )
    );
    book.cancel(rule, at(3)).unwrap();
    assert!(matches!(book.load().decide(&who()), Decision::Done(job) if job.id == id));
}

#[test]
fn shared_identities_are_never_looked_up() {
    let (book, _) = with_job(boot("fine"));
    let stranger = Identity { uuid: Some(Uuid([0xff; 16])), ..Identity::default() };
    assert_eq!(book.load().decide(&stranger), Decision::NoJob);
    assert!(book.load().explain(&stranger).is_empty());
}

#[test]
fn a_snapshot_in_hand_does_not_change() {
    let (book, id) = with_job(boot("fine"));
    let before = Arc::clone(&book.load());
    book.cancel(id, at(1)).unwrap();
    assert!(matches!(before.decide(&who()), Decision::Job(_)));
    assert_eq!(book.load().decide(&who()), Decision::NoJob);
}

/// A plain list against the published table, under a long run of mixed orders and evidence.
#[test]
fn the_table_agrees_with_a_plain_list() {
    let book = Book::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    let machine = |n: u64| MacAddr([2, 0, 0, 0, 0, n as u8]);
    for step in 0..4_000 {
        let id = JobId(next(step / 4 + 2));
        match next(8) {
            0 | 1 => {
                let selector = match next(6) {
                    0 => Selector::Any,
                    _ => Selector::Mac(machine(next(12))),
                };
                let spec = JobSpec {
                    always: selector == Selector::Any || next(4) == 0,
                    priority: next(3) as i32,
                    attempts: 1 + next(2) as u32,
                    replace: next(3) == 0,
                    expires: (next(4) == 0).then(|| Duration::from_secs(next(400))),
                    ..JobSpec::new(Action::Image("fine".into()), selector)
                };
                let _ = book.add(spec, &library(), at(step));
            }
            2 => _ = book.cancel(id, at(step)),
            3 => _ = book.rearm(id, &library(), at(step)),
            4 => _ = book.note(&asked(next(50), id), at(step)),
            5 => _ = book.note(&started(next(50), id), at(step)),
            6 => _ = book.note(&done(next(50), id, true), at(step)),
            _ => _ = book.expire(at(step)),
        }
        let jobs = book.list();
        for n in 0..12 {
            let mac = machine(n);
            let mine = |job: &&Job| job.selector == Selector::Mac(mac);
            let mut live: Vec<&Job> = jobs
                .iter()
                .filter(|job| job.is_live() && !job.is_on_last_attempt())
                .filter(|job| mine(job) || job.selector == Selector::Any)
                .collect();
            live.sort_by_key(|job| (!job.selector.is_exact(), -job.priority, job.created, job.id));
            let over = |job: &&Job| mine(job) && (job.is_done() || job.is_live() && job.is_on_last_attempt());
            let last = jobs.iter().filter(over).max_by_key(|job| (job.updated, job.id));
            let expected = match (live.first(), last) {
                (Some(job), _) => Decision::Job(job),
                (None, Some(job)) => Decision::Done(job),
                (None, None) => Decision::NoJob,
            };
            let who = Identity { mac: Some(mac), ..Identity::default() };
            assert_eq!(book.load().decide(&who), expected, "step {step}, {mac}");
        }
    }
    assert!(book.list().len() > 200);
}
