//! The book under orders and evidence, and the table it publishes.

use std::time::{Duration, UNIX_EPOCH};

use super::published::Published;
use super::*;
use crate::jobs::Identity;
use crate::jobs::evidence::{Over, Seen};
use crate::jobs::image::{Access, BootFiles, Image, ImageKind};
use crate::jobs::job::{Action, Confirm, Selector};
use crate::jobs::lifecycle::{Denial, Passage};
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
        group: None,
        key: None,
        loader: None,
        template: None,
        answers: Vec::new(),
        url_args: Vec::new(),
        gss: None,
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

fn with_job(spec: JobSpec) -> (Published, JobId) {
    let book = Published::new();
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
    seen(boot, Seen::FileDone { job: Some(id), image, file, bytes: 9, part: false, last, over: Over::Http })
}

fn stage(book: &Published, id: JobId) -> Stage {
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
        (add(JobSpec { always: true, ..boot("wiping") }), "destructive-needs-once", "--always"),
        (
            add(JobSpec::new(Action::Image("wiping".into()), Selector::Any)),
            "destructive-needs-allow-rule",
            "--allow-rule",
        ),
        (add(JobSpec { then: vec![Action::Menu], ..boot("fine") }), "not-a-sequence", "sequence"),
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
        (book.rearm(id, &library(), at(1), 1000).unwrap_err(), "job-not-ended", "job cancel"),
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
    let book = Published::new();
    let mut last = None;
    for n in 0..JOBS_MAX as u64 {
        let [_, _, a, b, c, d, e, f] = (n + 1).to_be_bytes();
        let spec = JobSpec::new(Action::Local, Selector::Mac(MacAddr([a & 0xfe, b, c, d, e, f])));
        last = Some(book.change(|book| book.add(spec, &library(), "test", moment(0)).unwrap().id));
    }
    assert_eq!(book.add(boot("fine"), &library(), at(1)), Err(Refusal::TooMany));
    book.cancel(last.unwrap(), at(2)).unwrap();
    let added = book.add(boot("fine"), &library(), at(3)).unwrap();
    assert_eq!(book.job(last.unwrap()), None);
    assert_eq!(added.id, JobId(JOBS_MAX as u64 + 1));
    assert_eq!(book.list().len(), JOBS_MAX);
}

#[test]
fn a_machine_whose_job_is_forgotten_stays_known() {
    let (book, id) = with_job(boot("fine"));
    book.note(&asked(1, id), at(1)).unwrap();
    assert_eq!(book.pass(&line(1, id, "fine"), at(2)), Passage::Now);
    let mut number = 0;
    let mut fill = |book: &Published| {
        number += 1u64;
        let [_, _, a, b, c, d, e, f] = (number << 8).to_be_bytes();
        let spec = JobSpec::new(Action::Local, Selector::Mac(MacAddr([a & 0xfe, b, c, d, e, f])));
        book.change(|book| book.add(spec, &library(), "test", moment(3)).unwrap());
    };
    while book.job(id).is_some() {
        fill(&book);
    }
    book.change(|book| book.cancel(JobId(2), None, "test", moment(4)).unwrap());
    let rule = book.add(for_unknown_machines("fine"), &library(), at(5)).unwrap().id;
    let decided = |who: &Identity| book.load().decide(who).job().map(|job| job.id);
    let never_seen = Identity { mac: "02:00:00:00:77:77".parse().ok(), ..Identity::default() };
    assert_eq!(decided(&never_seen), Some(rule));
    assert_eq!(decided(&who()), None, "it was installed once");
}

fn for_unknown_machines(image: &str) -> JobSpec {
    let rule = Selector::Rule(Box::new(crate::jobs::rule::Rule { any_unknown: true, ..Default::default() }));
    JobSpec { allow_rule: true, ..JobSpec::new(Action::Image(image.into()), rule) }
}

