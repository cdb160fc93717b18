//! A decision of the job table takes no memory from the allocator, whoever asks.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::SystemTime;

use bootstorm::jobs::Identity;
use bootstorm::jobs::job::{Action, Job, JobId, JobSpec, Selector};
use bootstorm::jobs::machine::MachineId;
use bootstorm::jobs::table::table;
use bootstorm::jobs::table::{Decision, Entry, Key, Standing};
use bootstorm::wire::{Arch, MacAddr, Uuid};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all the work; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn job(id: u64, selector: Selector) -> Arc<Job> {
    let always = !selector.is_exact();
    let spec = JobSpec { always, ..JobSpec::new(Action::Local, selector) };
    Arc::new(Job::new(JobId(id), &spec, false, SystemTime::UNIX_EPOCH))
}

#[test]
fn decisions_allocate_nothing() {
    let (table, mut writer) = table(0);
    let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    let rule =
        |id: u64, json: &str| job(id, Selector::Rule(serde_json::from_str(json).expect("a good rule")));
    let rules = vec![
        rule(10, r#"{"group": "lab", "arch": [7]}"#),
        rule(11, r#"{"subnet": "10.77.0.0/24", "product": "Box"}"#),
        rule(12, r#"{"manufacturer": "Maker", "circuit": "eth0"}"#),
        rule(13, r#"{"any_unknown": true, "arch": [0]}"#),
    ];
    let standing = Arc::new(Standing {
        spent: vec![Arc::clone(&rules[0])],
        groups: vec!["lab".into()],
        ..Standing::new(MachineId(1))
    });
    writer.put(Key::Mac(mac), Some(Entry { grants: Vec::new(), machine: Some(standing) }));
    let serial = job(1, Selector::Serial("S-1".into()));
    writer.put(Key::Serial("S-1"), Some(Entry { grants: vec![serial], machine: None }));
    writer.set_rules(rules);

    let known = Identity {
        mac: Some(mac),
        uuid: Some(Uuid([0x41, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])),
        manufacturer: Some("MAKER".into()),
        product: Some("box ".into()),
        arch: Some(Arch(7)),
        address: Some([10, 77, 0, 9].into()),
        ..Identity::default()
    };
    let elsewhere = Identity { address: None, ..known.clone() };
    let exact = Identity { serial: Some(" S-1".into()), ..known.clone() };
    let stranger = Identity { arch: Some(Arch(0)), ..Identity::default() };
    // A thread's first pin makes its own record in the collector.
    drop(table.view());
    for (who, expected) in [(&known, 11), (&exact, 1), (&stranger, 13), (&elsewhere, 10)] {
        let before = ALLOCATIONS.with(Cell::get);
        let mut decided = None;
        for _ in 0..1_000 {
            let view = table.view();
            decided = match view.decide(who) {
                Decision::Job(job) | Decision::Done(job) => Some(job.id.0),
                Decision::Rejected | Decision::NoJob => None,
            };
            view.standing(who);
        }
        assert_eq!(ALLOCATIONS.with(Cell::get), before, "{who:?}");
        assert_eq!(decided, Some(expected), "{who:?}");
    }
}