#[test]
fn a_machine_that_had_its_boot_is_unknown_to_no_rule_however_its_job_ended() {
    const NEW: &str = "4c4c4544-0042-3510-8052-b4c04f564299";
    let second = |book: &Published, seconds| {
        let id = book.add(for_unknown_machines("wiping"), &library(), at(seconds)).unwrap().id;
        let decided = |who: &Identity| book.load().decide(who).job().map(|job| job.id);
        assert_eq!(decided(&machine(7, Some(NEW))), Some(id), "a new one");
        [machine(1, Some(UUID)), machine(2, Some(UUID))].map(|who| decided(&who))
    };
    // A rule that was taken back, or has run out.
    for expires in [None, Some(Duration::from_secs(60))] {
        let (book, id) = with_job(JobSpec { expires, ..for_unknown_machines("wiping") });
        book.note(&presents(1, id, 1, Some(UUID)), at(1));
        assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
        match expires {
            None => drop(book.cancel(id, at(3)).unwrap()),
            Some(_) => drop(book.expire(at(61))),
        }
        assert!(!book.job(id).unwrap().is_live());
        assert_eq!(second(&book, 62), [None, None]);
    }
    // The same where nothing is left of the rule's claims, or of what came on record at the script: a record that is kept
    // says what it showed.
    let (book, id) = with_job(for_unknown_machines("wiping"));
    book.note(&presents(1, id, 1, Some(UUID)), at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
    book.change(|book| {
        book.claims(id)
            .map(|claim| claim.id)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|claim| assert!(book.forget_claim(claim, at(3))))
    });
    book.cancel(id, at(4)).unwrap();
    assert_eq!(book.book().claims(id).count(), 0);
    assert_eq!(book.book().machines().count(), 1, "no second record of it");
    assert_eq!(second(&book, 5), [None, None]);
    // A job that was given to it anew, and taken back then.
    let (book, id) =
        with_job(JobSpec::new(Action::Image("wiping".into()), Selector::Uuid(UUID.parse().unwrap())));
    book.note(&presents(1, id, 1, Some(UUID)), at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
    book.rearm(id, &library(), at(3), 2).unwrap();
    book.cancel(id, at(4)).unwrap();
    assert_eq!(second(&book, 5), [None, None]);
}

#[test]
fn a_later_image_of_a_sequence_has_its_time_from_the_boot_before_it_on() {
    let then = vec![Action::Image("fine".into())];
    let hour = Duration::from_secs(3600);
    let (book, id) = with_job(JobSpec { then, expires: Some(hour), ..boot("fine") });
    book.expire(at(3000));
    assert_eq!(book.pass(&line(1, id, "fine"), at(3000)), Passage::Now);
    // Asking for it does not give it more.
    book.note(&asked(1001, id), at(3500)).unwrap();
    book.expire(at(3600 + 60));
    assert_eq!(stage(&book, id), Stage::Offered, "its second image has an hour too");
    book.expire(at(3000 + 3600));
    assert_eq!(stage(&book, id), Stage::Expired);
}

#[test]
fn a_rule_for_unknown_machines_is_given_to_nobody_again() {
    let (book, id) = with_job(for_unknown_machines("wiping"));
    book.note(&presents(1, id, 1, Some(UUID)), at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
    let claim = book.book().claims(id).next().unwrap().id;
    let one = book.change(|book| book.rearm_claim(claim, "test", moment(3))).unwrap_err();
    let all = book.rearm(id, &library(), at(3), 3).unwrap_err();
    assert_eq!((&one, &all), (&Refusal::KnownNow { id }, &Refusal::KnownNow { id }));
    assert!(one.to_string().contains("names the machine"));
    // Who lost all attempts has had nothing, and gets it again.
    let (lost, other) = (presents(2, id, 2, Some("4c4c4544-0042-3510-8052-b4c04f564277")), 2..=4);
    for boot in other {
        book.note(&Evidence { boot: Some(BootId(boot)), ..lost.clone() }, at(boot));
        let (image, file) = ("wiping".into(), "a.efi".into());
        book.note(&seen(boot, Seen::FileStarted { job: Some(id), image, file, over: Over::Http }), at(boot));
    }
    let second = machine(2, Some("4c4c4544-0042-3510-8052-b4c04f564277"));
    assert!(matches!(book.load().decide(&second), Decision::Done(_)));
    let claim = book.book().claims(id).find(|claim| claim.passed.is_none()).unwrap().id;
    book.change(|book| book.rearm_claim(claim, "test", moment(5))).unwrap();
    assert!(matches!(book.load().decide(&second), Decision::Job(_)));
    // One that is over begins again, for machines that are unknown then.
    book.cancel(id, at(4)).unwrap();
    book.rearm(id, &library(), at(5), 3).unwrap();
    assert_eq!(book.load().decide(&machine(1, Some(UUID))), Decision::NoJob);
    let new = machine(7, Some("4c4c4544-0042-3510-8052-b4c04f564299"));
    assert!(matches!(book.load().decide(&new), Decision::Job(_)));
}

#[test]
fn what_passed_takes_no_registered_machine_its_name_and_an_adapter_hides_nobody() {
    let serial = || Ident::Serial("S-1".into());
    let (book, id) = with_job(JobSpec::new(Action::Image("wiping".into()), Selector::Serial("S-1".into())));
    let named = MachineSpec { idents: vec![serial()], name: Some("host1".into()), ..MachineSpec::default() };
    book.change(|book| book.register(named, "test", moment(0)).unwrap());
    book.note(&Evidence { serial: Some("S-1".into()), ..presents(1, id, 1, Some(UUID)) }, at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
    let who = Identity { serial: Some("S-1".into()), ..machine(1, Some(UUID)) };
    assert_eq!(book.load().standing(&who).and_then(|standing| standing.name.as_deref()), Some("host1"));
    // Machine after machine behind one adapter, as far as anybody knows an address like any other.
    let (book, _) = with_job(boot("fine"));
    let uuid = |n: u64| format!("4c4c4544-0042-3510-8052-b4c04f5642{n:02x}");
    for n in 1..=12 {
        let by_uuid = JobSpec::new(Action::Image("wiping".into()), Selector::Uuid(uuid(n).parse().unwrap()));
        let id = book.add(by_uuid, &library(), at(n)).unwrap().id;
        book.note(&presents(n, id, 9, Some(&uuid(n))), at(n));
        assert_eq!(book.pass(&line(n, id, "wiping"), at(n)), Passage::Now);
        book.rearm(id, &library(), at(n), n + 1).unwrap();
        book.cancel(id, at(n)).unwrap();
    }
    book.add(for_unknown_machines("wiping"), &library(), at(20)).unwrap();
    for n in 1..=12 {
        assert_eq!(book.load().decide(&machine(10 + n as u8, Some(&uuid(n)))), Decision::NoJob, "{n}");
    }
}

#[test]
fn a_full_record_makes_room_for_who_has_passed() {
    let (book, id) = with_job(for_unknown_machines("wiping"));
    let named = MachineSpec { idents: vec![Ident::Mac(MAC)], ..MachineSpec::default() };
    book.change(|book| book.register(named, "test", moment(0)).unwrap());
    book.change(|book| {
        for n in 1..MACHINES_MAX as u64 {
            let [_, _, _, a, b, c, d, e] = n.to_be_bytes();
            let machine =
                Machine::new(MachineId(n + 1), vec![Ident::Mac(MacAddr([6, a, b, c, d, e]))], at(0));
            book.change_machine(machine.id, Some(Arc::new(machine)));
        }
        book.numbers.machine = MACHINES_MAX as u64;
    });
    book.note(&presents(1, id, 255, Some(UUID)), at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
    assert_eq!(book.book().machines().count(), MACHINES_MAX);
    assert!(book.book().machine_with(&Ident::Mac(MAC)).is_some(), "who is registered stays");
    book.cancel(id, at(3)).unwrap();
    book.add(for_unknown_machines("wiping"), &library(), at(4)).unwrap();
    assert_eq!(book.load().decide(&machine(254, Some(UUID))), Decision::NoJob, "by another card");
}

fn moment(seconds: u64) -> Moment {
    Moment { now: at(seconds), next_boot: BootId(1000) }
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
        book.note(&asked(boot, id), at(boot * 600)).unwrap();
        book.expire(at(boot * 600));
    }
    let job = book.job(id).unwrap();
    assert_eq!((job.stage, job.attempts_used, job.boot), (Stage::Offered, 0, Some(BootId(99))));
}

#[test]
fn asking_in_a_machines_name_from_elsewhere_costs_it_nothing() {
    let (book, id) = with_job(JobSpec { attempts: 1, ..boot("fine") });
    let elsewhere = |boot| Evidence { elsewhere: Some([10, 0, 0, 7].into()), ..asked(boot, id) };
    book.note(&asked(1, id), at(1)).unwrap();
    for boot in 2..20 {
        assert!(book.note(&elsewhere(boot), at(boot)).is_none());
    }
    book.note(&started(1, id), at(30)).unwrap();
    for boot in 20..40 {
        assert!(book.note(&elsewhere(boot), at(10 + boot)).is_none());
    }
    let job = book.job(id).unwrap();
    assert_eq!((job.stage, job.attempts_used, job.boots, job.boot), (Stage::Fetching, 0, 1, Some(BootId(1))));
    assert_eq!(book.pass(&line(1, id, "fine"), at(60)), Passage::Now);
    // It may be the machine all the same, behind a proxy: its job goes on.
    let (book, id) = with_job(JobSpec { attempts: 1, ..boot("fine") });
    let there = |evidence| Evidence { elsewhere: Some([10, 0, 0, 7].into()), ..evidence };
    let failed = |boot| there(seen(boot, Seen::FailureCalled { job: id, reason: "no".into() }));
    for boot in 1..9 {
        let moved = book.note(&there(asked(boot, id)), at(boot));
        assert_eq!(moved.map(|job| job.stage), (boot == 1).then_some(Stage::Offered));
        for evidence in [failed(boot), there(started(boot, id)), there(done(boot, id, false)), failed(boot)] {
            assert!(book.note(&evidence, at(boot)).is_none(), "{evidence:?}");
        }
        assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
    }
    assert_eq!(book.pass(&line(8, id, "fine"), at(9)), Passage::Now);
    // What has had everything runs wherever it is.
    assert_eq!(book.note(&failed(8), at(10)).unwrap().stage, Stage::Failed);
}

#[test]
fn a_machine_that_boots_again_and_again_is_stopped_and_boots_locally() {
    let (book, id) = with_job(boot("fine"));
    for boot in 1..=u64::from(crate::jobs::lifecycle::LOOP_BOOTS) {
        assert!(matches!(book.load().decide(&who()), Decision::Job(_)), "boot {boot}");
        book.note(&asked(boot, id), at(boot)).unwrap();
    }
    // Even the one that is too many got a local boot, before the book knew of it.
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
    let failed = book.note(&asked(9, id), at(20)).unwrap();
    assert_eq!(failed.stage, Stage::Failed);
    assert!(failed.reason.contains("6 times within 30 minutes"), "{}", failed.reason);
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
}

#[test]
fn a_loop_window_that_is_over_counts_no_more() {
    let (book, id) = with_job(boot("fine"));
    for boot in 1..=5 {
        book.note(&asked(boot, id), at(boot)).unwrap();
    }
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
    book.expire(at(40 * 60));
    assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
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

fn line(boot: u64, job: JobId, image: &str) -> AtTheLine {
    let what = "the last of a.efi".into();
    AtTheLine {
        boot: BootId(boot),
        job,
        image: image.into(),
        what,
        idents: Vec::new(),
        once: None,
        changed: false,
    }
}

#[test]
fn one_boot_passes_the_point_of_no_return_and_may_come_back() {
    let (book, id) = with_job(boot("wiping"));
    book.note(&asked(1, id), at(1)).unwrap();
    book.note(&asked(2, id), at(2)).unwrap();
    assert_eq!(book.pass(&line(1, id, "fine"), at(3)), Passage::Denied(Denial::OtherImage));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(3)), Passage::Now);
    assert!(book.job(id).unwrap().reason.contains("may have started"));
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)), "whether it is acknowledged or not");
    assert_eq!(book.pass(&line(1, id, "wiping"), at(4)), Passage::Before);
    assert_eq!(book.pass(&line(2, id, "wiping"), at(4)), Passage::Denied(Denial::Spent));
    // Armed anew: neither of them counts any more, the next one does.
    book.rearm(id, &library(), at(5), 3).unwrap();
    for old in [1, 2] {
        assert_eq!(book.pass(&line(old, id, "wiping"), at(6)), Passage::Denied(Denial::Outdated));
    }
    assert_eq!(book.pass(&line(3, id, "wiping"), at(6)), Passage::Now);
    book.cancel(JobId(9), at(7)).unwrap_err();
}

#[test]
fn a_boot_whose_image_changed_under_it_starts_nothing_and_costs_no_job() {
    let changed = |boot, id| AtTheLine { changed: true, ..line(boot, id, "wiping") };
    let (book, id) = with_job(boot("wiping"));
    book.note(&asked(1, id), at(1)).unwrap();
    assert_eq!(book.pass(&changed(1, id), at(2)), Passage::Denied(Denial::ImageChanged));
    assert_eq!(stage(&book, id), Stage::Offered);
    assert_eq!(book.pass(&line(2, id, "wiping"), at(3)), Passage::Now);
    assert_eq!(book.pass(&changed(2, id), at(4)), Passage::Before, "it has had everything");
    let (book, id) = rule();
    book.note(&presents(1, id, 1, Some(UUID)), at(1));
    assert_eq!(book.pass(&changed(1, id), at(2)), Passage::Denied(Denial::ImageChanged));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(3)), Passage::Now);
    assert_eq!(book.pass(&changed(1, id), at(4)), Passage::Before);
}

#[test]
fn a_cancelled_job_lets_nobody_pass() {
    let (book, id) = with_job(boot("wiping"));
    book.note(&started(1, id), at(1));
    book.cancel(id, at(2)).unwrap();
    assert_eq!(book.pass(&line(1, id, "wiping"), at(3)), Passage::Denied(Denial::Over(Stage::Cancelled)));
    assert_eq!(book.pass(&line(1, JobId(7), "wiping"), at(3)), Passage::Denied(Denial::NoJob));
}

#[test]
fn a_sequence_gives_each_boot_its_image() {
    let then = vec![Action::Image("wiping".into())];
    let (book, id) = with_job(JobSpec { then, ..boot("fine") });
    let image = || book.load().decide(&who()).job().and_then(|job| job.action.image().map(str::to_owned));
    assert_eq!(image().as_deref(), Some("fine"));
    assert_eq!(book.pass(&line(1, id, "fine"), at(1)), Passage::Now);
    assert_eq!(image().as_deref(), Some("wiping"));
    assert_eq!(
        book.pass(&line(1, id, "fine"), at(2)),
        Passage::Before,
        "the same boot goes on with its own files"
    );
    assert_eq!(book.pass(&line(2, id, "fine"), at(2)), Passage::Denied(Denial::OtherImage));
    assert_eq!(
        book.pass(&line(2, id, "wiping"), at(2)),
        Passage::Denied(Denial::Outdated),
        "it began before"
    );
    assert_eq!(book.pass(&line(1000, id, "wiping"), at(3)), Passage::Now);
    assert_eq!(image(), None);
    assert_eq!(stage(&book, id), Stage::Running);
}

#[test]
fn a_sequence_that_wants_call_backs_waits_for_them() {
    let then = vec![Action::Image("fine".into())];
    let (book, id) = with_job(JobSpec { then, confirm: Confirm::Callback, ..boot("fine") });
    assert_eq!(book.pass(&line(1, id, "fine"), at(1)), Passage::Now);
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
    book.note(&seen(2, Seen::CalledBack { job: id }), at(2));
    assert_eq!(stage(&book, id), Stage::Running, "another boot's call-back is not heard");
    book.note(&seen(1, Seen::CalledBack { job: id }), at(3)).unwrap();
    let job = book.job(id).unwrap();
    assert_eq!((job.stage, job.step), (Stage::Armed, 1));
}

#[test]
fn a_boot_that_says_it_failed_ends_its_job_or_loses_an_attempt() {
    let (book, id) = with_job(boot("fine"));
    let failed = || Seen::FailureCalled { job: id, reason: "no disk".into() };
    book.note(&started(1, id), at(1)).unwrap();
    let job = book.note(&seen(1, failed()), at(2)).unwrap();
    assert_eq!((job.stage, job.attempts_used), (Stage::Armed, 1));
    assert_eq!(book.pass(&line(2, id, "fine"), at(3)), Passage::Now);
    assert_eq!(book.note(&seen(1, failed()), at(4)), None);
    let job = book.note(&seen(2, failed()), at(5)).unwrap();
    assert_eq!((job.stage, job.reason.as_str()), (Stage::Failed, "the booted system says: no disk"));
}

/// A script asked for by someone who presents all this.
fn presents(boot: u64, job: JobId, mac: u8, uuid: Option<&str>) -> Evidence {
    let seen = Seen::ScriptAsked { job: Some(job), offer: "image".into(), image: Some("wiping".into()) };
    Evidence {
        mac: Some(MacAddr([2, 0, 0, 0, 0, mac])),
        uuid: uuid.map(|text| text.parse().unwrap()),
        boot: Some(BootId(boot)),
        ..Evidence::new(at(0), seen)
    }
}

fn rule() -> (Published, JobId) {
    with_job(JobSpec { allow_rule: true, ..JobSpec::new(Action::Image("wiping".into()), Selector::Any) })
}

fn machine(mac: u8, uuid: Option<&str>) -> Identity {
    Identity {
        mac: Some(MacAddr([2, 0, 0, 0, 0, mac])),
        uuid: uuid.map(|text| text.parse().unwrap()),
        ..Identity::default()
    }
}

#[test]
fn a_rule_gives_every_machine_its_boot_once_whatever_it_shows_of_itself() {
    const OTHER: &str = "4c4c4544-0042-3510-8052-b4c04f564299";
    let (book, id) = rule();
    assert!(matches!(book.load().decide(&machine(1, Some(UUID))), Decision::Job(_)));
    assert_eq!(book.load().decide(&machine(1, None)), Decision::NoJob, "it could be anybody");
    book.note(&presents(1, id, 1, Some(UUID)), at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Before);
    // By its other card, in the other byte order, by either identity alone: it had the job.
    let uuid: Uuid = UUID.parse().unwrap();
    for who in [
        machine(1, Some(UUID)),
        machine(2, Some(UUID)),
        machine(1, Some(OTHER)),
        Identity { uuid: Some(Uuid::from_smbios(uuid.0)), ..machine(3, None) },
    ] {
        assert!(matches!(book.load().decide(&who), Decision::Done(_)), "{who:?}");
    }
    book.note(&presents(2, id, 2, Some(UUID)), at(3));
    assert_eq!(book.pass(&line(2, id, "wiping"), at(4)), Passage::Denied(Denial::Spent));
    // Another machine has its own.
    assert!(matches!(book.load().decide(&machine(9, Some(OTHER))), Decision::Job(_)));
    book.note(&presents(3, id, 9, Some(OTHER)), at(5));
    assert_eq!(book.pass(&line(3, id, "wiping"), at(6)), Passage::Now);
    book.rearm(id, &library(), at(7), 4).unwrap();
    assert!(matches!(book.load().decide(&machine(2, Some(UUID))), Decision::Job(_)));
    assert_eq!(book.pass(&line(2, id, "wiping"), at(8)), Passage::Denied(Denial::Outdated));
}

#[test]
fn a_rule_that_wiped_several_machines_wipes_them_again_only_when_that_is_said() {
    let (book, id) = rule();
    let uuid = |n: u64| format!("4c4c4544-0042-3510-8052-b4c04f5642{n:02x}");
    let install = |boot: u64| {
        book.note(&presents(boot, id, boot as u8, Some(&uuid(boot))), at(boot));
        book.pass(&line(boot, id, "wiping"), at(boot))
    };
    assert_eq!(install(1), Passage::Now);
    book.note(&presents(2, id, 2, Some(&uuid(2))), at(2));
    let again = |id, all, next| {
        let moment = Moment { now: at(next), next_boot: BootId(next) };
        book.change(|book| book.rearm(id, None, all, &library(), "test", moment).map(|job| job.id))
    };
    // One machine had it, another only asked: that is a retry.
    again(id, false, 3).unwrap();
    assert_eq!((install(3), install(4)), (Passage::Now, Passage::Now));
    let refusal = again(id, false, 5).unwrap_err();
    assert_eq!(refusal, Refusal::RearmsAll { id, machines: 2 });
    assert!(refusal.to_string().contains("--all"), "{refusal}");
    let third = machine(3, Some(&uuid(3)));
    assert!(matches!(book.load().decide(&third), Decision::Done(_)), "nothing was re-armed");
    again(id, true, 5).unwrap();
    assert!(matches!(book.load().decide(&third), Decision::Job(_)));
    // What wipes nothing is given again to however many without a word.
    let spec = JobSpec::new(Action::Image("fine".into()), Selector::Any);
    let harmless = book.add(JobSpec { priority: 9, ..spec }, &library(), at(6)).unwrap().id;
    for boot in [7, 8] {
        book.note(&presents(boot, harmless, boot as u8, None), at(boot));
        assert_eq!(book.pass(&line(boot, harmless, "fine"), at(boot)), Passage::Now);
    }
    again(harmless, false, 9).unwrap();
}

#[test]
fn a_rules_job_that_is_given_to_one_machine_again_is_given_to_its_next_boot() {
    let (book, id) = rule();
    let who = || machine(1, Some(UUID));
    book.note(&presents(1, id, 1, Some(UUID)), at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Now);
    let claim = book.book().claims(id).next().unwrap().id;
    let moment = Moment { now: at(3), next_boot: BootId(2) };
    book.change(|book| book.rearm_claim(claim, "test", moment)).unwrap();
    assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(4)), Passage::Denied(Denial::Outdated), "it tries again");
    assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
    book.note(&presents(2, id, 2, Some(UUID)), at(5));
    assert_eq!(book.pass(&line(2, id, "wiping"), at(6)), Passage::Now);
    assert!(matches!(book.load().decide(&who()), Decision::Done(_)));
    assert_eq!(book.book().claims(id).count(), 1);
}

#[test]
fn a_rule_that_wipes_wants_to_know_whom() {
    let (book, id) = rule();
    book.note(&presents(1, id, 1, None), at(1));
    assert_eq!(book.pass(&line(1, id, "wiping"), at(2)), Passage::Denied(Denial::NotIdentified));
    assert_eq!(book.pass(&line(7, id, "wiping"), at(2)), Passage::Denied(Denial::UnknownBoot));
    book.note(&presents(2, id, 1, Some("ffffffff-ffff-ffff-ffff-ffffffffffff")), at(3));
    assert_eq!(book.pass(&line(2, id, "wiping"), at(4)), Passage::Denied(Denial::NotIdentified));
}

#[test]
fn a_rule_that_expires_lets_whoever_is_under_way_go_on() {
    let (book, id) = with_job(JobSpec {
        allow_rule: true,
        expires: Some(Duration::from_secs(60)),
        ..JobSpec::new(Action::Image("wiping".into()), Selector::Any)
    });
    book.note(&presents(1, id, 1, Some(UUID)), at(1));
    let (image, file) = ("wiping".into(), "a.efi".into());
    book.note(&seen(1, Seen::FileStarted { job: Some(id), image, file, over: Over::Http }), at(2)).unwrap();
    book.note(&presents(2, id, 9, Some("4c4c4544-0042-3510-8052-b4c04f564299")), at(3));
    book.expire(at(60));
    assert_eq!(book.load().decide(&machine(1, Some(UUID))), Decision::NoJob);
    assert_eq!(book.pass(&line(1, id, "wiping"), at(61)), Passage::Now);
    assert_eq!(book.pass(&line(2, id, "wiping"), at(61)), Passage::Denied(Denial::Over(Stage::Expired)));
}

#[test]
fn attempts_of_a_rule_are_counted_by_machine() {
    let (book, id) = rule();
    for boot in 1..=3 {
        assert!(matches!(book.load().decide(&machine(1, Some(UUID))), Decision::Job(_)), "boot {boot}");
        book.note(&presents(boot, id, 1, Some(UUID)), at(boot));
        let (image, file) = ("wiping".into(), "a.efi".into());
        book.note(&seen(boot, Seen::FileStarted { job: Some(id), image, file, over: Over::Http }), at(boot));
    }
    assert!(matches!(book.load().decide(&machine(1, Some(UUID))), Decision::Done(_)));
    assert!(matches!(
        book.load().decide(&machine(5, Some("4c4c4544-0042-3510-8052-b4c04f564299"))),
        Decision::Job(_)
    ));
}

#[test]
fn one_dhcp_packet_with_both_makes_one_machine_and_a_script_request_only_suggests() {
    let (book, id) = with_job(boot("fine"));
    let uuid: Uuid = UUID.parse().unwrap();
    let dhcp = |mac: MacAddr, uuid: Uuid| {
        let seen = Seen::DhcpOffered {
            asker: crate::jobs::evidence::Asker::Firmware,
            arch: None,
            relay: None,
            file: "x".into(),
        };
        Evidence { mac: Some(mac), uuid: Some(uuid), ..Evidence::new(at(0), seen) }
    };
    book.note(&Evidence { uuid: Some(uuid), ..asked(1, id) }, at(1));
    let machines = |book: &Published| book.book().machines().cloned().collect::<Vec<_>>();
    let seen = machines(&book);
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].idents().count(), seen[0].suggested.as_slice()), (1, &[Ident::Uuid(uuid)][..]));
    book.note(&dhcp(MAC, uuid), at(2));
    let joined = machines(&book);
    assert_eq!((joined.len(), joined[0].idents().count()), (1, 2));
    // A second card of the same machine joins it; an address with another UUID is an adapter that moved.
    book.note(&dhcp(MacAddr([2, 0, 0, 0, 0, 2]), uuid), at(3));
    assert_eq!(machines(&book)[0].idents().count(), 3);
    book.note(&dhcp(MAC, "4c4c4544-0042-3510-8052-b4c04f564299".parse().unwrap()), at(4));
    assert_eq!(machines(&book)[0].idents().count(), 3);
    // By whatever of it a job names the machine, it has one.
    let by_uuid = |spec| JobSpec { selector: Selector::Uuid(uuid), ..spec };
    let refused = book.add(by_uuid(boot("fine")), &library(), at(4)).unwrap_err();
    assert!(matches!(refused, Refusal::HasJob { id: live, .. } if live == id), "{refused}");
    let other = book.add(by_uuid(JobSpec { replace: true, ..boot("fine") }), &library(), at(4)).unwrap().id;
    assert_eq!(stage(&book, id), Stage::Cancelled);
    assert!(
        matches!(book.rearm(id, &library(), at(4), 9), Err(Refusal::HasJob { id: live, .. }) if live == other)
    );
    // Also where another inventory has the UUID the other way round.
    let turned = JobSpec { selector: Selector::Uuid(Uuid::from_smbios(uuid.0)), ..boot("fine") };
    assert!(
        matches!(book.add(turned, &library(), at(4)), Err(Refusal::HasJob { id: live, .. }) if live == other)
    );
    book.cancel(other, at(4)).unwrap();
    let part = machines(&book)[0].parts[1].id;
    let whole = machines(&book)[0].id;
    book.change(|book| book.split(whole, part, "me", moment(5)).map(|_| ())).unwrap();
    assert_eq!(machines(&book).len(), 2);
    // Nothing merges while a job that wipes is live.
    let wiping = JobSpec { replace: true, ..boot("wiping") };
    book.add(wiping, &library(), at(6)).unwrap();
    book.note(&dhcp(MAC, uuid), at(7));
    assert_eq!(machines(&book).len(), 2);
    assert!(book.change(|book| book.merge(whole, part, "x", "me", moment(8)).is_err()));
}

#[test]
fn a_rejected_machine_is_refused_through_all_of_its_identities() {
    let (book, id) = with_job(boot("fine"));
    let uuid: Uuid = UUID.parse().unwrap();
    let spec = MachineSpec {
        idents: vec![Ident::Mac(MAC), Ident::Uuid(uuid)],
        state: Some(crate::jobs::machine::MachineState::Rejected),
        ..MachineSpec::default()
    };
    book.change(|book| book.register(spec, "me", moment(1)).map(|_| ())).unwrap();
    for who in [who(), Identity { uuid: Some(uuid), ..Identity::default() }] {
        assert_eq!(book.load().decide(&who), Decision::Rejected);
    }
    assert_eq!(book.pass(&line(1, id, "fine"), at(2)), Passage::Denied(Denial::Rejected));
}

#[test]
fn what_was_rolled_back_has_never_been() {
    let (book, id) = with_job(boot("fine"));
    let before = format!("{:?}", book.book().jobs().collect::<Vec<_>>());
    book.change(|book| {
        let mark = book.mark();
        book.cancel(id, None, "me", moment(1)).unwrap();
        let spec = JobSpec::new(Action::Local, Selector::Serial("S-1".into()));
        book.add(spec, &library(), "me", moment(1)).unwrap();
        book.note(&presents(5, id, 7, Some(UUID)), moment(1));
        assert!(book.changes(mark).len() >= 4);
        book.roll_back(mark);
        assert!(book.changes(mark).is_empty());
    });
    assert_eq!(format!("{:?}", book.book().jobs().collect::<Vec<_>>()), before);
    assert_eq!(book.book().machines().count(), 0);
    assert!(matches!(book.load().decide(&who()), Decision::Job(_)));
}

#[test]
fn evidence_of_another_image_or_without_a_boot_moves_nothing() {
    let (book, id) = with_job(boot("fine"));
    let other = Seen::FileDone {
        job: Some(id),
        image: "other".into(),
        file: "a.efi".into(),
        bytes: 1,
        part: false,
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
    let armed = book.rearm(id, &library(), at(3), 2).unwrap();
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
    let book = Published::new();
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
            "{id}: image fine for mac {MAC}: not in the contest (running: a.efi, the last file, was delivered: what it boots may have started)"
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

/// A plain list against the published table, under a long run of mixed orders and evidence.
#[test]
fn the_table_agrees_with_a_plain_list() {
    let book = Published::new();
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
            3 => _ = book.rearm(id, &library(), at(step), 0),
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

/// A script request of the machine that is sent to its disk.
fn sent_home(boot: u64) -> Evidence {
    let seen = Seen::ScriptAsked { job: None, offer: "local".into(), image: None };
    Evidence { mac: Some(MAC), boot: Some(BootId(boot)), ..Evidence::new(at(0), seen) }
}

#[test]
fn a_way_to_the_disk_that_came_back_is_not_the_first_next_time() {
    let book = Published::new();
    let begins = || {
        let who = Identity { mac: Some(MAC), ..Identity::default() };
        book.load().standing(&who).map_or(0, |standing| standing.local_boot)
    };
    let proven = || book.book().machine_with(&Ident::Mac(MAC)).unwrap().local_proven;
    let back = |boot: u64, strategy: &str| {
        let seen = Seen::LocalBack { strategy: strategy.into() };
        Evidence { mac: Some(MAC), boot: Some(BootId(boot)), ..Evidence::new(at(0), seen) }
    };
    book.note(&sent_home(1), at(0));
    // The same boot asking twice, by another card say.
    book.note(&sent_home(2), at(1));
    assert_eq!(begins(), 0);
    book.note(&back(1, "first-disk"), at(2));
    book.note(&back(2, "warp"), at(2));
    assert_eq!(begins(), 0, "not the boot that was sent to its disk last, and no way at all");
    book.note(&back(2, "first-disk"), at(2));
    assert_eq!(begins(), 1);
    // Left by the second way, and back at once: that was none either.
    book.note(&sent_home(3), at(40));
    assert_eq!((begins(), proven()), (2, false));
    book.note(&sent_home(4), at(1_000));
    assert_eq!((begins(), proven()), (2, true), "it stayed away, so that way works");
    // One quick return may be a person; two in a row are not.
    book.note(&sent_home(5), at(1_030));
    assert_eq!((begins(), proven()), (2, true));
    book.note(&sent_home(6), at(1_060));
    assert_eq!((begins(), proven()), (0, false), "and after the last way comes the first");
    // Somebody gives it an image and starts it again: that says nothing about the disk.
    let seen = Seen::ScriptAsked { job: None, offer: "image".into(), image: None };
    let elsewhere = Evidence { mac: Some(MAC), boot: Some(BootId(7)), ..Evidence::new(at(0), seen) };
    book.note(&elsewhere, at(1_090));
    assert_eq!(begins(), 0);
    // A token that reports without end moves no more than its list is long.
    book.note(&sent_home(8), at(2_000));
    let before = book.book().machine_with(&Ident::Mac(MAC)).unwrap().generation;
    for _ in 0..10 {
        book.note(&back(8, "first-disk"), at(2_001));
        book.note(&back(8, "second-disk"), at(2_001));
    }
    assert!(book.book().machine_with(&Ident::Mac(MAC)).unwrap().generation <= before + 3);
    let any_unknown = Selector::Rule(serde_json::from_str(r#"{"any_unknown": true}"#).unwrap());
    book.add(JobSpec { always: true, ..JobSpec::new(Action::Wait, any_unknown) }, &library(), at(3_000))
        .unwrap();
    book.note(&sent_home(9), at(3_000));
    book.note(&back(9, "first-disk"), at(3_001));
    assert_eq!(begins(), 1);
    let who = Identity { mac: Some(MAC), ..Identity::default() };
    assert!(matches!(book.load().decide(&who), Decision::Job(_)), "it is unknown as before");
}

#[test]
fn a_once_only_answer_under_a_rule_is_remembered_with_the_machine() {
    let book = Published::new();
    let job = book.add(boot_by(Selector::Any, "fine"), &library(), at(0)).unwrap();
    let once = |boot: u64| AtTheLine { once: Some((MAC, "a.xml".into())), ..line(boot, job.id, "fine") };
    assert_eq!(book.pass(&once(1), at(1)), Passage::Denied(Denial::NotOnRecord));
    book.note(&sent_home(1), at(1));
    assert_eq!(book.pass(&once(1), at(2)), Passage::Now);
    assert_eq!(book.pass(&once(1), at(3)), Passage::Denied(Denial::GivenBefore));
    assert_eq!(book.pass(&once(2), at(4)), Passage::Now);
    let other = AtTheLine { image: "wiping".into(), ..once(3) };
    assert_eq!(book.pass(&other, at(5)), Passage::Denied(Denial::OtherImage));
    assert_eq!(book.job(job.id).unwrap().stage, Stage::Armed, "an answer file passes no point of no return");
}

fn boot_by(selector: Selector, image: &str) -> JobSpec {
    JobSpec::new(Action::Image(image.into()), selector)
}

#[test]
fn a_boot_that_does_not_call_back_is_said_to_have_not_and_nothing_is_granted_again() {
    let (book, id) = with_job(JobSpec { confirm: Confirm::Callback, ..boot("wiping") });
    let rule = JobSpec { confirm: Confirm::Callback, ..boot_by(Selector::Any, "fine") };
    let rule = book.add(rule, &library(), at(0)).unwrap().id;
    assert_eq!(book.pass(&line(1, id, "wiping"), at(1)), Passage::Now);
    let other = Evidence { mac: Some(MacAddr([2, 0, 0, 0, 0, 9])), ..asked(2, rule) };
    book.note(&other, at(1));
    assert_eq!(book.pass(&line(2, rule, "fine"), at(1)), Passage::Now);
    book.expire(at(1_700));
    assert!(!book.job(id).unwrap().reason.contains("call-back"), "the window is not over");
    book.expire(at(1_900));
    let job = book.job(id).unwrap();
    assert_eq!(job.stage, Stage::Running);
    assert!(job.reason.starts_with("no call-back came within 30 minutes"), "{}", job.reason);
    let claim = book.book().claims(rule).next().cloned().unwrap();
    assert!(claim.stage == Stage::Running && claim.reason.starts_with("no call-back came"), "{claim:?}");
    assert_ne!(book.load().decide(&who()).job().map(|job| job.id), Some(id), "and no second grant");
    book.expire(at(9_000));
    assert_eq!(book.job(id).unwrap().generation, job.generation, "said once");
    let late = Evidence { boot: Some(BootId(1)), ..Evidence::new(at(0), Seen::CalledBack { job: id }) };
    book.note(&late, at(9_001));
    assert_eq!(book.job(id).unwrap().stage, Stage::Confirmed, "late is better than never");
}

#[test]
fn a_stranger_who_shows_one_uuid_for_every_machine_joins_a_few_of_them() {
    let book = Published::new();
    let one: Uuid = "4c4c4544-0042-3510-8052-b4c04f564231".parse().unwrap();
    let mac = |n: u16| MacAddr([2, 0, 0, 9, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    let seen = |n: u16, uuid: Option<Uuid>, seen: Seen| Evidence {
        mac: Some(mac(n)),
        uuid,
        boot: Some(BootId(u64::from(n) + 1)),
        ..Evidence::new(at(0), seen)
    };
    let script = || Seen::ScriptAsked { job: None, offer: "menu".into(), image: None };
    let dhcp = || Seen::DhcpOffered {
        asker: crate::jobs::evidence::Asker::Firmware,
        arch: None,
        relay: None,
        file: "x".into(),
    };
    for n in 0..500 {
        book.note(&seen(n, None, script()), at(1));
    }
    assert_eq!(book.book().machines().count(), 500);
    for n in 0..500 {
        book.note(&seen(n, Some(one), dhcp()), at(2));
    }
    let most = book.book().machines().map(|machine| machine.parts.len()).max();
    assert_eq!(most, Some(32));
    assert_eq!(book.book().machines().count(), 500 - 30, "the others stay what they were");
}

#[test]
fn what_boots_every_time_boots_nothing_that_has_become_what_wipes() {
    let book = Published::new();
    let id = book.add(JobSpec { always: true, ..boot("fine") }, &library(), at(0)).unwrap().id;
    let line = |changed| AtTheLine {
        boot: BootId(1),
        job: id,
        image: "fine".into(),
        what: "the last of k".into(),
        idents: Vec::new(),
        once: None,
        changed,
    };
    assert_eq!(book.pass(&line(false), at(1)), Passage::Before);
    assert_eq!(book.pass(&line(true), at(1)), Passage::Denied(Denial::ImageChanged));
}
